import json
from collections import Counter
from dataclasses import replace

import onnx
import onnxruntime
import openvino
import pytest
import torch
import world

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.classifier.export import compare, metadata
from kdpl.classifier.formats.onnx import load_onnx, write_onnx
from kdpl.classifier.formats.onnx_files import write_int8_onnx
from kdpl.classifier.formats.registry import formats
from kdpl.classifier.formats.runtime_files import (
    METADATA_FILE,
    OPENVINO_FILE,
    load_executorch,
    load_openvino,
    load_program,
    write_executorch,
    write_openvino,
    write_program,
)
from kdpl.clip.loading import ClipConfig, load_image_clip
from kdpl.prompts.student_encoder import StudentEncoder

KINDS = {
    "test-student": (3, 24),
    "test-resnet": (0, 24),
    "test-timm": (0, None),
    "timm:test_resnet": (0, 24),
}
"""Depth of the prompts and width of the projector by model."""

FORMATS = formats()


def make_classifier(name):
    depth, out_dim = KINDS[name]
    config = (
        ClipConfig(name, "random", image_size=32)
        if name.startswith("timm:")
        else ClipConfig(name, world.TAG)
    )
    clip = load_image_clip(config)
    torch.manual_seed(0)
    encoder = StudentEncoder(clip.image_tower, 2, depth, out_dim)
    teacher = "test-teacher-quickgelu" if out_dim else "test-student"
    vectors = world.frozen_vectors(teacher)
    return Classifier(encoder, vectors, 17.0, clip.identity)


def images_for(classifier, count):
    size = classifier.preprocessing.image_size
    return torch.randint(
        256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


@pytest.fixture(scope="module")
def student():
    return make_classifier("test-student")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("kind", "input_type"),
    [("torch", "float"), ("onnx", "uint8"), ("openvino", "float"), ("executorch", "uint8")],
)
def test_a_file_is_the_classifier_for_every_architecture_and_batch_size(
    kind, input_type, name, tmp_path
):
    classifier, path = make_classifier(name), tmp_path / f"c{FORMATS[kind].ending}"
    FORMATS[kind].write(classifier, input_type, path)
    run, images = FORMATS[kind].load(path), images_for(classifier, 5)
    for batch in (images[:1], images):
        difference = compare(classifier, run, batch, input_type)
        assert difference.same == difference.images == len(batch)
        # the random weights of test-timm amplify the rounding of XNNPACK
        assert difference.logits < (1e-3 if kind == "executorch" else 1e-4)
    if kind == "torch":
        extra = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra[METADATA_FILE]) == metadata(classifier, input_type)


def test_onnx_of_floats_is_the_classifier_and_says_how_to_use_it(student, tmp_path):
    path, images = tmp_path / "c.onnx", images_for(student, 3)
    write_onnx(student, "float", path)
    session = onnxruntime.InferenceSession(path)
    (inputs,) = session.get_inputs()
    assert (inputs.name, inputs.type, inputs.shape) == (
        "images",
        "tensor(float)",
        ["batch", 3, 32, 32],
    )
    outputs = {each.name: each.shape for each in session.get_outputs()}
    assert outputs == {"logits": ["batch", 5], "probabilities": ["batch", 5]}
    logits, probabilities = (
        torch.from_numpy(x) for x in session.run(None, {"images": (images / 255).numpy()})
    )
    assert torch.allclose(logits, student(images), atol=1e-4)
    assert torch.allclose(probabilities, student(images).softmax(dim=1), atol=1e-5)
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["class_names"]) == list(world.NAMES)
    assert (found["image_size"], found["logit_scale"], found["kdpl_version"]) == (
        "32",
        "17.0",
        __version__,
    )
    assert json.loads(found["decoding"]) == {"background": [255, 255, 255], "orientation": True}
    assert "short" in found["resize"]
    assert "float32 in 0..1" in found["input"]
    assert "/kdpl/" not in onnx.load(path).SerializeToString().decode("latin-1")


