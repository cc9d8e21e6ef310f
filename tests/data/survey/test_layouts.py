"""Folders as people have them: each image is used, or named with the reason why it is not."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image
from runs import refused, rows_of

from kdpl.__main__ import main
from kdpl.data.readers.folder import Folder
from kdpl.data.survey import find

# folders of images, by split and class; without a class they have no label
TRAINED = {"train/cat": "train cat", "train/dog": "train dog"}
LAYOUTS = {
    "splits of an export": TRAINED
    | {"valid/cat": "val cat", "test/dog": "test dog", "unlabeled/a": "train"},
    "images without labels within splits": {
        "Train/cat": "train cat",
        "Train/dog": "train dog",
        "Train/Unlabelled images": "train",
        "Test/cat": "test cat",
        "Test/unlabeled": "in top/Test/unlabeled, which is not a split or unlabeled beside the splits",
    },
    "classes": {"cat": "train cat", "dog": "train dog", "unlabelled_photos/a": "train"},
    "folders within classes": {
        "cat/tabby": "train cat",
        "cat/siamese/old": "train cat",
        "dog": "train dog",
    },
    "an unknown folder and loose images": TRAINED
    | {
        "test/cat": "test cat",
        "pool": "in top/pool, which is not a split or unlabeled beside the splits",
        "train": "in top/train, outside its folders of classes",
        ".": "in top, outside its folders of classes",
    },
    "many unknown folders": TRAINED
    | {"Testing/cat": "test cat"}
    | {
        name: f"in top/{name}, which is not a split or unlabeled beside the splits"
        for name in ("a", "b", "c", "d")
    },
    "classes beside test and val": {
        "cat": "train cat",
        "dog": "train dog",
        "eel": "train eel",
        "test/dog": "test dog",
        "val/cat": "val cat",
        "unlabeled": "train",
        "test": "in top/test, outside its folders of classes",
    },
    "a class named train, with folders": {
        "bus": "train bus",
        "car": "train car",
        "train/electric": "train train",
        "train/steam": "train train",
    },
    "a class named train beside test": {
        "bus": "train bus",
        "train": "train train",
        "test/bus": "test bus",
        "test/train": "test train",
    },
    "classes named valid and invalid": {"valid": "train valid", "invalid": "train invalid"},
    "classes named val, test and validation": {
        "cat": "train cat",
        "val": "train val",
        "test": "train test",
        "validation": "train validation",
    },
}


def write(root, *folders):
    """Write three images into each folder, each of another colour."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new("RGB", (9, 8), (10 * number, i, 7)).save(root / folder / f"{i}.png")
    return root


def folders_of(root, images):
    """The folders of images, each given as path, split and label, by split and label."""
    roles = defaultdict(set)
    for path, split, label in images:
        roles[str(Path(path).parent.relative_to(root))].add(f"{split} {label}".strip())
    return {folder: " or ".join(several) for folder, several in roles.items()}


def records_of(splits):
    """Path, split and label of the labelled images of a dataset."""
    return [
        (record.source, split, splits.class_names[record.single])
        for split in ("train", "val", "test")
        for record in getattr(splits, split)
    ]


