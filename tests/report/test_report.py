import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from report_pages import HOSTILE, Page, make, put_together, rename_classes
from runs import DATA, SHORT, TEACHER, configs, files_of
from runs import test as run_test

import kdpl.data.readers.digits
from kdpl.__main__ import main
from kdpl.data.readers.registry import DATASETS
from kdpl.errors import DataError
from kdpl.runtime.class_names import shorten
from kdpl.runtime.predictions import read_answers, read_results

SECTIONS = ("accuracy", "training", "classes", "confusions", "calibration", "disagreement", "curves", "cost")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Time one batch of each encoder."""
    monkeypatch.setattr("kdpl.report.cost._SECONDS", 0)
    monkeypatch.setattr("kdpl.report.cost._MIN_BATCHES", 1)


@pytest.fixture
def run(tmp_path, teacher_run, student_run):
    """A run's folder, to be changed."""
    return put_together(tmp_path / "run", teacher_run, student_run)


@pytest.fixture(scope="module")
def page(tmp_path_factory, teacher_run, student_run):
    """The report of an unchanged run; no test changes it."""
    folder = put_together(tmp_path_factory.mktemp("whole") / "my run", teacher_run, student_run)
    return Page(make(folder))


def digits_without(monkeypatch, **changes):
    """Change what the dataset digits has."""
    kind, splits = DATASETS["digits"], kdpl.data.readers.digits.read_digits()
    monkeypatch.setitem(DATASETS, "digits", replace(kind, read=lambda: replace(splits, **changes)))


# --- what it says ---


def test_it_says_what_was_trained_on_what(page):
    text = page.texts["training"]
    for part in ("digits", "899 test, 198 validation, 700 for the student", "10 classes", "16 images a class"):
        assert part in text
    for part in ("tiny-teacher, weights glyphs; 2 epochs, seed 1", "tiny-student", "prompt_init", "mean_token"):
        assert part in text
    assert "my run" in page.texts["header"]


def test_accuracies_are_those_of_the_tests_with_an_interval_around_each(page, teacher_run, student_run):
    for stage in (teacher_run, student_run):
        assert f"{100 * read_results(stage)['test/acc']:.1f}" in page.texts["accuracy"]
    intervals = re.findall(r"(\d+\.\d) (\d+\.\d)–(\d+\.\d)", page.texts["accuracy"])
    assert len(intervals) == 4
    assert all(float(low) < float(value) < float(high) for value, low, high in intervals)
    assert "Wilson" in page.texts["accuracy"]
    assert "ransductive" not in page.texts["accuracy"]
    assert "Chosen on the test set" not in page.texts["accuracy"]


def test_calibration_is_by_a_temperature_from_the_validation_split(page):
    text = page.texts["calibration"]
    assert "fitted on 198 images of the validation split" in text
    assert len(re.findall(r"ECE \d+\.\d points", text)) == 2


def test_disagreements_are_counted_and_shown(page, teacher_run, student_run):
    pairs = list(zip(read_answers(teacher_run), read_answers(student_run), strict=True))
    differing = [(t, s) for t, s in pairs if t.prediction != s.prediction]
    assert f"On {len(differing)} of 899 test images" in page.texts["disagreement"]
    images = page.of("img")
    assert 10 <= len(images) <= 30
    assert all(re.match(r"data:image/(png|jpeg);base64,", image["src"]) for image in images)
    shown = {re.match(r"test image (\d+), of class (\w+)", image["alt"]).groups() for image in images}
    assert shown <= {(str(s.index), s.label) for _, s in differing}


def test_costs_are_those_of_both_image_encoders(page):
    text = page.texts["cost"]
    for part in ("teacher", "student", "FLOPs an image", "batch", "thread", "the classifier", "32 px"):
        assert part in text
    assert "the teacher's images per second" in page.texts["header"]


def test_learning_curves_and_classes_are_there(page):
    assert "training loss" in page.texts["curves"]
    assert "Teacher" in page.texts["curves"]
    assert len([a for a in page.of("svg") if "over epochs" in a["aria-label"]]) == 4
    assert [attributes.get("class") for attributes in page.of("table")].count("matrix") == 1
    assert len(re.findall("seven", page.texts["classes"])) == 1


def test_every_section_has_something_and_none_a_gap(page):
    assert tuple(page.texts)[1:] == SECTIONS
    assert not [a for _, a in page.elements if a.get("class") == "gap"]


# --- one file, for everybody ---


