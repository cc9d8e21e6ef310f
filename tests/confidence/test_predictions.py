"""Predictions that say how sure they are: rejected images, sets of classes, calibrated probabilities."""

import csv
import shutil
from dataclasses import replace

import pytest
import runs
import torch
import world
from doubting import predict
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts.student_encoder import StudentEncoder


def like(given, held_out=None):
    beside = {} if held_out is None else {"held_out": held_out}
    return Classifier(
        given.encoder, given.vectors, given.logit_scale, given.clip, companions=beside
    )


def median_of(classifier, images):
    return torch.tensor([top.probability for (top,) in classifier.predict(images)]).median()


def with_scores(given, threshold_at):
    """The classifier with held-out scores that lead to this threshold: those below it are wrong."""
    scores = torch.cat(
        [torch.full((200,), 1.0), torch.full((100,), float(threshold_at)), torch.zeros(100)]
    )
    correct = scores > 0
    return like(given, HeldOutScores(1.7, scores, scores.clone(), correct))


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
    made.companions["held_out"] = HeldOutScores(
        1.7, scores, torch.where(correct, scores, 0.01), correct
    )
    return made


@pytest.fixture(scope="module")
def many():
    return [*world.images_of(torch.arange(40), seed=8)]


def test_they_change_no_prediction_by_themselves(sure, many):
    assert sure.predict(many, top_k=5) == like(sure).predict(many, top_k=5)


@pytest.mark.parametrize("calibrated", [False, True])
def test_images_below_the_threshold_are_rejected_with_their_score(calibrated, sure, many):
    sure = with_scores(sure, threshold_at=median_of(sure, many))
    plain, found = (
        sure.predict(many, top_k=2),
        predict(sure, many, 2, max_error=0.02, calibrated=calibrated),
    )
    shown = predict(sure, many, top_k=2, calibrated=calibrated)
    rejected = [top.probability < sure.companions["held_out"].threshold(0.02) for top, _ in plain]
    assert 0 < sum(rejected) < len(many)
    for out, row, kept in zip(rejected, found, shown, strict=True):
        assert row == ([(None, kept[0].probability)] if out else kept)


def test_sets_have_every_class_that_is_probable_enough_and_are_never_empty(sure, many):
    sizes = set()
    for coverage in (0.5, 0.9, 0.97, 0.99):
        threshold = sure.companions["held_out"].set_threshold(coverage)
        for row, found in zip(
            sure.predict(many, 5), predict(sure, many, sets=coverage), strict=True
        ):
            assert found == [p for i, p in enumerate(row) if i == 0 or p.probability >= threshold]
            sizes.add(len(found))
    assert min(sizes) == 1 < max(sizes)


def test_calibrated_probabilities_are_those_at_the_temperature(sure, many):
    expected = (sure(torch.stack(many)).double() / 1.7).softmax(dim=1)
    for row, of_image in zip(predict(sure, many, 5, calibrated=True), expected, strict=True):
        assert [p.probability for p in row] == pytest.approx(
            of_image.sort(descending=True).values.tolist(), rel=1e-4
        )


def test_they_are_kept_in_the_folder_and_only_for_their_own_weights(sure, many, tmp_path):
    sure.save(tmp_path / "c")
    sure.save(tmp_path / "c")
    read = Classifier.load(tmp_path / "c")
    assert predict(read, many, max_error=0.05) == predict(sure, many, max_error=0.05)
    Classifier(sure.encoder, world.frozen_vectors(seed=9), 17.0, sure.clip).save(tmp_path / "other")
    shutil.copy(tmp_path / "c" / "held_out.safetensors", tmp_path / "other")
    with world.refused(
        ArtifactError, "held_out.safetensors is of another classifier than .*: remove it, or run"
    ):
        Classifier.load(tmp_path / "other")


def test_without_them_an_option_that_needs_them_says_how_to_get_them(sure, many):
    further = replace(
        world.frozen_vectors(seed=3), class_names=("eel", "ray", "cod", "carp", "pike")
    )
    for given in (like(sure), sure.add_classes(further)):
        for option in ({"max_error": 0.05}, {"sets": 0.9}, {"calibrated": True}):
            with world.refused(ArtifactError, "run python -m kdpl calibrate with labelled images"):
                predict(given, many, **option)


def test_a_wanted_error_and_sets_at_once_are_refused(sure, many):
    with world.refused(
        ConfigError, "max_error rejects images and sets names several .*: give one of the two"
    ):
        predict(sure, many, max_error=0.05, sets=0.9)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The digits of the test set in a folder for each class."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for i in range(1400, 1700):
        place = folder / world.DIGITS[digits.target[i]]
        place.mkdir(exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9375).astype("uint8")).save(place / f"{i}.png")
    return folder


