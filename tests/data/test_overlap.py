"""Splits of one's own images that overlap: each overlap is refused, or left out and said."""

import builtins
import io
import os
import shutil
from pathlib import Path

import pytest
import runs
import world
from world import Probe

from kdpl import DomainDataModule
from kdpl.__main__ import main
from kdpl.data import parallel
from kdpl.data.options import ReadingOptions
from kdpl.data.scan.checked import Checked
from kdpl.data.storage import find_images
from kdpl.errors import DataError
from kdpl.runtime.run_folder import DECODED_FILE

SPLITS = ("train", "val", "test")
CAT = "cat/0.png"


@pytest.fixture
def pets(tmp_path):
    """Two classes of three images in each split, and two without a label, all different."""
    shown = iter(range(100))
    for folder in [f"{split}/{name}" for split in SPLITS for name in ("cat", "dog")] + [
        "unlabeled"
    ]:
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for number in range(2 if folder == "unlabeled" else 3):
            runs.noise(9, 8, seed=next(shown)).save(tmp_path / "pets" / folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def checked():
    """What a look at all images leaves in a run's folder."""
    return Checked


def rows_of(pets):
    """A row for each image below the folder, by its path from there."""
    for split in (*SPLITS, "unlabeled"):
        for path in find_images(pets / split):
            label = "" if split == "unlabeled" else Path(path).parent.name
            yield os.path.relpath(path, pets), label, split if label else ""


def write_table(pets, rows=None):
    lines = [",".join(row) for row in (rows or rows_of(pets))]
    (pets / "images.csv").write_text("\n".join(["image,label,split", *lines]))
    return str(pets / "images.csv")


def dataset(kind, pets, **options):
    root = str(pets) if kind == "folder" else write_table(pets)
    own = {
        "root": root,
        "num_workers": 0,
        "augmentation": "none",
        "shots": None,
        "val_shots": None,
        **options,
    }
    return DomainDataModule(kind, **own)


def fitted(data, out, probe=None):
    """Fit on a dataset; returns it as all processes of the run and later commands find it."""
    trainer = world.quiet_trainer(out, limit_val_batches=1.0, use_distributed_sampler=False)
    trainer.fit(probe or Probe("unlabeled"), datamodule=data)
    return data


def parts(data):
    splits = data.splits
    return splits.train, splits.val, splits.test, list(splits.unlabeled)


def names(records, pets):
    sources = (record if isinstance(record, str) else record.source for record in records)
    return [os.path.relpath(source, pets) for source in sources]


def of_split(split):
    return [f"{split}/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]


kinds = pytest.mark.parametrize("kind", ["folder", "table"])


def replace_by_link(pets, split, other):
    shutil.rmtree(pets / split)
    (pets / split).symlink_to(other)


REFUSED = {
    "symlink of a folder, val to test": (
        lambda pets: replace_by_link(pets, "val", "test"),
        6,
        "test",
        "val",
    ),
    "symlink of a folder, test to train": (
        lambda pets: replace_by_link(pets, "test", "train"),
        6,
        "test",
        "train",
    ),
    "symlink of a folder, val to train": (
        lambda pets: replace_by_link(pets, "val", "train"),
        6,
        "val",
        "train",
    ),
    "symlink of a file": (
        lambda pets: (pets / "train/cat/9.png").symlink_to(f"../../test/{CAT}"),
        1,
        "test",
        "train",
    ),
}


@kinds
@pytest.mark.parametrize("way", REFUSED)
def test_one_file_in_two_splits_is_refused_by_both_names(kind, way, pets, tmp_path):
    overlap, count, first, second = REFUSED[way]
    overlap(pets)
    probe = Probe()
    said = rf"has {count} files in two splits at once, such as \S*{first}/\S+ \({first}\) and \S*{second}/\S+ \({second}\)"
    with world.refused(DataError, said):
        fitted(dataset(kind, pets), tmp_path / "run", probe)
    assert not probe.train_batches
    # before a label is used, and in a test as well
    assert not (tmp_path / "run/config.yaml").exists()


def test_relative_and_absolute_paths_of_one_file_are_refused(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(pets, [*rows_of(pets), (str(pets / "test" / CAT), "cat", "val")])
    with world.refused(
        DataError, r"such as pets/test/cat/0\.png \(test\) and /.*/test/cat/0\.png \(val\)"
    ):
        _ = DomainDataModule("table", root="pets/images.csv").splits


def test_a_relative_root_and_an_absolute_place_of_unlabelled_images_are_one(
    pets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = fitted(dataset("folder", Path("pets"), unlabeled=str(pets)), tmp_path / "run")
    assert names(data.splits.unlabeled, pets) == [
        *of_split("train"),
        "unlabeled/0.png",
        "unlabeled/1.png",
    ]
    assert (
        "12 unlabelled images are test or validation images, and are not distilled on"
        in capsys.readouterr().err
    )


def test_a_table_against_a_folder_of_its_test_images_distils_on_none_and_says_so(
    pets, tmp_path, capsys
):
    (tmp_path / "link").symlink_to(pets / "test")
    data = fitted(
        dataset("table", pets, unlabeled=[str(tmp_path / "link"), str(pets / "val")]),
        tmp_path / "run",
    )
    assert names(data.splits.unlabeled, pets) == ["unlabeled/0.png", "unlabeled/1.png"]
    assert (
        "12 unlabelled images are test or validation images, and are not distilled on"
        in capsys.readouterr().err
    )


@kinds
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.usefixtures("checked")
def test_unlabelled_images_that_are_test_images_are_not_distilled_on(
    kind, link, pets, tmp_path, capsys
):
    getattr(pets / "unlabeled/9.png", link)(pets / "test" / CAT)
    data = fitted(dataset(kind, pets), tmp_path / "run")
    assert names(data.splits.unlabeled, pets) == ["unlabeled/0.png", "unlabeled/1.png"]
    said = capsys.readouterr().err
    by_place = "1 unlabelled images are test or validation images"
    assert (
        by_place if link == "symlink_to" else "of test or validation images: 1 unlabelled ("
    ) in said


COPIES = {
    "train/cat/9.png": ("test", "1 train"),
    "train/dog/9.png": ("val", "1 train"),
    "val/dog/9.png": ("test", "1 val"),
    "unlabeled/9.png": ("test", "1 unlabelled"),
    "unlabeled/8.png": ("val", "1 unlabelled"),
}


@kinds
@pytest.mark.parametrize("bad_images", ["error", "skip"])
@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("way", [shutil.copyfile, os.link])
@pytest.mark.usefixtures("checked")
def test_a_copy_of_a_test_or_validation_image_is_left_out_and_said(
    kind, bad_images, copy, way, pets, tmp_path, capsys
):
    split, said = COPIES[copy]
    expected = parts(
        fitted(
            dataset(kind, pets, reading=ReadingOptions(bad_images=bad_images)), tmp_path / "before"
        )
    )
    assert "copies" not in capsys.readouterr().err
    way(pets / split / CAT, pets / copy)
    data = fitted(
        dataset(kind, pets, reading=ReadingOptions(bad_images=bad_images)), tmp_path / "run"
    )
    assert parts(data) == expected
    line = f"left out as copies of test or validation images: {said} ({pets}/{copy} is a copy of {pets}/{split}/{CAT})\n"
    assert capsys.readouterr().err.count(line) == 1
    # and so it is for the other processes, and for reports
    again = dataset(kind, pets, reading=ReadingOptions(bad_images=bad_images))
    again.reading.of_run(tmp_path / "run")
    assert parts(again) == expected


def test_copies_within_a_split_stay(checked, pets, tmp_path, capsys):
    for split in (*SPLITS, "unlabeled"):
        first = "0.png" if split == "unlabeled" else CAT
        shutil.copyfile(pets / split / first, (pets / split / first).with_name("9.png"))
    splits = fitted(dataset("folder", pets), tmp_path / "run").splits
    assert [len(part) for part in (splits.train, splits.val, splits.test, splits.unlabeled)] == [
        7,
        7,
        7,
        3,
    ]
    assert "copies" not in capsys.readouterr().err
    assert len(checked.load(tmp_path / "run" / DECODED_FILE).digests) == 4, "those of val and test"


@pytest.mark.usefixtures("checked")
def test_copies_of_images_that_are_held_out_by_chance_are_left_out(pets, tmp_path, capsys):
    for split in ("val", "test"):
        shutil.rmtree(pets / split)
    for name in ("cat", "dog"):
        for number in range(3):
            shutil.copyfile(
                pets / f"train/{name}/{number}.png", pets / f"train/{name}/copy {number}.png"
            )
    splits = fitted(
        dataset("folder", pets, reading=ReadingOptions(test_share=0.2)), tmp_path / "run"
    ).splits
    held, trained = (
        {Path(source).read_bytes() for source, _ in part} for part in (splits.test, splits.train)
    )
    assert (len(splits.test), len(splits.train)) == (2, 8)
    assert held.isdisjoint(trained)
    assert "left out as copies of test or validation images: 2 train (" in capsys.readouterr().err


@pytest.mark.usefixtures("checked")
def test_a_class_of_copies_alone_is_named(pets, tmp_path):
    for number in range(3):
        shutil.copyfile(pets / f"test/cat/{number}.png", pets / f"train/cat/{number}.png")
    said = (
        r"class 'cat' of .* has no training image but copies of test or validation images: add some"
    )
    with world.refused(DataError, said):
        fitted(dataset("folder", pets), tmp_path / "run")


@pytest.mark.usefixtures("checked")
def test_images_that_are_trusted_are_compared_by_their_paths_alone(pets, tmp_path, monkeypatch):
    shutil.copyfile(pets / "test" / CAT, pets / "train/cat/9.png")
    monkeypatch.setattr("kdpl.data.reading.Checked", None)
    trusting = {"reading": ReadingOptions(scan=False)}
    assert len(fitted(dataset("folder", pets, **trusting), tmp_path / "run").splits.train) == 7
    (pets / "val/cat/9.png").symlink_to(pets / "test" / CAT)
    with world.refused(DataError, "has 1 files in two splits at once"):
        fitted(dataset("folder", pets, **trusting), tmp_path / "run")


@pytest.mark.usefixtures("checked")
def test_a_skip_list_settles_which_split_a_file_is_in(pets, tmp_path):
    (pets / "val/cat/9.png").symlink_to(pets / "test" / CAT)
    (tmp_path / "skip.txt").write_text(f"{pets}/val/cat/9.png\n")
    assert (
        len(
            fitted(
                dataset(
                    "folder", pets, reading=ReadingOptions(skip_list=str(tmp_path / "skip.txt"))
                ),
                tmp_path / "run",
            ).splits.val
        )
        == 6
    )


def test_a_benchmark_keeps_the_copies_that_it_is_published_with(checked, tmp_path):
    digits = DomainDataModule(
        "digits", num_workers=0, augmentation="none", reading=ReadingOptions(scan=True)
    )
    before = DomainDataModule("digits").splits
    assert fitted(digits, tmp_path / "run").splits == before
    assert (
        checked.load(tmp_path / "run" / DECODED_FILE).made_from["test and validation images"] == 0
    )


@pytest.mark.usefixtures("checked")
def test_a_look_opens_each_file_once_and_asks_nothing_more_about_it(pets, tmp_path, monkeypatch):
    for number in range(3, 9):
        runs.noise(9, 8, seed=100 + number).save(pets / f"unlabeled/{number}.png")
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    data, calls = dataset("folder", pets), {"open": [], "ask": []}
    data.reading.file = tmp_path / "kept.json"

    def watch(owner, name, kind):
        call = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda path, *a, **k: calls[kind].append(str(path)) or call(path, *a, **k)
        )

    watch(io, "open", "open")
    watch(builtins, "open", "open")
    for name in ("stat", "lstat", "readlink"):
        watch(os, name, "ask")
    data.reading.prepare(trains=True)
    every = list(data.splits.sources)
    assert len(every) == 18 + 8
    assert sorted(path for path in calls["open"] if path.endswith(".png")) == sorted(every)
    assert not [path for path in calls["ask"] if path.startswith(f"{pets}/unlabeled/")]


@pytest.mark.parametrize("command", ["fit", "run"])
def test_the_command_line_refuses_a_val_that_is_test(command, pets, tmp_path, capsys):
    replace_by_link(pets, "val", "test")
    data = [*runs.configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={pets}"]
    stages = runs.STAGES if command == "run" else runs.TEACHER
    assert main([command, *data, *stages, *runs.SHORT, f"--out={tmp_path / 'out'}"]) == 1
    runs.error_line(
        capsys,
        f"has 6 files in two splits at once, such as {pets}/test/{CAT} (test)",
        f"{pets}/val/{CAT} (val)",
    )


def test_both_stages_leave_copies_out_and_say_so(checked, pets, tmp_path, capsys):
    for copy in ("train/cat/9.png", "unlabeled/9.png"):
        shutil.copyfile(pets / "test" / CAT, pets / copy)
    data = [*runs.configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={pets}"]
    few = [
        *runs.SHORT,
        "--data.init_args.shots=3",
        "--data.init_args.batch_size=2",
        "--data.init_args.num_workers=0",
    ]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(["fit", *data, *runs.TEACHER, *few, f"--out={teacher}"]) == 0
    of = f"--model.init_args.teacher={teacher}"
    assert (
        main(["fit", *data, *runs.STUDENT, *few, of, f"--out={student}"]) == runs.test(student) == 0
    )
    said = "left out as copies of test or validation images: 1 train, 1 unlabelled ("
    assert capsys.readouterr().err.count(said) == 3
    assert checked.load(teacher / DECODED_FILE) == checked.load(student / DECODED_FILE)
