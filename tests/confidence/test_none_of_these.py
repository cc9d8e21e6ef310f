"""Images of none of the classes: what a run leaves for their score, and how predictions show it."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import runs
import torch
import world
from PIL import Image

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.classifier import Classifier
from kdpl.confidence.unknown import Unknown, none_of_these
from kdpl.confidence.words import everyday_words, farthest
from kdpl.data.pool import Selection
from kdpl.errors import ArtifactError, ConfigError

NEGATIVES = "negative_vectors.safetensors"


@pytest.fixture
def folder(classifier, tmp_path):
    """A copy of a student's classifier."""
    return shutil.copytree(classifier, tmp_path / "classifier")


@pytest.fixture(scope="module")
def pictures():
    """Digits, and noise."""
    data = world.digits(batch_size=8)
    return [data.splits.open_image(record.source) for record in data.splits.test[:6]] + [
        Image.fromarray(image.permute(1, 2, 0).numpy())
        for image in world.images_of(torch.arange(5), seed=3)
    ]


def test_stage_1_encodes_everyday_words_by_the_tuned_text_tower(teacher_run):
    found = ClassVectors.load(teacher_run / NEGATIVES)
    assert found.class_names == everyday_words()
    again = NameEncoder.load(teacher_run).encode(everyday_words())
    torch.testing.assert_close(found.vectors, again.vectors)
    assert found.teacher == ClassVectors.of_teacher(str(teacher_run)).teacher


def test_a_fit_keeps_what_is_usual_of_its_unlabelled_and_validation_images(
    student_run, teacher_run
):
    read, data = Classifier.load(student_run / "classifier"), world.digits(batch_size=8)
    pool, val = (
        read.embed([data.splits.open_image(record.source) for record in records])
        for records in (data.splits.train, data.splits.val)
    )
    negatives = ClassVectors.load(teacher_run / NEGATIVES)
    far = farthest(negatives.vectors, read.vectors.vectors)
    words = [negatives.class_names[i] for i in far]
    expected = Unknown.fit(
        pool, read.vectors.vectors, read.logit_scale, val, negatives.vectors[far], words
    )
    assert read.companions["unknown"].words == tuple(words)
    for name in ("distance", "share"):
        assert getattr(read.companions["unknown"], name) == pytest.approx(
            getattr(expected, name), rel=1e-3
        )
    assert read.companions["unknown"].cutoff == pytest.approx(expected.cutoff, rel=1e-3)


def test_images_are_scored_in_their_order_and_predictions_stay(folder, pictures):
    read = Classifier.load(folder)
    scores = none_of_these(read, pictures, batch_size=3)
    expected = read.companions["unknown"](
        read.embed(pictures), read.vectors.vectors, read.logit_scale
    )
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-5)
    assert scores[:6].mean() < scores[6:].mean()
    without = Classifier(read.encoder, read.vectors, read.logit_scale, read.clip, read.decoding)
    assert read.predict(pictures) == without.predict(pictures)
    assert none_of_these(read, []).shape == (0,)