def test_it_needs_nothing_from_outside(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    policy = page.of("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_pictures_have_descriptions_and_tables_headers(page):
    assert all(a["alt"] for a in page.of("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.of("svg"))
    assert all(a.get("scope") in ("col", "row") for a in page.of("th"))
    assert page.of("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.elements].count("h1") == 1


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_both_colour_schemes(page, run):
    style = make(run).partition("<style>")[2].partition("</style>")[0]
    schemes = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", part)) for part in style.split("@media")[:2]]
    assert len({scheme["background"] for scheme in schemes}) == 2
    for scheme in schemes:
        for name in ("text", "muted", "teacher", "student", "right", "wrong"):
            for behind in ("background", "panel"):
                assert contrast(scheme[name], scheme[behind]) >= 4.5, (name, behind, scheme)


# --- names that would break it ---


def test_hostile_class_names_stay_text(run, monkeypatch):
    names = kdpl.data.readers.digits.CLASS_NAMES
    rename_classes(run, names, HOSTILE)
    digits_without(monkeypatch, class_names=HOSTILE)
    html = make(run)
    page = Page(html)
    assert not [a for _, a in page.elements if a.get("class") == "gap"]
    assert len(page.of("script")) == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert [a["src"] for a in page.of("img") if not a["src"].startswith("data:image/")] == []
    assert "<script>document.documentElement.dataset.broken = 'yes'</sc…" in page.texts["classes"]
    assert "[red]two[/red] | lines \\ and **marks**" in page.texts["classes"]
    assert "long long" in page.texts["classes"]
    assert "long " * 20 not in html
    assert "{{ 7 * 7 }}" in page.texts["classes"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("a\n b\t", "a b"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("x" * 10000, "x" * 59 + "…"),
        (" " * 10000 + "x", "…"),
        ("a\u202eb\x00", "a�b�"),
        ("", ""),
    ],
    ids=["short", "lines", "fits", "just too long", "very long", "blank", "control", "empty"],
)
def test_names_are_one_line_and_visibly_cut(name, shown):
    assert shorten(name) == shown


# --- what is missing ---


def gap_of(page, section):
    text = page.texts[section]
    assert len(text) > 40
    return text


@pytest.mark.parametrize(
    ("missing", "section", "words"),
    [
        ("student/classifier", "cost", "classifier"),
        ("student/classifier", "calibration", "No temperature was fitted"),
        ("student/test_logits.safetensors", "calibration", "run the test again"),
        ("student/test_predictions.csv", "confusions", "was not tested"),
        ("teacher/test_predictions.csv", "disagreement", "teacher was not tested"),
        ("teacher/test_predictions.csv", "classes", "teacher was not tested"),
        ("student/metrics.csv", "curves", "metrics.csv does not exist"),
        ("teacher/prompts.safetensors", "cost", "prompts.safetensors does not exist"),
        ("zero_shot/teacher", "accuracy", "teacher's CLIP, zero-shot"),
        ("teacher", "disagreement", "one stage alone"),
    ],
)
def test_what_is_missing_is_a_sentence_in_its_place(missing, section, words, run):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(make(run))
    assert words in gap_of(page, section)
    assert tuple(page.texts)[1:] == SECTIONS
    assert len([a for _, a in page.elements if a.get("class") == "gap"]) < 8


@pytest.mark.parametrize(
    "damaged",
    ["student/test.json", "student/test_predictions.csv", "student/test_logits.safetensors", "student/metrics.csv"],
)
def test_what_is_damaged_is_a_sentence_in_its_place(damaged, run):
    (run / damaged).write_text("{ 7,\nx,y\n1,2")
    page = Page(make(run))
    assert damaged in " ".join(page.texts.values())
    assert tuple(page.texts)[1:] == SECTIONS


def test_without_a_validation_split_there_is_no_temperature_and_it_says_so(run, monkeypatch):
    digits_without(monkeypatch, val=())
    text = Page(make(run)).texts["calibration"]
    assert "No temperature was fitted" in text
    assert "has no val split" in text
    assert len(re.findall("ECE .* points", text)) == 1


def test_a_dataset_that_is_gone_leaves_the_accuracies(run, monkeypatch):
    def read():
        raise DataError("dataset digits is gone: restore it")

    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], read=read))
    page = Page(make(run))
    for section in ("training", "calibration", "disagreement"):
        assert "dataset digits is gone: restore it" in page.texts[section]
    assert page.of("img") == []
    assert "Wilson" in page.texts["accuracy"]


def test_an_image_that_is_gone_is_left_out(run, monkeypatch, page):
    gone = int(re.match(r"test image (\d+)", page.of("img")[0]["alt"])[1])
    source = kdpl.data.readers.digits.read_digits().test[gone].source

    def open_image(name):
        if name == source:
            raise DataError(f"image {name} does not exist: restore it")
        return kdpl.data.readers.digits.open_digit(name)

    digits_without(monkeypatch, open_image=open_image)
    changed = Page(make(run))
    assert [a["alt"] for a in changed.of("img")] == [a["alt"] for a in page.of("img")][1:]
    assert f"image {source} does not exist" in changed.texts["disagreement"]


def test_a_gpu_without_memory_to_spare_leaves_all_but_the_costs(run, monkeypatch):
    def measure(encoders, where):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("kdpl.report.page.measure", measure)
    page = Page(make(run))
    assert "too little memory to spare (CUDA out of memory)" in page.texts["cost"]
    assert len([a for _, a in page.elements if a.get("class") == "gap"]) == 1


def test_other_test_images_than_were_tested_are_not_shown(run, monkeypatch):
    splits = kdpl.data.readers.digits.read_digits()
    digits_without(monkeypatch, test=splits.test[::-1])
    page = Page(make(run))
    assert page.of("img") == []
    assert "other test images than were tested" in page.texts["disagreement"]


# --- other runs ---


def test_base_and_novel_classes_have_intervals_and_the_transductive_remark(run):
    for stage in ("teacher", "student"):
        config = yaml.safe_load((run / stage / "config.yaml").read_text())
        config["data"]["init_args"]["protocol"] = "base_to_novel"
        (run / stage / "config.yaml").write_text(yaml.safe_dump(config))
        for folder in (run / stage, run / "zero_shot" / stage):
            results = {**read_results(folder), "test/base_acc": 0.8, "test/novel_acc": 0.6, "test/hm": 0.96 / 1.4}
            (folder / "test.json").write_text(json.dumps(results))
    file = run / "student/classifier/classifier.json"
    config = json.loads(file.read_text())
    config["class_vectors"]["num_base"] = 5
    file.write_text(json.dumps(config))
    text = Page(make(run)).texts["accuracy"]
    assert len(re.findall(r"\d+\.\d \d+\.\d–\d+\.\d", text)) == 16
    assert "68.6 " in text
    assert "Transductive:" in text
    assert "bootstrap over images" in text


def test_an_epoch_that_was_chosen_on_the_test_set_is_remarked(run):
    config = run / "student/config.yaml"
    config.write_text(config.read_text().replace("choice: last", "choice: best_on_base_test"))
    assert "Chosen on the test set:" in Page(make(run)).texts["accuracy"]


def test_a_students_folder_has_a_report_with_its_teacher(run):
    page = Page(make(run / "student"))
    assert "test images their answers differ" in page.texts["disagreement"]
    assert "student's CLIP, zero-shot: not part of" in page.texts["accuracy"]


def test_a_teachers_folder_has_a_report_too(run):
    page = Page(make(run / "teacher"))
    assert "The teacher answers" in page.texts["confusions"]
    assert "there is no student" in page.texts["calibration"]
    assert "one stage alone" in page.texts["disagreement"]


def test_a_teacher_of_no_epochs_has_a_report(tmp_path):
    out = tmp_path / "zero"
    overlay = configs("teacher/zero_shot.yaml")
    assert main(["fit", *DATA, *TEACHER, *SHORT, *overlay, "--trainer.max_epochs=0", f"--out={out}"]) == 0
    assert run_test(out) == 0
    assert "69.5" in Page(make(out)).texts["accuracy"]


# --- the command ---


def test_it_is_written_where_asked_and_a_second_start_writes_it_again(run, tmp_path, capsys):
    before = files_of(run)
    out = tmp_path / "elsewhere" / "page.html"
    for _ in range(2):
        assert main(["report", str(run), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"report: {out}\n"
    assert files_of(run) == before
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gone"], "run folder gone does not exist"),
        (["empty"], "empty is not a run's folder"),
        (["run", "--out", "empty"], "--out empty is a folder"),
        ([], "the following arguments are required: RUN"),
        (["broken"], "broken/config.yaml is not YAML"),
        (["other"], "other/config.yaml is not that of a fit"),
    ],
)
def test_a_wrong_start_is_one_line(args, words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty", None), ("broken", "a: [1"), ("other", "a: 1")):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.yaml").write_text(text)
    assert main(["report", *args]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("report.html"))
