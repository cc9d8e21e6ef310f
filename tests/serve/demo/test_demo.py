import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from report_pages import with_vectors
from runs import image_folder, noise
from world import refused
from zoo import odd_photo

from kdpl.class_vectors import NameEncoder
from kdpl.classifier import Classifier
from kdpl.data.decoding import Decoding
from kdpl.errors import ArtifactError, ConfigError, DataError, KdplError
from kdpl.serve.demo import MAX_ADDED, Demo, build, find_examples


@pytest.fixture(scope="module")
def encoder(teacher_run):
    return NameEncoder.load(teacher_run)


@pytest.fixture(scope="module")
def demo(classifier, encoder):
    return Demo(Classifier.load(classifier), encoder, 3)


@pytest.fixture
def photo(tmp_path):
    noise(50, 40).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predictions_are_those_of_predict_of_a_photo_that_is_opened_as_in_training(demo, tmp_path):
    photo = odd_photo(tmp_path / "photo.png")
    given = demo.classifier
    other = Classifier(given.encoder, given.vectors, given.logit_scale, given.clip, Decoding())
    shown = [Demo(opened, None, 3).classify(str(photo), "photo.png") for opened in (given, other)]
    assert shown == [dict(opened.predict([photo], top_k=3)[0]) for opened in (given, other)]
    assert shown[0] != shown[1]


def test_added_classes_are_among_the_predictions(demo, encoder, photo):
    every = Demo(demo.classifier, encoder, 99)
    extended = demo.classifier.add_classes(encoder.encode(["letter B", "eel"]))
    shown = every.classify(str(photo), "photo.png", "  letter \n B,eel , ,eel")
    assert shown == pytest.approx(dict(extended.predict([photo], top_k=99)[0]), rel=1e-4)
    # those of one visitor are not seen by another
    assert len(every.classify(str(photo), "photo.png")) == 10


@pytest.mark.parametrize(("typed", "words"), [("five", "'five'"), ("word " * 35, "all 32 tokens")])
def test_an_invalid_name_is_a_sentence(typed, words, demo, photo):
    with refused(KdplError, words):
        demo.classify(str(photo), "photo.png", typed)


def test_there_is_a_largest_number_of_classes_and_none_without_the_teacher(demo, encoder, photo):
    with refused(ConfigError, f"there are {MAX_ADDED + 1} further classes, at most {MAX_ADDED}"):
        demo.classify(str(photo), "photo.png", ",".join(map(str, range(MAX_ADDED + 1))))
    with refused(ConfigError, "--teacher RUN"):
        Demo(demo.classifier, None, 3).classify(str(photo), "photo.png", "eel")
    with refused(ArtifactError, "another tuned teacher"):
        Demo(with_vectors(demo.classifier, teacher="0" * 32), encoder, 3)


def test_a_file_that_is_not_an_image_or_too_large_is_named_as_its_owner_does(demo, photo):
    whole = photo.read_bytes()
    Image.new("1", (8000, 8000)).save(photo)
    large = photo.read_bytes()
    for content, fault in (
        (whole[:2000], "cannot be read"),
        (large, "has .* pixels, expected at most 50 million"),
    ):
        photo.write_bytes(content)
        with refused(DataError, rf"image holiday\.png {fault}") as raised:
            demo.classify(str(photo), "holiday.png")
        assert str(photo) not in str(raised.value)


def test_examples_are_spread_evenly_and_missing_ones_are_named(tmp_path):
    folder = image_folder(tmp_path / "images", classes=("a", "b", "c"))
    chosen = find_examples([str(folder), str(folder / "test/a/0.png")])
    assert len(chosen) == len(set(chosen)) == 12
    assert {Path(path).parent.name for path in chosen} == {"a", "b", "c"}
    assert find_examples([]) == []
    with refused(DataError, "does not exist"):
        find_examples([str(tmp_path / "a.png")])


def test_what_a_visitor_sends_is_answered_by_the_page(demo, photo, monkeypatch):
    gradio = pytest.importorskip("gradio")
    monkeypatch.setattr(gradio, "Warning", shown := Mock())
    page = build(demo, [str(photo)])
    (event,) = [event for event in page.fns.values() if event.fn.__name__ == "on_change"]
    sent = {"path": str(photo), "orig_name": "holiday<.png"}
    assert event.fn(sent, None) == demo.classify(str(photo), "holiday<.png")
    assert event.fn(None, "eel") is None
    photo.write_bytes(b"no image")
    assert event.fn(sent, "") is None
    (sentence,) = shown.call_args.args
    assert sentence.startswith("image holiday&lt;.png cannot be read")


def test_what_a_visitor_asks_for_is_a_heat_map(demo, photo):
    pytest.importorskip("gradio")
    pictures = pytest.importorskip("kdpl.report.reasons.pictures")
    handlers = [event.fn for event in build(demo, []).fns.values()]
    (draw,) = [fn for fn in handlers if getattr(fn, "__name__", "") == "draw_heat_map"]
    shown = draw({"path": str(photo)}, None)
    assert shown.startswith("Heat map<br>")
    drawn = Image.open(BytesIO(b64decode(re.search(r"base64,([^\"]+)", shown)[1])))
    expected = pictures.overlay(demo.classifier, Image.open(photo))
    assert drawn.tobytes() == expected.tobytes()
    photo.write_bytes(b"no image")
    assert draw(None, "") == draw({"path": str(photo)}, "") == ""
