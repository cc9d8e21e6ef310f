import json

import pytest
from benchmark_tree import SPLIT, TRAINABLE, VARIANTS, image, make_tree, write

from kdpl.data import DomainDataModule
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.data.readers.registry import READERS, build_reader
from kdpl.errors import DataError


def read(name, root):
    """What a dataset reads as, with paths below its folder."""
    splits = build_reader(name, root=str(root)).read()
    folder = f"{root / BENCHMARKS[name].folder}/"
    lists = [
        [(record.source.removeprefix(folder), record.label) for record in part]
        for part in (splits.train, splits.val, splits.test)
    ]
    for part in (splits.train, splits.val, splits.test):
        assert all(splits.open_image(record.source).size == (12, 10) for record in part)
    return splits.class_names, *lists


# --- the layouts ---


def test_table_holds_the_fifteen_datasets_and_their_class_counts():
    assert {name: (b.folder, b.images, b.index, b.num_classes) for name, b in BENCHMARKS.items()} == {
        "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", 100),
        "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json", 37),
        "stanford_cars": ("stanford_cars", ".", "split_zhou_StanfordCars.json", 196),
        "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", 102),
        "food101": ("food-101", "images", "split_zhou_Food101.json", 101),
        "fgvc_aircraft": ("fgvc_aircraft", "images", "variants.txt", 100),
        "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json", 397),
        "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json", 47),
        "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json", 10),
        "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", 101),
        "imagenet": ("imagenet", "images", "classnames.txt", 1000),
        "imagenetv2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", "classnames.txt", 1000),
        "imagenet_sketch": ("imagenet-sketch", "images", "classnames.txt", 1000),
        "imagenet_a": ("imagenet-adversarial", "imagenet-a", "classnames.txt", 200),
        "imagenet_r": ("imagenet-rendition", "imagenet-r", "classnames.txt", 200),
    }
    assert set(BENCHMARKS) < set(READERS)
    assert [name for name, b in BENCHMARKS.items() if not b.test_only] == [n for n in BENCHMARKS if n in TRAINABLE]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("caltech101", "101_ObjectCategories/"),
        ("oxford_pets", "images/"),
        ("stanford_cars", ""),
        ("oxford_flowers", "jpg/"),
        ("food101", "images/"),
        ("sun397", "SUN397/"),
        ("dtd", "images/"),
        ("eurosat", "2750/"),
        ("ucf101", "UCF-101-midframes/"),
    ],
)
def test_split_file_gives_lists_in_its_order_and_names_by_label(tmp_path, name, images):
    make_tree(name, tmp_path)
    assert read(name, tmp_path) == (
        ("Zebra_crossing", "sea or lake", "apple"),
        [
            (images + "b/2.jpg", 1),
            (images + "a/1.jpg", 0),
            (images + "b/1.jpg", 1),
            (images + "c/7.jpg", 2),
            (images + "a/2.jpg", 0),
            (images + "c/1.jpg", 2),
        ],
        [(images + "c/2.jpg", 2), (images + "a/3.jpg", 0), (images + "b/3.jpg", 1)],
        [(images + "a/4.jpg", 0), (images + "c/3.jpg", 2), (images + "b/4.jpg", 1)],
    )


def test_aircraft_labels_are_line_numbers_and_names_have_spaces(tmp_path):
    make_tree("fgvc_aircraft", tmp_path)
    assert read("fgvc_aircraft", tmp_path) == (
        ("707-320", "F-16A/B", "Metroliner II"),
        [("images/0000005.jpg", 2), ("images/0000002.jpg", 0), ("images/0000009.jpg", 1), ("images/0000001.jpg", 0)],
        [("images/0000003.jpg", 1), ("images/0000004.jpg", 2), ("images/0000006.jpg", 0)],
        [("images/0000008.jpg", 1), ("images/0000007.jpg", 2), ("images/0000010.jpg", 0)],
    )


def test_imagenet_labels_are_ranks_of_folders_val_is_the_test_set_and_names_may_repeat(tmp_path):
    make_tree("imagenet", tmp_path)
    assert read("imagenet", tmp_path) == (
        ("tench", "crane", "crane"),
        [
            ("images/train/n01440764/n01440764_10.JPEG", 0),
            ("images/train/n01440764/n01440764_2.JPEG", 0),
            ("images/train/n02012849/n02012849_10.JPEG", 1),
            ("images/train/n02012849/n02012849_2.JPEG", 1),
            ("images/train/n03126707/n03126707_10.JPEG", 2),
            ("images/train/n03126707/n03126707_2.JPEG", 2),
        ],
        [],
        [
            ("images/val/n01440764/ILSVRC2012_val_00000001.JPEG", 0),
            ("images/val/n02012849/ILSVRC2012_val_00000001.JPEG", 1),
            ("images/val/n03126707/ILSVRC2012_val_00000001.JPEG", 2),
        ],
    )


