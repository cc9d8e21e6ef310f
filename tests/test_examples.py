"""The examples: those of CONTRIBUTING.md, as if written outside of the package, and the script in examples/."""

import json
import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import published_files
import pytest
import runs
import torch
import world
from PIL import Image, ImageOps
from plain import PlainProjector, normalized, prompt_text, relative_error
from runs import configs
from world import refused
from zoo import odd_photo

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.cli.fit import parse_stage
from kdpl.data.decoding import open_image
from kdpl.data.domain import build_data
from kdpl.data.readers.digits import CLASS_NAMES
from kdpl.data.readers.table import Table
from kdpl.errors import DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.files import write_rows
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
ONE_EPOCH = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory):
    """The files of the page, in a folder from which they can be imported."""
    folder = tmp_path_factory.mktemp("examples")
    files = re.findall(
        r'```python title="(my_\w+\.py)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    for name, code in files:
        (folder / name).write_text(code)
    assert len(files) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def config_after(line, tmp_path):
    """A config file of the YAML that follows a line of the page."""
    page = PAGE.read_text(encoding="utf-8")
    file = tmp_path / "shown.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page[page.index(line) :], re.DOTALL)[1])
    return f"--config={file}"


def test_a_teacher_method_with_settings_is_fitted_handed_over_and_distilled(tmp_path):
    teacher, config = tmp_path / "teacher", config_after("my_methods.py", tmp_path)
    options = ["--model.init_args.method.reduction=4", *ONE_EPOCH]
    assert runs.fit_teacher(teacher, config, *options) == 0
    prompts = TunedPrompts.load(teacher / PROMPTS_FILE)
    assert prompts.method_settings == {"reduction": 4, "share": 0.5}
    clip = prompts.load_image_clip()
    method = prompts.build_method(clip)
    first, last = method.layers[0], method.layers[2]
    width = first.in_features
    assert (first.out_features, last.out_features) == (width // 4, width)

    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    frozen = torch.nn.functional.normalize(clip.image_tower(images), dim=1)
    mixed = 0.5 * frozen + 0.5 * last(first(frozen).relu())
    expected = torch.nn.functional.normalize(mixed, dim=1)
    assert torch.allclose(method.encode_images(clip.image_tower, images), expected, atol=1e-6)

    parse_stage("test", [f"--config={teacher}/config.yaml", *configs("teacher/zero_shot.yaml")])
    assert runs.fit_student(tmp_path / "student", teacher, *ONE_EPOCH) == 0
    assert len(Classifier.load(tmp_path / "student" / "classifier").class_names) == 10


def test_the_setting_of_a_target_is_in_a_config_or_in_options(tmp_path):
    config, option = config_after("my_targets.py", tmp_path), "--model.init_args.target"
    in_options = [f"{option}=my_targets.Smoothed", f"{option}.share=0.2"]
    shared = [*runs.DATA, *runs.STUDENT, "--model.init_args.teacher=T", "--out=out"]
    one, other = (parse_stage("fit", [*shared, *given]) for given in ([config], in_options))
    assert one.config.model.init_args.target.init_args.share == 0.2
    assert one.config.model == other.config.model


@pytest.mark.parametrize("name", ["my_targets.Smoothed", "my_losses.ReverseKL"])
def test_a_target_and_a_loss_change_what_is_distilled(name, student_run, teacher_run, tmp_path):
    config, out = config_after(f"{name.partition('.')[0]}.py", tmp_path), tmp_path / "out"
    assert runs.fit_student(out, teacher_run, config, *ONE_EPOCH) == 0
    assert f"class_path: {name}\n" in (out / "config.yaml").read_text()
    assert len({runs.curves_of(run)["train/loss"][0][1] for run in (out, student_run)}) == 2


def test_a_dataset_is_read_by_a_class_path(tmp_path):
    for number in range(20):
        name = f"{('crab', 'swan')[number % 2]}_{number:03}.jpg"
        runs.noise(40, 40, seed=number).save(tmp_path / name)
    option = "--data.init_args.dataset"
    reader = [f"{option}=my_readers.ByFileName", f"{option}.init_args.root"]
    data = build_data([], [*reader, str(tmp_path), "--data.init_args.shots=4"])
    assert data.class_names == ("crab", "swan")
    assert len(data.splits.test) == 4
    (tmp_path / "empty").mkdir()
    with refused(DataError, "has no images <class>_<number>.jpg: set root"):
        _ = build_data([], [*reader, str(tmp_path / "empty")]).class_names


@pytest.mark.slow
def test_the_script_of_both_stages_ends_with_the_quickstarts_accuracies(tmp_path, capsys):
    runpy.run_path(str(PAGE.parent / "examples" / "both_stages.py"))["main"](tmp_path)
    out = capsys.readouterr().out
    measured = [f"{100 * float(value):.1f}" for value in re.findall(r"test/acc\D+([\d.]+)", out)]
    readme = (PAGE.parent / "README.md").read_text(encoding="utf-8")
    assert measured == re.findall(r"│ (?:teacher, tuned|student, distilled) +│ ([\d.]+)", readme)
    shown = re.search(
        r"digits/1784 shows five\npredicted: five \((.+)\), then nine \((.+)\)\n$", out
    )
    # processors round differently
    assert [float(value) for value in shown.groups()] == pytest.approx([0.972, 0.016], abs=0.003)
    vectors = [tmp_path / stage / CLASS_VECTORS_FILE for stage in ("teacher", "student")]
    assert vectors[0].read_bytes() == vectors[1].read_bytes()
    assert len(Classifier.load(tmp_path / "student" / "classifier").class_names) == 10


def test_a_project_names_its_own_classes_by_class_path(tmp_path, monkeypatch, capsys):
    folder = PAGE.parent / "examples" / "plugin"
    monkeypatch.syspath_prepend(folder)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    shared = [f"--config={folder / 'shapes.yaml'}", *configs("trainer/cpu.yaml"), *ONE_EPOCH]
    shared.append("--trainer.limit_train_batches=2")
    run = [*shared, *configs("teacher/quickstart.yaml"), f"--out={teacher}"]
    assert main(["fit", *run]) == 0
    assert ClassVectors.load(teacher / CLASS_VECTORS_FILE).task == "shapes.Smoothed"
    given = [*configs("student/quickstart.yaml"), f"--config={folder / 'student.yaml'}"]
    given += [f"--model.init_args.teacher={teacher}"]
    assert main(["fit", *shared, *given, f"--out={student}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^TeacherPromptTuning: \d+ steps$", out, re.MULTILINE)
    assert re.search(r"^StudentDistillation: \d+ steps$", out, re.MULTILINE)
    classifier = Classifier.load(student / "classifier")
    assert classifier.class_names == ("circle", "square")
    assert type(classifier.task).__name__ == "Smoothed"
    sys.modules.pop("shapes")


def test_a_sweep_prunes_trials_and_its_best_one_has_a_classifier(tmp_path, teacher_run):
    optuna = pytest.importorskip("optuna", reason="needs pip install optuna")
    sweep = runpy.run_path(str(PAGE.parent / "examples" / "optuna_sweep.py"))
    pruner = Mock(**{"prune.side_effect": lambda _, trial: trial.number == 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.pruners, "MedianPruner", lambda: pruner)
        patch.setattr("kdpl.confidence.companions.make_companions", lambda *_: [])
        settings = [*runs.DATA, *runs.STUDENT, *runs.SHORT]
        teacher = f"--model.init_args.teacher={teacher_run}"
        sweep["main"](2, tmp_path, [*settings, teacher])
        for _ in range(2):
            study = sweep["main"](3, tmp_path, [*settings, teacher])
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert [len(trial.intermediate_values) for trial in study.trials] == [2, 1, 2]
    for trial in study.trials:
        folder = tmp_path / f"{trial.number:03}"
        assert (folder / "classifier").is_dir() == (trial.number != 1)
        measured = [value for _, value in runs.curves_of(folder)["val/acc"]]
        assert [*trial.intermediate_values.values()] == pytest.approx(measured)
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        assert f"lr: {trial.params['lr']}" in config
    # what a trial does not change is that of the student's config
    assert "optimizer: adamw" in config


def test_the_photographs_of_the_example_come_from_its_repository(tmp_path):
    source = tmp_path / "repository"
    for split, count in (("train", 12), ("test", 3), ("validation", 1)):
        for name in ("longsleeve", "hat"):
            (source / split / name).mkdir(parents=True)
            for number in range(count):
                # hexadecimal digits as of the real files, of which a quarter is fetched
                file = source / split / name / f"{number:x}-{name}.jpg"
                file.write_bytes(f"{split} {name} {number}".encode())
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "photographs"]):
        subprocess.run([*git, *command], check=True)
    clothing = runpy.run_path(str(PAGE.parent / "examples" / "clothing.py"))
    assert clothing["LABELS"] == 4
    folder = tmp_path / "my_clothes"
    clothing["fetch"].__globals__["LABELS"] = 2
    clothing["main"](folder, f"file://{source}")
    written = {split: sorted((folder / split).rglob("*.jpg")) for split in ("train", "test")}
    assert {path.parent.name for path in written["train"]} == {"hat", "long-sleeved shirt"}
    assert len(written["train"]) == 4
    assert len(written["test"]) == 6
    # the rest of the quarter that starts with 0 to 3
    assert len(list((folder / "unlabeled").iterdir())) == 4
    assert not (folder / "validation").exists()
    with pytest.raises(FileExistsError):
        clothing["main"](folder, f"file://{source}")


@pytest.mark.parametrize("by_confidence", [False, True])
def test_several_teachers_are_mixed_for_each_image(by_confidence, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(PAGE.parent / "examples")
    from several_teachers import SeveralTeachers

    target = SeveralTeachers([], by_confidence)
    logits = 5 * torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    mixed = target.compute([torch.arange(7), *logits], {"seed": 1})
    for image in range(7):
        predicted = [each[image].double().softmax(dim=0) for each in logits]
        weights = [(p * p.log()).sum().exp() if by_confidence else 1 for p in predicted]
        expected = sum(w * p for w, p in zip(weights, predicted, strict=True)) / sum(weights)
        torch.testing.assert_close(mixed.logits[image].exp().double(), expected)
    mixed.save(tmp_path / target.file)
    values, made_from = target.load(tmp_path / target.file)
    assert torch.equal(values.logits, mixed.logits)
    assert made_from == {"seed": 1}


def test_a_teacher_beside_itself_changes_nothing(teacher_run, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(PAGE.parent / "examples")
    from several_teachers import SeveralTeachers

    teacher, predicted = shutil.copytree(teacher_run, tmp_path / "teacher"), []
    options = ["--model.init_args.target=several_teachers.SeveralTeachers", *ONE_EPOCH]
    options.append("--data.init_args.unlabeled_share=0.1")
    for name, others in (("one", "[]"), ("two", f"[{teacher}]")):
        others = f"--model.init_args.target.others={others}"
        assert runs.fit_student(tmp_path / name, teacher, *options, others) == 0
        target = SeveralTeachers([])
        predicted.append(target.load(tmp_path / name / target.file)[0].logits)
    torch.testing.assert_close(*predicted)


def test_other_images_are_said_to_differ_and_are_named(classifier, tmp_path, capsys):
    drift = runpy.run_path(str(PAGE.parent / "examples" / "drift.py"))["main"]
    test = world.digits(batch_size=8).splits
    for name, first in (("earlier", 0), ("same", 100), ("other", 200)):
        (tmp_path / name).mkdir()
        for number, record in enumerate(test.test[first : first + 100]):
            image, turned = test.open_image(record.source), name == "other" and number % 2
            if turned:
                image = ImageOps.invert(image).transpose(Image.Transpose.ROTATE_90)
            image.save(tmp_path / name / f"{number:02}{'other' * turned}.png")
        (tmp_path / name / "broken.png").touch()
        options = ["--embeddings", "--workers=1", f"--out={tmp_path / name}.jsonl"]
        assert main(["predict", str(classifier), str(tmp_path / name), *options]) == 0
    earlier, same, other = (tmp_path / f"{name}.jsonl" for name in ("earlier", "same", "other"))
    assert drift(earlier, same) == 0
    capsys.readouterr()
    assert drift(earlier, other) == 1
    said, farthest = capsys.readouterr().out.splitlines()
    assert said.startswith("the images differ: ")
    assert farthest.count("other.png") > 7
    few = tmp_path / "few.jsonl"
    few.write_text('{"path": "0.png", "embedding": null}\n')
    with pytest.raises(ValueError, match=r"few.jsonl has 0 images"):
        drift(earlier, few)


def test_the_boxes_of_a_detector_are_cut_out_of_upright_photographs(tmp_path):
    boxes = runpy.run_path(str(PAGE.parent / "examples" / "boxes.py"))["main"]
    (tmp_path / "photos").mkdir()
    runs.noise(60, 40, seed=1).save(tmp_path / "photos/a.png")
    # stored on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    runs.noise(60, 40, seed=2).save(tmp_path / "photos/b.png", exif=exif)
    animal, sure = {"category": "1", "conf": 0.9}, {"bbox": [0.1, 0.25, 0.5, 0.5]}
    found = {
        "detection_categories": {"1": "animal", "2": "person"},
        "images": [
            {"file": "a.png", "detections": [animal | sure, animal | sure | {"category": "2"}]},
            {"file": "b.png", "detections": [animal | {"bbox": [0.5, 0.5, 0.7, 0.7]}]},
            {"file": "a.png", "detections": [animal | sure | {"conf": 0.1}]},
            {"file": "c.png", "detections": None},
        ],
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    out = tmp_path / "crops"
    boxes(tmp_path / "found.json", tmp_path / "photos", out, "animal")
    rows = runs.rows_of(out / "images.csv")
    assert [(row["label"], row["group"]) for row in rows] == [("", "a.png"), ("", "b.png")]
    places = {"a.png": (3, 8, 39, 32), "b.png": (17, 26, 40, 60)}
    for row, name in zip(rows, places, strict=True):
        with Image.open(tmp_path / "photos" / name) as photo:
            expected = ImageOps.exif_transpose(photo).crop(places[name])
        assert Image.open(out / row["image"]).tobytes() == expected.tobytes()
    table = Table(str(out / "images.csv"))
    assert [row.source for row in table.rows()] == [str(out / row["image"]) for row in rows]


def test_suggestions_come_back_from_label_studio_as_a_table_of_labels(tmp_path, capsys):
    example = runpy.run_path(str(PAGE.parent / "examples" / "label_studio.py"))
    suggested, files = tmp_path / "suggested.csv", [tmp_path / f"{n}, é.png" for n in "abc"]
    for number, file in enumerate(files):
        runs.noise(40, 20, seed=number).save(file)
    likely = ["cat", 'a "dog" & <b>', "eel"]
    rows = [(file, "", name, "0.500") for file, name in zip(files, likely, strict=True)]
    write_rows(suggested, [("image", "label", "likely", "probability"), *rows])
    example["write_tasks"](suggested, tmp_path / "tasks.json")
    view = ElementTree.fromstring(capsys.readouterr().out)  # noqa: S314
    assert {choice.get("value") for choice in view.iter("Choice")} == {*likely}
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert all(task["data"]["image"].startswith("data:image/webp;base64,") for task in tasks)

    # as exported: the first submitted as it is, the second corrected, the third skipped
    first, second, third = tasks
    for task, skipped in ((first, False), (second, False), (third, True)):
        result = task["predictions"][0]["result"]
        task["annotations"] = [{"result": result, "was_cancelled": skipped}]
    corrected = [second["predictions"][0]["result"][0] | {"value": {"choices": ["eel"]}}]
    second["annotations"].append({"result": corrected})
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    example["write_labels"](tmp_path / "export.json", tmp_path / "labels.csv")
    read = [(row.source, row.classes) for row in Table(str(tmp_path / "labels.csv")).rows()]
    expected = [("cat",), ("eel",), None]
    assert read == [*zip(map(str, files), expected, strict=True)]


def _workers_below(pid):
    """The processes of Ray's workers that a process has started, with those of its own."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_below(child):
        return child == pid or (child in parents and is_below(parents[child]))

    return [child for child in parents if "FlatMap(Predict)" in names[child] and is_below(child)]


@pytest.mark.slow
def test_ray_writes_the_table_of_predict_also_when_a_worker_is_killed(classifier, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    (tmp_path / "images").mkdir()
    for number in range(5000):
        runs.noise(28, 28, seed=number).save(tmp_path / f"images/{number:04d}.png")
    (tmp_path / "images/0070.png").write_bytes(b"no image")
    images, tables = str(tmp_path / "images"), [tmp_path / "predict.csv", tmp_path / "ray.csv"]
    options = ["--workers=1", f"--out={tables[0]}"]
    assert main(["predict", str(classifier), images, *options]) == 0
    script = [PAGE.parent / "examples" / "bulk_ray.py", classifier, tables[1], images]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = str(PAGE.parent)
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, script)], env=environment, stdout=file, stderr=file
        )
    # a worker is killed once there are rows
    runs.wait_for(lambda: process.poll() is not None or _size_of(tables[1]))
    workers = _workers_below(process.pid)
    assert len(workers) == 2, log.read_text()
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
    assert "died" in log.read_text(), "the worker had work left"
    assert tables[1].read_text() == tables[0].read_text()


def _size_of(file):
    return file.stat().st_size if file.exists() else 0


def test_the_demo_predicts_as_predict_does_of_a_photo_that_is_opened_as_in_training(
    classifier, tmp_path
):
    gradio = pytest.importorskip("gradio", reason="needs pip install gradio")
    demo = runpy.run_path(str(PAGE.parent / "examples" / "demo.py"))
    photo = odd_photo(tmp_path / "photo.png")
    page = demo["build"](str(classifier), str(photo))
    sent = page.input_components[0].preprocess(gradio.image_utils.ImageData(path=str(photo)))
    expected = dict(Classifier.load(classifier).predict([photo], top_k=5)[0])
    assert page.fn(sent) == expected
    shown = page.output_components[0].postprocess(expected)
    assert [each.label for each in shown.confidences] == [*expected]


def test_what_is_green_in_an_explanation_speaks_for_the_class(classifier, tmp_path):
    pytest.importorskip("captum", reason="needs pip install captum")
    example = runpy.run_path(str(PAGE.parent / "examples" / "explain.py"))
    loaded, photo, label = Classifier.load(classifier), odd_photo(tmp_path / "photo.png"), 3
    image = loaded.prepare(open_image(photo, decoding=loaded.decoding)) / 255
    heat = example["heat_map"](loaded, image, label)
    assert heat.shape == image.shape[-2:]

    # a quarter of the pixels is blurred
    ranks = heat.flatten().argsort().argsort().view_as(heat) / heat.numel()
    blurred = example["blur"](image)
    images = [torch.where(part, blurred, image) for part in (ranks >= 0.75, ranks < 0.25)]
    with torch.no_grad():
        without, only = example["log_odds"](loaded, torch.stack(images))[:, label]
    assert without < only

    # the most probable class, or the one that is given
    (top,) = loaded.predict([photo])[0]
    for given, shown in ((), top.class_name), (("three",), "three"):
        figure = example["draw"](str(classifier), str(photo), *given)
        assert [axis.get_title() for axis in figure.axes[:2]] == [str(photo), shown]


CLIP_OPTION = "--model.init_args.clip={model: %s, pretrained: " + world.TAG + "}"
PROMPTS_OPTION = "--model.init_args.%s_prompts={length: 4, depth: %d}"
IMPORTED = {
    "teacher": [
        "--model=kdpl.TeacherPromptTuning",
        CLIP_OPTION % published_files.TEACHER,
        PROMPTS_OPTION % ("vision", published_files.VISION_DEPTH),
        PROMPTS_OPTION % ("text", published_files.TEXT_DEPTH),
        "--model.init_args.averaging={mean: 15, std: 1}",
    ],
    "student": [
        "--model=kdpl.StudentDistillation",
        CLIP_OPTION % published_files.STUDENT,
        PROMPTS_OPTION % ("vision", published_files.STUDENT_DEPTH),
        "--model.init_args.vision_prompts.init=mean_token",
    ],
}


@pytest.fixture(scope="module")
def import_promptkd():
    return runpy.run_path(str(PAGE.parent / "examples" / "import_promptkd.py"))["main"]


def test_an_imported_teacher_and_student_predict_as_the_published_ones(
    import_promptkd, plain_of, images, tmp_path
):
    states = (
        published_files.teacher_state(torch.float32),
        published_files.student_state(torch.float32),
    )
    for (kind, options), state in zip(IMPORTED.items(), states, strict=True):
        file = published_files.write(tmp_path / f"{kind}.pth", state)
        more = [f"--model.init_args.teacher={tmp_path / 'teacher'}"] if kind == "student" else []
        import_promptkd(kind, file, *runs.DATA, *options, *more, f"--out={tmp_path / kind}")

    teacher, student = (
        plain_of(name) for name in (published_files.TEACHER, published_files.STUDENT)
    )
    drawn = published_files.originals()
    texts = [prompt_text("a photo of a", name) for name in CLASS_NAMES]
    expected = normalized(teacher.text_features(texts, drawn.text))
    vectors = ClassVectors.load(tmp_path / "teacher" / CLASS_VECTORS_FILE)
    assert relative_error(vectors.vectors, expected) < 1e-5
    tokens = TunedPrompts.load(tmp_path / "teacher" / PROMPTS_FILE).tensors["vision_prompts.tokens"]
    assert tokens.equal(drawn.vision.float())

    logits = Classifier.load(tmp_path / "student" / "classifier")(images)
    projector = PlainProjector(drawn.projector)
    features = normalized(projector(student.image_features(images, drawn.student), training=False))
    assert relative_error(logits, student.scale * features @ expected.T) < 1e-5
    assert runs.test(tmp_path / "student") == 0


def test_an_import_takes_halves_of_the_same_clip_alone_and_runs_no_code(import_promptkd, tmp_path):
    options = [*runs.DATA, *IMPORTED["teacher"]]
    state, trace = published_files.teacher_state(), tmp_path / "trace"
    file = published_files.write(tmp_path / "file.pth", state)
    import_promptkd("teacher", file, *options, f"--out={tmp_path / 'out'}")
    assert (tmp_path / "out" / CLASS_VECTORS_FILE).is_file()

    call = world.Call(os.system, f"touch {trace}")
    file = published_files.write(tmp_path / "call.pth", state, scheduler=call)
    with pytest.raises(pickle.UnpicklingError):
        import_promptkd("teacher", file, *options, f"--out={tmp_path / 'call'}")
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the file was harmless: this test shows nothing"

    name = "image_encoder.proj"
    file = published_files.write(tmp_path / "other.pth", {**state, name: 1.01 * state[name]})
    with pytest.raises(AssertionError, match="proj is of another CLIP"):
        import_promptkd("teacher", file, *options, f"--out={tmp_path / 'other'}")
    options.append("--model.init_args.vision_prompts.depth=2")
    file = published_files.write(tmp_path / "file.pth", state)
    with pytest.raises(RuntimeError, match=r"size mismatch for .*vision_prompts"):
        import_promptkd("teacher", file, *options, f"--out={tmp_path / 'other'}")
