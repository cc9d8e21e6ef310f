import pytest
import torch
from PIL import Image
from report_pages import HOSTILE, with_vectors
from runs import image_folder, noise
from world import refused
from zoo import odd_photo

from kdpl.class_vectors import NameEncoder
from kdpl.classifier import Classifier
from kdpl.data.decoding import PUBLISHED, Decoding, open_image
from kdpl.demo.page import bars, head, note
from kdpl.demo.visit import MAX_ADDED, Demo, Result, Visit, find_examples
from kdpl.errors import ArtifactError, ConfigError, DataError, KdplError
from kdpl.tasks import Prediction


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


def test_predictions_are_those_of_predict(demo, photo):
    visit = demo.look(Visit(), str(photo), "photo.png")
    assert (visit.image.shape, visit.image.dtype) == ((3, 32, 32), torch.uint8)
    result = demo.predict(visit)
    assert result.predictions == demo.classifier.predict([photo], top_k=3)[0]
    assert min(result.seconds, visit.seconds) > 0
    assert demo.predict(Visit()) is None


def test_a_photo_is_opened_as_in_training(demo, tmp_path):
    photo = odd_photo(tmp_path / "photo.png")
    given = demo.classifier
    own = Classifier(given.encoder, given.vectors, given.logit_scale, given.clip, Decoding())
    found = [Demo(each, None, 3).look(Visit(), str(photo), "photo.png").image for each in (given, own)]
    assert torch.equal(found[0], given.prepare(open_image(str(photo), decoding=PUBLISHED)))
    assert torch.equal(found[1], own.prepare(open_image(str(photo))))
    assert not torch.equal(*found)


def test_an_added_class_counts_only_in_its_visit_until_it_is_removed(demo, encoder, photo):
    before = demo.look(Visit(), str(photo), "photo.png")
    after = demo.add(demo.add(before, "  letter \n B "), "eel")
    known = demo.classifier.add_classes(encoder.encode(["letter B", "eel"]))
    every = Demo(demo.classifier, encoder, 99)
    expected = dict(known.predict([photo], top_k=99)[0])
    assert dict(every.predict(after).predictions) == pytest.approx(expected, rel=1e-4)
    assert len(every.predict(before).predictions) == 10
    kept = demo.keep(after, ["eel"])
    assert dict(every.predict(kept).predictions).keys() == expected.keys() - {"letter B"}
    assert every.predict(demo.keep(kept, [])).predictions == every.predict(before).predictions


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (" \n\t", "empty"),
        ("five", "'five' exists"),
        (" eel ", "'eel' exists already"),
        ("word " * 35, "all 32 tokens"),
        ("cafe\u0301", "exists already"),
    ],
)
def test_an_invalid_name_is_a_sentence(typed, words, demo):
    visit = demo.add(demo.add(Visit(), "eel"), "caf\u00e9")
    with refused(KdplError, words):
        demo.add(visit, typed)


def test_there_is_a_largest_number_of_classes_and_none_without_the_teacher(demo, encoder):
    full = Visit(added=dict.fromkeys(map(str, range(MAX_ADDED)), encoder.encode(["x"])))
    with refused(ConfigError, f"there are {MAX_ADDED} further classes"):
        demo.add(full, "eel")
    with refused(ConfigError, "--teacher RUN"):
        Demo(demo.classifier, None, 3).add(Visit(), "eel")
    with refused(ArtifactError, "another tuned teacher"):
        Demo(with_vectors(demo.classifier, teacher="0" * 32), encoder, 3)


def test_a_file_that_is_not_an_image_is_named_as_its_owner_does(demo, photo):
    photo.write_bytes(photo.read_bytes()[:2000])
    with refused(DataError, r"image holiday\.png cannot be read") as raised:
        demo.look(Visit(), str(photo), "holiday.png")
    assert str(photo) not in str(raised.value)


def test_examples_are_spread_evenly_and_missing_ones_are_named(tmp_path):
    folder = image_folder(tmp_path / "images", classes=("a", "b", "c"))
    found = find_examples([str(folder), str(folder / "test/a/0.png")])
    assert len(found) == len(set(found)) == 12
    assert {name for name in "abc" if any(f"/{name}/" in path for path in found)} == {"a", "b", "c"}
    assert find_examples([]) == []
    with refused(DataError, "does not exist"):
        find_examples([str(tmp_path / "a.png")])


def test_names_are_escaped(demo, encoder, photo):
    hostile = Demo(with_vectors(demo.classifier, class_names=HOSTILE), encoder, 20)
    visit = hostile.add(hostile.look(Visit(), str(photo), "photo.png"), "<b>ten</b>")
    html = head(hostile) + bars(visit, hostile.predict(visit)) + note("<i>wrong</i>", is_error=True)
    for escaped in ("&lt;b&gt;ten&lt;/b&gt; <em>added</em>", "&lt;i&gt;wrong&lt;/i&gt;", "&lt;script&gt;"):
        assert escaped in html
    for harm in ("<script", "<img", "<b>", "<i>", "</style", "\u202e", "\x07", "long " * 13):
        assert harm not in html


@pytest.mark.parametrize(("probability", "shown"), [(1.0, "100.0 %"), (0.0005, "0.1 %"), (0.0004, "&lt; 0.1 %")])
def test_a_small_probability_is_not_shown_as_zero(probability, shown):
    html = bars(Visit(), Result([Prediction("cat", probability)], 0.0123))
    assert f'<span class="percent">{shown}</span>' in html
    assert "Classified in 12.3 ms" in html


def test_an_image_that_would_fill_the_memory_is_refused(demo, tmp_path):
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    with refused(DataError, "image large.png has .* pixels, expected at most 50 million: scale it down"):
        demo.look(Visit(), str(tmp_path / "large.png"), "large.png")
