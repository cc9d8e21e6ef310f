import json
import os
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import doubt, experts, gpu, refinement, students
from benchmarks.distillation import CACHED, KDPL, PUBLISHED, Distillation, largest_difference
from benchmarks.inference import CLASSIFIER, ONNX, Inference
from benchmarks.measuring import flops
from benchmarks.memory import STAGE_1, peak_in_own_process
from benchmarks.messy_pool import MessyDigits
from benchmarks.rows import Row
from benchmarks.run import main
from benchmarks.settings import Settings
from benchmarks.several_labels import chosen_on_validation
from benchmarks.sizes import SMALL, register_miniatures
from benchmarks.suggest import Relabeled
from benchmarks.texts import Texts
from benchmarks.uneven_shots import UnevenDigits, classes
from kdpl import Classifier
from kdpl.data.readers.digits import read_digits
from kdpl.targets.refinement.refine import RefinementConfig, affinity, nearest, refine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _miniatures():
    register_miniatures()


def settings_of(batch_size):
    return Settings(
        small=True, device="cpu", precision="32-true", batch_size=batch_size, repeats=1, threads=1
    )


@pytest.fixture(scope="module")
def step():
    return Distillation(SMALL, SMALL.many, 4, CPU)


def test_a_published_step_has_the_loss_and_the_gradients_of_kdpl(step):
    published, kdpl = step.gradients(PUBLISHED), step.gradients(KDPL)
    assert {
        "loss",
        "prompts",
        "projector.0.weight",
        "projector.1.bias",
        "projector.3.weight",
    } <= set(published)
    assert largest_difference({"loss": kdpl["loss"]}, {"loss": published["loss"]}) < 1e-5
    assert largest_difference(kdpl, published) < 1e-4


def test_the_published_step_encodes_the_class_names_with_the_teachers_prompts(step, monkeypatch):
    expected = step.gradients(PUBLISHED)
    # a cached teacher differs by the rounding of float16
    assert 1e-6 < largest_difference(step.gradients(CACHED), expected) < 1e-2
    for name in ("context", "deep", "vision_prompts"):
        with monkeypatch.context() as patch:
            patch.setattr(
                step.published_teacher,
                name,
                torch.randn_like(getattr(step.published_teacher, name)),
            )
            assert largest_difference(step.gradients(PUBLISHED), expected) > 1e-3


def test_texts_have_the_features_and_gradients_of_kdpl():
    texts = Texts(SMALL, SMALL.many, CPU)
    published = texts.forward_and_backward(PUBLISHED)
    assert set(published) == {"features", "context", "deep"}
    assert largest_difference(texts.forward_and_backward(KDPL), published) < 1e-5


def test_one_seed_has_a_mean_without_a_deviation():
    assert [experts.cell(values) for values in ([85.3], [1.0, 2.0, 3.0])] == ["85.3", "2.0 ± 1.0"]


def test_operations_are_counted_by_the_book_and_not_run():
    x = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(7, 5)
    # forward, and the gradient of x alone
    assert (
        flops(lambda: torch.nn.functional.linear(x, weight).sum().backward()) == 2 * 2 * 3 * 5 * 7
    )
    q = torch.randn(2, 4, 6, 8)
    assert (
        flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        == 2 * 2 * (2 * 4) * 6 * 6 * 8
    )
    huge = torch.zeros(1).expand(10**6, 10**6)
    assert flops(lambda: huge @ huge) == 2 * 10**18


def test_dense_matrices_refine_to_what_kdpl_does():
    features, predictions = refinement.pool(200, 6, 16)
    config = RefinementConfig(neighbors=4, likelihood=0.2, rounds=2, graph=3.0, prior=0.3)
    found = refine(features, predictions, affinity(*nearest(features, 4)), None, config)
    assert (refinement.dense(features, predictions, config) - found).abs().max() < 1e-5
    assert (found.argmax(dim=1) != predictions.argmax(dim=1)).any()


@pytest.mark.slow
def test_every_comparison_runs_and_is_written_down(tmp_path, capsys):
    out = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    names = (
        "distillation",
        "student",
        "bf16",
        "many-classes",
        "texts",
        "cache",
        "shards",
        "parquet",
        "start",
        "refinement",
        "inference",
        "formats",
        "memory-formats",
    )
    args = ["--small", "--repeats=1", f"--threads={threads}", f"--out={out}"]
    assert main([*args, *(f"--only={name}" for name in names)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert len(report["rows"]) == 62
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
    assert f"torch {torch.__version__}, " in printed
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("|")
    ][2:]
    failure = "failed: OutOfMemoryError: CUDA is out / of memory"
    assert rows == [
        ["a", "32-true", "8", "", "", failure],
        ["b", "32-true", "8", "1.5 x", "≥ 2, missed", ""],
        ["c", "32-true", "8", "3 GB", "", ""],
        ["b", "bf16-mixed", "64", "1.5 x", "≥ 2, missed", ""],
        ["c", "bf16-mixed", "64", "3 GB", "", ""],
    ]
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in report["rows"]] == [None, 1.5, 3, 1.5, 3]
    assert gpu.main([*command, "--minutes=0"]) == 0
    assert capsys.readouterr().out.count("failed: not measured: the time is over") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_gpu_is_one_sentence(tmp_path, capsys):
    assert gpu.main([f"--out={tmp_path / 'gpu.json'}"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])
    assert "finds no GPU" in err


