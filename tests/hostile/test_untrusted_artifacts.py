"""Artifacts crafted on purpose: each is refused in one sentence that names the file and its own remedy."""

import json
import re
import struct
from functools import partial, reduce

import pytest
import torch
import world
from safetensors.torch import load_file, save_file

from kdpl.class_vectors import KIND as VECTORS_KIND
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.errors import KdplError
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.artifacts import write_tensors

DEEP = "[" * 10_000 + "]" * 10_000
# none of a kind that some field has
VALUES = ("-7", "NaN", "[1]", '{"a": 1}', "1" * 4000, json.dumps("x" * 1_000_000), DEEP)
OPTIONAL = ("num_base", "context", "class_texts", "resize_mode", "interpolation", "text.length")
"""Fields that may be null or missing, as may those of the decoding."""


def refused(call, path, remedy):
    with world.refused(KdplError, re.escape(remedy)) as error:
        call()
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def paths_of(fields, prefix=""):
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, dict) and name != "image_config":
            yield from paths_of(value, f"{prefix}{name}.")


def invalid(fields):
    """The fields as JSON with one of them left out, null, or with values of another kind, four of them in turns."""
    for number, path in enumerate(paths_of(fields)):
        *outer, name = path.split(".")
        values = [VALUES[(4 * number + i) % len(VALUES)] for i in range(4)]
        optional = path.endswith(OPTIONAL) or path.startswith("decoding")
        values += [] if optional else ["null", None]
        # what might be taken for a number
        is_number = type(reduce(dict.__getitem__, outer, fields)[name]) in (int, float)
        values += ["true", '"7"'] if is_number else []
        for value in values:
            copy = json.loads(json.dumps(fields))
            inner = reduce(dict.__getitem__, outer, copy)
            inner[name] = "@here@"
            if value is None:
                del inner[name]
            yield json.dumps(copy).replace('"@here@"', str(value))


def header_of(path):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["kdpl"])


@pytest.fixture(scope="module")
def vectors():
    return world.frozen_vectors(
        class_texts=("a crab", ("a horse", "pony"), "c", "d", "e, of the sea")
    )


@pytest.fixture(scope="module")
def prompts():
    return world.tuned_prompts({"vision_prompts.tokens": torch.randn(2, 3, 48)})


@pytest.fixture
def classifier_folder(tmp_path, vectors, clip_of):
    clip = clip_of("test-student")
    encoder = StudentEncoder(clip.image_tower, 2, 2, vectors.vectors.shape[1])
    Classifier(encoder, vectors, clip.logit_scale, clip.identity).save(tmp_path / "c")
    return tmp_path / "c"


def test_every_invalid_field_of_class_vectors_and_prompts_is_refused(vectors, prompts, tmp_path):
    path = tmp_path / "v.safetensors"
    for artifact, tensors, teacher in (
        (vectors, {"class_vectors": vectors.vectors}, {}),
        (prompts, dict(prompts.tensors), {"teacher": prompts.teacher}),
    ):
        artifact.save(path)
        for header in invalid(header_of(path) | teacher):
            # a text that fits makes another fingerprint, as the words of the context and the method do
            save_file(tensors, path, metadata={"kdpl": header})
            refused(partial(type(artifact).load, path), path, ": ")


def test_every_invalid_field_of_a_classifier_is_refused_with_its_remedy(classifier_folder):
    path, load = classifier_folder / "classifier.json", partial(Classifier.load, classifier_folder)
    for text in invalid(json.loads(path.read_text())):
        path.write_text(text)
        refused(load, classifier_folder, "give the classifier folder of a")


@pytest.mark.parametrize(
    "last", [(), (5,), (None,), ("",), ("a\nb",), ("\u202egpj",), ("x" * 9999,)]
)
def test_class_names_that_cannot_be_shown_or_counted_are_refused(last, vectors, tmp_path):
    path, fields = tmp_path / "v.safetensors", vectors.fields()
    fields["class_names"] = ["a", "b", "c", "d", *last]
    write_tensors(path, VECTORS_KIND, 1, {"class_vectors": vectors.vectors}, fields)
    refused(lambda: ClassVectors.load(path), path, "run stage 1 again")


