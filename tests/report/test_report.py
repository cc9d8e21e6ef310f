import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml
from report_pages import HOSTILE, Page, change_vectors, make, put_together, rename_classes
from runs import files_of, refused

from kdpl.__main__ import main
from kdpl.confidence.decision import decision_rule
from kdpl.confidence.report.calibration import confidences_at
from kdpl.data.domain import build_data
from kdpl.data.names import digest_of
from kdpl.data.readers import digits
from kdpl.data.readers.digits import CLASS_NAMES, open_digit
from kdpl.errors import DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.report.accuracy import thumbnail
from kdpl.report.run_folder import Run
from kdpl.runtime.class_names import shorten
from kdpl.runtime.loggers import MetricsCSV
from kdpl.runtime.predictions import read_predictions, read_results, write_predictions
from kdpl.runtime.run_folder import PROBE_FOLDER
from kdpl.targets.refinement.pool_targets import Moved, PoolTargets

SECTIONS = ("accuracy", "training", "classes", "confusions", "calibration", "rejection")
SECTIONS += ("disagreement", "reasons", "curves", "cost")


@pytest.fixture(scope="module")
def complete(tmp_path_factory, teacher_run, student_run):
    """A run with its report, and the linear probes that its first report fitted; no test changes it."""
    folder = tmp_path_factory.mktemp("complete") / "my run"
    make(put_together(folder, teacher_run, student_run))
    return folder


@pytest.fixture(scope="module")
def html(complete):
    return (complete / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path, teacher_run, student_run, complete):
    """A run with those linear probes, which are fitted again only where a test changes what they are fitted on."""
    folder = put_together(tmp_path / "run", teacher_run, student_run)
    shutil.copytree(complete / PROBE_FOLDER, folder / PROBE_FOLDER)
    return folder


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def digits_with(monkeypatch, **changes):
    splits = replace(digits.read_digits(), **changes)
    monkeypatch.setattr(digits.Digits, "read", lambda _: splits)


def gaps_of(page):
    return [a for _, a in page.elements if a.get("class") == "gap"]


# --- content ---


def test_every_section_has_content_and_the_accuracies_are_those_of_the_tests(
    page, teacher_run, student_run
):
    assert tuple(page.texts)[1:] == SECTIONS
    assert gaps_of(page) == []
    for section, words in {
        "header": ("my run", "the teacher's speed"),
        "training": (
            *(
                "digits",
                "899 test, 198 validation, 700 unlabelled",
                "10 classes",
                "16 images per class",
            ),
            *(
                "tiny-teacher, weights glyphs; 2 epochs, seed 1",
                "tiny-student",
                "vision_prompts.init",
                "mean_token",
            ),
        ),
        "curves": ("training loss", "Teacher", "Student"),
        "classes": ("seven",),
        "calibration": ("maximises the likelihood of 198 held-out images",),
        "cost": (
            "teacher",
            "student",
            "FLOPs per image",
            "batch",
            "thread",
            "the classifier",
            "32 px",
        ),
        "accuracy": ("Wilson", "original CLIP (zero-shot)"),
    }.items():
        assert [each for each in words if each not in page.texts[section]] == []
    for stage in (teacher_run, student_run):
        assert f"{100 * read_results(stage)['test/acc']:.1f}" in page.texts["accuracy"]
    intervals = re.findall(r"(\d+\.\d) (\d+\.\d)–(\d+\.\d)", page.texts["accuracy"])
    assert len(intervals) == 6
    assert all(float(low) < float(value) < float(high) for value, low, high in intervals)
    assert "Transductive" not in page.texts["accuracy"]
    assert "Chosen on the test set" not in page.texts["accuracy"]
    assert len(re.findall(r"ECE \d+\.\d points", page.texts["calibration"])) == 2
    assert len([a for a in page.of("svg") if "over epochs" in a["aria-label"]]) == 4


def test_the_head_has_the_accuracies_before_training_too(page, run, teacher_run):
    for stage in ("teacher", "student"):
        shown = f"{100 * read_results(run / 'zero_shot' / stage)['test/acc']:.1f}"
        assert (
            f"accuracy of the {stage} its original CLIP, zero-shot: {shown} %"
            in page.texts["header"]
        )
    assert "zero-shot" not in Page(make(teacher_run, run / "teacher.html")).texts["header"]


