"""The examples: those of CONTRIBUTING.md, as if written outside of the package, and the script in examples/."""

import json
import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import runs
import torch
from runs import configs

from kdpl import Classifier
from kdpl.class_vectors import ClassVectors
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory):
    """The files of the page, in a folder from which they can be imported."""
    folder = tmp_path_factory.mktemp("examples")
    files = re.findall(
        r'```python title="(my_\w+\.py)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    for name, code in files:
        (folder / name).write_text(code)
        assert len(code.splitlines()) <= 50
    assert {name for name, _ in files} >= {"my_methods.py", "my_readers.py", "my_targets.py"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def own_config(tmp_path, after):
    """A config file of the YAML that follows a line of the page."""
    page = PAGE.read_text(encoding="utf-8")
    file = tmp_path / "own.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page[page.index(after) :], re.DOTALL)[1])
    return f"--config={file}"


def test_a_teacher_method_with_settings_is_fitted_handed_over_and_distilled(tmp_path):
    teacher = tmp_path / "teacher"
    on_command_line = "--model.init_args.method.reduction=4"
    assert runs.fit_teacher(teacher, own_config(tmp_path, "my_methods.py"), on_command_line) == 0
    prompts = TunedPrompts.load(teacher / PROMPTS_FILE)
    assert prompts.method_settings == {"reduction": 4, "share": 0.5}
    clip = prompts.load_image_clip()
    method = prompts.build_method(clip)
    assert type(method).__name__ == "Adapter"
    first, last = method.layers[0], method.layers[2]
    width = first.in_features
    assert (first.out_features, last.out_features) == (width // 4, width)

    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    frozen = torch.nn.functional.normalize(clip.image_tower(images), dim=1)
    mixed = 0.5 * frozen + 0.5 * last(first(frozen).relu())
    expected = torch.nn.functional.normalize(mixed, dim=1)
    assert torch.allclose(method.encode_images(clip.image_tower, images), expected, atol=1e-6)

    assert runs.test(teacher, *configs("teacher/zero_shot.yaml"), f"--out={tmp_path}/zero") == 0
    assert runs.fit_student(tmp_path / "student", teacher) == 0
    assert runs.test(tmp_path / "student") == 0
    assert 0 <= json.loads((tmp_path / "student" / "test.json").read_text())["test/acc"] <= 1


def test_a_target_with_a_setting_changes_what_is_distilled(student_run, teacher_run, tmp_path):
    config, option = own_config(tmp_path, "my_targets.py"), "--model.init_args.target"
    in_yaml, in_options, other = (tmp_path / name for name in ("yaml", "options", "other"))
    assert runs.fit_student(in_yaml, teacher_run, config) == 0
    assert (
        runs.fit_student(
            in_options, teacher_run, f"{option}=my_targets.Smoothed", f"{option}.share=0.2"
        )
        == 0
    )
    assert runs.fit_student(other, teacher_run, config, f"{option}.share=0.4") == 0
    first, second, *others = (
        runs.curves_of(each)["train/loss"] for each in (in_yaml, in_options, other, student_run)
    )
    assert first == second
    assert first not in others


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["=my_targets.Smothed"],
            "there is no target 'my_targets.Smothed': use teacher, refined, local_views, or the dotted path of",
        ),
        (
            ["=my_targets.Smoothed", "l1"],
            "loss.kind l1 compares features and ignores the target Smoothed: set it",
        ),
    ],
)
def test_a_target_that_is_not_there_or_ignored_is_refused(
    options, words, teacher_run, tmp_path, capsys
):
    target, *distill = options
    options = [
        f"--model.init_args.target{target}",
        *(f"--model.init_args.loss.kind={each}" for each in distill),
    ]
    assert runs.fit_student(tmp_path / "out", teacher_run, *options) == 1
    assert words in capsys.readouterr().err


