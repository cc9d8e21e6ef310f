import json
from dataclasses import replace

import pytest
import torch
import world

from kdpl.class_vectors import KIND, VERSION, ClassVectors
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import write_tensors


@pytest.fixture(scope="module")
def vectors():
    return world.frozen_vectors()


def same(one, other):
    return torch.equal(one.vectors, other.vectors) and one.fields() == other.fields()


@pytest.mark.parametrize("changes", [{}, {"num_base": None, "context": None}])
def test_they_come_back_as_they_were_saved(changes, vectors, tmp_path):
    saved = replace(vectors, **changes)
    saved.save(tmp_path / "class_vectors.safetensors")
    read = ClassVectors.load(tmp_path / "class_vectors.safetensors")
    assert same(read, saved)
    assert replace(read, vectors=saved.vectors) == saved


def test_the_file_says_where_they_come_from(vectors, tmp_path):
    vectors.save(tmp_path / "v.safetensors")
    raw = (tmp_path / "v.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["class_vectors"]["dtype"] == "F32"
    assert header["class_vectors"]["shape"] == [5, 24]
    said = json.loads(header["__metadata__"]["kdpl"])
    assert said["kind"] == "class vectors"
    assert said["version"] == 1
    assert said["class_names"] == list(world.NAMES)
    assert said["num_base"] == 3
    assert said["clip"] == {
        "model": "test-teacher-quickgelu",
        "pretrained": world.TAG,
        "quick_gelu": True,
        "fingerprint": vectors.clip.fingerprint,
    }
    assert said["logit_scale"] == pytest.approx(30)
    assert said["context"] == "a photo of a"
    assert said["preprocessing"]["image_size"] == 32
    assert said["teacher"] == vectors.teacher


def refused(call, match):
    with world.refused(ArtifactError, match):
        call()


class TestRefusals:
    def test_an_unknown_version(self, vectors, tmp_path):
        path = tmp_path / "v.safetensors"
        write_tensors(path, KIND, VERSION + 1, {"class_vectors": vectors.vectors}, vectors.fields())
        refused(lambda: ClassVectors.load(path), r"v\.safetensors has format version 2, this kdpl reads version 1")

    def test_a_file_without_the_tensor(self, vectors, tmp_path):
        path = tmp_path / "v.safetensors"
        write_tensors(path, KIND, VERSION, {"vectors": vectors.vectors}, vectors.fields())
        refused(lambda: ClassVectors.load(path), r"v\.safetensors has no tensor named class_vectors")

    @pytest.mark.parametrize(
        "change",
        [
            lambda v: v[:4],
            lambda v: v.half(),
            lambda v: v.double(),
            lambda v: v.flatten(),
            lambda v: v[:, None],
        ],
    )
    def test_vectors_of_another_shape_or_type(self, change, vectors):
        wrong = change(vectors.vectors)
        match = r"here holds class vectors of type .* for 5 class names, expected float32 \[5, D\]"
        refused(lambda: ClassVectors.from_fields(wrong, vectors.fields(), "here"), match)

    @pytest.mark.parametrize("factor", [0.0, 0.99, 1.01, float("nan")])
    def test_vectors_that_are_not_normalised(self, factor, vectors):
        wrong = vectors.vectors.clone()
        wrong[3] *= factor
        match = "here holds class vectors that are not normalised"
        refused(lambda: ClassVectors.from_fields(wrong, vectors.fields(), "here"), match)

    @pytest.mark.parametrize(
        ("names", "match"),
        [
            (world.NAMES[:4], "it has 5 classes, the data has 4"),
            ((*world.NAMES, "eel"), "it has 5 classes, the data has 6"),
            (("sea_horse", "Crab", *world.NAMES[2:]), "class 1 is 'crab' there and 'Crab' in the data"),
            ((*world.NAMES[:3], *world.NAMES[:2:-1]), "class 3 is 'squid' there and 'star_fish' in the data"),
        ],
    )
    def test_other_class_names(self, names, match, vectors):
        match = rf"class vectors of here are for other class names \({match}\): freeze .*stage 1"
        refused(lambda: vectors.require_names(names, "here"), match)


def test_the_same_names_are_accepted(vectors):
    vectors.require_names(list(world.NAMES), "here")
