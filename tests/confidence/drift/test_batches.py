"""``watch CLASSIFIER IMAGES``: new images against the pool, without labels."""

import json
import shutil
import tarfile

import pytest
import torch
import world
from PIL import Image, ImageOps
from runs import files_of, refused

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.classifier.hub import save_pretrained
from kdpl.confidence import companions
from kdpl.confidence.drift import two_samples
from kdpl.confidence.drift.image_sample import ImageSample
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import none_of_these
from kdpl.data.readers.digits import open_digit, read_digits


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
            image, other = open_digit(record.source), name == "mixed" and number % 2
            if other:
                image = ImageOps.invert(image).transpose(Image.Transpose.ROTATE_90)
            image.save(folder / name / f"{number:02d}{'other' * bool(other)}.png")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def watch(here, capsys, monkeypatch):
    """A function that runs the command; returns the summary, and what is said."""
    monkeypatch.setattr(two_samples, "PERMUTATIONS", 399)

    def watch(classifier, *options, code=0):
        assert main(["watch", str(classifier), *map(str, options)]) == code
        printed, err = capsys.readouterr()
        return json.loads(printed), err

    return watch


@pytest.fixture
def loaded(classifier):
    return Classifier.load(classifier)


def pool_of(folder, loaded):
    return ImageSample.load(folder, loaded.fingerprint(), loaded.vectors.vectors.shape[1])


def test_a_fit_keeps_what_the_classifier_finds_in_the_pool(classifier, loaded):
    kept, data = pool_of(classifier, loaded), world.digits(batch_size=8)
    images = [data.splits.open_image(record.source) for record in data.splits.train]
    assert len(kept) == len(images) == 700
    torch.testing.assert_close(kept.features.float(), loaded.embed(images), atol=1e-3, rtol=1e-3)
    tops = [top for (top,) in loaded.predict(images)]
    assert [world.DIGITS[label] for label in kept.labels] == [top.class_name for top in tops]
    assert kept.scores.tolist() == pytest.approx([top.probability for top in tops], rel=1e-4)


def test_a_dataset_without_training_images_has_none(tmp_path):
    (tmp_path / "images.csv").write_text("image,label,split\na.png,cat,test\nb.png,dog,test\n")
    data = world.DomainDataModule("table", root=str(tmp_path / "images.csv"))
    assert companions.pool_of(None, data, None) == []


def test_a_classifier_takes_its_place_but_neither_copies_nor_uploads_it(folder, loaded, tmp_path):
    save_pretrained(loaded, tmp_path / "uploaded")
    loaded.save(folder)
    for written in (folder, tmp_path / "uploaded"):
        assert (written / "model.safetensors").exists()
        assert not (written / "pool_sample.safetensors").exists()


def test_images_like_the_pool_end_with_0(classifier, batches, here, watch):
    before = files_of(classifier)
    summary, err = watch(classifier, batches / "same")
    assert files_of(classifier) == before
    assert list(here.iterdir()) == []
    assert (summary["differs"], summary["because"], summary["changed_classes"]) == (False, [], [])
    assert (summary["images"], summary["unreadable"]) == (60, 0)
    assert summary["rejected_of_pool"] == 0.05
    assert min(summary["p_values"].values()) > 0.01
    assert "60 new images are like the pool" in err


def test_other_images_end_with_3_and_are_named_also_from_a_shard(classifier, batches, here, watch):
    scores = none_of_these(Classifier.load(classifier), sorted((batches / "mixed").iterdir()))
    summary, err = watch(classifier, batches / "mixed", code=3)
    assert summary["differs"]
    assert "images are farther from the pool" in summary["because"]
    assert "more images look like none of the classes" in summary["because"]
    assert max(summary["p_values"][name] for name in ("distance", "unknown")) < 0.01
    assert summary["unknown"] == pytest.approx((scores > 0.5).float().mean().item(), abs=1e-4)
    assert "60 new images differ from the pool: " in err
    assert sum(name.endswith("other.png") for name in summary["farthest"]) > 7

    # the same images give the same figures, whatever they lie in and what is unreadable among them
    with tarfile.open(here / "new.tar", "w") as shard:
        shard.add(batches / "mixed", "in")
    (here / "broken.png").write_bytes(b"no image")
    (here / "list.txt").write_text("broken.png\n")
    of_shard, _ = watch(classifier, "list.txt", "new.tar", code=3)
    farthest = of_shard.pop("farthest")
    assert [name.rpartition("/")[2] for name in farthest] == [
        name.rpartition("/")[2] for name in summary.pop("farthest")
    ]
    assert all("new.tar/in/" in name for name in farthest)
    assert of_shard == {**summary, "unreadable": 1}


