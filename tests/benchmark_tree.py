"""Miniature trees of the benchmark's datasets, in the layouts that people have on disk."""

import json
from pathlib import Path

from PIL import Image

SPLIT_FILES = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}
VARIANTS = {
    "imagenet_sketch": ("imagenet-sketch", "images"),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": ("imagenet-rendition", "imagenet-r"),
}
TRAINABLE = (*SPLIT_FILES, "fgvc_aircraft", "imagenet")

# labels are interleaved and neither they nor the names come in alphabetical order
SPLIT = {
    "train": [
        ["b/2.jpg", 1, "sea or lake"],
        ["a/1.jpg", 0, "Zebra_crossing"],
        ["b/1.jpg", 1, "sea or lake"],
        ["c/7.jpg", 2, "apple"],
        ["a/2.jpg", 0, "Zebra_crossing"],
        ["c/1.jpg", 2, "apple"],
    ],
    "val": [["c/2.jpg", 2, "apple"], ["a/3.jpg", 0, "Zebra_crossing"], ["b/3.jpg", 1, "sea or lake"]],
    "test": [["a/4.jpg", 0, "Zebra_crossing"], ["c/3.jpg", 2, "apple"], ["b/4.jpg", 1, "sea or lake"]],
}
CLASS_NAMES = "n01440764 tench\nn01443537 goldfish\nn02012849 crane\nn03126707 crane\nn01484850 great white shark\n"


def image(path, shade=0):
    """Write a JPEG of 12 x 10 pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 90, 200 - shade)).save(path, format="JPEG")


def write(path, text):
    """Write a text file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_tree(name, root):
    """Write a miniature of a dataset below ROOT; give the dataset's folder."""
    root = Path(root)
    if name in SPLIT_FILES:
        folder, images, split_file = SPLIT_FILES[name]
        write(root / folder / split_file, json.dumps(SPLIT))
        for entries in SPLIT.values():
            for path, label, _ in entries:
                image(root / folder / images / path, 60 * label)
        return root / folder
    if name == "fgvc_aircraft":
        folder = root / "fgvc_aircraft"
        write(folder / "variants.txt", "707-320\nF-16A/B\nMetroliner II\n")
        write(
            folder / "images_variant_train.txt",
            "0000005 Metroliner II\n0000002 707-320\n0000009 F-16A/B\n0000001 707-320\n",
        )
        write(folder / "images_variant_val.txt", "0000003 F-16A/B\n0000004 Metroliner II\n0000006 707-320\n")
        write(folder / "images_variant_test.txt", "0000008 F-16A/B\n0000007 Metroliner II\n0000010 707-320\n")
        for number in range(1, 11):
            image(folder / "images" / f"{number:07d}.jpg", 20 * number)
        return folder
    if name == "imagenet":
        folder = root / "imagenet"
        write(folder / "classnames.txt", CLASS_NAMES)
        for wnid in ("n03126707", "n01440764", "n02012849"):
            for i in (2, 10):
                image(folder / "images/train" / wnid / f"{wnid}_{i}.JPEG", 10 * i)
            image(folder / "images/val" / wnid / "ILSVRC2012_val_00000001.JPEG")
        write(folder / "images/train/.DS_Store", "")
        return folder
    if name == "imagenetv2":
        folder = root / "imagenetv2"
        lines = [f"n{number:08d} name {number}\n" for number in range(12)]
        write(folder / "classnames.txt", "".join(reversed(lines)))
        for label in (0, 2, 10):
            image(folder / "imagenetv2-matched-frequency-format-val" / str(label) / f"{label}a.jpeg")
        return folder
    folder = root / VARIANTS[name][0]
    images = folder / VARIANTS[name][1]
    write(folder / "classnames.txt", CLASS_NAMES)
    write(images / "README.txt", "no class")
    for wnid in ("n01484850", "n01443537"):
        image(images / wnid / "b.jpg")
        image(images / wnid / "a.jpg")
    return folder