@pytest.mark.slow
def test_the_comparisons_for_a_gpu_run_on_miniatures(tmp_path, monkeypatch):
    # what the other test runs, and what needs a compiler
    names = {"student", "tuning", "stage-2", "networks", "memory-formats"}
    parts = [
        (precision, 8, [name for name in groups if name in names])
        for precision, batch_size, groups in gpu.PARTS
        if batch_size == 64
    ]
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device=cpu", "--small", "--repeats=1", f"--out={out}"]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["failure"] for row in rows if row["failure"]] == []
    assert len(rows) == 2 + 1 + 1 + 3 + 2 + 4
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    hog = torch.ones(10**8)
    settings = settings_of(batch_size=2)
    measured = peak_in_own_process(STAGE_1, SMALL.few, settings)
    own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    assert 1e8 < measured["before"] <= measured["peak"] < min(1.5e9, own - 4 * len(hog) / 2)


@pytest.mark.slow
def test_what_ships_and_open_clip_classify_the_same_files(tmp_path):
    inference = Inference(settings_of(batch_size=5), tmp_path)
    predictions = {side: run() for side, run in inference.sides.items()}
    names = set(SMALL.names(SMALL.few))
    assert all(
        len(each) == SMALL.infer_images and set(each) <= names for each in predictions.values()
    )
    assert predictions[ONNX] == predictions[CLASSIFIER]


@pytest.mark.parametrize(("share", "others"), [(0.25, 233), (0.5, 700)])
def test_a_messy_pool_has_all_digits_and_as_many_others_of_each_kind(share, others):
    pytest.importorskip("matplotlib", minversion="3.11")
    pool = MessyDigits(["letters", "textures"], share).read()
    kinds = Counter(source.partition("/")[0] for source in pool.unlabeled)
    assert kinds["digits"] == len(pool.train) == 700
    assert kinds["letters"] + kinds["textures"] == others
    assert kinds["letters"] - kinds["textures"] in (0, 1)
    assert len({*pool.unlabeled}) == len(pool.unlabeled)
    last = [pool.open_image(source) for source in pool.unlabeled[-2:]]
    assert {(image.size, image.mode) for image in last} == {((32, 32), "RGB")}


@pytest.mark.slow
def test_what_is_measured_of_doubt_has_a_row_for_each_wish_and_each_kind_of_other_images(
    teacher_run, student_run, tmp_path, monkeypatch, capsys
):
    for name, folder in (("teacher", teacher_run), ("student", student_run)):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.setattr(doubt, "OTHERS", 20)
    monkeypatch.setattr(doubt, "SPLITS", 2)
    assert doubt.main([f"--digits={tmp_path}"]) == 0
    title, splits, *rows = capsys.readouterr().out.splitlines()
    assert (title, splits[:31]) == ("digits:", "2 splits into halves of 549, ac")
    kinds = ["letters", "printed letters", "noise", "photographs", "textures"]
    wishes = [f"error {error}%" for error in (1, 2, 5, 10, 20)] + ["sets 90%", "sets 95%"]
    assert [row.partition(":")[0].strip() for row in rows] == wishes + kinds
    # what the fit of the student has left is what is made again
    read = Classifier.load(student_run / "classifier")
    again = doubt.unknown_of(tmp_path, read, read_digits())
    assert again.cutoff == pytest.approx(read.companions["unknown"].cutoff, rel=1e-3)


def test_uneven_digits_have_one_label_of_five_classes_that_the_seed_chooses():
    for seed in (1, 2):
        digits = UnevenDigits(seed).read()
        count = Counter(record.label for record in digits.train)
        assert [count[label] for label in classes(seed)[:5]] == [1] * 5
        assert min(count[label] for label in classes(seed)[5:]) > 16
        assert len(digits.unlabeled) == 700
    assert {*classes(1)[:5]} != {*classes(2)[:5]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_of_probes_that_are_equal_on_validation_images_the_test_does_not_choose():
    assert chosen_on_validation([(50.0, 40.0), (60.0, 41.0), (60.0, 45.0), (59.0, 50.0)]) == 41.0


def test_students_are_compared_with_the_first_one(capsys):
    pytest.importorskip("onnxruntime")
    students.main(
        ["--batch=2", "--turns=1", "--student=tiny-student", "--student=timm:test_resnet"]
    )
    _, first, second = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    )
    assert (first[:2], first[5], first[7]) == (["tiny-student", "32"], "1.0 ×", "1.0 ×")
    network = timm.create_model("test_resnet", num_classes=0)
    assert second[2] == f"{sum(each.numel() for each in network.parameters()) / 1e6:.1f} M"
    assert float(second[4]) > 0


def test_a_relabeled_world_has_the_labels_of_the_file_and_all_training_images_without_them(
    tmp_path,
):
    (tmp_path / "labels.json").write_text('[["digits/0001", 3], ["digits/0002", 4]]')
    found, digits = Relabeled("digits", str(tmp_path / "labels.json")).read(), read_digits()
    assert found.train == (("digits/0001", 3), ("digits/0002", 4))
    assert found.unlabeled == [record.source for record in digits.train]
    assert (found.val, found.test) == (digits.val, digits.test)
