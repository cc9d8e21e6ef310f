import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml
from report_pages import (
    HOSTILE,
    Page,
    change_vectors,
    make,
    put_together,
    rename_classes,
    section,
    set_in,
)
from runs import refused

from kdpl.__main__ import main
from kdpl.confidence.decision import decision_rule
from kdpl.confidence.report import confidences_at
from kdpl.data.domain import build_data
from kdpl.data.identity import digest_of
from kdpl.data.readers import digits
from kdpl.data.readers.digits import CLASS_NAMES, open_digit
from kdpl.errors import DataError
from kdpl.report import refined
from kdpl.report.accuracy import accuracies, find_examples, thumbnail
from kdpl.report.run_folder import Run
from kdpl.report.training import training
from kdpl.runtime.class_names import shorten
from kdpl.runtime.files import write_json
from kdpl.runtime.loggers import MetricsCSV
from kdpl.runtime.predictions import read_predictions, read_results, write_predictions
from kdpl.runtime.run_folder import PROBE_FOLDER
from kdpl.targets.refinement.pool_targets import Moved, PoolTargets

SECTIONS = ("accuracy", "training", "classes", "confusions", "calibration", "rejection")
SECTIONS += ("disagreement", "curves", "cost")


@pytest.fixture
def run(tmp_path, finished):
    """A copy of that run for a test to change."""
    folder = put_together(tmp_path / "run", finished / "teacher", finished / "student")
    shutil.copytree(finished / PROBE_FOLDER, folder / PROBE_FOLDER)
    return folder