def survey(root, out, capsys, *options):
    """What ``init`` printed, and how many images its lines count."""
    assert main(["init", str(root), f"--out={out}", "--workers=1", *options]) == 0
    printed = capsys.readouterr().out
    counts = re.findall(r"^  (?:train|val|test|unlabelled|used nowhere): (\d+)", printed, re.M)
    return printed, sum(map(int, counts)) + printed.count("  left out: ")


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A folder ``top``, what its folders should be, and those that are used."""
    folders = LAYOUTS[request.param]
    used = {name: role for name, role in folders.items() if not role.startswith("in ")}
    return write(tmp_path / "top", *folders), folders, used


def test_the_survey_uses_or_names_each_image_and_its_counts_are_those_of_the_files(
    layout, tmp_path, capsys
):
    root, folders, used = layout
    assert folders_of(root, [(i.path, i.split, i.label) for i in find(root)]) == used
    printed, count = survey(root, tmp_path / "out", capsys)
    assert count == 3 * len(folders)
    reasons = {name: role for name, role in folders.items() if name not in used}
    assert sorted(re.findall("used nowhere: 3 (.*)", printed)) == sorted(reasons.values())
    if reasons:
        rows = rows_of(tmp_path / "out/used_nowhere.csv")
        named = {str(Path(row["image"]).parent.relative_to(root)): row["why"] for row in rows}
        assert (len(rows), named) == (3 * len(reasons), reasons)
    else:
        assert not (tmp_path / "out/used_nowhere.csv").exists()


def test_unreadable_images_copies_and_a_pool_given_by_name_are_counted_once(tmp_path, capsys):
    root = write(tmp_path / "top", "train/cat", "train/dog", "test/dog", "pool", "other")
    (root / "train/cat/0.png").write_bytes(b"")
    shutil.copy(root / "test/dog/0.png", root / "pool/copy.png")
    (root / "linked").symlink_to(root / "train/dog")
    printed, count = survey(root, tmp_path / "out", capsys, f"--unlabeled={root}/pool")
    assert count == 3 * 5 + 1
    assert "  unlabelled: 3\n" in printed
    assert re.findall("used nowhere: .*", printed) == [
        "used nowhere: 3 in top/other, which is not a split or unlabeled beside the splits"
    ]
    # nothing of an earlier survey stays
    shutil.rmtree(root / "other")
    survey(root, tmp_path / "out", capsys, f"--unlabeled={root}/pool", "--overwrite")
    assert not (tmp_path / "out/used_nowhere.csv").exists()


def test_folders_without_images_and_classes_named_like_splits_have_a_line(tmp_path, capsys):
    root = write(tmp_path / "top", "bus", "car", "train/steam")
    (root / "unlabeled").mkdir()
    printed, _ = survey(root, tmp_path / "out", capsys)
    assert "  folders without images, and no classes: unlabeled\n" in printed
    assert "  classes, though named like splits: train\n" in printed


@pytest.mark.parametrize(
    ("folders", "names", "used"),
    [
        (["bus", "train/a", "train/b", "car"], "bus train car", {"train/a": "train train"}),
        (
            ["photos", "test/cat", "test/dog"],
            "dog cat",
            {"photos": "train", "test/cat": "test cat"},
        ),
        (["train/cat", "train/dog", "raw", "old"], "dog cat", {"train/cat": "train cat"}),
        (["train", "test"], "dog cat", {"train": "train", "test": "train"}),
    ],
)
def test_a_list_of_classes_says_which_folders_are_classes(folders, names, used, tmp_path):
    root, file = write(tmp_path / "top", *folders), tmp_path / "names.txt"
    file.write_text("\n".join(names.split()))
    images = folders_of(root, [(i.path, i.split, i.label) for i in find(root, str(file))])
    assert used.items() <= images.items()
    assert {*folders} - {*images} == {"raw", "old"} & {*folders}
    if folders != ["train", "test"]:
        # the reader has the same labelled images; it refuses splits without classes
        labeled = {folder: role for folder, role in images.items() if " " in role}
        splits = Folder(str(root), class_names=str(file)).read()
        assert folders_of(root, records_of(splits)) == labeled


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train", "test"], "no images in folders of classes: put them into {top}/train/<class>/"),
        (["test/cat", "test/dog"], "put them into {top}/train/<class>/"),
        (["."], "no images in folders of classes: put them into {top}/<class>/"),
        (["data/train/cat", "data/test/cat"], "has one class, 'data', expected two or more: give"),
        (["labeled/cat", "labeled/dog", "unlabeled"], "give {top}/labeled if it holds the classes"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_the_remedy(folders, words, tmp_path, capsys):
    top = write(tmp_path / "top", *folders)
    status = main(["init", str(top), f"--out={tmp_path}/out", "--workers=1"])
    refused(capsys, status, words.format(top=top))
    assert not (tmp_path / "out").exists()


def test_the_reader_of_folders_agrees_with_the_survey(layout):
    root, _, used = layout
    splits = Folder(str(root)).read()
    unlabeled = [(path, "train", "") for path in splits.unlabeled or ()]
    assert folders_of(root, records_of(splits) + unlabeled) == used