def test_a_dataset_is_read_by_a_class_path(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "teacher"
    photos.mkdir()
    for number in range(20):
        runs.noise(40, 40, seed=number).save(
            photos / f"{('crab', 'swan')[number % 2]}_{number:03}.jpg"
        )
    few = [f"--data.init_args.{setting}=4" for setting in ("shots", "batch_size")]
    reader = [
        "--data.init_args.dataset=my_readers.ByFileName",
        *few,
        "--data.init_args.dataset.init_args.root",
    ]
    assert runs.fit_teacher(out, *reader, str(photos)) == 0
    assert ClassVectors.load(out / CLASS_VECTORS_FILE).class_names == ("crab", "swan")
    assert runs.test(out) == 0
    assert json.loads((out / "test.json").read_text())["images"] == 4
    capsys.readouterr()
    assert runs.fit_teacher(tmp_path / "other", *reader, str(tmp_path)) == 1
    assert "has no images <class>_<number>.jpg: set root" in capsys.readouterr().err


@pytest.fixture
def both_stages():
    return runpy.run_path(str(PAGE.parent / "examples" / "both_stages.py"))["main"]


def test_the_script_of_both_stages_trains_tests_and_classifies(both_stages, tmp_path, capsys):
    both_stages(tmp_path, teacher_epochs=1, student_epochs=1)
    out = capsys.readouterr().out
    assert out.count("test/acc") == 2
    assert "digits/1784 shows five\npredicted: " in out
    vectors = [tmp_path / stage / CLASS_VECTORS_FILE for stage in ("teacher", "student")]
    assert vectors[0].read_bytes() == vectors[1].read_bytes()
    assert len(Classifier.load(tmp_path / "student" / "classifier").class_names) == 10


@pytest.mark.slow
def test_the_script_of_both_stages_ends_with_the_quickstarts_accuracies(
    both_stages, tmp_path, capsys
):
    both_stages(tmp_path)
    out = capsys.readouterr().out
    measured = [f"{100 * float(value):.1f}" for value in re.findall(r"test/acc\D+([\d.]+)", out)]
    readme = (PAGE.parent / "README.md").read_text(encoding="utf-8")
    assert measured == re.findall(r"│ (?:teacher, tuned|student, distilled) +│ ([\d.]+)", readme)
    best, second = re.search(r"predicted: five \((.+)\), then nine \((.+)\)\n$", out).groups()
    # processors round differently
    assert float(best) == pytest.approx(0.972, abs=0.003)
    assert float(second) == pytest.approx(0.016, abs=0.003)


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The package in examples/plugin, as if it were installed."""
    folder = shutil.copytree(PAGE.parent / "examples" / "plugin", tmp_path / "plugin")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runs.install_entry_points(folder, "shapes", "1", project["entry-points"])
    monkeypatch.syspath_prepend(folder)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        del sys.modules[name]


@pytest.mark.usefixtures("shapes")
def test_a_plugin_of_another_package_brings_one_thing_of_each_kind(tmp_path, capsys):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    reader = ["--data.init_args.dataset=shapes", "--data.init_args.val_shots=null"]

    # datasets, tasks, models, targets, callbacks
    assert runs.fit_teacher(teacher, *reader) == 0
    assert ClassVectors.load(teacher / CLASS_VECTORS_FILE).task == "smoothed"
    clip = "--model.init_args.clip={model: shape-student, pretrained: mine}"
    assert (
        runs.fit_student(student, teacher, *reader, clip, "--model.init_args.target=sharpened") == 0
    )
    out = capsys.readouterr().out
    assert re.search(r"^TeacherPromptTuning: \d+ steps$", out, re.MULTILINE)
    assert re.search(r"^StudentDistillation: \d+ steps$", out, re.MULTILINE)

    # handover, companions, report
    classifier = str(student / "classifier")
    assert json.loads((student / "classifier/shapes.json").read_text())["images"] == 40
    assert runs.test(student) == 0
    assert runs.main(["report", str(student)]) == 0
    page = (student / "report.html").read_text(encoding="utf-8")
    assert "<p>The student saw 40 unlabelled drawings.</p>" in page

    # predict, observe, formats, commands
    runs.noise(32, 32).save(tmp_path / "photo.png")
    capsys.readouterr()
    names = tmp_path / "names.txt"
    options = ["--sure=0.9999999", f"--names={names}"]
    assert runs.main(["predict", classifier, str(tmp_path / "photo.png"), *options]) == 0
    assert "photo.png,," in capsys.readouterr().out
    assert names.read_text() == "None\n"
    assert runs.main(["export", classifier, "--format=bare", f"--out={tmp_path}/c.pt2"]) == 0
    assert "the same class for 32 of 32 images" in capsys.readouterr().out
    assert runs.main(["classes", classifier, "--sep= | "]) == 0
    assert capsys.readouterr().out == "circle | square\n"