@pytest.fixture
def folder(classifier, tmp_path):
    """A copy of a student's classifier."""
    return shutil.copytree(classifier, tmp_path / "classifier")


def plain_scores(classifier, photos):
    """Largest probability and the label's, of each image, from predictions one by one."""
    found = []
    for path in sorted(photos.rglob("*.png")):
        (row,) = classifier.predict([path], top_k=10)
        found.append((row[0].probability, dict(row)[path.parent.name]))
    return torch.tensor(sorted(found))


def test_a_fit_keeps_the_scores_of_its_validation_images(student_run):
    read = Classifier.load(student_run / "classifier")
    data = world.digits(batch_size=8)
    expected = []
    for record in data.splits.val:
        (row,) = read.predict([data.splits.open_image(record.source)], top_k=10)
        expected.append((row[0].probability, dict(row)[world.DIGITS[record.label]]))
    assert len(expected) == len(read.companions["held_out"]) == 198
    assert torch.stack(
        [read.companions["held_out"].scores, read.companions["held_out"].label_scores], dim=1
    ).tolist() == [pytest.approx(pair, rel=1e-4) for pair in expected]


def companions_of_a_fit(folder, **data):
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None)
    domain = world.digits(8, **data)
    world.fit(world.make_student(folder), folder, domain=domain, limit_train_batches=1)
    return Classifier.load(folder / "classifier").companions, domain


def test_a_fit_counts_one_validation_image_of_each_group(tmp_path, monkeypatch):
    groups = world.group_digits(monkeypatch)
    companions, domain = companions_of_a_fit(tmp_path)
    number = len({groups[record.source] for record in domain.splits.val})
    assert number < len(domain.splits.val) / 2
    assert len(companions["held_out"]) == number
    assert companions["unknown"].held_out == number
    companions["held_out"].set_threshold(0.9)  # not refused


def test_a_fit_on_a_sample_of_each_class_bounds_no_error(tmp_path):
    companions, _ = companions_of_a_fit(tmp_path, shots=16, val_shots=4)
    assert len(companions["held_out"]) == 40
    with world.refused(ConfigError, r"a sample of so many of each class \(val_shots\)"):
        companions["held_out"].threshold(0.99)


class NoImages(world.TinyDomain):
    def val_dataloader(self):
        return []


def test_a_fit_without_validation_images_keeps_none(tmp_path):
    world.write_teacher(tmp_path, num_base=None)
    world.fit(world.make_student(tmp_path), tmp_path, domain=NoImages())
    assert sorted(path.name for path in (tmp_path / "classifier").iterdir()) == [
        "classifier.json",
        "model.safetensors",
    ]
    assert "held_out" not in Classifier.load(tmp_path / "classifier").companions


@pytest.mark.parametrize("table", [False, True])
def test_calibrate_replaces_them_by_those_of_a_folder_or_table(table, folder, photos, capsys):
    before = {
        name: content
        for name, content in runs.files_of(folder).items()
        if name != "held_out.safetensors"
    }
    images = photos
    if table:
        images = folder.parent / "held_out.csv"
        rows = [
            f"{path},number {world.DIGITS.index(path.parent.name)}"
            for path in sorted(photos.rglob("*.png"))
        ]
        images.write_text("\n".join(["image,label", *rows]))
        names = folder.parent / "names.csv"
        names.write_text("\n".join(f"number {i},{name}" for i, name in enumerate(world.DIGITS)))
    assert (
        main(
            ["calibrate", str(folder), str(images), *([f"--class-names={names}"] if table else [])]
        )
        == 0
    )
    read = Classifier.load(folder)
    found = torch.stack(
        [read.companions["held_out"].scores, read.companions["held_out"].label_scores], dim=1
    )
    torch.testing.assert_close(
        torch.tensor(sorted(found.tolist())), plain_scores(read, photos), rtol=1e-4, atol=1e-6
    )
    accuracy = (found[:, 0] == found[:, 1]).double().mean().item()
    said = capsys.readouterr().out
    assert (
        said
        == f"300 images: accuracy {accuracy:.1%}, temperature {read.companions['held_out'].temperature:.3g}\n"
    )
    after = {
        name: content
        for name, content in runs.files_of(folder).items()
        if name != "held_out.safetensors"
    }
    assert after == before


