import os
import re

import pytest
import runs
import world
import zoo

from kdpl.__main__ import main
from kdpl.data.checked import Checked
from kdpl.data.options import ReadingOptions
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import DECODED_FILE


def read(pets, run=None, **options):
    """The images of a run into a folder, as read with these options."""
    data = runs.in_folder(pets, reading=ReadingOptions(**options), shots=3, augmentation="none")
    if run:
        data.reading.of_run(run)
    return data


def test_bad_images_are_named_before_anything_is_trained_or_written(pets, tmp_path, capsys):
    bad = zoo.write(pets / "train/cat", zoo.BAD)
    assert main(runs.folder_fit(pets, tmp_path / "run")) == 1
    said = f"{len(bad)} of {12 + len(bad)} images cannot be used ("
    runs.error_line(capsys, said, *bad[:10], f"; and {len(bad) - 10} more)", "bad_images")
    assert not (tmp_path / "run" / DECODED_FILE).exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_that_skips_bad_images_is_that_without_them(pets, tmp_path):
    clean = read(pets, test_share=0.25)
    assert len(clean.splits.test) == 4
    batches = list(clean.train_dataloader_for("labeled", Resizing(8)))
    bad = zoo.write(pets / "train/cat", zoo.BAD)
    skipping = read(pets, tmp_path, test_share=0.25, bad_images="skip")
    skipping.reading.scan(trains=True)
    assert list(Checked.load(tmp_path / DECODED_FILE).skipped) == bad
    for split in ("train", "val", "test"):
        assert getattr(skipping.splits, split) == getattr(clean.splits, split)
    assert list(skipping.pool.images) == list(clean.pool.images)
    loader = skipping.train_dataloader_for("labeled", Resizing(8))
    for batch, expected in zip(loader, batches, strict=True):
        assert batch.images.equal(expected.images)
        assert batch.labels.equal(expected.labels)


def test_the_images_of_a_run_are_fixed_when_it_begins(pets, tmp_path):
    read(pets, tmp_path / "first", bad_images="skip").reading.scan(trains=True)
    (pets / "train/dog/5.png").write_bytes(b"broken by now")
    for folder, left in (("first", 12), ("second", 11)):
        assert len(read(pets, tmp_path / folder, bad_images="skip").splits.train) == left


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": (0, 0, 0)}, "decoding.background is [255, 255, 255] there and [0, 0, 0] "),
        ({"skip_list": "skip.txt"}, "images is "),
        ({"test_share": 0.5}, "test and validation images is 0 there and 12 here"),
    ],
)
def test_a_dataset_that_is_read_otherwise_is_looked_at_again(
    change, words, pets, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skip.txt").write_text(str(pets / "train/dog/5.png"))
    file = tmp_path / DECODED_FILE
    for options in ({}, {}, change):
        before = file.read_bytes() if file.exists() else None
        assert "looking at all images again" not in capsys.readouterr().err
        read(pets, tmp_path, **options).reading.scan(trains=True)
    assert f"{file} is of other images ({words}" in capsys.readouterr().err
    assert file.read_bytes() != before


def test_a_fit_looks_at_changed_files_again_and_refuses_other_contents(pets, tmp_path, capsys):
    def prepare(trains=True):
        read(pets, tmp_path, bad_images="skip").reading.scan(trains)
        return capsys.readouterr().err

    dog, file = pets / "train/dog/5.png", tmp_path / DECODED_FILE
    (pets / "train/cat/bad.png").write_bytes(b"broken")
    assert prepare() == ""
    first = Checked.load(file)
    # a file that is touched, or copied to its place, is the same image
    os.utime(dog, (0, 2e9))
    said = f"{file} is of other images (last change of images is "
    assert prepare(trains=False) == ""
    assert re.search(rf"{re.escape(said)}.* 2033-05-18 03:33:20\+00:00 of 5.png \(", prepare())
    again = Checked.load(file)
    assert again.contents == first.contents
    assert again.made_from != first.made_from
    assert prepare() == ""
    # another image, also one that was left out, is not
    before = dog.read_bytes(), file.read_bytes()
    for changed in (dog, pets / "train/cat/bad.png"):
        runs.noise(8, 8, seed=9).save(changed)
        words = rf"^images have changed since {file} was written \(.*\): put them back, or choose"
        with world.refused(DataError, words):
            prepare()
        assert said in capsys.readouterr().err
        assert prepare(trains=False) == ""
        changed.write_bytes(before[0] if changed == dog else b"broken")
    assert "looking at all images again" in prepare()
    # without the file, the run is of the images that there are
    runs.noise(8, 8, seed=9).save(dog)
    file.unlink()
    assert prepare() == ""
    assert Checked.load(file).contents != first.contents


def test_contents_are_known_however_images_are_opened(pets, tmp_path):
    def contents(**options):
        data = read(pets, tmp_path, **options)
        data.reading.scan(trains=True)
        (tmp_path / DECODED_FILE).unlink()
        return data.reading.check().contents

    plain = contents()
    assert contents() == plain
    runs.noise(8, 8, seed=9).save(pets / "train/dog/5.png")
    assert contents()[1] != plain[1]
    assert contents()[0] == plain[0]
    # test images apart
    (pets / "test/dog").mkdir(parents=True)
    runs.noise(8, 8, seed=10).save(pets / "test/dog/1.png")
    tested = contents()
    runs.noise(8, 8, seed=11).save(pets / "test/dog/1.png")
    assert contents()[1] == tested[1]
    assert contents()[0] != tested[0]


def test_a_class_of_which_nothing_is_left_is_named(pets):
    for path in (pets / "train/dog").iterdir():
        path.write_bytes(b"")
    with world.refused(DataError, r"class 'dog' .* has no training image that can be used"):
        _ = read(pets, bad_images="skip").splits


def test_a_list_of_images_to_leave_out_is_of_two_kinds_and_refused_where_it_does_not_fit(
    pets, tmp_path
):
    dog = str(pets / "train/dog/5.png")
    (tmp_path / "skip.txt").write_text(f"{dog}\nelsewhere.png\n")
    (tmp_path / "skip.csv").write_text(f'path,reason\n"{dog}",blurred\n')
    for file in tmp_path.glob("skip.*"):
        assert len(read(pets, skip_list=str(file)).splits.train) == 11
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.txt").write_text("1.png")
    for name in ("gone.txt", "x.json", "x.txt"):
        with world.refused(DataError, "skip list"):
            _ = read(pets, skip_list=str(tmp_path / name)).splits


def test_held_out_images_are_the_same_for_every_seed_and_none_beside_a_test_split(pets):
    held_out = ReadingOptions(test_share=0.25)
    first = runs.in_folder(pets, reading=held_out, seed=1, unlabeled=str(pets)).splits
    assert first.held_out
    assert [record.label for record in first.test] == [0, 0, 1, 1]
    assert len(first.train) == len(first.unlabeled) == 8
    second = runs.in_folder(pets, reading=held_out, seed=2).splits
    assert second.held_out
    assert second.test == first.test
    (pets / "test/cat").mkdir(parents=True)
    runs.noise(4, 4).save(pets / "test/cat/1.png")
    assert len(runs.in_folder(pets, reading=held_out).splits.train) == 12
