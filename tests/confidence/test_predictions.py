"""Predictions that say how sure they are: rejected images, sets of classes, calibrated probabilities, and their report."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs
import torch
import world
from doubting import predict
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores, held_out_of
from kdpl.confidence.labeled import labeled_records
from kdpl.confidence.report import rejection
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import read_predictions


def like(given, **companions):
    return Classifier(
        given.encoder, given.vectors, given.logit_scale, given.clip, companions=companions
    )


def median_of(classifier, images):
    return torch.tensor([top.probability for (top,) in classifier.predict(images)]).median()


def with_scores(given, threshold_at):
    """The classifier with held-out scores that lead to this threshold: those below it are wrong."""
    scores = torch.tensor([1.0, float(threshold_at), 0.0])
    scores = scores.repeat_interleave(torch.tensor([200, 100, 100]))
    return like(given, held_out=HeldOutScores(1.7, scores, scores.clone(), scores > 0))


@pytest.fixture(scope="module")
def sure(clip_of):
    """A classifier with scores of 400 held-out images, of which 8 are wrong, at low scores."""
    clip, vectors = clip_of("test-student"), world.frozen_vectors()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some drawn otherwise are sure of every image
        encoder = StudentEncoder(clip.image_tower, 2, 3, vectors.vectors.shape[1])
    made = Classifier(world.disturbed(encoder, 0.2), vectors, 17.0, clip.identity)
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(400, generator=draw).sort(descending=True).values * 0.8 + 0.2
    correct = torch.arange(400) < 392
    label_scores = torch.where(correct, scores, 0.01)
    made.companions["held_out"] = HeldOutScores(1.7, scores, label_scores, correct)
    return made


@pytest.fixture(scope="module")
def many():
    return [*world.images_of(torch.arange(40), seed=8)]


@pytest.mark.parametrize("calibrated", [False, True])
def test_images_below_the_threshold_are_rejected_with_their_score(calibrated, sure, many):
    sure = with_scores(sure, threshold_at=median_of(sure, many))
    threshold = sure.companions["held_out"].threshold(0.02)
    rejected = [top.probability < threshold for (top,) in sure.predict(many)]
    assert 0 < sum(rejected) < len(many)
    plain = predict(sure, many, top_k=2, calibrated=calibrated)
    decided = predict(sure, many, 2, max_error=0.02, calibrated=calibrated)
    for out, row, kept in zip(rejected, decided, plain, strict=True):
        assert row == ([(None, kept[0].probability)] if out else kept)


def test_sets_have_every_class_that_is_probable_enough_and_are_never_empty(sure, many):
    sizes, ranked = set(), sure.predict(many, 5)
    for coverage in (0.5, 0.9, 0.97, 0.99):
        threshold = sure.companions["held_out"].set_threshold(coverage)
        for row, named in zip(ranked, predict(sure, many, sets=coverage), strict=True):
            assert named == [p for i, p in enumerate(row) if i == 0 or p.probability >= threshold]
            sizes.add(len(named))
    assert min(sizes) == 1 < max(sizes)


def test_calibrated_probabilities_are_those_at_the_temperature(sure, many):
    expected = (sure(torch.stack(many)).double() / 1.7).softmax(dim=1)
    for row, of_image in zip(predict(sure, many, 5, calibrated=True), expected, strict=True):
        falling = of_image.sort(descending=True).values.tolist()
        assert [p.probability for p in row] == pytest.approx(falling, rel=1e-4)


def test_without_them_an_option_that_needs_them_says_how_to_get_them(sure, many):
    further = world.frozen_vectors(seed=3, class_names=("eel", "ray", "cod", "carp", "pike"))
    for given in (like(sure), sure.add_classes(further)):
        for option in ({"max_error": 0.05}, {"sets": 0.9}, {"calibrated": True}):
            with world.refused(ArtifactError, "run python -m kdpl calibrate"):
                predict(given, many, **option)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits of the test set in a folder for each class."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for i in range(1400, 1520):
        (folder / world.DIGITS[digits.target[i]]).mkdir(exist_ok=True)
        image = Image.fromarray((digits.images[i] * 15.9375).astype("uint8"))
        image.save(folder / world.DIGITS[digits.target[i]] / f"{i}.png")
    return folder


def kept_scores(folder):
    held_out = Classifier.load(folder).companions["held_out"]
    return torch.stack([held_out.scores, held_out.label_scores], dim=1)


def plain_scores(folder, images, names):
    """Largest probability and the label's, of each image."""
    rows = Classifier.load(folder).predict(images, top_k=10)
    pairs = [(row[0].probability, dict(row)[name]) for row, name in zip(rows, names, strict=True)]
    return torch.tensor(pairs)


