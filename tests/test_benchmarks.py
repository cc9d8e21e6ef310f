import json

import pytest
import torch

from benchmarks import gpu, refinement
from benchmarks.distillation import CACHED, KDPL, PUBLISHED, Distillation, largest_difference
from benchmarks.inference import CLASSIFIER, ONNX, Inference
from benchmarks.measuring import flops
from benchmarks.rows import Bench, Row
from benchmarks.run import main
from benchmarks.settings import Settings
from benchmarks.sizes import SMALL, register_miniatures
from benchmarks.texts import Texts
from kdpl.targets.refinement.refine import Weights, affinity, nearest, refine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _miniatures():
    register_miniatures()


@pytest.fixture(scope="module")
def step():
    return Distillation(SMALL, SMALL.many, 4, CPU)


def test_a_published_step_has_the_loss_and_the_gradients_of_kdpl(step):
    published, kdpl = step.gradients(PUBLISHED), step.gradients(KDPL)
    assert {"loss", "prompts", "projector.0.weight", "projector.3.weight"} <= set(published)
    assert largest_difference({"loss": kdpl["loss"]}, {"loss": published["loss"]}) < 1e-5
    assert largest_difference(kdpl, published) < 1e-4


def test_a_cached_teacher_differs_by_the_rounding_of_float16(step):
    difference = largest_difference(step.gradients(CACHED), step.gradients(PUBLISHED))
    assert 1e-6 < difference < 1e-2


def test_texts_have_the_features_and_gradients_of_kdpl():
    texts = Texts(SMALL, SMALL.many, CPU)
    published = texts.forward_and_backward(PUBLISHED)
    assert set(published) == {"features", "context", "deep"}
    assert largest_difference(texts.forward_and_backward(KDPL), published) < 1e-5


def test_operations_are_counted_by_the_book_and_not_run():
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5)
    # forward, and the gradient of x alone
    linear = torch.nn.functional.linear
    assert flops(lambda: linear(x, weight).sum().backward()) == 2 * 2 * 3 * 5 * 7
    q, attention = torch.randn(2, 4, 6, 8), torch.nn.functional.scaled_dot_product_attention
    assert flops(lambda: attention(q, q, q)) == 2 * 2 * (2 * 4) * 6 * 6 * 8
    huge = torch.zeros(1).expand(10**6, 10**6)
    assert flops(lambda: huge @ huge) == 2 * 10**18


def test_dense_matrices_refine_to_what_kdpl_does():
    features, predictions = refinement.pool(200, 6, 16)
    weights = Weights(0.2, 3.0, 0.3)
    near = affinity(*nearest(features, 4, torch.arange(200)))
    expected = refine(features, predictions, near, torch.full((200,), -1), weights, 2)
    made = refinement.dense(features, predictions, weights, 4, 2)
    assert (made - expected).abs().max() < 1e-5
    assert (expected.argmax(dim=1) != predictions.argmax(dim=1)).any()


@pytest.mark.slow
def test_every_comparison_runs_and_is_written_down(tmp_path, monkeypatch, capsys):
    # each command starts a process
    monkeypatch.setattr("benchmarks.commands.COMMANDS", ["predict"])
    out = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    names = ["distillation", "bf16", "many-classes", "texts", "cache"]
    names += ["commands", "refinement", "formats"]
    args = ["--small", "--repeats=1", f"--threads={threads}", f"--out={out}"]
    assert main([*args, *(f"--only={name}" for name in names)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert len(report["rows"]) == 32
    assert all(row["value"] > 0 for row in report["rows"])
    sides = report["rows"][0]["details"]
    assert sides["published"]["flops"] > sides["kdpl"]["flops"]
    assert "distillation step" in capsys.readouterr().out


def test_a_comparison_that_fails_or_comes_too_late_is_a_row_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    def fails(_):
        raise torch.OutOfMemoryError("CUDA is out | of memory. Tried to allocate 8 GiB.")

    groups = {"a": fails, "b": lambda _: [Row("b", 1.5, at_least=2), Row("c", 3, "GB")]}
    monkeypatch.setattr("benchmarks.report.GROUPS", groups)
    monkeypatch.setattr(gpu, "PARTS", [("32-true", 8, ("a", "b")), ("bf16-mixed", 64, ("b",))])
    command = ["--device=cpu", "--small", "--repeats=1", f"--out={tmp_path / 'gpu.json'}"]
    assert gpu.main(command) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "gpu.md").read_text()
    rows = [line for line in printed.splitlines() if line.startswith("|")][2:]
    assert "failed: OutOfMemoryError: CUDA is out / of memory" in rows[0]
    assert all("≥ 2, missed" in row for row in (rows[1], rows[3]))
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in report["rows"]] == [None, 1.5, 3, 1.5, 3]
    assert gpu.main([*command, "--minutes=0"]) == 0
    assert capsys.readouterr().out.count("failed: not measured: the time is over") == 3


@pytest.mark.slow
def test_the_comparisons_for_a_gpu_run_on_miniatures(tmp_path, monkeypatch):
    # but for what other tests run, and what needs a compiler
    names = {"student", "tuning", "stage-2", "networks", "memory-formats"}
    parts = [
        (precision, 8, [name for name in groups if name in names])
        for precision, batch_size, groups in gpu.PARTS
        if (precision, batch_size) == ("bf16-mixed", 64)
    ]
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device=cpu", "--small", "--repeats=1", f"--out={out}"]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["failure"] for row in rows if row["failure"]] == []
    assert len(rows) == 2 + 1 + 1 + 3 + 2
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.slow
def test_what_ships_and_open_clip_classify_the_same_files_and_are_compared(tmp_path, monkeypatch):
    options = {"small": True, "device": "cpu", "precision": "32-true", "repeats": 1, "threads": 1}
    inference = Inference(Settings(batch_size=5, **options), tmp_path)
    predictions = {side: run() for side, run in inference.sides.items()}
    names = set(SMALL.names(SMALL.few))
    assert set(predictions[ONNX]) <= names
    assert predictions[ONNX] == predictions[CLASSIFIER]
    monkeypatch.setattr("benchmarks.rows.Inference", lambda *_: inference)
    rows = Bench(inference.settings).inference()
    assert len(rows) == 5 + 6
    assert all(row.value > 0 for row in rows)
