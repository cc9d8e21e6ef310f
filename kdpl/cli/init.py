"""``python -m kdpl init PATH``: survey your images, and write a config that runs."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.cli.arguments import share
from kdpl.cli.run_defaults import Options, choose, print_choice
from kdpl.data.class_mapping import ClassName, read_class_mapping
from kdpl.data.layout import SPLIT_OF
from kdpl.data.names import Names, unlisted
from kdpl.data.options import ClassOptions
from kdpl.data.paths import count_suffixes, is_url
from kdpl.data.readers.table import HELD_OUT, SEVERAL, UNKNOWN
from kdpl.data.sources import find_unlabeled
from kdpl.data.survey import (
    FoundImage,
    PassedOver,
    find,
    find_passed_over,
    inspect_images,
    leave_out,
    set_aside,
    views_to_choose,
)
from kdpl.errors import ConfigError, DataError, visible
from kdpl.runtime.advice import absolute
from kdpl.runtime.class_names import fault_of_name
from kdpl.runtime.files import read_rows, write_rows, write_text

CONFIG = "data.yaml"
"""File that ``init`` writes for a run."""

TABLE, _LEFT_OUT, _UNUSED = "images.csv", "left_out.csv", "used_nowhere.csv"
_TEXTS, _TEXTS_A_CLASS = "class_names.csv", 4
_HELD_OUT = 0.25
_VAL_SHARE, _VAL_LEAST = 0.2, 8  # default share of each class with at least so many labels
_VAL_FEWEST = 19  # in all, as predict --unknown needs
_SHOWN = 10  # classes on the terminal
_NAMED = 100  # images left out


def init(
    path: str,
    *,
    out: str,
    unlabeled: list[str] = [],  # noqa: B006 - read from the signature, never changed
    class_names: str | None = None,
    label_separator: str | None = None,
    shots: NonNegativeInt | None = None,
    val_share: str | None = None,
    overwrite: bool = False,
    workers: PositiveInt | None = None,
) -> int:
    """Survey your images and write a config for them.

    Unreadable images, and copies and near-copies of test images, are named and left out. The run
    that suits the images and this machine is printed, as run PATH would choose it.

    Args:
        path: Folder with <class>/…, or train/<class>/… and test/<class>/…, and unlabeled/…; or a
            .csv table with the columns image, label and, optionally, split and group;
            no group gets into two splits. With --class-names, no training image needs a label.
        out: Folder for the config and the list of images.
        unlabeled: Further images without labels: a folder, a pattern, a .txt list, .tar or .parquet
            files.
        class_names: File with the names of all classes, if folders or labels say too little or are
            missing: a .csv with lines such as 0,zero or, if no image has a label, a .txt with a
            name on each line.
        label_separator: Character between two classes of a label, such as ';', for a table whose
            labels are lists of classes. The separator alone says that the image is of none of the
            classes, and '?' that it has no label; an empty label is refused.
        shots: Labelled images per class to train on, at most; by default all of them.
        val_share: Share of each class's labelled images to validate on, if there are no validation
            images; 0 for none. By default a fifth of classes with 8 labelled images or more, if
            that makes 19 or more in all.
        overwrite: Replace the config and the list that an earlier init wrote into OUT.
        workers: Processes that decode; by default one for each processor core.
    """
    folder, classes = absolute(out), ClassOptions(class_names, label_separator=label_separator)
    for name in (CONFIG, TABLE):
        if (folder / name).exists() and not overwrite:
            raise ConfigError(
                f"{folder / name} exists already: choose another --out, or give --overwrite"
            )
    images = survey(path, folder, classes, unlabeled, shots, val_share, workers)
    choice = choose(label_separator is not None).for_pool(pool_size(images))
    options, reasons = choice.completed(Options(), str(folder / CONFIG))
    print_choice(path, reasons)
    run = options.in_full(folder.with_name(f"{folder.name}_run"))
    print(f"wrote {folder / CONFIG} and {folder / TABLE}; next:\n  {run}")
    return 0


def pool_size(images: Iterable[FoundImage]) -> int:
    """Count the images to distil on."""
    return sum(image.split == "train" for image in images)


def survey(
    path: str,
    folder: Path,
    classes: ClassOptions,
    unlabeled: Sequence[str] = (),
    shots: int | None = None,
    val_share: str | None = None,
    workers: int | None = None,
) -> list[FoundImage]:
    """Survey images as ``init`` does, and return those that can be used."""
    source = Path(path).expanduser()
    val = 0.0 if val_share in ("0", "0%") else share("--val-share", val_share)

    # find the images and the names of their classes
    places = [location if is_url(location) else str(absolute(location)) for location in unlabeled]
    if classes.names:
        classes = replace(classes, names=str(absolute(classes.names)))
    listed = find(source, classes.names, classes.label_separator)
    pool = find_unlabeled(places) if places else Names.of(())
    unlisted_paths = dict.fromkeys(unlisted(pool, (image.path for image in listed)))
    further = [FoundImage(path, "", "train") for path in unlisted_paths]
    labeled = any(image.label and image.split == "train" for image in listed)
    names = _read_names(source, listed, classes.names, labeled)

    # leave out what cannot be used, and hold out images for test and validation
    usable, unusable = leave_out(inspect_images([*listed, *further], workers))
    left_out = {image.path: str(image.problem) for image in unusable}
    images, notes = _hold_out(usable, val)
    _require_classes(source, names, images, labeled, unusable)
    if classes.label_separator is not None:
        # imports torch, and nothing else here needs it
        from kdpl.tasks import build_task

        build_task(SEVERAL).require_classes([names[key].name for key in sorted(names)])

    # find what nothing uses
    names_written = (CONFIG, TABLE, _LEFT_OUT, _UNUSED, _TEXTS)
    written = [str(folder.absolute() / name) for name in names_written]
    used = (image.path for image in (*listed, *further))
    used_files = {*places, classes.names, *written}
    passed_over = find_passed_over(source, classes.names, names, used, used_files)

    # write the files
    unknown = "" if classes.label_separator is None else UNKNOWN
    kept = [image for image in images if image.path not in unlisted_paths]
    _write_table(folder / TABLE, kept, unknown)
    skip_list = folder.absolute() / _LEFT_OUT
    for file, reasons in ((skip_list, left_out), (folder / _UNUSED, passed_over.images)):
        file.unlink(missing_ok=True)
        if reasons:
            write_rows(file, [("image", "why"), *reasons.items()])
    if not classes.names:
        _write_template(folder / _TEXTS, names)
    affine = views_to_choose({named.name for named in names.values()}, images)
    # a run finds these images in the places again
    skips = any(path in left_out for path in pool)
    smallest = min(_training_counts(images).values(), default=0)
    settings = {
        "root": str((folder / TABLE).absolute()),
        "unlabeled": places,
        "classes": {name: value for name, value in vars(classes).items() if value is not None},
        "reading": {"skip_list": str(skip_list)} if skips else None,
        "augmentation": "light_affine" if affine else None,
        "allow_fewer_shots": smallest > 0,
    }
    # without labels, the teacher is the original CLIP
    _write_config(folder, settings, shots if smallest else 0)

    # print last, since the reader of a pipe may close it
    _print_survey(source, images, names, notes, affine)
    if not classes.names:
        where = f"fill in {folder / _TEXTS}, and give it as --class-names"
        print(f"  to say what the classes look like, in several texts each: {where}")
    print_left_out(folder)
    _print_passed_over(passed_over)
    return images


def _write_table(file: Path, images: Sequence[FoundImage], unknown: str) -> None:
    """Write the table of images, with the column group only if an image has one."""
    header = ("image", "label", "split", "group")
    rows = [(image.path, image.label or unknown, image.split, image.group) for image in images]
    width = 4 if any(group for *_, group in rows) else 3
    write_rows(file, [row[:width] for row in (header, *rows)])


def _write_template(file: Path, names: dict[str, ClassName]) -> None:
    """Write class names with empty texts, unless the file is there: it may be filled in."""
    if file.exists():
        return
    heading = ("label", "name", *["text"] * _TEXTS_A_CLASS)
    empty = [(key, named.name, *[""] * _TEXTS_A_CLASS) for key, named in names.items()]
    write_rows(file, [heading, *empty])


def _read_names(
    path: Path, listed: Iterable[FoundImage], mapping: str | None, labeled: bool
) -> dict[str, ClassName]:
    used = {name for image in listed for name in image.classes}
    names = {name: ClassName(name) for name in sorted(used)}
    if mapping:
        # folders of a folder may be no classes, such as years
        pool = "put images without labels into a folder named unlabeled" if path.is_dir() else ""
        names = read_class_mapping(Path(mapping), used, complete=labeled, otherwise=pool)
    if len(names) == 1:
        name, nested = min(names), ""
        if (path / name).is_dir():
            nested = f"give {visible(str(path / name))} if it holds the classes, or name it train, "
        raise DataError(
            f"{path} has one class, {visible(name)!r}, expected two or more: {nested}add images of "
            "another, or, for images without labels, give their folder itself and --class-names"
        )
    return names


def _hold_out(
    usable: list[FoundImage], val: float | None
) -> tuple[list[FoundImage], dict[str, str]]:
    images, notes = usable, {HELD_OUT: "a quarter of each class, held out"}
    splits = {image.split for image in usable}
    if not splits & {"test", HELD_OUT}:
        images = set_aside(images, HELD_OUT, _HELD_OUT)
    # a share of 0 splits off none
    if val == 0 or "val" in splits:
        return images, notes
    share, least, words = val, 2, ""
    if share is None:
        share, least, words = _VAL_SHARE, _VAL_LEAST, f" with {_VAL_LEAST} labels or more"
    divided = set_aside(images, "val", share, least)
    # by default only if they are enough for bounds, for which groups count
    groups = {image.group or image.path for image in divided if image.split == "val"}
    if len(groups) < (1 if val else _VAL_FEWEST):
        return images, notes
    return divided, notes | {
        "val": f"{share:.0%} of each class{words}, split off (init --val-share)"
    }


def _require_classes(
    path: Path,
    names: Mapping[str, ClassName],
    images: list[FoundImage],
    labeled: bool,
    unusable: list[FoundImage],
) -> None:
    if not labeled and not any(image.split == "train" for image in images):
        raise DataError(f"{path} has no readable image to train on: add some, or init --unlabeled")
    if unusable and not images:
        raise DataError(
            f"none of the {len(unusable)} images of {path} can be read ({unusable[0].problem}): "
            "correct their paths, which in a table start at its folder"
        )
    counts = _training_counts(images)
    problems = {name: f" ({image.problem})" for image in unusable for name in image.classes}
    for label, named in sorted(names.items()):
        problem = fault_of_name(label) or fault_of_name(named.name)
        if label != label.strip():
            # cells of a table have no such space
            problem = f"begins or ends with a space ({label!r})"
        if problem:
            raise DataError(f"{path} has a class name that {problem}: rename the class")
        if labeled and not counts[label]:
            alike = [other for other in names if other != label and other.lower() == label.lower()]
            same = f", or rename it if it is the class {alike[0]!r}" if alike else ""
            raise DataError(
                f"class {label!r} in {path} has no usable training image{problems.get(label, '')}: "
                f"add some, or remove it{same}"
            )


def _write_config(out: Path, values: Mapping[str, Any], shots: int | None) -> None:
    settings = "".join(
        f"    {name}: {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in values.items()
        if value
    )
    text = f"""\
