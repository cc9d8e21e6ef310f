import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import world
from onnx import TensorProto, helper
from PIL.Image import fromarray

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.classifier.export import compare, metadata, write_golden
from kdpl.classifier.formats import openvino as openvino_files
from kdpl.classifier.formats.onnx import load_onnx
from kdpl.classifier.formats.onnx_files import _rare_and_frequent, write_int8_onnx
from kdpl.classifier.formats.onnx_preprocessing import preprocess_inside
from kdpl.classifier.formats.registry import FORMATS
from kdpl.clip.loading import ClipConfig, load_image_clip
from kdpl.data.augmentation import resize_and_crop
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.resizing import Resizing

KINDS = {
    "test-student": (3, 24),
    "test-resnet": (0, 24),
    "test-timm": (0, 24),
    "timm:test_resnet": (0, 24),
}
"""Depth of the prompts and width of the projector by model."""


def make_classifier(name):
    depth, out_dim = KINDS[name]
    config = ClipConfig(name, world.TAG)
    if name.startswith("timm:"):
        config = ClipConfig(name, "random", image_size=32)
    clip = load_image_clip(config)
    torch.manual_seed(0)
    encoder = StudentEncoder(clip.image_tower, 2, depth, out_dim)
    return Classifier(encoder, world.frozen_vectors(), 17.0, clip.identity)


def noise_for(classifier, count):
    size, draw = classifier.preprocessing.image_size, torch.Generator().manual_seed(3)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_files_are_the_classifier_for_every_architecture_and_batch_size(
    name, tmp_path, monkeypatch
):
    classifier = make_classifier(name)
    images = noise_for(classifier, 5)
    for kind, input_type in (("onnx", "float"), ("openvino", "float")):
        path = tmp_path / f"c{FORMATS[kind].ending}"
        FORMATS[kind].write(classifier, input_type, path)
        run = FORMATS[kind].load(path)
        for batch in (images[:1], images):
            difference = compare(classifier, run, batch, input_type)
            assert difference.same == difference.images == len(batch)
            assert difference.largest < 1e-4
        # an OpenVINO file is made of an ONNX file
        onnx_file = tmp_path / "c.onnx"
        monkeypatch.setattr(
            openvino_files, "write_onnx", lambda *args, file=onnx_file: shutil.copy(file, args[2])
        )


def test_onnx_is_the_classifier_and_says_how_to_use_it(classifier, exported):
    given, path = Classifier.load(classifier), exported("onnx")
    images = noise_for(given, 3)
    session = onnxruntime.InferenceSession(path)
    (put,) = session.get_inputs()
    assert (put.name, put.type, put.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == {"logits": ["batch", 10], "probabilities": ["batch", 10], "unknown": ["batch"]}
    logits, probabilities, _ = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    assert torch.allclose(logits, given(images), atol=1e-4)
    assert torch.allclose(probabilities, given(images).softmax(dim=1), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    # what it says is tested by the script in docs/export.md, which reads it
    assert about == metadata(given, "uint8")
    page = (Path(__file__).parents[3] / "docs/export.md").read_text(encoding="utf-8")
    (always,) = re.findall(r"^\| (`.*`) \| always \|$", page, re.MULTILINE)
    assert {*re.findall(r"\w+", always), "fingerprint"} <= about.keys()
    assert float(about["logit_scale"]) == given.logit_scale
    assert "uint8 in 0..255" in about["input"]
    assert "float32 in 0..1" in metadata(given, "float")["input"]
    # the folder of the package on this machine
    assert "/kdpl/" not in onnx.load(path).SerializeToString().decode("latin-1")


@pytest.mark.slow
def test_8_bits_are_used_where_most_of_the_time_goes(tmp_path):
    student = make_classifier("test-student")
    images = noise_for(student, 40)
    write_int8_onnx(student, "uint8", tmp_path / "q.onnx", images)
    difference = compare(student, load_onnx(tmp_path / "q.onnx"), images, "uint8")
    assert difference.agreement >= 0.8  # the weights are random, so the classes are close
    assert 1e-4 < difference.largest < 3
    model = onnx.load(tmp_path / "q.onnx")
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    counts, types = Counter(), onnx.TensorProto
    for node in products_of(model):
        data, weight = (makers.get(name) for name in node.input[:2])
        stored = weights.get(node.input[1] if weight is None else weight.input[0])
        assert stored != types.INT8 or data.op_type == "DequantizeLinear"
        counts[stored] += 1
    # 13 with a row for each token; 7 with one for each image, and the first convolution; the heads; 8 within attention
    assert counts == {types.INT8: 13, types.FLOAT16: 8, types.FLOAT: 1, None: 8}
    scales = [item for item in model.graph.initializer if item.name.endswith("_scale")]
    # weights are scaled by channel
    assert any(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales)
    assert {item.key: item.value for item in model.metadata_props} == metadata(student, "uint8")


def test_depthwise_convolutions_are_not_rounded_to_8_bits():
    convolutions = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 4, 1)
    )
    file = io.BytesIO()
    torch.onnx.export(convolutions, (torch.zeros(1, 3, 9, 9),), verbose=False).save(file)
    graph = onnx.load_from_string(file.getvalue()).graph
    nodes = [node.name for node in graph.node]
    rare, frequent = _rare_and_frequent(graph)
    assert (rare, frequent) == (nodes[:2], nodes[2:])


