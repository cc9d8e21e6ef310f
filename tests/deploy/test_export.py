import json

import onnx
import onnxruntime
import pytest
import torch
import world

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.clip.loading import ClipConfig, load_image_clip
from kdpl.deploy.export import METADATA_FILE, compare, metadata, write_int8_onnx, write_onnx, write_program
from kdpl.prompts.label_head import LabelHead
from kdpl.prompts.student_encoder import StudentEncoder

KINDS = {"test-student": (3, 24), "test-resnet": (0, 24), "test-timm": (0, None), "timm:test_resnet": (0, 24)}
"""Depth of the prompts and width of the projector by model."""


def make_classifier(name, labels=False):
    depth, out_dim = KINDS[name]
    config = ClipConfig(name, "random", image_size=32) if name.startswith("timm:") else ClipConfig(name, world.TAG)
    clip = load_image_clip(config)
    torch.manual_seed(0)
    encoder = StudentEncoder(clip.image_tower, 2, depth, out_dim)
    teacher = "test-teacher-quickgelu" if out_dim else "test-student"
    vectors = world.frozen_vectors(teacher)
    head = world.disturbed(LabelHead(vectors.vectors, 17.0, 0.3, 2.0), 0.5) if labels else None
    return Classifier(encoder, vectors, 17.0, clip.identity, label_head=head)


def images_for(classifier, count):
    size = classifier.preprocessing.image_size
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def student():
    return make_classifier("test-student")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("write", "file", "input_type"), [(write_program, "c.pt2", "float"), (write_onnx, "c.onnx", "uint8")]
)
def test_a_file_is_the_classifier_for_every_architecture_and_batch_size(write, file, input_type, name, tmp_path):
    classifier, path = make_classifier(name), tmp_path / file
    write(classifier, input_type, path)
    images = images_for(classifier, 5)
    for batch in (images[:1], images):
        difference = compare(classifier, path, batch, input_type)
        assert difference.same == difference.images == len(batch)
        assert difference.logits < 1e-4
    if write is write_program:
        extra = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra[METADATA_FILE]) == metadata(classifier, input_type)


def test_onnx_of_floats_is_the_classifier_and_says_how_to_use_it(student, tmp_path):
    path, images = tmp_path / "c.onnx", images_for(student, 3)
    write_onnx(student, "float", path)
    session = onnxruntime.InferenceSession(path)
    (inputs,) = session.get_inputs()
    assert (inputs.name, inputs.type, inputs.shape) == ("images", "tensor(float)", ["batch", 3, 32, 32])
    outputs = {each.name: each.shape for each in session.get_outputs()}
    assert outputs == {"logits": ["batch", 5], "probabilities": ["batch", 5]}
    logits, probabilities = (torch.from_numpy(x) for x in session.run(None, {"images": (images / 255).numpy()}))
    assert torch.allclose(logits, student(images), atol=1e-4)
    assert torch.allclose(probabilities, student(images).softmax(dim=1), atol=1e-5)
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["class_names"]) == list(world.NAMES)
    assert (found["image_size"], found["logit_scale"], found["kdpl_version"]) == ("32", "17.0", __version__)
    assert json.loads(found["decoding"]) == {"background": [255, 255, 255], "orientation": True}
    assert "short" in found["resize"]
    assert "float32 in 0..1" in found["input"]
    assert "/kdpl/" not in onnx.load(path).SerializeToString().decode("latin-1")


def test_onnx_of_two_heads_is_their_mixture(tmp_path):
    classifier = make_classifier("test-student", labels=True)
    path, images = tmp_path / "c.onnx", images_for(classifier, 4)
    write_onnx(classifier, "uint8", path)
    assert compare(classifier, path, images, "uint8").logits < 1e-4
    _, probabilities = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(probabilities), classifier(images).exp(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
def test_8_bits_are_used_except_for_the_heads(labels, tmp_path):
    student = make_classifier("test-student", labels)
    images = images_for(student, 40)
    write_int8_onnx(student, "uint8", tmp_path / "q.onnx", images)
    difference = compare(student, tmp_path / "q.onnx", images, "uint8")
    assert difference.agreement >= 0.8  # the weights are random, so the classes are close
    assert 1e-4 < difference.logits < 3
    model = onnx.load(tmp_path / "q.onnx")
    weights = {each.name: each.data_type for each in model.graph.initializer}
    assert list(weights.values()).count(onnx.TensorProto.INT8) >= 10
    heads = [each.data_type for each in model.graph.initializer if sorted(each.dims) == [5, 24]]
    assert heads == [onnx.TensorProto.FLOAT] * (1 + labels)
    scales = [each for each in model.graph.initializer if each.name.endswith("_scale")]
    assert any(len(each.dims) == 1 and each.dims[0] > 1 for each in scales), "no weight is scaled by channel"
    assert {each.key: each.value for each in model.metadata_props} == metadata(student, "uint8")


@pytest.mark.parametrize("damage", [-1.0, float("nan")])
def test_a_file_that_differs_from_the_classifier_is_seen(damage, student, tmp_path):
    images = images_for(student, 30)
    write_program(student, "uint8", tmp_path / "c.pt2")
    other = make_classifier("test-student")
    with torch.no_grad():
        other.head.class_vectors[0] *= damage
    difference = compare(other, tmp_path / "c.pt2", images, "uint8")
    expected, found = other(images), student(images)
    assert difference.same == int((expected.argmax(1) == found.argmax(1)).sum())
    assert difference.logits == pytest.approx((expected - found).abs().max().item(), rel=1e-3, nan_ok=True)