@pytest.mark.slow
def test_8_bits_are_used_where_most_of_the_time_goes(tmp_path):
    student = make_classifier("test-student")
    images = images_for(student, 40)
    write_int8_onnx(student, "uint8", tmp_path / "q.onnx", images)
    difference = compare(student, load_onnx(tmp_path / "q.onnx"), images, "uint8")
    assert difference.agreement >= 0.8  # the weights are random, so the classes are close
    assert 1e-4 < difference.logits < 3
    model = onnx.load(tmp_path / "q.onnx")
    weights = {each.name: each.data_type for each in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = Counter()
    for node in [each for each in model.graph.node if each.op_type in ("Conv", "Gemm", "MatMul")]:
        data, weight = (makers.get(each) for each in node.input[:2])
        stored = weights.get(node.input[1] if weight is None else weight.input[0])
        found[data.op_type == "DequantizeLinear" and weight is not None, stored] += 1
    types = onnx.TensorProto
    # 13 with a row for each token; 7 with one for each image, and the first convolution; the heads; 8 within attention
    assert found == {
        (True, types.INT8): 13,
        (False, types.FLOAT16): 8,
        (False, types.FLOAT): 1,
        (False, None): 8,
    }
    heads = [each.data_type for each in model.graph.initializer if sorted(each.dims) == [5, 24]]
    assert heads == [onnx.TensorProto.FLOAT]
    scales = [each for each in model.graph.initializer if each.name.endswith("_scale")]
    assert any(len(each.dims) == 1 and each.dims[0] > 1 for each in scales), (
        "no weight is scaled by channel"
    )
    assert {each.key: each.value for each in model.metadata_props} == metadata(student, "uint8")


def test_products_compute_in_16_bits_except_for_the_head(student, tmp_path):
    kind, stored, path = "onnx-fp16", onnx.TensorProto.FLOAT16, tmp_path / "h.onnx"
    images = images_for(student, 20)
    FORMATS[kind].write(student, "uint8", path)
    assert 1e-4 < compare(student, FORMATS[kind].load(path), images, "uint8").logits < 0.05
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    weights = {each.name: each for each in model.graph.initializer}
    types = {name: each.data_type for name, each in weights.items()}
    types |= {
        node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"
    }
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    whole = [node for node in products if {types.get(name) for name in node.input} != {stored}]
    assert len(products) > len(whole) + 10
    assert [sorted(weights[node.input[1]].dims) for node in whole] == [[5, 24]]
    assert {each.key: each.value for each in model.metadata_props} == metadata(student, "uint8")


def named_oddly():
    student = make_classifier("test-student")
    student.vectors = replace(student.vectors, class_names=('a "b"', "<c> & d", "é", "\\", "]]>"))
    return student


def test_openvino_holds_metadata_and_probabilities(tmp_path):
    student, folder = named_oddly(), tmp_path / "c"
    images = images_for(student, 4)
    write_openvino(student, "float", folder)
    assert compare(student, load_openvino(folder), images, "float").logits < 1e-4
    core = openvino.Core()
    model = core.read_model(folder / OPENVINO_FILE)
    assert json.loads(model.get_rt_info("kdpl").value) == metadata(student, "float")
    assert [each.get_any_name() for each in model.inputs + model.outputs] == [
        "images",
        "logits",
        "probabilities",
    ]
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    probabilities = core.compile_model(model, "CPU", hints)((images / 255).numpy())["probabilities"]
    assert torch.allclose(
        torch.from_numpy(probabilities), student(images).softmax(dim=1), atol=1e-5
    )


@pytest.mark.slow
def test_executorch_holds_metadata_and_probabilities(tmp_path):
    from executorch.runtime import Runtime

    student, path = named_oddly(), tmp_path / "c.pte"
    images = images_for(student, 4)
    write_executorch(student, "uint8", path)
    assert compare(student, load_executorch(path), images, "uint8").logits < 1e-4
    program = Runtime.get().load_program(path)
    (about,) = program.load_method("metadata").execute([])
    assert json.loads(about) == metadata(student, "uint8", batch="1")
    assert json.loads(about)["input"] == "RGB, [1, 3, image_size, image_size], uint8 in 0..255"
    _, probabilities = program.load_method("forward").execute([images[:1]])
    assert torch.allclose(probabilities, student(images[:1]).softmax(dim=1), atol=1e-5)


def with_unknown(student, cutoff=0.0):
    unknown = pytest.importorskip("kdpl.confidence.unknown")
    vectors = student.head.class_vectors
    student.companions["unknown"] = unknown.Unknown.fit(
        student.embed(images_for(student, 40)), vectors, student.logit_scale
    )
    student.companions["unknown"].cutoff = cutoff
    return student


@pytest.mark.parametrize(
    "kind", ["torch", "onnx", "openvino", pytest.param("executorch", marks=pytest.mark.slow)]
)
def test_the_score_of_none_of_the_classes_is_compared_as_well(kind, tmp_path):
    given, other = (with_unknown(make_classifier("test-student"), cutoff) for cutoff in (0.0, 3.0))
    path, images = tmp_path / f"c{FORMATS[kind].ending}", images_for(given, 40)
    FORMATS[kind].write(given, "uint8", path)
    run = FORMATS[kind].load(path)
    none_of_these = pytest.importorskip("kdpl.confidence.unknown").none_of_these
    expected, found = (none_of_these(each, images) for each in (given, other))
    same = compare(given, run, images, "uint8")
    assert (same.same, same.same_side) == (40, 40)
    assert same.within(1e-4)
    differs = compare(other, run, images, "uint8")
    assert differs.same == 40
    assert differs.logits < 1e-4
    assert differs.scores == pytest.approx((expected - found).abs().max().item(), abs=1e-3)
    assert differs.same_side == int(((expected > 0.5) == (found > 0.5)).sum()) < 30
    assert differs.agreement == differs.same_side / 40
    assert not differs.within(1e-4)
    assert f"unknown on the same side of 0.5 for {differs.same_side} (" in str(differs)


def test_no_product_of_constants_is_rounded(tmp_path):
    FORMATS["onnx-fp16"].write(
        with_unknown(make_classifier("test-student")), "uint8", tmp_path / "h.onnx"
    )
    graph = onnx.load(tmp_path / "h.onnx").graph
    halves = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16}
    assert len(halves) > 10
    assert [node.name for node in graph.node if halves.issuperset(node.input)] == []


def test_a_score_that_is_no_number_is_on_no_side():
    given = with_unknown(make_classifier("test-student"))

    def run(images):
        logits = given(images)
        return logits, logits.softmax(dim=1), torch.full((len(images),), float("nan"))

    difference = compare(given, run, images_for(given, 5), "uint8")
    assert (difference.same, difference.same_side) == (5, 0)
    assert not difference.within(1e9)


@pytest.fixture(scope="module")
def program(student, tmp_path_factory):
    """The student as a program of torch."""
    path = tmp_path_factory.mktemp("program") / "c.pt2"
    write_program(student, "uint8", path)
    return path


@pytest.mark.parametrize("damage", [-1.0, float("nan")])
def test_a_file_that_differs_from_the_classifier_is_seen(damage, student, program):
    images = images_for(student, 30)
    other = make_classifier("test-student")
    with torch.no_grad():
        other.head.class_vectors[0] *= damage
    difference = compare(other, load_program(program), images, "uint8")
    expected, found = other(images), student(images)
    assert difference.same == int((expected.argmax(1) == found.argmax(1)).sum())
    assert difference.logits == pytest.approx(
        (expected - found).abs().max().item(), rel=1e-3, nan_ok=True
    )