def test_classes_at_other_frequencies_end_with_3_and_are_named(classifier, loaded, batches, watch):
    summary, _ = watch(classifier, batches / "few", code=3)
    assert "classes are predicted at other frequencies" in summary["because"]
    tops = loaded.predict(sorted((batches / "few").iterdir()))
    new = torch.tensor([loaded.class_names.index(top.class_name) for (top,) in tops])
    shares = (
        torch.bincount(labels, minlength=10) / len(labels)
        for labels in (new, pool_of(classifier, loaded).labels)
    )
    largest = next(shares).sub(next(shares)).abs().argmax()
    assert summary["changed_classes"][0] == loaded.class_names[largest]


def test_a_wanted_error_sets_the_threshold(folder, loaded, batches, watch):
    scores = torch.full((400,), 0.1)
    scores[:300] = 0.3
    held_out = HeldOutScores(1.5, scores, scores.clone(), scores > 0.2)
    held_out.save(folder, loaded.fingerprint())
    summary, _ = watch(folder, batches / "same", "--max-error=2%")
    new = [top.probability for (top,) in loaded.predict(sorted((batches / "same").iterdir()))]
    for key, probabilities in (
        ("rejected", torch.tensor(new)),
        ("rejected_of_pool", pool_of(folder, loaded).scores),
    ):
        share = (probabilities < held_out.threshold(0.02)).float().mean().item()
        assert summary[key] == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("reason", ["its limit of 0.5", "has no scores of that"])
def test_without_a_limit_the_other_three_questions_are_asked(
    reason, folder, loaded, batches, watch
):
    loaded.companions["unknown"].held_out = None  # as without validation images
    loaded.companions["unknown"].save(folder, loaded.fingerprint())
    if "scores" in reason:
        (folder / "unknown.safetensors").unlink()
    summary, err = watch(folder, batches / "same")
    assert summary["unknown"] is None
    assert [*summary["p_values"]] == ["rejected", "classes", "distance"]
    assert reason in err


def test_a_classifier_without_a_sample_takes_images_to_compare_with(folder, batches, watch, capsys):
    (folder / "pool_sample.safetensors").unlink()
    code = main(["watch", str(folder), str(batches / "same")])
    refused(capsys, code, "has no sample of the pool", "--against")
    options = ["--against", batches / "same"]
    summary, _ = watch(folder, batches / "same", *options)
    assert not summary["differs"]
    # the limit of the score is that of the images compared with
    assert summary["unknown"] <= 0.05
    assert watch(folder, batches / "mixed", *options, code=3)[0]["differs"]


def test_samples_of_another_classifier_or_few_are_refused(folder, loaded, batches, here, capsys):
    pool, image = pool_of(folder, loaded), str(batches / "same")
    pool.save(folder, "ab")
    refused(
        capsys, main(["watch", str(folder), image]), "pool_sample.safetensors", "belongs to another"
    )
    pool.draw(19).save(folder, loaded.fingerprint())
    refused(capsys, main(["watch", str(folder), image]), "20 images of the pool", "keeps 19")
    refused(capsys, main(["watch", str(folder.parent), image]), "classifier")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["EMPTY"], ["has no images"]),
        (["FEW"], ["20 images or more", "IMAGES has 19"]),
        (["BROKEN"], ["IMAGES has 0", "25 unreadable ones", "cannot be read"]),
        (["SAME", "--against", "FEW"], ["--against has 19"]),
        (["SAME", "--false-alarms=0.1%"], ["--false-alarms is 0.1%"]),
    ],
)
def test_bad_input_is_one_sentence_and_code_1(options, words, classifier, batches, here, capsys):
    (here / "EMPTY").mkdir()
    (here / "BROKEN").mkdir()
    for number in range(25):
        (here / "BROKEN" / f"{number}.png").write_bytes(b"no image")
    shutil.copytree(batches / "same", here / "SAME")
    shutil.copytree(batches / "same", here / "FEW", ignore=lambda _, names: sorted(names)[19:])
    before = files_of(here)
    refused(capsys, main(["watch", str(classifier), *options]), *words)
    assert files_of(here) == before
