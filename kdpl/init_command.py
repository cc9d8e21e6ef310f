"""``python -m kdpl init FOLDER``: look at a folder of images, say what is in it, and write a config that runs."""

import csv
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdpl.arguments import Parser
from kdpl.data.survey import Found, find, leave_out_copies, look
from kdpl.errors import ConfigError, DataError
from kdpl.files import atomic_path

_TABLE, _CONFIG = "images.csv", "data.yaml"
_FEW = 4  # labelled images below which a class is pointed out
_SHOTS = 16
_HELD_OUT = 0.25
_SHOWN = 10


def init(argv: Sequence[str]) -> int:
    """Look, say and write.

    Args:
        argv: Arguments after ``init``.

    Returns:
        0.

    Raises:
        ConfigError: There is a config already.
        DataError: There are no images to learn classes from.
    """
    options = _parser().parse_args(argv)
    folder, out = Path(options.folder).expanduser(), Path(options.out)
    if (out / _CONFIG).exists():
        raise ConfigError(f"{out / _CONFIG} is there already: choose another --out, or remove it")
    seen = look(find(folder), options.workers)
    good, copies = leave_out_copies([image for image in seen if image.fault is None])
    bad = [image for image in seen if image.fault is not None]
    images, held_out = _with_test(good)
    _require_training_images(folder, images, {image.label for image in seen if image.label})
    _say(folder, images, bad, copies, held_out)
    _write(out, images, held_out)
    print(f"wrote {out / _CONFIG} and {out / _TABLE}; next:")
    print(
        f"python -m kdpl run --config {out / _CONFIG} --config configs/trainer/gpu.yaml --teacher "
        "configs/teacher/promptsrc_vit_l14.yaml --student configs/student/promptkd_vit_b16.yaml "
        f"--out runs/{out.name}"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl init",
        description="Look at a folder of images and write a config for it. Images that cannot be read, and copies of "
        "test images, are named and left out.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="<class>/…, or train/<class>/… and test/<class>/…; unlabeled/…"
    )
    parser.add_argument("--out", required=True, help="folder for the config and the list of images")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one for each processor core)")
    return parser


def _with_test(images: list[Found]) -> tuple[list[Found], bool]:
    """Hold out a part of each class's labelled images as test images, if there are none."""
    if any(image.split == "test" for image in images):
        return images, False
    held: set[str] = set()
    for label in sorted({image.label for image in images if image.label}):
        paths = [image.path for image in images if image.label == label and image.split == "train"]
        # seeded, so that a second look holds out the same; one image at least stays to learn from
        held |= set(random.Random(0).sample(paths, min(len(paths) - 1, max(1, round(_HELD_OUT * len(paths))))))  # noqa: S311
    return [Found(i.path, i.label, "test", i.size, i.digest) if i.path in held else i for i in images], True


def _require_training_images(folder: Path, images: list[Found], labels: set[str]) -> None:
    there = {image.label for image in images if image.label and image.split == "train"}
    for label in sorted(labels - there):
        raise DataError(
            f"class {label!r} in {folder} has no readable training image of its own: add some, or remove the class."
        )


def _counts(images: list[Found]) -> Counter[str]:
    return Counter(image.label for image in images if image.label and image.split == "train")


def _say(
    folder: Path, images: list[Found], bad: list[Found], copies: list[tuple[Found, Found]], held_out: bool
) -> None:
    labeled = _counts(images)
    splits = Counter("unlabelled" if not image.label else image.split for image in images)
    edges = [edge for image in images if image.size for edge in image.size]
    print(f"{folder}: {len(labeled)} classes, {len(images)} images of {min(edges)} to {max(edges)} pixels an edge")
    for split, count in splits.items():
        note = ", a quarter of each class, held out by chance with seed 0" if held_out and split == "test" else ""
        print(f"  {split}: {count}{note}")
    fewest = sorted(labeled.items(), key=lambda item: item[1])
    print("  labelled to train on: " + ", ".join(f"{name} {count}" for name, count in fewest[:_SHOWN]) + _more(fewest))
    poor = [name for name, count in fewest if count < _FEW]
    if poor:
        print(f"  fewer than {_FEW} of: {', '.join(poor[:_SHOWN])}{_more(poor)}: label more if you can")
    for image in bad:
        print(f"  left out: {image.fault}")
    for image, kept in copies:
        print(f"  left out: {image.path} is a copy of {kept.path} ({kept.split})")


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def _write(out: Path, images: list[Found], held_out: bool) -> None:
    with atomic_path(out / _TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split"])
        writer.writerows([image.path, image.label, image.split] for image in images)
    smallest = min(_counts(images).values())
    test = "were held out of your labelled ones, by chance" if held_out else "are yours"
    text = f"""\
# Written by python -m kdpl init; its test images {test}.
# {_TABLE} lists the images: to move one to another split, or to leave one out, edit its row.
data:
  class_path: kdpl.DomainDataModule
  init_args:
    dataset: table
    root: {json.dumps(str((out / _TABLE).absolute()), ensure_ascii=False)}
    shots: {min(_SHOTS, smallest)}  # labelled images a class; the smallest class has {smallest}, published is {_SHOTS}
    num_workers: 4  # processes that decode
    # augmentation: light_affine  # where a mirrored or closely cropped image would be of another class
    # protocol: base_to_novel  # to measure how well it does on classes that the teacher had no labels of
"""
    with atomic_path(out / _CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")
