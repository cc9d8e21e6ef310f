import os
from pathlib import Path

import pytest
from PIL import Image

from kdpl.data.readers.folder import Folder
from kdpl.data.storage import find_images
from kdpl.errors import DataError


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path, format="PNG")


def test_classes_are_the_sorted_union_of_all_splits(tmp_path):
    make(tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/0.png", "val/dog/1.png", "test/ant_lion/1.png")
    splits = Folder(str(tmp_path)).read()
    assert splits.class_names == ("ant_lion", "cat", "dog")
    assert [(Path(r.source).relative_to(tmp_path).as_posix(), r.label) for r in splits.train] == [
        ("train/cat/0.png", 1),
        ("train/cat/1.png", 1),
        ("train/dog/1.png", 2),
    ]
    assert [r.label for r in splits.val] == [2]
    assert [r.label for r in splits.test] == [0]
    assert splits.unlabeled is None
    assert splits.open_image(splits.train[0].source).size == (4, 4)


def test_images_are_found_recursively_by_extension_without_hidden_ones(tmp_path):
    make(tmp_path, "b/2.PNG", "b/10.png", "a.JPG", "b/c/x.webp", ".hidden.png", ".cache/1.png", "c.jpeg", "b.tiff")
    (tmp_path / "notes.txt").write_text("no image")
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.JPG", "b/10.png", "b/2.PNG", "b/c/x.webp", "b.tiff", "c.jpeg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "elsewhere/1.png", "data/a/2.png")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images(tmp_path / "data")]
    assert found == ["data/a/2.png", "data/linked/1.png"]


def test_hidden_folders_and_loose_files_are_not_classes(tmp_path):
    make(tmp_path, "train/cat/1.png", "train/.ipynb_checkpoints/1.png", "train/loose.png")
    assert Folder(str(tmp_path)).read().class_names == ("cat",)


def test_mapping_names_the_classes_in_the_order_of_their_folders(tmp_path):
    make(tmp_path, "train/n2/1.png", "train/n1/1.png")
    (tmp_path / "names.csv").write_text("n1,zebra\nn2,aardvark\n")
    splits = Folder(str(tmp_path), class_names=str(tmp_path / "names.csv")).read()
    assert splits.class_names == ("zebra", "aardvark")
    assert [Path(record.source).parent.name for record in splits.train] == ["n1", "n2"]


def test_home_is_expanded(tmp_path, monkeypatch):
    make(tmp_path, "data/train/cat/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/data").read().train[0].source == str(tmp_path / "data/train/cat/1.png")


@pytest.mark.parametrize(
    ("files", "folders", "options", "message"),
    [
        ([], [], {"root": "gone"}, "^dataset folder .*gone does not exist: "),
        (["test/cat/1.png"], [], {}, "^dataset folder .* has no folder train: "),
        ([], ["train"], {}, "^folder .*train has no class folders: "),
        (["train/cat/1.png"], ["train/dog"], {}, "^class folder .*train/dog has no images: "),
        (["train/cat/1.png"], ["test/cat/sub"], {}, "^class folder .*test/cat has no images: "),
        (["train/cat/1.png"], ["val"], {}, "^folder .*val has no class folders: "),
        (["train/cat/1.png"], [], {"unlabeled": "gone"}, "^.*gone does not exist: "),
        (["train/cat/1.png"], ["pool/sub"], {"unlabeled": "pool"}, "^folder .*pool has no images: "),
    ],
)
def test_faults_are_one_sentence_that_names_the_folder(tmp_path, files, folders, options, message):
    make(tmp_path, *files)
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    options = {"root": ".", **options}
    with pytest.raises(DataError, match=message + r"[^\n]*$"):
        Folder(**{name: os.path.normpath(tmp_path / value) for name, value in options.items()}).read()