def products_of(model):
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def test_products_compute_in_16_bits_except_for_the_heads(classifier, exported):
    given, path, half = Classifier.load(classifier), exported("onnx-fp16"), onnx.TensorProto.FLOAT16
    difference = compare(given, load_onnx(path), noise_for(given, 20), "uint8")
    assert 1e-4 < difference.largest < 0.05
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {
        node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"
    }
    products = products_of(model)
    whole = [node for node in products if {types.get(name) for name in node.input} != {half}]
    assert len(products) > len(whole) + 10
    # with the class vectors, and five of the score of being none of the classes
    assert len(whole) == 6
    assert {item.key: item.value for item in model.metadata_props} == metadata(given, "uint8")


def test_openvino_holds_metadata_and_probabilities(classifier, exported, tmp_path, monkeypatch):
    given, folder, plain = Classifier.load(classifier), tmp_path / "c", exported("onnx")
    names = ('a "b"', "<c> & d", "é", "\\", "]]>", *"fghij")
    given.vectors = replace(given.vectors, class_names=names)
    monkeypatch.setattr(openvino_files, "write_onnx", lambda *args: shutil.copy(plain, args[2]))
    images = noise_for(given, 4)
    openvino_files.write_openvino(given, "uint8", folder)
    assert compare(given, openvino_files.load_openvino(folder), images, "uint8").largest < 1e-4
    core = openvino.Core()
    model = core.read_model(folder / openvino_files.OPENVINO_FILE)
    assert json.loads(model.get_rt_info("kdpl").value) == metadata(given, "uint8")
    names = [port.get_any_name() for port in model.inputs + model.outputs]
    assert names == ["images", "logits", "probabilities", "unknown"]
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    probabilities = core.compile_model(model, "CPU", hints)(images.numpy())["probabilities"]
    expected = given(images).softmax(dim=1)
    assert torch.allclose(torch.from_numpy(probabilities), expected, atol=1e-5)


@pytest.mark.parametrize("damage", [float("nan"), "cutoff"])
def test_a_file_that_differs_from_the_classifier_is_seen(damage, classifier, exported):
    given, other = Classifier.load(classifier), Classifier.load(classifier)
    run, images = load_onnx(exported("onnx")), noise_for(given, 30)
    expected, actual = given(images), given(images)
    if damage == "cutoff":
        none_of_these = pytest.importorskip("kdpl.confidence.unknown").none_of_these
        other.companions["unknown"].cutoff += 1.0
        largest = none_of_these(given, images) - none_of_these(other, images)
    else:
        other.head.class_vectors[0] *= damage
        expected = other(images)
        largest = expected - actual
    difference = compare(other, run, images, "uint8")
    assert difference.same == int((expected.argmax(1) == actual.argmax(1)).sum())
    largest = pytest.approx(largest.abs().max().item(), rel=1e-3, abs=1e-3, nan_ok=True)
    assert difference.largest == largest
    assert compare(given, run, images, "uint8").largest < 1e-4


