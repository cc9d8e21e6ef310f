"""Splits of your images that overlap: each overlap is refused, or left out and said."""

import os
import shutil
from pathlib import Path

import pytest
import runs
import world
from PIL import Image
from world import Probe

from kdpl import DomainDataModule
from kdpl.data.checked import Checked
from kdpl.data.options import ReadingOptions
from kdpl.data.paths import find_images
from kdpl.errors import DataError
from kdpl.runtime.run_folder import DECODED_FILE

SPLITS = ("train", "val", "test")
CAT = "cat/0.png"
UNLABELED = ["unlabeled/0.png", "unlabeled/1.png"]


@pytest.fixture
def pets(tmp_path):
    """Two classes of three images in each split, and two without a label, all different."""
    folders = {f"{split}/{name}": 3 for split in SPLITS for name in ("cat", "dog")}
    for seed, (folder, count) in enumerate({**folders, "unlabeled": 2}.items()):
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for number in range(count):
            image = runs.noise(9, 8, seed=10 * seed + number)
            image.save(tmp_path / "pets" / folder / f"{number}.png")
    return tmp_path / "pets"


def table_of(pets, *more):
    """Write a table with a row for each image below the folder, by its path from there."""
    rows = ["image,label,split"]
    for split in (*SPLITS, "unlabeled"):
        for path in find_images(pets / split):
            name = "," if split == "unlabeled" else f"{Path(path).parent.name},{split}"
            rows.append(f"{os.path.relpath(path, pets)},{name}")
    (pets / "images.csv").write_text("\n".join([*rows, *more]))
    return str(pets / "images.csv")


def dataset(kind, pets, unlabeled=None, **reading):
    root = str(pets) if kind == "folder" else table_of(pets)
    options = {"num_workers": 0, "augmentation": "none", "shots": None, "val_shots": None}
    return DomainDataModule(
        kind, root=root, unlabeled=unlabeled, reading=ReadingOptions(**reading), **options
    )


def looked_at(data, out):
    """The dataset as a run into a folder looks at it, and what the run says about it."""
    data.reading.of_run(out)
    data.reading.scan(trains=True)
    return data.splits, list(data.reading.notes())


def parts(splits):
    return splits.train, splits.val, splits.test, list(splits.unlabeled)


@pytest.mark.parametrize(
    ("kind", "link", "target", "count"),
    [
        ("folder", "val", "test", 6),
        ("table", "test", "train", 6),
        ("table", "train/cat/9.png", f"test/{CAT}", 1),
        ("folder", "train/cat/9.png", f"test/{CAT}", 1),
    ],
)
def test_one_file_in_two_splits_is_refused_by_both_names(kind, link, target, count, pets, tmp_path):
    if link in SPLITS:
        shutil.rmtree(pets / link)
    (pets / link).symlink_to(pets / target)
    # the split that counts more is named first
    order = ("test", "val", "train")
    first, second = sorted((link.split("/")[0], target.split("/")[0]), key=order.index)
    said = (
        rf"has {count} files in two splits at once, such as \S*{first}/\S+ \({first}\) "
        rf"and \S*{second}/\S+ \({second}\)"
    )
    with world.refused(DataError, said):
        looked_at(dataset(kind, pets), tmp_path / "run")