def test_predict_adds_the_column_if_asked_to(folder, pictures, tmp_path, capsys):
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i:02}.png")
    (tmp_path / "99.png").touch()
    command = [
        "predict",
        str(folder),
        *(f"{tmp_path}/{i:02}.png" for i in range(11)),
        f"{tmp_path}/99.png",
    ]
    assert main([*command, "--unknown", f"--out={tmp_path}/t.csv"]) == 0
    *rows, broken = runs.rows_of(tmp_path / "t.csv")
    assert [*broken] == ["path", "class", "probability", "unknown", "error"]
    assert broken["unknown"] == ""
    expected = none_of_these(Classifier.load(folder), pictures).tolist()
    assert [float(row["unknown"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    capsys.readouterr()
    runs.refused(capsys, main([*command, f"--out={tmp_path}/t.csv"]), "exists already")
    (tmp_path / "more").touch()
    runs.refused(
        capsys,
        main([*command, "--unknown", f"--add-classes={tmp_path}/more"]),
        "leave out --add-classes",
    )


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (
            None,
            "no validation images, so that more than 5% of new images of the classes may be above it: it takes 19",
        ),
        (1, "1 validation image, so that on average up to 50% of new images of the classes may"),
        (4, "4 validation images, so that on average up to 20% of new images of the classes may"),
        (18, "18 validation images, so that on average up to 5.3% of new images"),
        (19, None),
    ],
)
def test_predict_says_what_a_limit_of_few_validation_images_holds(
    held_out, words, folder, pictures, tmp_path, capsys
):
    read = Classifier.load(folder)
    read.companions["unknown"].held_out = held_out
    read.companions["unknown"].save(folder, read.fingerprint())
    pictures[0].save(tmp_path / "0.png")
    assert main(["predict", str(folder), f"{tmp_path}/0.png", "--unknown"]) == 0
    said = capsys.readouterr().err
    assert (
        f"warning: --unknown: the limit of 0.5 is of {words}" in said
        if words
        else "limit" not in said
    )
    assert main(["predict", str(folder), f"{tmp_path}/0.png"]) == 0
    assert "limit" not in capsys.readouterr().err


def test_a_classifier_without_scores_says_what_is_missing(folder, pictures, tmp_path, capsys):
    (folder / "unknown.safetensors").unlink()
    read = Classifier.load(folder)
    with world.refused(
        ArtifactError,
        "none of the classes: distil a student again by this kdpl, on at least 20 unl",
    ):
        none_of_these(read, pictures)
    pictures[0].save(tmp_path / "0.png")
    assert main(["predict", str(folder), f"{tmp_path}/0.png"]) == 0
    capsys.readouterr()
    runs.refused(
        capsys,
        main(["predict", str(folder), f"{tmp_path}/0.png", "--unknown"]),
        "distil a student again",
    )


def test_they_are_only_for_their_own_weights_and_not_for_added_classes(folder, pictures):
    read = Classifier.load(folder)
    further = replace(
        read.vectors,
        vectors=read.vectors.vectors[:1].neg(),
        class_names=("eel",),
        class_texts=None,
        num_base=None,
    )
    assert not read.add_classes(further).companions
    read.companions["unknown"].save(folder, "ab")
    with world.refused(ArtifactError, "unknown.safetensors is of another classifier"):
        Classifier.load(folder)


def fitted(folder, images=40, **negatives):
    """A student of a teacher in a folder, on a domain of a few images."""
    vectors, _ = world.write_teacher(folder, num_base=None)
    if negatives:
        replace(vectors, vectors=vectors.vectors[:2], **negatives).save(folder / NEGATIVES)
    domain = world.TinyDomain()
    pool = [
        Image.fromarray(each.permute(1, 2, 0).numpy())
        for each in world.images_of(torch.arange(images), seed=2)
    ]
    domain.pool = SimpleNamespace(sample=lambda n: pool[:n], selection=Selection(pool))
    domain.splits = SimpleNamespace(train=pool, open_image=lambda image: image)
    world.fit(world.make_student(folder), folder, domain=domain)
    return Classifier.load(folder / "classifier")


def test_a_teacher_without_negative_vectors_leaves_the_distance_alone(tmp_path):
    found = fitted(tmp_path).companions["unknown"]
    assert (found.words, found.negatives.shape) == ((), (0, 24))


def test_a_few_unlabelled_images_say_nothing(tmp_path):
    assert "unknown" not in fitted(tmp_path, images=19).companions


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"class_names": ("net", "Blue Whale")},
            ConfigError,
            "has the word 'Blue Whale', which is a class",
        ),
        (
            {"class_names": ("net", "ship"), "teacher": "0" * 32},
            ArtifactError,
            "was made by another tuned teacher",
        ),
    ],
)
def test_negative_vectors_that_do_not_fit_are_refused_before_the_first_epoch(
    changes, error, words, tmp_path
):
    with world.refused(error, words):
        fitted(tmp_path, **changes)
    assert not (tmp_path / "classifier").exists()


def own_words(file):
    return [
        "--trainer.callbacks+=kdpl.confidence.NegativeVectors",
        f"--trainer.callbacks.words={file}",
    ]


def test_own_words_take_the_place_of_everyday_ones(tmp_path):
    (tmp_path / "words.txt").write_text("hand\ntable\n")
    own = own_words(tmp_path / "words.txt")
    assert runs.fit_teacher(tmp_path / "teacher", *own, "--trainer.max_epochs=0") == 0
    assert ClassVectors.load(tmp_path / "teacher" / NEGATIVES).class_names == ("hand", "table")


@pytest.mark.parametrize(
    ("text", "words"),
    [("hand\nThree\n", ["the word 'Three', which is a class"]), ("long " * 80, ["fills all"])],
)
def test_an_own_word_that_is_a_class_or_too_long_is_refused_before_the_first_epoch(
    text, words, tmp_path, capsys
):
    (tmp_path / "words.txt").write_text(text)
    code = runs.fit_teacher(tmp_path / "teacher", *own_words(tmp_path / "words.txt"))
    assert code == 1
    runs.error_line(capsys, *words)
    assert not (tmp_path / "teacher" / NEGATIVES).exists()


def test_a_teacher_that_ends_early_writes_no_vectors_and_says_so_once(tmp_path, capsys):
    assert runs.fit_teacher(tmp_path / "teacher", "--trainer.callbacks=doubting.Stop") == 0
    assert capsys.readouterr().err.count("training ended early") == 1
    assert not list((tmp_path / "teacher").glob("*.safetensors"))
