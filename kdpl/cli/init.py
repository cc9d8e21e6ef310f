"""``python -m kdpl init PATH``: look at images of one's own, say what is in them, and write a config that runs."""

import csv
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kdpl.cli.arguments import Parser
from kdpl.data.readers.table import HELD_OUT, read_table
from kdpl.data.reading import INDEX_FOLDER
from kdpl.data.scan import FILE, Checked, digest_names, digest_stamps
from kdpl.data.shards import indices_kept_in
from kdpl.data.storage import is_url
from kdpl.data.survey import Found, find, find_further, find_in_table, leave_out_copies, look, overlooked
from kdpl.errors import ConfigError, DataError, visible
from kdpl.runtime.class_names import fault_of_name
from kdpl.runtime.files import atomic_path

_TABLE, _CONFIG, _LEFT_OUT = "images.csv", "data.yaml", "left_out.csv"
_TABLES = (".csv", ".parquet")
_TESTS = ("test", HELD_OUT)
_FEW = 4  # labelled images below which a class is pointed out
_SHOTS = 16
_HELD_OUT = 0.25
_SHOWN = 10
_NAMED = 100  # images left out that are named on the terminal


def init(argv: Sequence[str]) -> int:
    """Look, say and write.

    Args:
        argv: Arguments after ``init``.

    Returns:
        0.

    Raises:
        ConfigError: There is a config already, or a URL is of a kind that cannot be opened.
        DataError: There are no images to learn classes from, or something is missing or damaged.
    """
    options = _parser().parse_args(argv)
    path, out = Path(options.path).expanduser(), Path(options.out).expanduser()
    for name in (_CONFIG, _TABLE):
        if (out / name).exists():
            raise ConfigError(f"{out / name} is there already: choose another --out, or remove it")
    places = [each if is_url(each) else str(Path(each).expanduser().absolute()) for each in options.unlabeled]
    # a run beside these files finds what is kept of distant shards there
    with indices_kept_in([out / INDEX_FOLDER]):
        listed = find_in_table(path) if path.suffix.lower() in _TABLES and not path.is_dir() else find(path)
        further = find_further(places, listed) if places else []
        everything = [image.path for image in (*listed, *further)]
        stamps = digest_stamps(everything)  # before: an image that is changed meanwhile is not taken for looked at
        seen = look([*listed, *further], options.workers)
        good, copies = leave_out_copies([image for image in seen if image.fault is None])
        left_out = {image.path: image.fault for image in seen if image.fault is not None}
        left_out |= {image.path: _copy(image, kept) for image, kept in copies}
        images = _with_test(good)
        _require_classes(path, images, {image.label for image in seen if image.label})
        aside = overlooked(path, listed) if path.is_dir() else []
        elsewhere = {image.path for image in further}
        _write_table(out, [image for image in images if image.path not in elsewhere])
        sources, skips = _write_left_out(out, places, {image.path for image in images}, left_out)
        if digest_stamps(everything) == stamps:
            Checked(digest_names(sources), digest_stamps(sources), len(sources), ()).save(out / FILE)
        _write_config(out, images, places, skips)
    # last, for whoever reads it may have seen enough of it
    _say(path, images, left_out, aside)
    print(f"wrote {out / _CONFIG} and {out / _TABLE}; next:")
    print(
        f"python -m kdpl run --config {out / _CONFIG} --config configs/trainer/gpu.yaml --teacher "
        "configs/teacher/promptsrc_vit_l14.yaml --student configs/student/promptkd_vit_b16.yaml "
        f"--out {out.parent / out.absolute().name}_run"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl init",
        description="Look at images of your own and write a config for them. Images that cannot be read, and copies of "
        "test images, are named and left out.",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="folder: <class>/…, or train/<class>/… and test/<class>/…; unlabeled/…; or a .csv or .parquet table with "
        "the columns image, label and, if you like, split",
    )
    parser.add_argument("--out", required=True, help="folder for the config and the list of images")
    parser.add_argument(
        "--unlabeled",
        metavar="PLACE",
        action="append",
        default=[],
        help="further images without labels: a folder, a pattern, a .txt list, .tar shards or a URL; may be repeated",
    )
    parser.add_argument("--workers", type=int, help="processes that decode (default: one for each processor core)")
    return parser


def _copy(image: Found, kept: Found) -> str:
    other = f" of class {visible(kept.label)}, not {visible(image.label)}: label it right"
    contrary = image.label and kept.label and image.label != kept.label
    return f"{image.path} is a copy of {kept.path} ({kept.split}){other if contrary else ''}"


def _with_test(images: list[Found]) -> list[Found]:
    """Hold out a part of each class's labelled images as test images, if there are none."""
    if any(image.split in _TESTS for image in images):
        return images
    held: set[str] = set()
    for label in sorted({image.label for image in images if image.label}):
        paths = [image.path for image in images if image.label == label and image.split == "train"]
        # seeded, so that a second look holds out the same; one image at least stays to learn from
        held |= set(random.Random(0).sample(paths, min(len(paths) - 1, max(1, round(_HELD_OUT * len(paths))))))  # noqa: S311
    return [replace(image, split=HELD_OUT) if image.path in held else image for image in images]