@pytest.fixture(scope="module")
def page(finished):
    return Page((finished / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def without_probes(monkeypatch):
    """Fit no linear probe, which takes longer than the rest of a report."""
    none = Mock(side_effect=DataError("no probe"))
    monkeypatch.setattr("kdpl.report.accuracy.linear_probe", none)


def digits_with(monkeypatch, **changes):
    splits = replace(digits.read_digits(), **changes)
    monkeypatch.setattr(digits.Digits, "read", lambda _: splits)


def gaps_of(page):
    return [a for _, a in page.elements if a.get("class") == "gap"]


# --- content ---


def test_every_section_has_content_and_accuracies_and_disagreements_are_those_of_the_tests(
    page, finished
):
    assert tuple(page.texts)[1:] == SECTIONS
    assert gaps_of(page) == []
    for name, word in {
        "header": "my run",
        "training": "tiny-teacher, weights glyphs",
        "classes": "seven",
        "calibration": "198 held-out images",
        "cost": "32 px",
    }.items():
        assert word in page.texts[name]
    for stage in ("teacher", "student"):
        assert f"{100 * read_results(finished / stage)['test/acc']:.1f}" in page.texts["accuracy"]
        untuned = f"{100 * read_results(finished / 'zero_shot' / stage)['test/acc']:.1f}"
        assert untuned in page.texts["header"]
    intervals = re.findall(r"(\d+\.\d) (\d+\.\d)–(\d+\.\d)", page.texts["accuracy"])
    assert len(intervals) == 6
    assert all(float(low) < float(value) < float(high) for value, low, high in intervals)
    assert len([a for a in page.of("svg") if "over epochs" in a["aria-label"]]) == 4

    stages = (read_predictions(finished / stage) for stage in ("teacher", "student"))
    differing = [s for t, s in zip(*stages, strict=True) if t.prediction != s.prediction]
    assert f"On {len(differing)} of 899 test images" in page.texts["disagreement"]
    images = [image for image in page.of("img") if image["alt"].startswith("test image")]
    assert 10 <= len(images) <= 30
    assert all(image["src"].startswith("data:image/webp;base64,") for image in images)
    assert {image["alt"] for image in images} <= {
        f"test image {s.index}, of class {s.label}" for s in differing
    }


# --- one file, for everybody ---


def test_it_needs_nothing_from_outside_and_has_descriptions_and_headers(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    policy = page.of("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert all(a["alt"] for a in page.of("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.of("svg"))
    assert all(a.get("scope") in ("col", "row") for a in page.of("th"))
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1


def test_hostile_class_names_stay_text(run, monkeypatch):
    rename_classes(run, digits.CLASS_NAMES, HOSTILE)
    digits_with(monkeypatch, class_names=HOSTILE)
    html = make(run)
    page = Page(html)
    assert gaps_of(page) == []
    assert len(page.of("script")) == len(page.of("h1")) == 1
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert [a["src"] for a in page.of("img") if not a["src"].startswith("data:image/")] == []
    script = "<script>document.documentElement.dataset.broken = 'yes'</sc…"
    for shown in (script, "[red]two[/red] | lines \\ and **marks**", "long long", "{{ 7 * 7 }}"):
        assert shown in page.texts["classes"]
    assert "long " * 20 not in html


def test_names_are_one_line_and_visibly_cut():
    shown = {"cat": "cat", "x" * 61: "x" * 59 + "…", " " * 10000 + "x": "…", "a\u202eb\x00": "a�b�"}
    assert {name: shorten(name) for name in shown} == shown


# --- missing and damaged parts ---


@pytest.mark.parametrize(
    ("missing", "damaged", "words"),
    [
        (
            (
                *("student/metrics.csv", "student/classifier/held_out.safetensors"),
                *("teacher/prompts.safetensors", "zero_shot/teacher"),
            ),
            ("teacher/test_predictions.csv", "teacher/metrics.csv"),
            {
                "accuracy": ("teacher's original CLIP (zero-shot)", "teacher/test_predictions.csv"),
                "calibration": ("No temperature is known", "no scores of held-out images"),
                "cost": ("prompts.safetensors does not exist",),
                "curves": ("student/metrics.csv does not exist", "teacher/metrics.csv"),
            },
        ),
        (
            ("student/classifier", "student/test_predictions.csv"),
            (),
            {"cost": ("classifier",), "confusions": ("was not tested",)},
        ),
    ],
)
def test_a_missing_or_damaged_part_is_a_sentence_in_its_section(missing, damaged, words, run):
    for name in missing:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    for name in damaged:
        (run / name).write_text("{ 7,\nx,y\n1,2")
    page = Page(make(run))
    for name, parts in words.items():
        assert [part for part in parts if part not in page.texts[name]] == []
    assert tuple(page.texts)[1:] == SECTIONS
    assert 0 < len(gaps_of(page)) < 12


def test_where_no_label_was_used_a_probe_is_not_missing(run):
    shutil.rmtree(run / PROBE_FOLDER)
    for stage in ("teacher", "student"):
        set_in(run / stage, "data", shots=0)
    assert accuracies(Run.find(run))["gaps"] == []


def test_confidences_at_the_temperature_are_those_of_predict(finished):
    opened = Run.find(finished)
    classifier, chosen = opened.classifier, opened.student.predictions[::9]
    rule = decision_rule(classifier, calibrated=True)
    predicted = classifier.predict([open_digit(p.source) for p in chosen], rule=rule)
    expected = [top.probability for (top,) in predicted]
    assert confidences_at(rule.temperature, opened, chosen) == pytest.approx(expected, abs=1e-5)


def test_other_test_images_than_were_tested_are_not_shown(finished, monkeypatch):
    digits_with(monkeypatch, test=digits.read_digits().test[::-1])
    examples = find_examples(Run.find(finished))
    assert "other test images than were tested" in examples["gap"]
    assert examples["shown"] == []


def test_without_the_dataset_and_with_a_full_gpu_the_accuracies_are_left(run, monkeypatch, capsys):
    words = "dataset digits is gone: restore it"
    monkeypatch.setattr(digits.Digits, "read", Mock(side_effect=DataError(words)))
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    monkeypatch.setattr("kdpl.report.cost.measure", full)
    page = Page(make(run))
    assert [name for name in SECTIONS if words in page.texts[name]] == [
        *("training", "calibration", "rejection", "disagreement")
    ]
    assert "Compared with logistic regression" in capsys.readouterr().err
    assert "CUDA out of memory" in page.texts["cost"]
    assert "Tried to allocate" not in page.texts["cost"]
    assert page.of("img") == []
    assert "Wilson" in page.texts["accuracy"]


# --- other runs ---


@pytest.mark.usefixtures("without_probes")
def test_base_and_novel_classes_have_intervals_and_remarks(run):
    for stage in ("teacher", "student"):
        config = set_in(run / stage, "data", protocol="base_to_novel")
        chosen = {"class_path": "kdpl.benchmark.choice.BestOnBaseTest", "init_args": {}}
        config["trainer"]["callbacks"] = [chosen]
        (run / stage / "config.yaml").write_text(yaml.safe_dump(config))
        for folder in (run / stage, run / "zero_shot" / stage):
            # 80 % of the base images and 60 % of the novel ones are right among their half
            seen, halves = {True: 0, False: 0}, []
            for tested in read_predictions(folder):
                base = tested.label_number < 5
                seen[base] += 1
                right = seen[base] % 5 < (4 if base else 3)
                number = tested.label_number if right else 4 if tested.label_number == 0 else 0
                halves.append(replace(tested, half_prediction_number=number))
            write_predictions(folder, halves)
    change_vectors(run / "student", num_base=5)
    opened = Run.find(run)
    text = section("accuracy", accuracies(opened), training=training(opened))
    shown = re.findall(r"(\d+\.\d) (\d+\.\d)–(\d+\.\d)", text)
    assert len(shown) == 16
    base, novel, mean = (float(value) for value, _, _ in shown[1:4])
    assert (base, novel) == pytest.approx((80, 60), abs=0.4)
    assert mean == pytest.approx(2 * base * novel / (base + novel), abs=0.1)
    for words in ("Transductive:", "Student's t over images", "Chosen on the test set:"):
        assert words in text


@pytest.mark.usefixtures("without_probes")
def test_a_single_stage_has_a_report(run):
    student = Page(make(run / "student"))
    assert "test images their predictions differ" in student.texts["disagreement"]
    assert "student's original CLIP (zero-shot): not part of" in student.texts["accuracy"]
    teacher = Page(make(run / "teacher"))
    assert "zero-shot" not in teacher.texts["header"]
    assert "The teacher misclassifies" in teacher.texts["confusions"]
    assert "there is no student" in teacher.texts["calibration"]
    assert "only one stage" in teacher.texts["disagreement"]


# --- the command ---


def test_it_is_written_where_asked_again_and_leaves_the_run_alone(
    finished, tmp_path, monkeypatch, capsys
):
    rendered, out = [], tmp_path / "elsewhere" / "page.html"
    monkeypatch.setattr(
        "kdpl.report.page.render", lambda run: rendered.append(run) or f"page {len(rendered)}"
    )
    for number in (1, 2):
        assert make(finished, out) == f"page {number}"
        assert capsys.readouterr().out == f"report: {out}\n"
    assert all(run.read_only for run in rendered)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_a_wrong_start_is_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("other", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "other/config.yaml").write_text("a: 1")
    for args, words in (
        (["gone"], "gone does not exist"),
        (["empty"], "empty is not a run's folder"),
        (["run", "--out", "empty"], "--out empty is a folder"),
        (["other"], "other/config.yaml is not that of a fit"),
    ):
        refused(capsys, main(["report", *args]), words)
    assert not list(tmp_path.rglob("report.html"))


def test_the_page_says_who_saw_the_labels_and_of_one_image_that_it_is_one(run):
    file = run / "student/config.yaml"
    for target, words in (("teacher", "the teacher only"), ("refined", "its refined targets")):
        set_in(run / "student", target=target)
        file.write_text(re.sub("(max_epochs|shots): .*", r"\1: 1", file.read_text()))
        text = section("training", training(Run.find(run)))
        assert all(said in text for said in (words, "1 image per class", "1 epoch, seed 1"))


def test_the_page_says_what_an_estimate_of_the_same_images_expected(run, without_probes):
    (run / "data").mkdir()
    write_json(run / "data" / "choice.json", {"path": "/images/digits"})
    estimate = run.with_name("digits_estimate") / "estimate.json"
    student = {"value": 0.84, "interval": [0.78, 0.89]}
    for path, said in (("/images/digits", True), ("/images/others", False)):
        write_json(estimate, {"path": path, "student": student})
        parts = {"training": training(Run.find(run)), "accuracy": accuracies(Run.find(run))}
        text = section("tiles", **parts, cost=None)
        assert ("estimated before training: 84.0 % [78.0, 89.0]" in text) == said
    estimate.write_text("{")
    assert training(Run.find(run))["estimated"] is None


def test_the_page_says_whether_the_student_or_its_targets_are_the_limit(run):
    assert training(Run.find(run))["fidelity"] is None
    logger = MetricsCSV(str(run / "student"))
    logger.log_metrics({"val/fidelity": 0.2, "pool/unseen": 100.0}, step=50)
    for step, share, words in (
        (60, 0.764, "the student itself"),
        (70, 0.9, "its targets limit it: add labels, or take another teacher or refined targets"),
    ):
        logger.log_metrics({"val/fidelity": share, "pool/unseen": 100.0}, step=step)
        text = section("training", training(Run.find(run)))
        agrees = f"its target on {100 * share:.1f} % of 100 unlabelled images that it has not seen"
        assert f"{agrees}, so that {words}" in text
    # what is there already is no advice
    set_in(run / "student", target="refined")
    assert "or refined targets" not in section("training", training(Run.find(run)))


@pytest.fixture
def targets(run):
    """Refined targets in the student's folder, of which the second image moved from class 1 to class 3."""
    data = build_data([set_in(run / "student", target="refined")["data"]])
    targets = PoolTargets(
        made_from={"images": digest_of(data.pool.images)},
        class_names=CLASS_NAMES,
        taken=True,
        reason="taken: it is better",
        accuracy=(0.5, 0.75),
        before=(1,) * 10,
        after=(1, 0, 1, 2, *(1,) * 6),
        moved=1,
        examples=(Moved(1, 1, 3),),
        images=torch.arange(10),
        assignments=torch.eye(10).half(),
    )
    targets.save(run / "student/pool_targets.safetensors")
    return targets


class TestRefinedTargets:
    def test_decision_classes_and_images_that_moved_are_shown(self, run, targets):
        page = Page(make(run))
        text = page.texts["refined"]
        moved = "1 of 10 unlabelled images is assigned to another class than the teacher's."
        assert f"Taken: it is better. {moved}" in text
        (image,) = (image for image in page.of("img") if image["alt"] == "unlabelled image 1")
        pool = Run.find(run).data.pool.images
        assert image["src"] == thumbnail(open_digit(pool[1]))["uri"]
        assert "teacher one refined three" in text
        assert "change one 1 0 −1 three 1 2 +1" in text
        assert tuple(page.texts)[1:] == (*SECTIONS[:2], "refined", *SECTIONS[2:])
        assert gaps_of(page) == []

    def test_those_that_the_student_did_not_learn_are_not_shown(self, run, targets):
        set_in(run / "student", target="teacher")
        assert refined.refined_targets(Run.find(run)) is None

    def test_of_other_images_the_table_is_left(self, run, targets):
        other = replace(targets, made_from={"images": "other"})
        other.save(run / "student/pool_targets.safetensors")
        text = section("refined", refined.refined_targets(Run.find(run)), refined.SECTION)
        assert "Images are left out: " in text
        assert "three 1 2 +1" in text
        assert "teacher one refined three" not in text