def test_calibrate_counts_one_image_of_each_group_and_few_are_warned_of(folder, photos, capsys):
    table = folder.parent / "held_out.csv"
    paths = sorted(photos.rglob("*.png"))
    rows = [f"{path},{path.parent.name},{i // 5}" for i, path in enumerate(paths)]
    table.write_text("\n".join(["image,label,group", *rows]))
    capsys.readouterr()
    assert main(["calibrate", str(folder), str(table)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("60 images: accuracy")
    assert "60 of 300 held-out images count, one of each group" in said.err
    few = "the temperature is of 60 held-out images and may make probabilities worse"
    assert few in said.err
    assert main(["predict", str(folder), str(paths[0]), "--calibrated"]) == 0
    assert f"--calibrated: {few}" in capsys.readouterr().err
    assert main(["predict", str(folder), str(paths[0]), "--sets=50%"]) == 0
    assert few not in capsys.readouterr().err

    assert main(["calibrate", str(folder), str(photos)]) == 0
    assert main(["predict", str(folder), str(paths[0]), "--calibrated"]) == 0
    assert "may make probabilities worse" not in capsys.readouterr().err


def rows_of(capsys):
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_predict_leaves_the_class_of_a_rejected_image_empty_and_lists_sets(folder, photos, capsys):
    paths = sorted(map(str, photos.rglob("*.png")))[::10]
    made = like(
        read := Classifier.load(folder),
        with_scores(read, median_of(read, paths)).companions["held_out"],
    )
    made.companions["held_out"].save(folder, made.fingerprint())
    for options, given in (
        (["--max-error=2%"], {"max_error": 0.02}),
        (
            ["--max-error=0.02", "--calibrated", "--top-k=2"],
            {"max_error": 0.02, "calibrated": True},
        ),
    ):
        assert main(["predict", str(folder), *paths, *options]) == 0
        found = rows_of(capsys)
        assert 0 < sum(row["class"] == "" for row in found) < len(paths)
        for row, (top,) in zip(found, predict(made, paths, **given), strict=True):
            assert (row["class"] or None, float(row["probability"])) == (
                top[0],
                pytest.approx(top[1], abs=2e-6),
            )
            assert bool(row.get("class_2", row["class"])) == bool(row["class"])
    assert main(["predict", str(folder), *paths, "--sets=70%"]) == 0
    found = rows_of(capsys)
    assert [*found[0]] == ["path", "class", "probability", "classes", "error"]
    for row, expected in zip(found, predict(made, paths, sets=0.7), strict=True):
        assert row["classes"].split(";") == [each.class_name for each in expected]
        assert row["class"] == expected[0].class_name


def test_a_table_is_resumed_only_by_the_same_rule(folder, photos, capsys, monkeypatch):
    out = folder.parent / "table.csv"
    arguments = ["predict", str(folder), str(photos / "one"), f"--out={out}"]
    arguments += ["--batch-size=2", "--workers=1"]
    with monkeypatch.context() as patch:
        runs.interrupt_predict(patch, at=15)
        assert main([*arguments, "--calibrated"]) == 130
    capsys.readouterr()
    runs.refused(capsys, main(arguments), f"{out}.partial was made from something else (rule.t")
    assert main([*arguments, "--calibrated"]) == 0
    assert "resuming after" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--max-error=1%"],
            ["it takes 299 held-out images or more to show an error of 1%, not 198"],
        ),
        (["--sets=99.9%"], ["it takes 999 held-out images or more for sets of 99.9%, not 198"]),
        (["--max-error=many"], ["--max-error is 'many', expected a share between 0% and 100%"]),
        (["--sets=100%"], ["--sets is '100%'", "give for example 5%"]),
        (["--sets=90%", "--max-error=20%"], ["give one of the two"]),
        (["--sets=90%", "--top-k=2"], ["leave out --top-k"]),
        (
            ["--calibrated", "--add-classes=ADDED"],
            ["have none of the added classes: leave out --add-classes"],
        ),
    ],
)
def test_a_wrong_wish_is_one_sentence(options, words, folder, photos, capsys):
    (folder.parent / "ADDED").touch()
    options = [each.replace("ADDED", str(folder.parent / "ADDED")) for each in options]
    runs.refused(capsys, main(["predict", str(folder), str(photos), *options]), *words)


def test_calibrate_refuses_images_that_it_cannot_take(folder, photos, tmp_path, capsys):
    kept = (folder / "held_out.safetensors").read_bytes()
    for names in (["cat", "one"], ["train/one", "test/one"]):
        images = tmp_path / f"of {names[0][:3]}"
        for name in names:
            shutil.copytree(photos / "one", images / name)
        code = main(["calibrate", str(folder), str(images)])
        words = (
            ["the class 'cat', which the classifier does not have"]
            if "cat" in names
            else ["has several splits"]
        )
        runs.refused(capsys, code, *words)
    assert (folder / "held_out.safetensors").read_bytes() == kept
