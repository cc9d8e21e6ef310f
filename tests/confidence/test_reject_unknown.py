"""Images that are rejected as none of the classes, and labelled images that calibrate their score."""

import math

import pytest
import runs
import torch
import world
from torchvision.transforms.functional import to_pil_image

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence import decision_rule
from kdpl.confidence.held_out import HeldOutScores
from kdpl.errors import ArtifactError, ConfigError


def write_images(folder, records):
    """Write digits into a folder for each class."""
    for i, record in enumerate(records):
        file = folder / world.DIGITS[record.label] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        world.digits(batch_size=8).splits.open_image(record.source).save(file)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """120 digits of the test set."""
    test = world.digits(batch_size=8).splits.test
    return write_images(tmp_path_factory.mktemp("digits"), test[:120])


@pytest.fixture
def uncalibrated(folder):
    """The classifier of a run without validation images."""
    (folder / "held_out.safetensors").unlink()
    classifier = Classifier.load(folder)
    unknown = classifier.companions["unknown"]
    unknown.held_out, unknown.unusual, unknown.cutoff = None, (), unknown.cutoff + 3
    unknown.save(folder, classifier.fingerprint())
    return folder


@pytest.fixture
def calibrated(uncalibrated, digits):
    assert main(["calibrate", str(uncalibrated), str(digits)]) == 0
    return uncalibrated


def test_calibrate_gives_the_score_its_limit(uncalibrated, digits, capsys):
    image = str(next(digits.rglob("*.png")))
    assert main(["predict", str(uncalibrated), image, "--unknown"]) == 0
    assert "calibrate on 19 images" in capsys.readouterr().err
    assert main(["calibrate", str(uncalibrated), str(digits)]) == 0
    capsys.readouterr()
    assert main(["predict", str(uncalibrated), image, "--unknown"]) == 0
    assert "warning" not in capsys.readouterr().err
    # of 120 images, the 115th has 0.5
    rows = Classifier.load(uncalibrated).predicted(sorted(digits.rglob("*.png")))
    scores = torch.tensor([row.scores["unknown"] for row in rows])
    assert (scores > 0.5 + 1e-5).sum() == 5


def test_images_with_an_unusual_score_are_rejected_by_the_limit_of_held_out_images(
    calibrated, digits
):
    read, paths = Classifier.load(calibrated), sorted(digits.rglob("*.png"))
    plain = list(read.predicted(paths))
    scores = sorted(row.scores["unknown"] for row in plain)
    # of 120 held-out images the 109th: 10 % of 121 are above it
    limit = scores[math.ceil(121 * 0.9) - 1]
    rule = decision_rule(read, reject_unknown=0.1)
    assert rule.limits["unknown"] == pytest.approx(limit, abs=1e-5)
    for row, (top,) in zip(plain, read.predict(paths, rule=rule), strict=True):
        if abs(row.scores["unknown"] - limit) > 1e-5:
            kept = row.scores["unknown"] < limit
            assert top.class_name == (row.top[0].class_name if kept else None)
        assert top.probability == pytest.approx(row.top[0].probability, abs=1e-5)


def test_a_wanted_error_is_that_of_the_images_that_the_limit_accepts(calibrated):
    read = Classifier.load(calibrated)
    # the unusual half has all mistakes, and the smaller scores
    _, accepted = read.companions["unknown"].limit(0.5)
    usual = torch.zeros(120, dtype=torch.bool).index_fill(0, accepted, True)
    scores = torch.where(usual, 0.8, 0.5) + torch.linspace(0, 0.1, 120)
    read.companions["held_out"] = HeldOutScores(1.0, scores, scores, usual)
    alone = decision_rule(read, max_error=0.1).threshold
    both = decision_rule(read, max_error=0.1, reject_unknown=0.5)
    assert alone < both.threshold == scores[usual].min()
    with world.refused(ConfigError, "it takes .* held-out images or more"):
        decision_rule(read, max_error=0.1, reject_unknown=0.9)


def test_predict_rejects_by_both_rules_in_one_command(calibrated, digits, tmp_path, capsys):
    for i, image in enumerate(world.images_of(torch.arange(40), seed=3)):
        to_pil_image(image).save(tmp_path / f"noise{i:02}.png")
    paths = [*map(str, tmp_path.glob("*.png")), *map(str, sorted(digits.rglob("*.png")))]
    accepted = {}
    for options in (["--max-error=50%"], ["--max-error=50%", "--reject-unknown=5%"]):
        table = tmp_path / f"{len(options)}.csv"
        assert main(["predict", str(calibrated), *paths, *options, f"--out={table}"]) == 0
        rows = runs.rows_of(table)
        accepted[len(options)] = {row["path"] for row in rows if row["class"]}
    assert [*rows[0]] == ["path", "class", "probability", "unknown", "error"]
    noise = [sum("noise" in path for path in paths) for paths in accepted.values()]
    assert noise[1] < noise[0] / 2
    digits_left = [
        len(paths) - count for paths, count in zip(accepted.values(), noise, strict=True)
    ]
    assert digits_left[1] > 0.85 * digits_left[0]


def test_a_share_that_too_few_images_show_and_scores_of_other_images_are_refused(
    calibrated, capsys
):
    read = Classifier.load(calibrated)
    with world.refused(ConfigError, "199 held-out images or more for rejecting 0.5% .*, not 120"):
        decision_rule(read, reject_unknown=0.005)
    with world.refused(ConfigError, "reject_unknown is 5"):
        decision_rule(read, reject_unknown=5)
    unknown = read.companions["unknown"]
    unknown.unusual = ()  # as in a file of an earlier version
    with world.refused(ArtifactError, "how unusual .*: run python -m kdpl calibrate"):
        decision_rule(read, reject_unknown=0.05)
    del read.companions["unknown"]
    with world.refused(ArtifactError, "no scores of being none of the classes"):
        decision_rule(read, reject_unknown=0.05)