def test_a_fit_keeps_the_scores_of_its_validation_images(classifier):
    splits = world.digits(batch_size=8).splits
    images = [splits.open_image(record.source) for record in splits.val]
    names = [world.DIGITS[record.label] for record in splits.val]
    kept = kept_scores(classifier)
    assert len(kept) == 198
    expected = plain_scores(classifier, images, names)
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-6)


def companions_of_a_fit(folder, **data):
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None)
    domain = world.digits(8, **data)
    world.fit(world.make_student(folder), folder, domain=domain, limit_train_batches=1)
    return Classifier.load(folder / "classifier").companions, domain


def test_a_fit_bounds_errors_by_one_image_of_each_group_but_not_by_samples(tmp_path, monkeypatch):
    sampled = companions_of_a_fit(tmp_path, shots=16, val_shots=4)[0]["held_out"]
    assert len(sampled) == 40
    with world.refused(ConfigError, r"a sample of equally many of each class \(val_shots\)"):
        sampled.threshold(0.99)

    groups = world.group_digits(monkeypatch)
    companions, domain = companions_of_a_fit(tmp_path)
    number = len({groups[record.source] for record in domain.splits.val})
    assert number < len(domain.splits.val) / 2
    assert len(companions["held_out"]) == number
    assert companions["unknown"].held_out == number
    companions["held_out"].set_threshold(0.9)  # not refused


def test_a_classifier_whose_student_trains_on_validation_images_says_that_it_has_no_others(
    tmp_path,
):
    companions, _ = companions_of_a_fit(tmp_path, train_on_val=True)
    assert "held_out" not in companions
    assert companions["unknown"].held_out is None
    classifier = Classifier.load(tmp_path / "classifier")
    with world.refused(ArtifactError, r"no scores of held-out images: .*train_on_val false"):
        held_out_of(classifier)


def test_calibrate_replaces_them_by_those_of_a_folder_or_table(folder, photos, tmp_path, capsys):
    def other_files():
        files, replaced = runs.files_of(folder), ("held_out.safetensors", "unknown.safetensors")
        return {name: files[name] for name in files if name not in replaced}

    before, paths = other_files(), sorted(photos.rglob("*.png"))
    expected = plain_scores(folder, paths, [path.parent.name for path in paths]).sort(dim=0).values
    names = "\n".join(f"number {i},{name}" for i, name in enumerate(world.DIGITS))
    (tmp_path / "names.csv").write_text(names)
    rows = [f"{path},number {world.DIGITS.index(path.parent.name)}" for path in paths]
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]))
    for options in ([photos], [tmp_path / "table.csv", f"--class-names={tmp_path}/names.csv"]):
        capsys.readouterr()
        assert main(["calibrate", str(folder), *map(str, options)]) == 0
        kept = kept_scores(folder)
        torch.testing.assert_close(kept.sort(dim=0).values, expected, rtol=1e-4, atol=1e-6)
        accuracy = (kept[:, 0] == kept[:, 1]).double().mean().item()
        assert f"120 images: accuracy {accuracy:.1%}" in capsys.readouterr().out
        assert other_files() == before
        # it is made anew
        (folder / "held_out.safetensors").unlink()


def test_calibrate_counts_one_image_of_each_group_and_few_are_warned_of(folder, photos, capsys):
    table, paths = folder.parent / "held_out.csv", sorted(photos.rglob("*.png"))
    rows = [f"{path},{path.parent.name},{i // 5}" for i, path in enumerate(paths)]
    table.write_text("\n".join(["image,label,group", *rows]))
    few = "the temperature rests on 24 held-out images"

    def warned(*command):
        capsys.readouterr()
        assert main([*map(str, command)]) == 0
        return few in capsys.readouterr().err

    assert warned("calibrate", folder, table)
    assert len(kept_scores(folder)) == 24
    assert warned("predict", folder, paths[0], "--calibrated")
    assert not warned("predict", folder, paths[0], "--sets=50%")
    assert not warned("calibrate", folder, photos)
    assert not warned("predict", folder, paths[0], "--calibrated")


