import json
import shutil
from dataclasses import replace

import pytest
import torch
from report_pages import HOSTILE
from runs import image_folder, noise

from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.classifier import Classifier
from kdpl.data.image import to_tensor
from kdpl.deploy.demo import texts
from kdpl.deploy.demo.visit import MAX_ADDED, Demo, Visit, find_examples
from kdpl.errors import ArtifactError, ConfigError, DataError, KdplError


@pytest.fixture(scope="module")
def demo(classifier, teacher_run):
    return Demo.load(classifier, None, str(teacher_run), 3)


@pytest.fixture
def photo(tmp_path):
    noise(50, 40).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_answers_are_those_of_predict(demo, classifier, photo):
    visit = demo.look(Visit(), str(photo), "photo.png")
    assert demo.answer(visit).guesses == Classifier.load(classifier).predict([photo], top_k=3)[0]
    assert demo.answer(visit).seconds > 0
    assert visit.seconds > 0
    assert demo.answer(Visit()) is None
    assert demo.answer(demo.clear(visit)) is None


def test_a_class_that_is_added_counts_in_this_visit_alone_until_it_is_removed(demo, classifier, teacher_run, photo):
    before = demo.look(Visit(), str(photo), "photo.png")
    after = demo.add(demo.add(before, "  letter \n B "), "eel")
    vectors = NameEncoder.load(teacher_run).encode(["letter B", "eel"])
    known = Classifier.load(classifier).add_classes(vectors)
    everything = Demo(demo.classifier, demo.encoder, 99)
    assert dict(everything.answer(after).guesses) == pytest.approx(dict(known.predict([photo], top_k=99)[0]), rel=1e-4)
    assert len(everything.answer(before).guesses) == 10
    kept = demo.keep(after, ["eel"])
    assert list(kept.added) == ["eel"]
    assert {"letter B", "eel"} - {guess.class_name for guess in everything.answer(kept).guesses} == {"letter B"}
    assert everything.answer(demo.keep(kept, [])).guesses == everything.answer(before).guesses


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("five", "'five' is there already"),
        (" eel ", "'eel' is there already"),
        ("x" * 10_000, "10,000 characters, expected at most 200"),
        ("word " * 35, "all 32 tokens"),
    ],
)
def test_a_name_that_cannot_be_is_a_sentence(typed, words, demo):
    visit = demo.add(Visit(), "eel")
    with pytest.raises(KdplError, match=words) as raised:
        demo.add(visit, typed)
    assert len(str(raised.value)) < 300


def test_there_is_an_end_to_further_classes(demo):
    vectors = demo.encoder.encode(["x"])
    full = Visit(added={f"class {i}": vectors for i in range(MAX_ADDED)})
    with pytest.raises(ConfigError, match=f"there are {MAX_ADDED} further classes"):
        demo.add(full, "eel")


def test_without_a_teacher_nothing_is_added(classifier):
    with pytest.raises(ConfigError, match="--teacher RUN"):
        Demo.load(classifier, None, None, 3).add(Visit(), "eel")


def test_class_vectors_from_a_file_are_taken_in(classifier, teacher_run, tmp_path):
    NameEncoder.load(teacher_run).encode(["eel"]).save(tmp_path / "more.safetensors")
    assert Demo.load(classifier, str(tmp_path / "more.safetensors"), None, 3).classifier.class_names[-1] == "eel"


def test_another_teacher_is_refused_at_the_start(classifier, teacher_run, tmp_path):
    other = tmp_path / "classifier"
    shutil.copytree(classifier, other)
    config = json.loads((other / "classifier.json").read_text())
    config["class_vectors"]["teacher"] = "0" * 32
    (other / "classifier.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="another tuned teacher"):
        Demo.load(other, None, str(teacher_run), 3)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html></html>", "cut off"], ids=repr)
def test_what_is_no_image_is_a_sentence_that_names_it_as_its_owner_does(content, demo, photo):
    photo.write_bytes(photo.read_bytes()[:2000] if content == "cut off" else content)
    with pytest.raises(DataError, match=r"the file holiday\.png cannot be read") as raised:
        demo.look(Visit(), str(photo), "holiday.png")
    assert str(photo) not in str(raised.value)


def test_examples_are_spread_evenly_over_files_and_folders(tmp_path):
    folder = image_folder(tmp_path / "images", classes=("a", "b", "c"))
    found = find_examples([str(folder), str(folder / "test/a/0.png")])
    assert len(found) == len(set(found)) == 12
    assert {name for name in "abc" if any(f"/{name}/" in path for path in found)} == {"a", "b", "c"}
    assert find_examples([]) == []


def test_examples_that_are_missing_are_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_examples([str(tmp_path / "a.png")])
    with pytest.raises(DataError, match="has no images"):
        find_examples([str(tmp_path)])


def test_names_are_text_to_the_page_whatever_is_in_them(classifier, photo, teacher_run):
    plain = Classifier.load(classifier)
    vectors = replace(plain.vectors, class_names=HOSTILE)
    hostile = Classifier(plain.encoder, vectors, plain.logit_scale, plain.clip)
    demo = Demo(hostile, NameEncoder.load(teacher_run), 20)
    visit = demo.add(demo.look(Visit(), str(photo), "photo.png"), "<b>ten</b>")
    html = texts.head(demo) + texts.answers(visit, demo.answer(visit)) + texts.note("<i>wrong</i>", fault=True)
    assert "&lt;b&gt;ten&lt;/b&gt; <em>added</em>" in html
    assert "&lt;i&gt;wrong&lt;/i&gt;" in html
    assert "&lt;script&gt;" in html
    for harm in ("<script", "<img", "<b>", "<i>", "</style", "\u202e", "\x07", "long " * 13):
        assert harm not in html


@pytest.mark.parametrize(("probability", "shown"), [(1.0, "100.0 %"), (0.0005, "0.1 %"), (0.0004, "&lt; 0.1 %")])
def test_a_small_probability_is_not_shown_as_none(probability, shown, demo, photo):
    visit = demo.look(Visit(), str(photo), "photo.png")
    given = demo.answer(visit)
    best = given.guesses[0]._replace(probability=probability)
    assert f'<span class="percent">{shown}</span>' in texts.answers(visit, type(given)([best], 0.0123))
    assert "12.3 ms in the network" in texts.answers(visit, type(given)([best], 0.0123))


def test_vectors_of_the_encoder_are_those_that_the_teacher_froze(teacher_run):
    frozen = ClassVectors.load(teacher_run / "class_vectors.safetensors")
    assert torch.equal(NameEncoder.load(teacher_run).encode(frozen.class_names).vectors, frozen.vectors)


def test_an_image_is_kept_only_as_the_network_takes_it(demo, photo):
    visit = demo.look(Visit(), str(photo), "photo.png")
    assert visit.photo.shape == to_tensor(noise(32, 32)).shape
    assert visit.photo.dtype == torch.uint8