HELD_OUT = HeldOutScores(1.5, *torch.rand(2, 3), torch.ones(3, dtype=torch.bool))


def test_every_invalid_field_of_held_out_scores_is_refused(tmp_path):
    path, read = tmp_path / HeldOutScores.file, partial(HeldOutScores.read, tmp_path, "ab")
    HELD_OUT.save(tmp_path, "ab")
    assert len(read()) == 3
    tensors = load_file(path)
    for header in invalid(header_of(path)):
        save_file(tensors, path, metadata={"kdpl": header})
        refused(read, path, ": ")


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": torch.tensor([1, 1, 1])},
        {"scores": None},
        {"scores": torch.rand(2)},
        {"scores": torch.rand(3, 1)},
        {"scores": torch.rand(3).half()},
        {name: getattr(HELD_OUT, name)[:0] for name in HeldOutScores.shapes},
    ],
)
def test_held_out_scores_that_cannot_be_are_refused(changes, tmp_path):
    path = tmp_path / HeldOutScores.file
    HELD_OUT.save(tmp_path, "ab")
    tensors, header = {**load_file(path), **changes}, json.dumps(header_of(path))
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, path, metadata={"kdpl": header})
    refused(partial(HeldOutScores.read, tmp_path, "ab"), path, "its tensors are invalid")


def raw(header, data=b"\0" * 64, length=None):
    """A safetensors file with this header, and perhaps another length of it than it has."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + data


def header_of_one(shape, offsets):
    return {"t": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "length 2^60": raw({}, length=2**60),
    "10^9 classes": raw(header_of_one(shape=(10**9, 512), offsets=(0, 2048 * 10**9))),
    "nested": raw(b'{"t":' + DEEP.encode() + b"}"),
    "no edges": raw(header_of_one(shape=(0, 5), offsets=(0, 0)), b""),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie_are_refused(header, classifier_folder, tmp_path):
    path = tmp_path / "v.safetensors"
    path.write_bytes(header)
    refused(lambda: ClassVectors.load(path), path, ": run stage 1 again")
    (classifier_folder / "model.safetensors").write_bytes(header)
    load = partial(Classifier.load, classifier_folder)
    refused(load, classifier_folder, "give the classifier folder of a student's")


@pytest.mark.parametrize(
    "settings",
    [
        {"embed_dim": 10**9},
        {"vision_cfg": {"timm_model_name": "hf-hub:somebody/model"}},
        {"vision_cfg": {"layers": [256] * 10_000}},
        {"text_cfg": {"hf_model_name": "somebody/model"}},
    ],
)
def test_a_tower_that_is_too_large_or_would_be_fetched_is_refused(settings, classifier_folder):
    path = classifier_folder / "classifier.json"
    config = json.loads(path.read_text())
    vision = {**config["image_config"]["vision_cfg"], **settings.pop("vision_cfg", {})}
    config["image_config"] = {**config["image_config"], "vision_cfg": vision, **settings}
    path.write_text(json.dumps(config))
    refused(lambda: Classifier.load(classifier_folder), classifier_folder, "is damaged")


def test_weights_that_are_not_finite_or_belong_nowhere_are_refused(classifier_folder):
    path = classifier_folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "tower.proj": torch.full_like(tensors["tower.proj"], float("nan"))}, path)
    refused(lambda: Classifier.load(classifier_folder), classifier_folder, "not finite")
    save_file({**tensors, "more": torch.ones(1)}, path)
    refused(lambda: Classifier.load(classifier_folder), classifier_folder, "'more' is unknown")


def test_names_that_would_break_the_sentence_that_quotes_them_are_escaped(prompts, tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, VECTORS_KIND, "\n", {"class_vectors": torch.zeros(1, 1)}, {})
    refused(lambda: ClassVectors.load(path), path, r"has format version \n, this kdpl reads")
    prompts.save(path)
    header = {"kind": "tuned prompts", **header_of(path)}
    save_file({"\n": torch.full((2,), float("nan"))}, path, metadata={"kdpl": json.dumps(header)})
    refused(lambda: TunedPrompts.load(path), path, r"holds a tensor '\n' that is not finite")
