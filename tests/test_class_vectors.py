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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_base": None, "context": None},
        {"class_texts": (*"abcd", "e, of the sea")},
        {"class_texts": (*"abc", ("d", "of the sea"), ("e", "f", "g"))},
    ],
)
def test_they_come_back_as_they_were_saved(changes, vectors, tmp_path):
    saved = replace(vectors, **changes)
    saved.save(tmp_path / "v.safetensors")
    read = ClassVectors.load(tmp_path / "v.safetensors")
    assert torch.equal(read.vectors, saved.vectors)
    assert {**vars(read), "vectors": None} == {**vars(saved), "vectors": None}


def test_the_file_says_where_they_come_from(vectors, tmp_path):
    vectors.save(tmp_path / "v.safetensors")
    raw = (tmp_path / "v.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert (header["class_vectors"]["dtype"], header["class_vectors"]["shape"]) == ("F32", [5, 24])
    told = json.loads(header["__metadata__"]["kdpl"])
    assert (told.pop("kind"), told.pop("version")) == ("class vectors", 1)
    assert told == json.loads(json.dumps(vectors.fields()))
    # of several labels alone
    assert not {"scales", "biases"} & told.keys()


@pytest.mark.parametrize(
    ("texts", "field"),
    [([1], r"0\.text"), ([["a", 2]], r"0\.texts\.1"), ([[]], r"0\.texts")],
)
def test_texts_of_another_kind_are_refused(texts, field, vectors):
    fields = {**vectors.fields(), "class_texts": texts}
    with world.refused(ArtifactError, f"here .*'class_texts.{field}'"):
        ClassVectors.from_fields(vectors.vectors, fields, "here")


def test_a_file_without_the_tensor_is_refused(vectors, tmp_path):
    write_tensors(tmp_path / "v", KIND, VERSION, {"vectors": vectors.vectors}, vectors.fields())
    with world.refused(ArtifactError, "v has no tensor named class_vectors"):
        ClassVectors.load(tmp_path / "v")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v[:4], r"expected float32 \[5, D\]"),
        (lambda v: v.double(), r"expected float32 \[5, D\]"),
        (lambda v: v * torch.tensor([1, 1, 1, 1.01, 1])[:, None], "not normalised"),
        (lambda v: v * torch.tensor([1, 1, 1, float("nan"), 1])[:, None], "not normalised"),
        (lambda v: v[:, :0], "not normalised"),
    ],
)
def test_tensors_that_are_no_class_vectors_are_refused(change, match, vectors):
    with world.refused(ArtifactError, match):
        ClassVectors.from_fields(change(vectors.vectors), vectors.fields(), "here")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (world.NAMES[:4], "it has 5 classes, the data has 4"),
        (("sea_horse", "Crab", *world.NAMES[2:]), "class 1 is 'crab' there and 'Crab' in the data"),
        ((*world.NAMES[:3], *world.NAMES[:2:-1]), "class 3 is 'squid' there and 'star_fish'"),
    ],
)
def test_other_class_names_are_refused(names, match, vectors):
    vectors.require_names(list(world.NAMES), "here")
    with world.refused(ArtifactError, rf"here are for other class names \({match}"):
        vectors.require_names(names, "here")