# Written by python -m kdpl init. {TABLE} lists the images, and may be edited.
data:
  class_path: kdpl.DomainDataModule
  init_args:
    dataset: table
{settings}\
    shots: {json.dumps(shots)}  # labelled images a class; null: all
    val_shots: null  # all validation images
"""
    write_text(out / CONFIG, text)


def _print_survey(
    path: Path,
    images: list[FoundImage],
    names: Mapping[str, ClassName],
    notes: Mapping[str, str],
    affine: str | None,
) -> None:
    # size and splits
    splits = Counter("unlabelled" if not image.label else image.split for image in images)
    edges = {edge for image in images if image.size for edge in image.size}
    pixels = f"{min(edges)} to {max(edges)}" if len(edges) > 1 else f"{min(edges)}"
    print(f"{path}: {len(names)} classes, {len(images)} images of {pixels} pixels an edge")
    for split, count in splits.items():
        note = f", {notes[split]} by chance with seed 0" if split in notes else ""
        print(f"  {'test' if split == HELD_OUT else split}: {count}{note}")
    if splits["train"] and not splits["val"]:
        several = any(image.separator is not None for image in images)
        use = "thresholds are better with" if several else "predict --max-error needs"
        print(f"  val: none ({use} some: init --val-share 30% splits them off)")
    if uncompared := sum(not image.compared for image in images):
        print(f"  not compared for near-copies, too small, enlarged or drawn: {uncompared}")
    if none := sum(bool(image.label) and not image.classes for image in images):
        print(f"  of none of the classes: {none} of these")

    # labels of each class, the fewest first
    order, counts = [*names], _training_counts(images).items()
    fewest = sorted(counts, key=lambda item: (item[1], order.index(item[0])))
    trained = _list_of([f"{names[label].name} ({count})" for label, count in fewest])
    print(
        "  labelled to train on: "
        f"{trained or 'none, so that the teacher is the original CLIP (zero-shot)'}"
    )
    if alike := [name for name in names if name.lower() in SPLIT_OF]:
        print(f"  classes, though named like splits: {', '.join(alike)}")
    tested = {name for i in images if i.split in ("test", HELD_OUT) for name in i.classes}
    untested = [named.name for label, named in names.items() if label not in tested]
    if tested and untested:
        print(f"  without a test image: {_list_of(sorted(untested))}")
    if affine:
        light = "augmentation light_affine, if you set none"
        print(f"  images should not be mirrored ({light}), since {affine}")


def print_left_out(folder: Path) -> None:
    """Print why images were left out by a survey into a folder."""
    file = folder / _LEFT_OUT
    left_out = [row["why"] for row in read_rows(file)] if file.is_file() else []
    for line in left_out[:_NAMED]:
        print(f"  left out: {visible(line)}")
    if len(left_out) > _NAMED:
        print(f"  left out: {len(left_out) - _NAMED} more, all in {_LEFT_OUT}")


def _print_passed_over(passed_over: PassedOver) -> None:
    for where, count in Counter(passed_over.images.values()).items():
        print(f"  used nowhere: {count} {visible(where)}")
    if empty := passed_over.empty_folders:
        print(f"  folders without images, and no classes: {visible(_list_of(empty))}")
    if counts := count_suffixes(passed_over.files):
        print(f"  not images, and passed over: {counts}")


def _list_of(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _training_counts(images: list[FoundImage]) -> Counter[str]:
    return Counter(name for image in images if image.split == "train" for name in image.classes)