def test_one_of_something_is_not_many(run):
    file = run / "student/config.yaml"
    file.write_text(re.sub("(max_epochs|shots): .*", r"\1: 1", file.read_text()))
    text = Page(make(run)).texts["training"]
    assert "1 epoch, seed 1" in text
    assert "1 image per class" in text


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (500, "1/2 of the teacher's parameters"),
        (1026, "1.03 × the teacher's parameters"),
        (1000, "1 × the teacher's"),
    ],
)
def test_the_head_compares_the_parameters_of_a_larger_student_too(student, words, run, monkeypatch):
    same = {"flops": 1, "images_per_s": 1.0, "batch_size": 8, "image_size": 32}
    measured = {"teacher": {"parameters": 1000, **same}, "student": {"parameters": student, **same}}
    monkeypatch.setattr("kdpl.report.cost.measure", lambda *_: measured)
    assert words in Page(make(run)).texts["header"]


def test_disagreements_are_counted_and_shown(page, teacher_run, student_run):
    pairs = zip(read_predictions(teacher_run), read_predictions(student_run), strict=True)
    differing = [s for t, s in pairs if t.prediction != s.prediction]
    assert f"On {len(differing)} of 899 test images" in page.texts["disagreement"]
    images = [
        image for image in page.of("img") if not image["alt"].startswith(("rejected", "heat maps"))
    ]
    assert 10 <= len(images) <= 30
    assert all(re.match(r"data:image/webp;base64,", image["src"]) for image in images)
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
    shutil.rmtree(run / PROBE_FOLDER)
    digits_with(monkeypatch, class_names=HOSTILE)
    html = make(run)
    page = Page(html)
    assert gaps_of(page) == []
    assert len(page.of("script")) == len(page.of("h1")) == 1
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on")
    ]
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
    ("missing", "section", "words"),
    [
        ("student/classifier", "cost", "classifier"),
        ("student/classifier/held_out.safetensors", "calibration", "No temperature is known"),
        ("student/test_predictions.csv", "confusions", "was not tested"),
        ("student/metrics.csv", "curves", "metrics.csv does not exist"),
        ("teacher/prompts.safetensors", "cost", "prompts.safetensors does not exist"),
        ("zero_shot/teacher", "accuracy", "teacher's original CLIP (zero-shot)"),
    ],
)
def test_a_missing_part_is_a_sentence_in_its_section(missing, section, words, run):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(make(run))
    assert words in page.texts[section]
    assert tuple(page.texts)[1:] == SECTIONS
    assert 0 < len(gaps_of(page)) < 8


