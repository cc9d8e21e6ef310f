"""Miniature trees of the benchmark's datasets, in the layouts that people have on disk."""

import json
from pathlib import Path

from PIL import Image

SPLIT_FILES = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", ".", "split_zhou_StanfordCars.json"),
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
V2_IMAGES = "imagenetv2-matched-frequency-format-val"
TRAINABLE = (*SPLIT_FILES, "fgvc_aircraft", "imagenet")

# labels are interleaved and neither they nor the names come in alphabetical order
NAMES = ("Zebra_crossing", "sea or lake", "apple")
SPLIT = {
    split: [[path, label, NAMES[label]] for path, label in images.items()]
    for split, images in {
        "train": {
            "b/2.jpg": 1,
            "a/1.jpg": 0,
            "b/1.jpg": 1,
            "c/7.jpg": 2,
            "a/2.jpg": 0,
            "c/1.jpg": 2,
        },
        "val": {"c/2.jpg": 2, "a/3.jpg": 0, "b/3.jpg": 1},
        "test": {"a/4.jpg": 0, "c/3.jpg": 2, "b/4.jpg": 1},
    }.items()
}
AIRCRAFT = {
    "variants.txt": "707-320\nF-16A/B\nMetroliner II\n",
    "images_variant_train.txt": "0000005 Metroliner II\n0000002 707-320\n0000009 F-16A/B\n0000001 707-320\n",
    "images_variant_val.txt": "0000003 F-16A/B\n0000004 Metroliner II\n0000006 707-320\n",
    "images_variant_test.txt": "0000008 F-16A/B\n0000007 Metroliner II\n0000010 707-320\n",
}
CLASS_NAMES = "n01440764 tench\nn01443537 goldfish\nn02012849 crane\nn03126707 crane\nn01484850 great white shark\n"


def image(path, shade=0):
    """Write a JPEG of 12 x 10 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 90, 200 - shade)).save(path, format="JPEG")


def make_tree(name, root):
    """Write a miniature of a dataset below ROOT; returns the dataset's folder."""
    folder, texts, shades = name, {"classnames.txt": CLASS_NAMES}, {}
    if name in SPLIT_FILES:
        folder, images, split_file = SPLIT_FILES[name]
        texts = {split_file: json.dumps(SPLIT)}
        shades = {
            f"{images}/{path}": 60 * label
            for entries in SPLIT.values()
            for path, label, _ in entries
        }
    elif name == "fgvc_aircraft":
        texts = AIRCRAFT
        shades = {f"images/{number:07d}.jpg": 20 * number for number in range(1, 11)}
    elif name == "imagenet":
        texts["images/train/.DS_Store"] = ""
        for wnid in ("n03126707", "n01440764", "n02012849"):
            shades |= {f"images/train/{wnid}/{wnid}_{i}.JPEG": 10 * i for i in (2, 10)}
            shades[f"images/val/{wnid}/ILSVRC2012_val_00000001.JPEG"] = 0
    elif name == "imagenetv2":
        texts["classnames.txt"] = "".join(
            f"n{number:08d} name {number}\n" for number in reversed(range(12))
        )
        shades = {f"{V2_IMAGES}/{label}/{label}a.jpeg": 0 for label in (0, 2, 10)}
    else:
        folder, images = VARIANTS[name]
        texts[f"{images}/README.txt"] = "no class"
        shades = {
            f"{images}/{wnid}/{letter}.jpg": 0
            for wnid in ("n01484850", "n01443537")
            for letter in "ba"
        }
    folder = Path(root) / folder
    for path, shade in shades.items():
        image(folder / path, shade)
    for path, text in texts.items():
        (folder / path).write_text(text)
    return folder