def test_test_images_by_other_paths_are_not_distilled_on(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(pets / "test")
    train = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    relative = dataset("folder", Path("pets"), unlabeled=str(pets))
    linked = dataset("table", pets, unlabeled=[str(tmp_path / "link"), str(pets / "val")])
    for number, (data, expected) in enumerate(
        ((relative, [*train, *UNLABELED]), (linked, UNLABELED))
    ):
        splits, notes = looked_at(data, tmp_path / str(number))
        assert [os.path.relpath(source, pets) for source in splits.unlabeled] == expected
        assert [note.partition(" are ")[0] for note in notes] == ["12 unlabelled images"]


@pytest.mark.parametrize(
    ("copy", "split", "said", "kind", "way"),
    [
        ("train/cat/9.png", "test", "1 train", "folder", shutil.copyfile),
        ("train/dog/9.png", "val", "1 train", "table", os.link),
        ("val/dog/9.png", "test", "1 val", "folder", os.link),
        ("unlabeled/9.png", "test", "1 unlabelled", "table", shutil.copyfile),
    ],
)
def test_a_copy_of_a_test_or_validation_image_is_left_out_and_said(
    copy, split, said, kind, way, pets, tmp_path
):
    before, notes = looked_at(dataset(kind, pets), tmp_path / "before")
    assert notes == []
    way(pets / split / CAT, pets / copy)
    splits, (note,) = looked_at(dataset(kind, pets), tmp_path / "run")
    assert parts(splits) == parts(before)
    assert note.endswith(f": {said} ({pets}/{copy} is a copy of {pets}/{split}/{CAT})")
    # and so it is for the other processes, and for reports
    again = dataset(kind, pets)
    again.reading.of_run(tmp_path / "run")
    assert parts(again.splits) == parts(before)


def test_copies_within_a_split_stay(pets, tmp_path):
    for split in (*SPLITS, "unlabeled"):
        first = pets / split / ("0.png" if split == "unlabeled" else CAT)
        shutil.copyfile(first, first.with_name("9.png"))
    splits, notes = looked_at(dataset("folder", pets), tmp_path)
    assert [len(part) for part in parts(splits)] == [7, 7, 7, 3]
    assert notes == []
    assert len(Checked.load(tmp_path / DECODED_FILE).digests) == 4, "of val and test"


def test_copies_of_images_that_are_held_out_by_chance_are_left_out(pets, tmp_path):
    for split in ("val", "test"):
        shutil.rmtree(pets / split)
    for path in list((pets / "train").glob("*/*.png")):
        shutil.copyfile(path, path.with_name(f"copy {path.name}"))
    splits, notes = looked_at(dataset("folder", pets, test_share=0.2), tmp_path)
    held, trained = (
        {Path(source).read_bytes() for source, _ in part} for part in (splits.test, splits.train)
    )
    assert (len(splits.test), len(splits.train)) == (2, 8)
    assert held.isdisjoint(trained)
    assert "left out as copies of test or validation images: 2 train (" in notes[1]


@pytest.mark.parametrize("near_copies", [True, False])
def test_a_fit_leaves_near_copies_of_test_images_out_and_names_them(near_copies, pets, tmp_path):
    for seed, path in enumerate(sorted(pets.rglob("*.png"))):
        runs.noise(40, 30, seed=100 + seed).resize((240, 180)).save(path)
    before = looked_at(dataset("folder", pets), tmp_path / "before")[0]
    test = Image.open(pets / "test/cat/0.png")
    test.resize((120, 90)).save(pets / "train/cat/9.png")
    test.save(pets / "unlabeled/9.jpg", quality=60)
    splits, notes = looked_at(dataset("folder", pets, near_copies=near_copies), tmp_path / "run")
    if not near_copies:
        assert [len(part) for part in parts(splits)] == [7, 6, 6, 3]
        assert notes == []
        return
    assert parts(splits) == parts(before)
    file, original = tmp_path / "run" / DECODED_FILE, str(pets / "test/cat/0.png")
    assert notes == [
        "left out as near-copies of test or validation images: 1 train, 1 unlabelled "
        f"({pets}/train/cat/9.png is a near-copy of {original}), all in {file}"
    ]
    copies = [str(pets / name) for name in ("train/cat/9.png", "unlabeled/9.jpg")]
    assert Checked.load(file).near_copies == dict.fromkeys(copies, original)


def test_a_class_of_copies_alone_is_named(pets, tmp_path):
    for number in range(3):
        shutil.copyfile(pets / f"test/cat/{number}.png", pets / f"train/cat/{number}.png")
    with world.refused(DataError, r"class 'cat' of .* has no training image but copies"):
        looked_at(dataset("folder", pets), tmp_path)


def test_trusted_images_are_compared_by_paths_alone_and_a_skip_list_settles_a_split(
    pets, tmp_path, monkeypatch
):
    shutil.copyfile(pets / "test" / CAT, pets / "train/cat/9.png")
    monkeypatch.setattr("kdpl.data.reading.Checked", None)
    assert len(looked_at(dataset("folder", pets, scan=False), tmp_path)[0].train) == 7
    (pets / "val/cat/9.png").symlink_to(pets / "test" / CAT)
    with world.refused(DataError, "has 1 files in two splits at once"):
        looked_at(dataset("folder", pets, scan=False), tmp_path)
    (tmp_path / "skip.txt").write_text(f"{pets}/val/cat/9.png\n")
    data = dataset("folder", pets, scan=False, skip_list=str(tmp_path / "skip.txt"))
    assert len(looked_at(data, tmp_path)[0].val) == 6


def test_a_benchmark_keeps_the_copies_that_it_is_published_with(tmp_path):
    digits = DomainDataModule("digits", num_workers=0, reading=ReadingOptions(scan=True))
    assert looked_at(digits, tmp_path)[0] == DomainDataModule("digits").splits
    checked = Checked.load(tmp_path / DECODED_FILE)
    assert checked.made_from["test and validation images"] == 0


def test_fits_of_both_stages_and_a_test_leave_copies_out_and_say_so(pets, tmp_path, capsys):
    for copy in ("train/cat/9.png", "unlabeled/9.png"):
        shutil.copyfile(pets / "test" / CAT, pets / copy)
    stages = ("labeled", "unlabeled")
    for split in stages:
        trainer = world.quiet_trainer(tmp_path / split, use_distributed_sampler=False)
        data = dataset("folder", pets)
        trainer.fit(Probe(split), datamodule=data)
        assert [len(part) for part in parts(data.splits)] == [6, 6, 6, 2]
    trainer.test(Probe(split), datamodule=dataset("folder", pets))
    err = capsys.readouterr().err
    assert err.count("left out as copies of test or validation images: 1 train, 1 unlabelled") == 3
    for words in ("stage 1: 6 of 6; validation: 6 of 6", "stage 2: 0 of 6; validation: 6 of 6"):
        assert f"labels in the batches of {words}" in err
    first, second = (Checked.load(tmp_path / name / DECODED_FILE) for name in stages)
    assert first == second