def test_imagenetv2_labels_are_the_numbers_of_folders_among_all_names(tmp_path):
    make_tree("imagenetv2", tmp_path)
    folder = "imagenetv2-matched-frequency-format-val"
    assert read("imagenetv2", tmp_path) == (
        tuple(f"name {number}" for number in range(12)),
        [],
        [],
        [(f"{folder}/0/0a.jpeg", 0), (f"{folder}/2/2a.jpeg", 2), (f"{folder}/10/10a.jpeg", 10)],
    )


@pytest.mark.parametrize(
    ("name", "images"), [("imagenet_sketch", "images"), ("imagenet_a", "imagenet-a"), ("imagenet_r", "imagenet-r")]
)
def test_variants_rank_their_own_folders(tmp_path, name, images):
    make_tree(name, tmp_path)
    assert read(name, tmp_path) == (
        ("goldfish", "great white shark"),
        [],
        [],
        [
            (f"{images}/n01443537/a.jpg", 0),
            (f"{images}/n01443537/b.jpg", 0),
            (f"{images}/n01484850/a.jpg", 1),
            (f"{images}/n01484850/b.jpg", 1),
        ],
    )


def test_without_class_names_file_imagenetv2_has_the_thousand_names_of_open_clip(tmp_path):
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    (make_tree("imagenetv2", tmp_path) / "classnames.txt").unlink()
    names = read("imagenetv2", tmp_path)[0]
    assert names == tuple(IMAGENET_CLASSNAMES)
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet paper")


def test_wordnet_ids_are_those_of_imagenet_in_the_order_of_its_labels():
    from importlib.resources import files

    info = pytest.importorskip("timm.data").ImageNetInfo("imagenet-1k")
    lines = files("kdpl.data.readers").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    wnids = [line.split()[0] for line in lines]
    assert wnids == [info.index_to_label_name(label) for label in range(1000)] == sorted(wnids)


# --- faults ---


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_missing_folder_names_the_path_and_how_to_get_the_data(tmp_path, name):
    with pytest.raises(DataError) as raised:
        build_reader(name, root=str(tmp_path)).read()
    folder = BENCHMARKS[name].folder
    tells = " tells how" if name == "imagenet" else ""
    assert str(raised.value) == (
        f"dataset {name} needs the folder {tmp_path / folder}, which does not exist: set root to the folder that holds "
        f"{folder}/, or get the data (python -m kdpl data download {name} --root {tmp_path}{tells})"
    )


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("dtd", "split_zhou_DescribableTextures.json"),
        ("dtd", "images"),
        ("fgvc_aircraft", "variants.txt"),
        ("fgvc_aircraft", "images_variant_val.txt"),
        ("fgvc_aircraft", "images"),
        ("imagenet", "images/train"),
        ("imagenet", "images/val"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
        ("imagenet_a", "imagenet-a"),
    ],
)
def test_missing_part_is_named(tmp_path, name, gone):
    folder = make_tree(name, tmp_path)
    (folder / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError) as raised:
        build_reader(name, root=str(tmp_path)).read()
    assert f" {folder / gone}, which does not exist: set root to " in str(raised.value)
    assert f"python -m kdpl data download {name} --root {tmp_path}" in str(raised.value)


def with_entry(split, entry):
    return json.dumps({**SPLIT, split: [*SPLIT[split], entry]})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "lacks the list train"),
        (json.dumps({k: v for k, v in SPLIT.items() if k != "val"}), "lacks the list val"),
        (json.dumps({**SPLIT, "test": {}}), "lacks the list test"),
        (json.dumps({**SPLIT, "train": []}), "has no images in train"),
        (with_entry("train", ["a.jpg", 0]), "has an invalid entry 6 in train"),
        (with_entry("val", ["/etc/passwd", 0, "Zebra_crossing"]), "path '/etc/passwd' does not stay in"),
        (with_entry("val", ["a/../../b.jpg", 0, "Zebra_crossing"]), "path 'a/../../b.jpg' does not stay in"),
        (with_entry("val", ["C:\\b.jpg", 0, "Zebra_crossing"]), r"path 'C:\\b.jpg' does not stay in"),
        (with_entry("test", ["a.jpg", True, "apple"]), "label True is not 0, 1, 2, …"),
        (with_entry("test", ["a.jpg", -1, "apple"]), "label -1 is not 0, 1, 2, …"),
        (with_entry("test", ["a.jpg", 2, " "]), "class name ' ' is not a name"),
        (with_entry("test", ["a.jpg", 2, "pear"]), "label 2 is called 'pear' here and 'apple' before"),
        (
            with_entry("test", ["a.jpg", 4, "pear"]),
            "has label 4 but no label 3, labels count from 0",
        ),
    ],
)
def test_damaged_split_file_is_refused_by_name(tmp_path, content, fault):
    path = make_tree("dtd", tmp_path) / "split_zhou_DescribableTextures.json"
    write(path, content)
    with pytest.raises(DataError) as raised:
        build_reader("dtd", root=str(tmp_path)).read()
    message = str(raised.value)
    assert message.startswith(f"{path} of dataset dtd ")
    assert fault in message
    assert message.endswith(f": replace it (python -m kdpl data download dtd --root {tmp_path})")