def _require_classes(path: Path, images: list[Found], labels: set[str]) -> None:
    if len(labels) == 1:
        raise DataError(
            f"{path} has one class, {visible(min(labels))!r}, and so nothing to tell apart: give the folder that holds "
            "those of all classes"
        )
    there = {image.label for image in images if image.label and image.split == "train"}
    for label in sorted(labels):
        fault = fault_of_name(label)
        if fault is None and label != label.strip():
            fault = f"begins or ends with a space ({label!r})"
        if fault:
            raise DataError(f"{path} has a class name that {fault}: rename the class.")
        if label not in there:
            raise DataError(
                f"class {label!r} in {path} has no readable training image of its own: add some, or remove the class."
            )


def _counts(images: list[Found]) -> Counter[str]:
    return Counter(image.label for image in images if image.label and image.split == "train")


def _say(path: Path, images: list[Found], left_out: Mapping[str, str], aside: Sequence[str]) -> None:
    labeled = _counts(images)
    splits = Counter("unlabelled" if not image.label else image.split for image in images)
    edges = [edge for image in images if image.size for edge in image.size]
    print(f"{path}: {len(labeled)} classes, {len(images)} images of {min(edges)} to {max(edges)} pixels an edge")
    for split, count in splits.items():
        held_out = split == HELD_OUT
        note = ", a quarter of each class, held out by chance with seed 0" if held_out else ""
        print(f"  {'test' if held_out else split}: {count}{note}")
    fewest = sorted(labeled.items(), key=lambda item: item[1])
    print("  labelled to train on: " + ", ".join(f"{name} {count}" for name, count in fewest[:_SHOWN]) + _more(fewest))
    poor = [name for name, count in fewest if count < _FEW]
    if poor:
        print(f"  fewer than {_FEW} of: {', '.join(poor[:_SHOWN])}{_more(poor)}: label more if you can")
    tested = {image.label for image in images if image.split in _TESTS}
    untested = [name for name in labeled if name not in tested]
    if untested:
        some = ", ".join(sorted(untested)[:_SHOWN])
        print(f"  no test image of: {some}{_more(untested)}: label more of their images")
    for line in aside[:_SHOWN]:
        print(f"  not taken: {line}")
    if len(aside) > _SHOWN:
        print(f"  not taken: those of {len(aside) - _SHOWN} more folders")
    for why in [*left_out.values()][:_NAMED]:
        print(f"  left out: {visible(why)}")
    if len(left_out) > _NAMED:
        print(f"  left out: {len(left_out) - _NAMED} more, all listed in {_LEFT_OUT}")


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def _write_rows(file: Path, rows: Iterable[Sequence[str]]) -> None:
    # what is left out may be so for a path that is no UTF-8
    with (
        atomic_path(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        csv.writer(lines).writerows(rows)


def _write_table(out: Path, images: Iterable[Found]) -> None:
    header = ("image", "label", "split")
    _write_rows(out / _TABLE, [header, *((image.path, image.label, image.split) for image in images)])


def _write_left_out(out: Path, places: list[str], kept: set[str], left_out: dict[str, str]) -> tuple[list[str], bool]:
    """Write what is left out.

    Returns:
        The images that a run then reads, in its order, and whether it needs a list of those that it skips.
    """
    sources = read_table(str((out / _TABLE).absolute()), places or None).sources
    kept |= {os.path.normpath(path) for path in kept}
    more = {source: f"{source} is listed under another name" for source in sources if source not in kept}
    if left_out or more:
        _write_rows(out / _LEFT_OUT, [("image", "why"), *(more | left_out).items()])
    return [source for source in sources if source not in more], bool(more)


def _write_config(out: Path, images: list[Found], places: list[str], skips: bool) -> None:
    smallest = min(_counts(images).values())
    splits = {image.split for image in images}
    test = "its test images are yours" if "test" in splits else "there are no test images"
    if HELD_OUT in splits:
        test = "its test images were held out of your labelled ones, by chance"
    further = f"    unlabeled: {_quoted(places)}\n" if places else ""
    if skips:
        further += f"    skip_list: {_quoted(str((out / _LEFT_OUT).absolute()))}  # what cannot be used, and copies\n"
    text = f"""\
# Written by python -m kdpl init; {test}.
# {_TABLE} lists the images: to move one to another split, or to leave one out, edit its row.
data:
  class_path: kdpl.DomainDataModule
  init_args:
    dataset: table
    root: {_quoted(str((out / _TABLE).absolute()))}
{further}\
    shots: {min(_SHOTS, smallest)}  # labelled images a class; the smallest class has {smallest}, published is {_SHOTS}
    # augmentation: light_affine  # where a mirrored or closely cropped image would be of another class
    # protocol: base_to_novel  # to measure how well it does on classes that the teacher had no labels of
"""
    with atomic_path(out / _CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)