@pytest.mark.parametrize(
    "resizing",
    [
        Resizing(32),
        Resizing(40, "squash"),
        Resizing(45, "shortest", "bilinear", 0.875),
        Resizing(48, "shortest", "bicubic", 1.2),
    ],
)
def test_resizing_in_the_file_is_nearly_that_of_pillow_for_any_size(resizing, tmp_path):
    path, given = tmp_path / "c.onnx", SimpleNamespace(preprocessing=SimpleNamespace())
    given.preprocessing.resizing = resizing
    size = resizing.image_size
    (put, out) = (
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 3, size, size])
        for name in ("images", "same")
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["same"])], "g", [put], [out]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )
    preprocess_inside(given, path)
    onnx.checker.check_model(path, full_check=True)
    run, rng = load_onnx(path), np.random.default_rng(0)
    for edges in ((1, 1), (1, 700), (290, 3), (size, size), (97, 211), (2 * size, 31)):
        images = rng.integers(256, size=(2, *edges, 3), dtype=np.uint8)
        expected = [np.asarray(resize_and_crop(fromarray(image), resizing)) for image in images]
        (prepared,) = run(torch.from_numpy(images))
        differences = np.abs(prepared.permute(0, 2, 3, 1).numpy() - np.int16(expected))
        assert differences.max() <= 2, edges
        assert (differences > 0).mean() <= 0.02, edges


def test_a_file_with_preprocessing_inside_is_predict_and_its_golden_file_says_so(
    classifier, exported, tmp_path, monkeypatch
):
    given, plain, path = Classifier.load(classifier), exported("onnx"), tmp_path / "c.onnx"
    fake = FORMATS["onnx"]._replace(write=lambda *args: shutil.copy(plain, args[2]))
    monkeypatch.setattr("kdpl.classifier.formats.registry.FORMATS", {"onnx": fake})
    options = ["--format=onnx", f"--out={path}"]
    assert main(["export", str(classifier), *options, "--preprocess=inside"]) == 0
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert about["crop"] == about["resize"] == "inside the file"
    assert about.keys() == metadata(given, "uint8").keys()

    # the lines of the page that check any runtime
    page = (Path(__file__).parents[3] / "docs/export.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(# check a runtime\n.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    path.rename("classifier.onnx")
    Path("c.golden.npz").rename("classifier.golden.npz")
    exec(lines, {})  # noqa: S102
    shutil.copy(plain, "classifier.onnx")
    golden = np.load("classifier.golden.npz")
    images = [fromarray(golden[f"image_{i}"]) for i in range(3)]
    write_golden(given, images, "float", Path("classifier.golden.npz"))
    assert np.load("classifier.golden.npz")["inputs"].dtype == np.float32
    write_golden(given, images, "uint8", Path("classifier.golden.npz"))
    exec(lines, {})  # noqa: S102
    broken = dict(np.load("classifier.golden.npz"))
    np.savez("classifier.golden.npz", **broken | {"logits": broken["logits"] + 0.01})
    with pytest.raises(AssertionError):
        exec(lines, {})  # noqa: S102


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "onnx-int8"])
def test_images_of_many_sizes_have_the_classes_of_the_file_without_preprocessing(
    kind, classifier, tmp_path
):
    given, draw, files = Classifier.load(classifier), np.random.default_rng(4), tmp_path / "images"
    files.mkdir()
    images = [
        fromarray(coarse).resize(draw.integers(5, 400, 2).tolist())
        for coarse in draw.integers(256, size=(48, 4, 4, 3), dtype=np.uint8)
    ]
    for number, image in enumerate(images):
        image.save(files / f"{number}.png")
    runs = {}
    calibration = [f"--calibration={files}"] if kind == "onnx-int8" else []
    for name, more in (("outside", []), ("inside", ["--preprocess=inside"])):
        out = tmp_path / f"{name}.onnx"
        options = [f"--format={kind}", f"--out={out}", *calibration, *more]
        assert main(["export", str(classifier), *options]) == 0
        runs[name] = load_onnx(out)
    outside = torch.cat([runs["outside"](given.prepare(image)[None])[1] for image in images])
    inside = torch.cat([runs["inside"](torch.from_numpy(np.array(i))[None])[1] for i in images])
    assert torch.equal(inside.argmax(dim=1), outside.argmax(dim=1))
    within = 0.1 if kind == "onnx-int8" else 0.02  # a byte that differs may change a rounded one
    torch.testing.assert_close(inside, outside, rtol=0, atol=within)