@pytest.mark.parametrize(
    ("name", "file", "content", "fault"),
    [
        ("fgvc_aircraft", "variants.txt", "a\nb\na\n", "lists class 'a' twice"),
        ("fgvc_aircraft", "images_variant_test.txt", "1 707-320\n2 Concorde\n", "names 'Concorde' in line 2, which is"),
        ("fgvc_aircraft", "images_variant_test.txt", "../1 707-320\n", "has an image in line 1 that does not stay"),
        ("fgvc_aircraft", "images_variant_train.txt", "\n", "lists no images"),
        ("imagenet", "classnames.txt", "n01440764 tench\nn02012849\n", "is not '<wnid> <class name>' in line 2"),
        ("imagenet", "classnames.txt", "n1 a\nn1 b\n", "has n1 twice, again in line 2"),
        ("imagenet", "classnames.txt", "n01440764 tench\n", "has a class folder n02012849 that no class name belongs"),
        (
            "imagenetv2",
            "classnames.txt",
            "n1 a\nn2 b\nn3 c\n",
            "10 of dataset imagenetv2 is not one of the folders 0 to 2",
        ),
    ],
)
def test_damaged_lists_are_refused_by_name(tmp_path, name, file, content, fault):
    write(make_tree(name, tmp_path) / file, content)
    with pytest.raises(DataError) as raised:
        build_reader(name, root=str(tmp_path)).read()
    assert fault in str(raised.value)
    assert f" of dataset {name} " in str(raised.value)


def test_class_in_only_one_of_train_and_val_and_empty_folders_are_refused(tmp_path):
    folder = make_tree("imagenet", tmp_path)
    (folder / "images/val/n01443537").mkdir()
    with pytest.raises(DataError, match="images of dataset imagenet has class n01443537 in only one of train and val"):
        build_reader("imagenet", root=str(tmp_path)).read()
    (folder / "images/train/n01443537").mkdir()
    with pytest.raises(DataError, match="train/n01443537 of dataset imagenet has no images"):
        build_reader("imagenet", root=str(tmp_path)).read()
    folder = make_tree("imagenet_r", tmp_path)
    (folder / "imagenet-r").rename(folder / "old")
    (folder / "imagenet-r").mkdir()
    with pytest.raises(DataError, match="imagenet-r of dataset imagenet_r has no class folders"):
        build_reader("imagenet_r", root=str(tmp_path)).read()


# --- what can be done with them ---


@pytest.mark.parametrize("name", ["imagenetv2", *VARIANTS])
def test_test_only_set_is_tested_on_and_says_that_it_cannot_be_trained_on(tmp_path, name):
    folder = make_tree(name, tmp_path)
    data = DomainDataModule(name, root=str(tmp_path), num_workers=0)
    assert sum(len(batch[0]) for batch in data.test_dataloader_for(8)) == len(data.test_records)
    for split in ("labeled", "unlabeled"):
        with pytest.raises(DataError) as raised:
            data.train_dataloader_for(split, 8)
        assert str(raised.value) == (
            f"dataset {name} in {folder} is for tests alone: train on another dataset, then test on this one"
        )


def test_images_are_looked_for_when_they_are_needed(tmp_path):
    folder = make_tree("dtd", tmp_path)
    (folder / "images/a/1.jpg").unlink()
    image(folder / "images/not/listed.jpg")
    splits = build_reader("dtd", root=str(tmp_path)).read()
    assert len(splits.train) == 6
    with pytest.raises(DataError, match=r"^image .*images/a/1\.jpg does not exist"):
        splits.open_image(splits.train[1].source)