def rows_of(capsys):
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_predict_leaves_the_class_of_a_rejected_image_empty_and_lists_sets(folder, photos, capsys):
    paths = sorted(map(str, photos.rglob("*.png")))[::10]
    read = Classifier.load(folder)
    made = with_scores(read, median_of(read, paths))
    made.companions["held_out"].save(folder, made.fingerprint())
    for options, wanted in (
        (["--max-error=2%"], {}),
        (["--max-error=0.02", "--calibrated", "--top-k=2"], {"calibrated": True}),
    ):
        capsys.readouterr()
        assert main(["predict", str(folder), *paths, *options]) == 0
        rows = rows_of(capsys)
        assert 0 < sum(row["class"] == "" for row in rows) < len(paths)
        for row, (top,) in zip(rows, predict(made, paths, max_error=0.02, **wanted), strict=True):
            assert (row["class"] or None) == top.class_name
            assert float(row["probability"]) == pytest.approx(top.probability, abs=2e-6)
            assert bool(row.get("class_2", row["class"])) == bool(row["class"])
    assert main(["predict", str(folder), *paths, "--sets=70%"]) == 0
    rows = rows_of(capsys)
    assert [*rows[0]] == ["path", "class", "probability", "classes", "error"]
    for row, expected in zip(rows, predict(made, paths, sets=0.7), strict=True):
        assert row["classes"].split(";") == [top.class_name for top in expected]
        assert row["class"] == expected[0].class_name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-error=1%"], ["299 held-out images", "not 198"]),
        (["--sets=90%", "--max-error=20%"], ["sets", "max_error"]),
        (["--sets=90%", "--top-k=2"], ["--top-k"]),
    ],
)
def test_a_wrong_wish_is_one_sentence(options, words, folder, photos, capsys):
    image = next(photos.rglob("*.png"))
    runs.refused(capsys, main(["predict", str(folder), str(image), *options]), *words)


def test_calibrate_refuses_images_that_it_cannot_take(folder, photos, tmp_path, capsys):
    kept = (folder / "held_out.safetensors").read_bytes()
    for names, words in (
        (["cat", "one"], "the class 'cat'"),
        (["train/one", "test/one"], "has several splits"),
    ):
        images = tmp_path / f"of {names[0][:3]}"
        for name in names:
            shutil.copytree(photos / "one", images / name)
        runs.refused(capsys, main(["calibrate", str(folder), str(images)]), words)
    assert (folder / "held_out.safetensors").read_bytes() == kept


def test_images_of_classes_named_like_splits_are_labelled_images(tmp_path):
    for name in ("valid", "invalid"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    records = labeled_records(str(tmp_path), None, ("valid", "invalid"))
    assert [(Path(record.source).parent.name, record.label) for record in records] == [
        ("invalid", 1),
        ("valid", 0),
    ]


def test_the_table_and_the_images_are_those_of_the_thresholds(student_run, tmp_path):
    folder = shutil.copytree(student_run, tmp_path / "student")
    predictions, classifier = read_predictions(student_run), folder / "classifier"
    # held-out images in which the lower half of the scores is often wrong, too few to show 1 %
    scores = torch.tensor([p.probability for p in predictions])[:200]
    held_out = HeldOutScores(1.0, scores, scores.clone(), scores > scores.quantile(0.4))
    held_out.save(classifier, Classifier.load(classifier).fingerprint())
    data = rejection(Run.find(folder))
    rows = {row["wanted"]: row for row in data["rows"]}
    assert data["more"].startswith(f"run python -m kdpl calibrate {classifier} IMAGES")
    assert "it takes 299 held-out images or more" in rows[0.01]["gap"]
    for wanted in (0.05, 0.1, 0.2):
        threshold = held_out.threshold(wanted)
        accepted = [p for p in predictions if p.probability >= threshold]
        wrong = sum(not p.correct for p in accepted) / len(accepted)
        expected = threshold, len(accepted) / len(predictions), pytest.approx(wrong)
        row = rows[wanted]
        assert (row["threshold"], row["coverage"], row["error"][0]) == expected
    # the images are of the least error that is shown
    shown = data["rejects"]
    rejected = [p for p in predictions if p.probability < held_out.threshold(0.05)]
    saved = sum(not p.correct for p in rejected)
    assert (shown["wanted"], shown["count"], shown["wrong"]) == (0.05, len(rejected), saved)
    assert len(shown["shown"]) == 24
    assert shown["shown"][0]["image"] == min(rejected, key=lambda p: p.probability)


def student_of(scores, correct):
    predictions = [
        SimpleNamespace(probability=score, correct=right)
        for score, right in zip(scores, correct, strict=True)
    ]
    stage = SimpleNamespace(predictions=predictions)
    classifier = SimpleNamespace(companions={}, folder=None)
    return SimpleNamespace(require=lambda _: stage, classifier=classifier)


def test_the_chart_is_the_error_of_the_surest_images_equal_ones_together():
    chart = rejection(student_of([0.9, 0.5, 0.7, 0.7], [True, False, False, True]))["chart"]
    (line,) = chart["lines"].values()
    expected = [(25.0, 0.0), (75.0, 100 / 3), (100.0, 50.0)]
    assert line == [pytest.approx(point) for point in expected]


def test_a_classifier_without_scores_and_a_run_without_student_say_so():
    assert "run python -m kdpl calibrate" in rejection(student_of([0.9], [True]))["gap"]
    with world.refused(ArtifactError, "there is no student"):
        rejection(Run(Path("run"), None, None))
