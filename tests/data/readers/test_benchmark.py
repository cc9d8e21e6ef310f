import json
import pickle
from importlib.resources import files

import pytest
from benchmark_tree import NAMES, SPLIT, SPLIT_FILES, V2_IMAGES, VARIANTS, make_tree
from PIL import Image
from zoo import tag

from kdpl import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.data.readers.registry import build_reader
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing


def read(name, root):
    """The names of a dataset's classes, and the paths below its folder and labels of its splits."""
    splits = build_reader(name, root=str(root)).read()
    folder = f"{root / BENCHMARKS[name].folder}/"
    lists = [splits.train, splits.val, splits.test]
    assert all(
        splits.open_image(record.source).size == (12, 10) for part in lists for record in part
    )
    return splits.class_names, *(
        [(r.source.removeprefix(folder), r.label) for r in part] for part in lists
    )


WNIDS = ("n01440764", "n02012849", "n03126707")
VALIDATION = "ILSVRC2012_val_00000001.JPEG"
AIRCRAFT = ({5: 2, 2: 0, 9: 1, 1: 0}, {3: 1, 4: 2, 6: 0}, {8: 1, 7: 2, 10: 0})
LISTS = {
    "fgvc_aircraft": (
        ("707-320", "F-16A/B", "Metroliner II"),
        *([(f"images/{n:07d}.jpg", label) for n, label in split.items()] for split in AIRCRAFT),
    ),
    # labels are ranks of folders, the validation images are the test set, and names may repeat
    "imagenet": (
        ("tench", "crane", "crane"),
        [(f"images/train/{w}/{w}_{i}.JPEG", WNIDS.index(w)) for w in WNIDS for i in (10, 2)],
        [],
        [(f"images/val/{wnid}/{VALIDATION}", label) for label, wnid in enumerate(WNIDS)],
    ),
}
for name, (_, images, _) in SPLIT_FILES.items():
    prefix = "" if images == "." else f"{images}/"
    splits = ([(prefix + path, label) for path, label, _ in part] for part in SPLIT.values())
    LISTS[name] = (NAMES, *splits)
for name, (_, images) in VARIANTS.items():
    folders = enumerate(("n01443537", "n01484850"))
    test = [(f"{images}/{wnid}/{letter}.jpg", label) for label, wnid in folders for letter in "ab"]
    LISTS[name] = (("goldfish", "great white shark"), [], [], test)


@pytest.mark.parametrize("name", LISTS)
def test_layout_gives_names_by_label_and_images_in_their_order(tmp_path, name):
    make_tree(name, tmp_path)
    assert read(name, tmp_path) == LISTS[name]


def test_images_are_opened_as_published(tmp_path):
    folder = make_tree("oxford_pets", tmp_path)
    reader = build_reader("oxford_pets", root=str(tmp_path))
    published = Decoding(background=None, orientation=False)
    assert reader.decoding == build_reader("digits").decoding == published
    splits = pickle.loads(pickle.dumps(reader.read()))  # noqa: S301
    file = folder / "images/a/1.jpg"
    Image.new("RGBA", (12, 10), (10, 200, 30, 0)).save(file, "PNG", exif=tag(6))
    image = splits.open_image(str(file))
    assert (image.size, image.getpixel((0, 0))) == ((12, 10), (10, 200, 30))


def test_imagenetv2_labels_are_the_numbers_of_folders_among_all_names(tmp_path):
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    folder = make_tree("imagenetv2", tmp_path)
    images = [(f"{V2_IMAGES}/{label}/{label}a.jpeg", label) for label in (0, 2, 10)]
    numbered = tuple(f"name {number}" for number in range(12))
    assert read("imagenetv2", tmp_path) == (numbered, [], [], images)
    (folder / "classnames.txt").unlink()
    names = read("imagenetv2", tmp_path)[0]
    assert names == tuple(IMAGENET_CLASSNAMES)
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet paper")


def test_wordnet_ids_are_those_of_imagenet_in_the_order_of_its_labels():
    info = pytest.importorskip("timm.data").ImageNetInfo("imagenet-1k")
    file = files("kdpl.data.readers").joinpath("imagenet_classes.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    wnids = [line.split()[0] for line in lines]
    assert wnids == [info.index_to_label_name(label) for label in range(1000)] == sorted(wnids)


@pytest.mark.parametrize("name", ["imagenetv2", "imagenet_a"])
def test_test_only_set_is_tested_on_and_says_that_it_cannot_be_trained_on(tmp_path, name):
    folder = make_tree(name, tmp_path)
    data = DomainDataModule(name, root=str(tmp_path), num_workers=0)
    batches = data.evaluation_dataloader_for("test", Resizing(8))
    assert sum(len(batch.images) for batch in batches) == len(data.splits.test)
    for split in ("labeled", "unlabeled"):
        with pytest.raises(DataError, match=f"dataset {name} in {folder} is for tests alone"):
            data.train_dataloader_for(split, Resizing(8))


AIRCRAFT_TEST = "images_variant_test.txt"
DTD_SPLIT = "split_zhou_DescribableTextures.json"


def error_of(name, root):
    with pytest.raises(DataError) as raised:
        build_reader(name, root=str(root)).read()
    assert f"python -m kdpl data download {name} --root {root}" in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("dtd", DTD_SPLIT),
        ("imagenet", "images/train"),
    ],
)
def test_missing_part_is_named_and_how_to_get_the_data(tmp_path, name, gone):
    folder = make_tree(name, tmp_path)
    (folder / gone).rename(tmp_path / "elsewhere")
    assert f"{folder / gone}, which does not exist" in error_of(name, tmp_path)


def with_entry(split, *entry):
    return json.dumps({**SPLIT, split: [*SPLIT[split], list(entry)]})


@pytest.mark.parametrize(
    ("name", "file", "content", "problem"),
    [
        ("dtd", DTD_SPLIT, "<html>", f"{DTD_SPLIT} of dataset dtd does not fit (Expecting value"),
        ("dtd", DTD_SPLIT, with_entry("test", "a.jpg", 4, "pear"), "does not fit (3)"),
        ("fgvc_aircraft", AIRCRAFT_TEST, "1 707-320\n2 Concorde\n", "names 'Concorde'"),
        ("imagenet", "classnames.txt", "n01440764 tench\n", "has a class folder n02012849 that no"),
        ("imagenet", "images/val/n01443537/", None, "n01443537 in only one of train and val"),
        ("imagenetv2", f"{V2_IMAGES}/x/", None, "has a folder x, expected 0 to "),
    ],
)
def test_damaged_lists_and_folders_are_refused_by_name(tmp_path, name, file, content, problem):
    path = make_tree(name, tmp_path) / file
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    message = error_of(name, tmp_path)
    assert f" of dataset {name} " in message
    assert problem in message
