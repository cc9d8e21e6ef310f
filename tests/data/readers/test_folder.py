import os
from pathlib import Path

import pytest
import world
from PIL import Image

from kdpl.data.paths import find_images
from kdpl.data.readers.folder import Folder
from kdpl.data.readers.table import Table
from kdpl.errors import DataError


def make(root, *paths):
    """Write images, and folders where a path ends in a slash."""
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(root / path, format="PNG")


def test_classes_are_those_of_all_splits_sorted_and_named_by_a_file(tmp_path, monkeypatch):
    make(tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/0.png", "val/dog/1.png")
    make(tmp_path, "test/ant_lion/1.png", "train/.ipynb_checkpoints/1.png", "train/loose.png")
    (tmp_path / "names.csv").write_text("dog,a dog\nant_lion,an ant\ncat,a cat\n")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    splits = Folder(f"~/{tmp_path.name}", class_names=f"~/{tmp_path.name}/names.csv").read()
    assert splits.class_names == ("an ant", "a cat", "a dog")
    assert [(r.source, r.label) for r in splits.train] == [
        (f"{tmp_path}/train/cat/0.png", 1),
        (f"{tmp_path}/train/cat/1.png", 1),
        (f"{tmp_path}/train/dog/1.png", 2),
    ]
    assert [r.label for r in splits.val] == [2]
    assert [r.label for r in splits.test] == [0]
    assert splits.unlabeled is None
    assert splits.open_image(splits.train[0].source).size == (4, 4)


@pytest.mark.parametrize("folder", ["Unlabelled", "train/unlabeled"])
def test_a_folder_of_images_without_labels_beside_splits_or_classes_is_the_pool(folder, tmp_path):
    make(tmp_path, "train/cat/1.png", "test/cat/2.png", "pool/5.png")
    make(tmp_path, f"{folder}/3.png", f"{folder}/deep/4.png")
    splits = Folder(str(tmp_path)).read()
    assert splits.class_names == ("cat",)
    assert list(splits.unlabeled) == [f"{tmp_path}/{folder}/{name}.png" for name in ("3", "deep/4")]
    assert [record.source for record in splits.train] == [f"{tmp_path}/train/cat/1.png"]
    # what is asked for by name comes instead
    pool = Folder(str(tmp_path), str(tmp_path / "pool")).read().unlabeled
    assert list(pool) == [f"{tmp_path}/pool/5.png"]


def test_two_spellings_of_one_name_in_unicode_are_one_class(tmp_path):
    make(tmp_path, "train/jose\u0301/1.png", "train/jos\u00e9/0.png", "test/jose\u0301/2.png")
    make(tmp_path, "train/zoe/3.png")
    (tmp_path / "names.csv").write_text("jose\u0301,Jose\u0301\nzoe,Zoe\n", encoding="utf-8")
    splits = Folder(str(tmp_path), class_names=str(tmp_path / "names.csv")).read()
    assert splits.class_names == ("Jos\u00e9", "Zoe")
    records = [(Path(record.source).stem, record.label) for record in splits.train + splits.test]
    assert records == [("1", 0), ("0", 0), ("3", 1), ("2", 0)]
    rows = "image,label\n1.png,jose\u0301\n2.png,jos\u00e9\n3.png,zoe\n"
    (tmp_path / "images.csv").write_text(rows, encoding="utf-8")
    assert Table(str(tmp_path / "images.csv")).read().class_names == ("jos\u00e9", "zoe")


def test_images_are_found_recursively_by_extension_behind_links_without_circles_or_hidden_ones(
    tmp_path,
):
    make(tmp_path, "data/b/2.PNG", "data/b/10.png", "data/a.JPG", "data/b/c/x.webp", "data/c.jpeg")
    make(tmp_path, "data/b.tiff", "data/.hidden.png", "data/.cache/1.png", "elsewhere/1.png")
    (tmp_path / "data/notes.txt").write_text("no image")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b/up").symlink_to(tmp_path / "data")
    found = [os.path.relpath(path, tmp_path / "data") for path in find_images(tmp_path / "data")]
    assert found == [
        *("a.JPG", "b/10.png", "b/2.PNG", "b/c/x.webp", "b.tiff", "c.jpeg", "linked/1.png")
    ]


@pytest.mark.parametrize(
    ("paths", "unlabeled", "pool"),
    [
        (["unlabeled/a/1.png", "loose.png"], None, ["unlabeled/a/1.png"]),
        (["b/2.png", "1.png"], None, ["1.png", "b/2.png"]),
        (["unlabeled/1.png", "pool/2.png"], "pool", ["pool/2.png"]),
        (["test/dog/1.png", "val/cat/1.png", "unlabeled/3.png"], None, ["unlabeled/3.png"]),
    ],
)
def test_without_a_folder_train_the_classes_are_listed_and_no_image_has_a_label(
    tmp_path, paths, unlabeled, pool
):
    root, names = tmp_path / "data", tmp_path / "names.txt"
    make(root, *paths)
    names.write_text("dog\ncat\nant\n")
    splits = Folder(str(root), unlabeled and str(root / unlabeled), str(names)).read()
    assert (splits.class_names, splits.train) == (("dog", "cat", "ant"), ())
    assert [os.path.relpath(source, root) for source in splits.unlabeled] == pool
    labels = [[record.label for record in part] for part in (splits.test, splits.val)]
    assert labels == ([[0], [1]] if "val/cat/1.png" in paths else [[], []])


@pytest.mark.parametrize(
    ("paths", "unlabeled", "message"),
    [
        ([], None, "^dataset folder .*data does not exist: "),
        (["test/cat/1.png"], None, "^dataset folder .* has no folder train: "),
        (["train/cat/1.png", "train/dog/"], None, "^class folder .*train/dog has no images: "),
        (["train/cat/1.png"], "gone", "^.*gone does not exist: "),
    ],
)
def test_faults_are_one_sentence_that_names_the_folder(tmp_path, paths, unlabeled, message):
    root = tmp_path / "data"
    make(root, *paths)
    with world.refused(DataError, message):
        Folder(str(root), unlabeled=unlabeled and str(root / unlabeled)).read()