def test_a_prompt_method_that_is_not_kdpls_is_not_imported(run, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = TunedPrompts.load(run / "teacher/prompts.safetensors")
    replace(prompts, method="stranger.Prompts").save(run / "teacher/prompts.safetensors")
    assert "names the class stranger.Prompts" in Page(make(run)).texts["cost"]
    assert not (tmp_path / "written").exists()


def test_damaged_files_are_sentences_in_their_sections(run):
    damaged = (
        "student/classifier/held_out.safetensors",
        "teacher/test_predictions.csv",
        "teacher/metrics.csv",
    )
    for name in damaged:
        (run / name).write_text("{ 7,\nx,y\n1,2")
    page = Page(make(run))
    assert [name for name in damaged if name not in " ".join(page.texts.values())] == []
    assert tuple(page.texts)[1:] == SECTIONS


def test_without_held_out_images_there_is_no_temperature(run):
    (run / "student/classifier/held_out.safetensors").unlink()
    text = Page(make(run)).texts["calibration"]
    assert "No temperature is known: this classifier has no scores of held-out images" in text
    assert len(re.findall("ECE .* points", text)) == 1


def test_confidences_at_the_temperature_are_those_of_predict(run):
    opened = Run.find(run)
    classifier, chosen = opened.classifier, opened.student.predictions[::9]
    rule = decision_rule(classifier, calibrated=True)
    predicted = classifier.predict([open_digit(p.source) for p in chosen], rule=rule)
    expected = [each[0].probability for each in predicted]
    assert confidences_at(rule.temperature, opened, chosen) == pytest.approx(expected, abs=1e-5)


def test_other_test_images_than_were_tested_are_not_shown(run, monkeypatch):
    digits_with(monkeypatch, test=digits.read_digits().test[::-1])
    page = Page(make(run))
    assert "other test images than were tested" in page.texts["disagreement"]
    assert page.of("img") == []


def test_without_the_dataset_the_accuracies_are_left(run, monkeypatch):
    words = "dataset digits is gone: restore it"
    monkeypatch.setattr(digits.Digits, "read", Mock(side_effect=DataError(words)))
    page = Page(make(run))
    assert [name for name in SECTIONS if words in page.texts[name]] == [
        *("training", "calibration", "rejection", "disagreement", "reasons")
    ]
    assert page.of("img") == []
    assert "Wilson" in page.texts["accuracy"]


def test_a_full_gpu_leaves_out_only_the_costs(run, monkeypatch):
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    monkeypatch.setattr("kdpl.report.cost.measure", full)
    page = Page(make(run))
    assert "CUDA out of memory" in page.texts["cost"]
    assert len(gaps_of(page)) == 1


# --- other runs ---


def test_base_and_novel_classes_have_intervals_and_remarks(run):
    for stage in ("teacher", "student"):
        file = run / stage / "config.yaml"
        config = yaml.safe_load(file.read_text())
        config["data"]["init_args"]["protocol"] = "base_to_novel"
        config["trainer"]["callbacks"] = [
            {"class_path": "kdpl.benchmark.choice.BestOnBaseTest", "init_args": {}}
        ]
        file.write_text(yaml.safe_dump(config))
        for folder in (run / stage, run / "zero_shot" / stage):
            # 80 % of the base images and 60 % of the novel ones are right among their half
            seen, halves = {True: 0, False: 0}, []
            for each in read_predictions(folder):
                base = each.label_number < 5
                seen[base] += 1
                right = seen[base] % 5 < (4 if base else 3)
                number = each.label_number if right else 4 if each.label_number == 0 else 0
                halves.append(replace(each, half_prediction_number=number))
            write_predictions(folder, halves)
    change_vectors(run / "student", num_base=5)
    text = Page(make(run)).texts["accuracy"]
    found = re.findall(r"(\d+\.\d) (\d+\.\d)–(\d+\.\d)", text)
    assert len(found) == 16 + 2
    base, novel, mean = (float(value) for value, _, _ in found[1:4])
    assert (base, novel) == pytest.approx((80, 60), abs=0.4)
    assert mean == pytest.approx(2 * base * novel / (base + novel), abs=0.1)
    for words in ("Transductive:", "Student's over images", "Chosen on the test set:"):
        assert words in text


def test_a_single_stage_has_a_report(run):
    student = Page(make(run / "student"))
    assert "test images their predictions differ" in student.texts["disagreement"]
    assert "student's original CLIP (zero-shot): not part of" in student.texts["accuracy"]
    teacher = Page(make(run / "teacher"))
    assert "The teacher misclassifies" in teacher.texts["confusions"]
    assert "there is no student" in teacher.texts["calibration"]
    assert "only one stage" in teacher.texts["disagreement"]


# --- the command ---


def test_it_is_written_where_asked_and_a_second_start_writes_it_again(run, tmp_path, capsys):
    shutil.rmtree(run / PROBE_FOLDER)
    before = files_of(run)
    out = tmp_path / "elsewhere" / "page.html"
    for _ in range(2):
        make(run, out)
        assert capsys.readouterr().out == f"report: {out}\n"
    assert files_of(run) == before
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gone"], "run folder gone does not exist"),
        (["empty"], "empty is not a run's folder"),
        (["run", "--out", "empty"], "--out empty is a folder"),
        (["other"], "other/config.yaml is not that of a fit"),
    ],
)
def test_a_wrong_start_is_one_line(args, words, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("other", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "other/config.yaml").write_text("a: 1")
    refused(capsys, main(["report", *args]), words)
    assert not list(tmp_path.rglob("report.html"))


def set_in(stage, **settings):
    """Change the settings of a stage's model; returns its config."""
    config = yaml.safe_load((stage / "config.yaml").read_text())
    config["model"]["init_args"].update(settings)
    (stage / "config.yaml").write_text(yaml.safe_dump(config))
    return config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "teacher"}, "the teacher only"),
        ({"target": "local_views"}, "the teacher and its targets of local views"),
        ({"target": "refined"}, "the teacher and its refined targets"),
        (
            {"target": {"class_path": "kdpl.targets.refinement.target.Refined"}},
            "the teacher and its refined targets",
        ),
    ],
)
def test_the_page_says_who_saw_the_labels(settings, words, run):
    set_in(run / "student", **settings)
    assert f"16 images per class, for {words}" in Page(make(run)).texts["training"]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (
            0.764,
            "its target on 76.4 % of 100 unlabelled images that it has not seen, so that the student itself",
        ),
        (
            0.9,
            "its target on 90.0 % of 100 unlabelled images that it has not seen, so that its targets limit it",
        ),
    ],
)
def test_the_page_says_whether_the_student_or_its_targets_are_the_limit(share, words, run):
    assert "agrees with its target" not in Page(make(run)).texts["training"]
    logger = MetricsCSV(str(run / "student"))
    for step, value in ((50, 0.2), (60, share)):
        logger.log_metrics({"val/fidelity": value, "pool/unseen": 100.0}, step=step)
    text = " ".join(Page(make(run)).texts["training"].split())
    assert words in text
    # what is there already is no advice
    set_in(run / "student", target="refined")
    refined = " ".join(Page(make(run)).texts["training"].split())
    assert ("or refined targets" in text, "or refined targets" in refined) == (share == 0.9, False)


