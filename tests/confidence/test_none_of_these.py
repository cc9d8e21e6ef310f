"""Images of none of the classes: what a run leaves for their score, and how predictions show it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import runs
import torch
import world
from torchvision.transforms.functional import to_pil_image

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig
from kdpl.confidence import NegativeVectors
from kdpl.confidence.unknown import Unknown, none_of_these
from kdpl.confidence.words import everyday_words, farthest
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts import PromptConfig
from kdpl.teacher import TeacherPromptTuning

NEGATIVES = "negative_vectors.safetensors"


@pytest.fixture(scope="module")
def pictures():
    """Digits, and noise."""
    splits = world.digits(batch_size=8).splits
    shown = [splits.open_image(record.source) for record in splits.test[:6]]
    return [*shown, *map(to_pil_image, world.images_of(torch.arange(5), seed=3))]


def test_fits_keep_everyday_words_and_what_is_usual_of_their_images(student_run, teacher_run):
    read, splits = Classifier.load(student_run / "classifier"), world.digits(batch_size=8).splits
    pool, val = (
        read.embed([splits.open_image(record.source) for record in records])
        for records in (splits.train, splits.val)
    )
    # stage 1 encodes everyday words by the tuned text tower
    negatives = ClassVectors.load(teacher_run / NEGATIVES)
    assert negatives.class_names == everyday_words()
    again = NameEncoder.load(teacher_run).encode(everyday_words())
    torch.testing.assert_close(negatives.vectors, again.vectors)
    assert negatives.teacher == ClassVectors.of_teacher(str(teacher_run)).teacher
    far = farthest(negatives.vectors, read.vectors.vectors)
    words = [negatives.class_names[i] for i in far]
    rest = read.vectors.vectors, read.logit_scale
    expected = Unknown.fit(pool, *rest, negatives.vectors[far], words)
    expected.calibrated(val, *rest, torch.empty(0))
    kept = read.companions["unknown"]
    assert kept.words == tuple(words)
    for name in ("distance", "share", "cutoff", "unusual"):
        assert getattr(kept, name) == pytest.approx(getattr(expected, name), rel=1e-3)


def test_predict_adds_scores_in_the_order_of_images_if_asked_to(folder, pictures, tmp_path, capsys):
    read = Classifier.load(folder)
    scores = none_of_these(read, pictures, batch_size=3)
    vectors = read.vectors.vectors
    unknown = read.companions["unknown"]
    expected = unknown.further_scores(read.embed(pictures), vectors, read.logit_scale)["unknown"]
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-5)
    assert scores[:6].mean() < scores[6:].mean()
    assert none_of_these(read, []).shape == (0,)
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i:02}.png")
    (tmp_path / "99.png").touch()
    command = ["predict", str(folder), *map(str, sorted(tmp_path.glob("*.png")))]
    assert main([*command, "--unknown", f"--out={tmp_path}/t.csv"]) == 0
    *rows, broken = runs.rows_of(tmp_path / "t.csv")
    assert [*broken] == ["path", "class", "probability", "unknown", "error"]
    assert broken["unknown"] == ""
    assert [float(row["unknown"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    capsys.readouterr()
    (tmp_path / "more").touch()
    code = main([*command, "--unknown", f"--add-classes={tmp_path}/more"])
    runs.refused(capsys, code, "leave out --add-classes")


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (None, "no held-out images, so that more than 5%"),
        (18, "18 held-out images, so that on average up to 5.3%"),
        (19, None),
    ],
)
def test_predict_warns_of_limits_of_few_images(held_out, words, folder, pictures, tmp_path, capsys):
    read = Classifier.load(folder)
    read.companions["unknown"].held_out = held_out
    read.companions["unknown"].save(folder, read.fingerprint())
    pictures[0].save(tmp_path / "0.png")
    assert main(["predict", str(folder), f"{tmp_path}/0.png", "--unknown"]) == 0
    said = capsys.readouterr().err
    assert f"the limit of 0.5 rests on {words}" in said if words else "limit" not in said


def test_a_classifier_without_scores_says_what_is_missing(folder, pictures, tmp_path, capsys):
    (folder / "unknown.safetensors").unlink()
    with world.refused(ArtifactError, "distil a student again"):
        none_of_these(Classifier.load(folder), pictures)
    pictures[0].save(tmp_path / "0.png")
    assert main(["predict", str(folder), f"{tmp_path}/0.png"]) == 0
    capsys.readouterr()
    code = main(["predict", str(folder), f"{tmp_path}/0.png", "--unknown"])
    runs.refused(capsys, code, "distil a student again")


def fitted(folder, images=40, **negatives):
    """A student of a teacher in a folder, on a domain of a few images."""
    vectors, _ = world.write_teacher(folder, num_base=None)
    if negatives:
        replace(vectors, vectors=vectors.vectors[:2], **negatives).save(folder / NEGATIVES)
    domain = world.TinyDomain()
    pool = [*map(to_pil_image, world.images_of(torch.arange(images), seed=2))]
    numbers = torch.arange(images).numpy()
    taken = SimpleNamespace(take=lambda indices: [pool[index] for index in indices])
    domain.pool = SimpleNamespace(
        sample=lambda n: numbers[:n], images=taken, train=numbers, left_out=()
    )
    domain.splits = SimpleNamespace(train=pool, open_image=lambda image: image)
    world.fit(world.make_student(folder), folder, domain=domain)
    return Classifier.load(folder / "classifier")


def test_the_scores_move_to_a_device_with_their_classifier(tmp_path):
    classifier = fitted(tmp_path).to("meta")
    assert classifier.head.class_vectors.is_meta
    center = classifier.to(torch.bfloat16).companions["unknown"].center
    assert (center.is_meta, center.dtype) == (True, torch.float32)  # as features stay float32


def test_without_negative_vectors_distance_alone_counts_and_few_images_say_nothing(tmp_path):
    unknown = fitted(tmp_path).companions["unknown"]
    assert (unknown.words, unknown.negatives.shape) == ((), (0, 24))
    assert "unknown" not in fitted(tmp_path, images=19).companions


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"class_names": ("net", "Blue Whale")}, ConfigError, "'Blue Whale', which is a class"),
        ({"teacher": "0" * 32}, ArtifactError, "was made by another tuned teacher"),
    ],
)
def test_other_negative_vectors_are_refused_before_the_first_epoch(changes, error, words, tmp_path):
    with world.refused(error, words):
        fitted(tmp_path, **{"class_names": ("net", "ship"), **changes})
    assert not (tmp_path / "classifier").exists()


def test_custom_words_replace_everyday_ones_unless_one_is_a_class_or_too_long(tmp_path):
    def fit_with_words(text):
        (tmp_path / "words.txt").write_text(text)
        torch.manual_seed(0)
        clip, prompts = ClipConfig("test-teacher-quickgelu", world.TAG), PromptConfig(2, 2)
        teacher = TeacherPromptTuning(clip, vision_prompts=prompts, text_prompts=prompts)
        negatives = NegativeVectors(words=str(tmp_path / "words.txt"))
        world.fit(teacher, tmp_path, 0, [negatives, world.NoStep()])

    for text, words in (
        ("hand\nCrab\n", "'Crab', which is a class"),
        ("long " * 80, "fills all"),
    ):
        with world.refused(ConfigError, words):
            fit_with_words(text)
        assert not (tmp_path / NEGATIVES).exists()
    fit_with_words("hand\ntable\n")
    assert ClassVectors.load(tmp_path / NEGATIVES).class_names == ("hand", "table")
