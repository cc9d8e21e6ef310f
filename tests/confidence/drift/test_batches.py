"""``watch CLASSIFIER IMAGES``: new images against the pool, without labels."""

import json
import shutil
import tarfile

import pytest
import torch
import world
from PIL import Image, ImageOps
from report_pages import HOSTILE, Page, with_vectors
from runs import files_of, refused

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.classifier.hub import save_pretrained
from kdpl.confidence import handover
from kdpl.confidence.drift.image_sample import ImageSample
from kdpl.confidence.unknown import none_of_these
from kdpl.data.readers.digits import open_digit, read_digits
from kdpl.errors import DataError


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Folders of test digits: as they are, with others among them, and of few classes."""
    folder, test = tmp_path_factory.mktemp("batches"), read_digits().test
    for name, records in (
        ("same", test[:60]),
        ("mixed", test[60:120]),
        ("few", [r for r in test if r.label < 3][:60]),
    ):
        (folder / name).mkdir()
        for number, record in enumerate(records):
            image = open_digit(record.source)
            other = name == "mixed" and number % 2
            (ImageOps.invert(image).transpose(Image.Transpose.ROTATE_90) if other else image).save(
                folder / name / f"{number:02d}{'other' * bool(other)}.png"
            )
    return folder


def watch(classifier, *options, code=0, capsys=None):
    """Run the command; returns the page and the summary."""
    assert main(["watch", str(classifier), *map(str, options)]) == code
    summary = json.loads(capsys.readouterr().out)
    with open(summary["report"], encoding="utf-8") as page:  # noqa: PTH123
        return Page(page.read()), summary


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fit_keeps_what_the_classifier_finds_in_the_pool(student_run):
    read = Classifier.load(student_run / "classifier")
    kept = ImageSample.load(
        student_run / "classifier", read.fingerprint(), (10, read.vectors.vectors.shape[1])
    )
    data = world.digits(batch_size=8)
    images = [data.splits.open_image(record.source) for record in data.splits.train]
    assert len(kept) == len(images) == 700
    torch.testing.assert_close(kept.features.float(), read.embed(images), atol=1e-3, rtol=1e-3)
    tops = [top for (top,) in read.predict(images)]
    assert [world.DIGITS[label] for label in kept.labels] == [top.class_name for top in tops]
    assert kept.scores.tolist() == pytest.approx([top.probability for top in tops], rel=1e-4)


def test_of_a_larger_pool_images_are_drawn_by_the_seed():
    one, again, other = (
        world.digits(batch_size=8, seed=seed).pool.sample(100) for seed in (1, 1, 2)
    )
    everything = [record.source for record in read_digits().train]
    assert [*one] == [*again] != [*other]
    assert [*one] == [source for source in everything if source in {*one}]
    assert len({*one}) == 100
    half = world.digits(batch_size=8, unlabeled_share=0.5)
    assert {*half.pool.sample(1000)} < {*everything}
    assert len(half.pool.sample(1000)) == 350


def test_a_dataset_without_training_images_has_none(tmp_path):
    (tmp_path / "images.csv").write_text("image,label,split\na.png,cat,test\nb.png,dog,test\n")
    data = world.DomainDataModule("table", root=str(tmp_path / "images.csv"))
    assert handover.pool_of(None, data) == []
    with world.refused(DataError, "is for tests alone: train on another dataset, then test"):
        _ = data.pool


def test_a_fit_that_trained_nothing_keeps_none(teacher_folder, tmp_path):
    world.fit(world.make_student(teacher_folder), tmp_path, epochs=0, domain=world.digits(8))
    names = {path.name for path in (tmp_path / "classifier").iterdir()}
    assert names == {
        "classifier.json",
        "model.safetensors",
        "held_out.safetensors",
        "unknown.safetensors",
    }


def test_a_classifier_takes_its_place_but_neither_copies_nor_uploads_it(classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    loaded = Classifier.load(folder)
    save_pretrained(loaded, tmp_path / "uploaded")
    assert not (tmp_path / "uploaded" / "pool_sample.safetensors").exists()
    loaded.save(folder)
    assert not (folder / "pool_sample.safetensors").exists()


def test_images_like_the_pool_end_with_0_and_a_page(classifier, batches, here, capsys):
    before = files_of(classifier)
    page, summary = watch(classifier, batches / "same", capsys=capsys)
    assert files_of(classifier) == before
    assert [path.name for path in here.iterdir()] == ["watch.html"]
    assert (summary["differs"], summary["because"], summary["changed_classes"]) == (False, [], [])
    assert (summary["images"], summary["unreadable"], summary["report"]) == (60, 0, "watch.html")
    assert summary["rejected_of_pool"] == 0.05
    assert min(summary["p_values"].values()) > 0.01
    assert "New images are like the training pool 60 new images of" in page.texts["header"]
    assert page.of("meta")[2]["content"].startswith("default-src 'none'; img-src data:;")
    assert len(page.of("img")) == 24
    assert {"tests", "rejected", "unknown", "distances", "classes", "unusual"} <= page.texts.keys()


def test_other_images_end_with_3_and_are_shown(classifier, batches, here, capsys):
    page, summary = watch(classifier, batches / "mixed", "--out", "new.html", code=3, capsys=capsys)
    assert summary["differs"]
    assert "images are farther from the pool" in summary["because"]
    assert summary["p_values"]["distance"] < 0.01
    assert "New images differ from the training pool" in page.texts["header"]
    shown = [each["alt"].endswith("other.png") for each in page.of("img")]
    assert sum(shown) > 18
    assert "images are farther from the pool than" in page.texts["header"].lower()


def test_classes_at_other_frequencies_end_with_3_and_are_named(classifier, batches, here, capsys):
    page, summary = watch(classifier, batches / "few", code=3, capsys=capsys)
    assert "classes are predicted at other frequencies" in summary["because"]
    loaded = Classifier.load(classifier)
    pool = ImageSample.load(classifier, loaded.fingerprint(), (10, loaded.vectors.vectors.shape[1]))
    (_, counts) = torch.tensor(
        [
            loaded.class_names.index(top.class_name)
            for (top,) in loaded.predict(sorted((batches / "few").iterdir()))
        ]
    ).unique(return_counts=True)
    assert counts.max() > 10
    shares = pool.labels.bincount(minlength=10) / len(pool)
    assert summary["changed_classes"]
    for name in summary["changed_classes"]:
        assert (
            f"{name} {100 * shares[loaded.class_names.index(name)]:.1f} %" in page.texts["classes"]
        )
    assert page.texts["classes"].count("▲ more") + page.texts["classes"].count("▼ fewer") == len(
        summary["changed_classes"]
    )


def test_the_same_images_give_the_same_figures(classifier, batches, here, capsys):
    found = [watch(classifier, batches / "mixed", code=3, capsys=capsys)[1] for _ in range(2)]
    assert found[0] == found[1]


def test_images_of_a_shard_and_a_list_are_read_and_unreadable_ones_named(
    classifier, batches, here, capsys
):
    with tarfile.open(here / "new.tar", "w") as shard:
        shard.add(batches / "mixed", "in")
    (here / "broken.png").write_bytes(b"no image")
    (here / "list.txt").write_text(f"broken.png\n{batches}/same/00.png\n")
    page, summary = watch(classifier, "new.tar", "list.txt", code=3, capsys=capsys)
    assert (summary["images"], summary["unreadable"]) == (61, 1)
    assert "image broken.png cannot be read" in page.texts["unreadable"]
    shown = [each["alt"] for each in page.of("img")]
    assert len(shown) == 24
    assert sum(name.endswith("other.png") and "new.tar/in/" in name for name in shown) > 18


def test_a_wanted_error_sets_the_threshold(classifier, batches, here, capsys):
    loaded = Classifier.load(classifier)
    scores = torch.full((400,), 0.1)
    scores[:300] = 0.3
    loaded.companions["held_out"] = type(loaded.companions["held_out"])(
        1.5, scores, scores.clone(), scores > 0.2
    )
    folder = shutil.copytree(classifier, here / "classifier")
    loaded.companions["held_out"].save(folder, loaded.fingerprint())
    threshold = loaded.companions["held_out"].threshold(0.02)
    pool = ImageSample.load(folder, loaded.fingerprint(), (10, loaded.vectors.vectors.shape[1]))
    page, summary = watch(folder, batches / "same", "--max-error=2%", capsys=capsys)
    expected = [
        top.probability < threshold
        for (top,) in loaded.predict(sorted((batches / "same").iterdir()))
    ]
    assert summary["rejected"] == pytest.approx(sum(expected) / 60, abs=1e-4)
    assert summary["rejected_of_pool"] == pytest.approx(
        (pool.scores < threshold).float().mean().item(), abs=1e-4
    )
    assert "The threshold is that of --max-error 2%" in page.texts["rejected"]


def test_images_like_none_of_the_classes_are_counted_by_their_score(
    classifier, batches, here, capsys
):
    scores = none_of_these(Classifier.load(classifier), sorted((batches / "mixed").iterdir()))
    page, summary = watch(classifier, batches / "mixed", code=3, capsys=capsys)
    assert summary["unknown"] == pytest.approx((scores > 0.5).float().mean().item(), abs=1e-4)
    assert summary["p_values"]["unknown"] < 0.01
    assert "more images look like none of the classes" in summary["because"]
    assert "score of being none of the classes above 0.5" in page.texts["unknown"]
    assert (
        "comes from 198 images, which the classifier was not trained on: of further"
        in page.texts["unknown"]
    )
    assert "at most 4.5 % are above it, on average. Images" in page.texts["unknown"]
    assert "Four questions" in page.texts["tests"]
    options = [batches / "mixed", "--against", batches / "mixed"]
    page, summary = watch(classifier, *options, capsys=capsys)
    assert summary["unknown"] <= 0.05
    assert "comes from 60 images, those compared with: of further" in page.texts["unknown"]


def test_the_page_says_what_a_limit_of_few_validation_images_holds(
    classifier, batches, here, capsys
):
    folder = shutil.copytree(classifier, here / "classifier")
    loaded = Classifier.load(folder)
    loaded.companions["unknown"].held_out = 4
    loaded.companions["unknown"].save(folder, loaded.fingerprint())
    page, _ = watch(folder, batches / "same", capsys=capsys)
    assert (
        "at most 20.0 % are above it, on average, and it takes 19 images or more for 5 %."
        in page.texts["unknown"]
    )
    assert "≤ 20.0 %" in page.texts["tests"]
    assert "of images like the pool at most 20.0 %" in page.texts["header"]


@pytest.mark.parametrize(
    "words", ["does not know its limit of 0.5 from validation images", "has no scores of that"]
)
def test_without_a_limit_of_the_score_the_other_three_questions_are_asked(
    words, classifier, batches, here, capsys
):
    folder = shutil.copytree(classifier, here / "classifier")
    loaded = Classifier.load(folder)
    if "score" in words:
        (folder / "unknown.safetensors").unlink()
    else:
        loaded.companions["unknown"].held_out = None  # as without validation images
        loaded.companions["unknown"].save(folder, loaded.fingerprint())
    assert main(["watch", str(folder), str(batches / "same")]) == 0
    said = capsys.readouterr()
    assert "images of none of the classes are not compared: this classifier " + words in said.err
    summary = json.loads(said.out)
    assert summary["unknown"] is None
    assert [*summary["p_values"]] == ["rejected", "classes", "distance"]
    texts = Page((here / "watch.html").read_text(encoding="utf-8")).texts
    assert words in texts["unknown"]
    assert "Three questions" in texts["tests"]


@pytest.fixture
def without(classifier, here):
    """A classifier without a sample of its pool."""
    folder = shutil.copytree(classifier, here / "classifier")
    (folder / "pool_sample.safetensors").unlink()
    return folder


def test_a_classifier_without_a_sample_takes_images_to_compare_with(without, batches, here, capsys):
    code = main(["watch", str(without), str(batches / "same")])
    refused(
        capsys,
        code,
        "has no sample of the pool that it was trained on",
        "give images like those",
        "by --against",
    )
    assert not (here / "watch.html").exists()
    options = ["--against", batches / "same"]
    page, summary = watch(without, batches / "same", *options, capsys=capsys)
    assert not summary["differs"]
    assert f"60 images of {batches}/same" in page.texts["header"]
    assert watch(without, batches / "mixed", *options, code=3, capsys=capsys)[1]["differs"]


def test_hostile_names_stay_text(classifier, batches, here, capsys):
    loaded = with_vectors(Classifier.load(classifier), class_names=HOSTILE)
    loaded.save(here / "hostile")
    where = here / "<script>alert(1)<" / "script>"
    shutil.copytree(batches / "same", where)
    page, _ = watch(here / "hostile", where, "--against", where, capsys=capsys)
    assert len(page.of("script")) == 1
    assert "<script>document" in page.texts["classes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["EMPTY"], ["has no images"]),
        (["MISSING"], ["MISSING does not exist"]),
        (["FEW"], ["it takes 20 images or more to compare them, and IMAGES has 19: give more"]),
        (
            ["BROKEN"],
            ["IMAGES has 0: give more, the first of 25 unreadable ones", "cannot be read"],
        ),
        (["SAME", "--against", "FEW"], ["and --against has 19"]),
        (["SAME", "--false-alarms=0.1%"], ["--false-alarms is 0.1%, expected 0.20% or more"]),
        (["SAME", "--false-alarms=no"], ["--false-alarms is 'no', expected a share"]),
        (["SAME", "--max-error=0.1%"], ["it takes 2995 held-out images or more"]),
        (["SAME", "--out", "EMPTY"], ["is a folder"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(
    options, words, classifier, batches, here, capsys
):
    (here / "EMPTY").mkdir()
    (here / "BROKEN").mkdir()
    for number in range(25):
        (here / "BROKEN" / f"{number}.png").write_bytes(b"no image")
    shutil.copytree(batches / "same", here / "SAME")
    shutil.copytree(batches / "same", here / "FEW", ignore=lambda _, names: sorted(names)[19:])
    before = files_of(here)
    refused(capsys, main(["watch", str(classifier), *options]), *words)
    assert files_of(here) == before


def test_a_run_is_not_a_classifier(student_run, batches, here, capsys):
    refused(capsys, main(["watch", str(student_run), str(batches / "same")]), "classifier", "give")


def test_a_sample_of_another_classifier_is_refused(classifier, without, batches, capsys):
    loaded = Classifier.load(classifier)
    ImageSample.load(classifier, loaded.fingerprint(), (10, loaded.vectors.vectors.shape[1])).save(
        without, "ab"
    )
    code = main(["watch", str(without), str(batches / "same")])
    refused(
        capsys,
        code,
        "pool_sample.safetensors is of another classifier than",
        "remove it, and give images",
    )


def test_a_pool_of_few_images_is_too_small(classifier, without, batches, capsys):
    loaded = Classifier.load(classifier)
    sample = ImageSample.load(
        classifier, loaded.fingerprint(), (10, loaded.vectors.vectors.shape[1])
    )
    sample.draw(19).save(without, loaded.fingerprint())
    code = main(["watch", str(without), str(batches / "same")])
    refused(capsys, code, "it takes 20 images of the pool or more", "keeps 19")