@pytest.fixture
def refined(run):
    """Refined targets in the student's folder, of which the second image moved from class 1 to class 3."""
    config = set_in(run / "student", target="refined")
    data = build_data([config["data"]])
    targets = PoolTargets(
        **{"made_from": {"images": digest_of(data.pool.images)}, "class_names": CLASS_NAMES},
        **{"taken": True, "reason": "taken: it is better", "accuracy": (0.5, 0.75)},
        **{
            "before": (1,) * 10,
            "after": (1, 0, 1, 2, *(1,) * 6),
            "moved": 1,
            "examples": (Moved(1, 1, 3),),
        },
        **{"images": torch.arange(10), "assignments": torch.eye(10).half()},
    )
    targets.save(run / "student/pool_targets.safetensors")
    return targets


class TestRefinedTargets:
    def test_decision_classes_and_images_that_moved_are_shown(self, run, refined):
        page = Page(make(run))
        text = page.texts["refined"]
        assert (
            "Taken: it is better. 1 of 10 unlabelled images is assigned to another class than the teacher's."
            in text
        )
        (image,) = (image for image in page.of("img") if image["alt"] == "unlabelled image 1")
        pool = build_data(
            [yaml.safe_load((run / "student/config.yaml").read_text())["data"]]
        ).pool.images
        assert image["src"] == thumbnail(open_digit(pool[1]))["uri"]
        assert re.search("teacher one refined three", text)
        assert re.search(r"change one 1 0 −1 three 1 2 \+1", text)
        assert tuple(page.texts)[1:] == (*SECTIONS[:2], "refined", *SECTIONS[2:])
        assert gaps_of(page) == []

    def test_targets_that_were_not_taken_are_called_so(self, run, refined):
        file = run / "student/pool_targets.safetensors"
        replace(refined, taken=False, reason="not taken: it is worse").save(file)
        text = Page(make(run)).texts["refined"]
        assert "Not taken: it is worse." in text
        assert "the student learned the teacher's predictions nevertheless" in text

    def test_those_that_the_student_did_not_learn_are_not_shown(self, run, refined):
        set_in(run / "student", target="teacher")
        assert "refined" not in Page(make(run)).texts

    @pytest.mark.parametrize(
        "changes", [{"made_from": {"images": "other"}}, {"examples": (Moved(10**6, 1, 3),)}]
    )
    def test_of_other_images_the_table_is_left(self, changes, run, refined):
        replace(refined, **changes).save(run / "student/pool_targets.safetensors")
        page = Page(make(run))
        assert "Images are left out: " in page.texts["refined"]
        assert "three 1 2 +1" in page.texts["refined"]
        assert not [image for image in page.of("img") if image["alt"].startswith("unlabelled")]

    def test_a_damaged_file_is_a_sentence(self, run, refined):
        (run / "student/pool_targets.safetensors").write_bytes(b"x")
        assert "pool_targets.safetensors is damaged" in Page(make(run)).texts["refined"]
