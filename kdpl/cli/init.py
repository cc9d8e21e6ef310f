"""``python -m kdpl init PATH``: survey your own images, and write a config that runs."""

import json
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.cli.arguments import share
from kdpl.data.class_mapping import ClassName, read_class_mapping
from kdpl.data.names import unlisted
from kdpl.data.readers.table import HELD_OUT, UNKNOWN, EmptyLabels, Table
from kdpl.data.sources import find_unlabeled
from kdpl.data.storage import is_url
from kdpl.data.survey.found import FoundImage, find, leave_out_copies
from kdpl.data.survey.images import inspect_images, overlooked, relabel, set_aside
from kdpl.errors import ConfigError, DataError, visible
from kdpl.runtime.class_names import fault_of_name
from kdpl.runtime.files import write_rows, write_text

_TABLE, _CONFIG, _LEFT_OUT = "images.csv", "data.yaml", "left_out.csv"
_FEW = 4  # labelled images below which a class is pointed out
_UNEVEN = 3  # times as many labels as another class, above which balanced classes are mentioned
_BALANCE = (
    "to tune on each class equally often, add --data.init_args.balance_classes true to the command"
)
_AFFINE = "--data.init_args.augmentation light_affine"
_HELD_OUT = 0.25
_VAL_SHARE, _VAL_LEAST = 0.2, 8  # of each class's labels, by default; labels a class from which on
ENOUGH = {
    "predict --unknown": 19,
    "--max-error 5%": 59,
    "--calibrated": 100,
    "--max-error 1%": 299,
}
"""Validation images from which these options hold, for an error if no prediction is wrong."""
_WITHOUT_VALIDATION = (
    "  no validation image: nothing decides if refined targets are better than the teacher's "
    "predictions, the\n    classifier has no temperature and no thresholds (predict --max-error, "
    "--sets), more than 5 % of new\n    images exceed the limit of predict --unknown, and watch "
    "does not ask if more are of none of the\n    classes: label some, in val/<class>/ or with "
    "split val, or take some of the labels above by --val-share 20%"
)
# names such as 7, class_07, n01440764
_UNINFORMATIVE = re.compile(r"([a-z]+[\W_]*)?\d+|[a-z]", re.IGNORECASE)
_SHOWN = 10  # of a list on the terminal
_NAMED = 100  # of images left out


def init(
    path: str,
    *,
    out: str,
    unlabeled: list[str] = [],  # noqa: B006 - read from the signature, never changed
    class_names: str | None = None,
    label_separator: str | None = None,
    empty_labels: EmptyLabels | None = None,
    labels: str | None = None,
    shots: NonNegativeInt | None = None,
    val_share: str | None = None,
    overwrite: bool = False,
    workers: PositiveInt | None = None,
) -> int:
    """Survey images of your own and write a config for them.

    Images that cannot be read, and copies of test images, are named and left out.

    Args:
        path: Folder with <class>/…, or train/<class>/… and test/<class>/…, and unlabeled/…; or a
            .csv or .parquet table with the columns image, label and, optionally, split and
            group, of which none gets into two splits. With
            --class-names, no training image needs a label.
        out: Folder for the config and the list of images.
        unlabeled: Further images without labels: a folder, a pattern, a .txt list, .tar or .parquet
            files or a URL.
        class_names: File with the names of all classes, where the folders or labels say too little,
            or there are none: a .csv with lines such as 0,zero, or, where no image has a label, a
            .txt with a name on each line.
        label_separator: Of a table whose labels are lists of classes: the character between two,
            such as ';'. The separator alone says that the image is of none of the classes, and '?'
            that it has no label.
        empty_labels: Which of the two an empty label means with --label-separator: no_class or
            unlabeled. Without this option, such a table is refused.
        labels: Table with the columns image and label, as suggest writes it for you to fill in: its
            labels replace those of PATH, and an image whose label is empty, or with
            --label-separator "?", has none.
        shots: Labelled images a class to train on, at most; by default all of them.
        val_share: Share of each class's labelled images to validate on, where there are no
            validation images; 0 for none. By default a fifth, of classes with 8 labelled images or
            more, if that makes 19 or more in all.
        overwrite: Replace the config and the list that an earlier init wrote into OUT.
        workers: Processes that decode; by default one for each processor core.
    """
    source, folder = Path(path).expanduser(), Path(out).expanduser()
    validated = 0.0 if val_share in ("0", "0%") else share("--val-share", val_share)
    for name in (_CONFIG, _TABLE):
        if (folder / name).exists() and not overwrite:
            raise ConfigError(
                f"{folder / name} exists already: choose another --out, or give --overwrite"
            )
    places = [
        each if is_url(each) else str(Path(each).expanduser().absolute()) for each in unlabeled
    ]
    named = str(Path(class_names).expanduser().absolute()) if class_names else None
    listed = find(source, named, label_separator, empty_labels)
    sources = unlisted(find_unlabeled(places), (image.path for image in listed)) if places else ()
    further = [FoundImage(each, "", "train") for each in sources]
    if labels is not None:
        table = Path(labels).expanduser()
        listed, further = relabel(listed, further, table, named, label_separator, empty_labels)
    labeled = any(image.label and image.split == "train" for image in listed)
    used = {name for image in listed for name in image.classes}
    names = {name: ClassName(name) for name in used}
    if named:
        names |= read_class_mapping(Path(named), used, complete=labeled)
    seen = inspect_images([*listed, *further], workers)
    good, copies = leave_out_copies([image for image in seen if image.fault is None])
    left_out = {image.path: image.fault for image in seen if image.fault is not None}
    left_out |= {image.path: _copy(image, kept) for image, kept in copies}
    tested = any(image.split in ("test", HELD_OUT) for image in good)
    images = _with_validation(good if tested else set_aside(good, HELD_OUT, _HELD_OUT), validated)
    counts = _counts(images)
    if not labeled and not any(image.split == "train" for image in images):
        raise DataError(
            f"{source} has no readable image to train on: add some, or give --unlabeled"
        )
    why = {
        name: f" ({left_out[image.path]})"
        for image in seen
        if image.path in left_out
        for name in image.classes
    }
    _require_classes(source, names, {name for name in names if labeled and not counts[name]}, why)
    aside = overlooked(source, listed) if source.is_dir() else []
    reader = Table(
        str((folder / _TABLE).absolute()), places or None, named, label_separator=label_separator
    )
    if label_separator is not None:
        # imports torch, which nothing else here needs
        from kdpl.data.tasks import build_task

        build_task(reader.task).require_classes([names[key].name for key in sorted(names)])
    elsewhere = {image.path for image in further}
    _write_table(folder, [image for image in images if image.path not in elsewhere], reader)
    skips = _write_left_out(folder, reader, {image.path for image in images}, left_out)
    notes = {HELD_OUT: "a quarter of each class, held out"}
    before, after = ({image.split for image in some} for some in (good, images))
    if "val" in after - before:
        least = "" if validated else f" with {_VAL_LEAST} labels or more"
        shown = f"{validated or _VAL_SHARE:.0%} of each class{least}"
        notes["val"] = f"{shown}, split off (--val-share)"
    _write_config(folder, images, "val" in notes, reader, skips, shots)
    # last, since the reader of a pipe may close it
    _print(source, images, names, shots, notes)
    _print_lines("not taken", aside)
    _print_lines("left out", [*left_out.values()], f", all in {_LEFT_OUT}")
    if label_separator is None:
        # it decides by itself if its targets are better than the teacher's predictions
        _print_next(folder, "quickstart", " --student refined")
    else:
        # the teacher's view of a whole image, and a network of 32 pixels, are hardly above chance
        _print_next(folder, "quickstart_timm_64", " --student local_views")
    return 0


def _print_next(folder: Path, small: str, overlay: str) -> None:
    def command(trainer: str, teacher: str, student: str, ending: str, more: str = "") -> str:
        at = folder.absolute()
        paths = at / _CONFIG, at.with_name(f"{at.name}_{ending}")
        config, out = (shlex.quote(str(path)) for path in paths)
        stages = f"--teacher {teacher} --student {student}{overlay}{more}"
        return (
            f"python -m kdpl run --config {config} --config trainer/{trainer} {stages} --out {out}"
        )

    print(
        "  to try things out in minutes, offline and without a GPU, with miniature CLIPs that know "
        "letters and digits:"
    )
    print(f"    {command('cpu', 'quickstart', small, 'offline', f' {_AFFINE}')}")
    gpu = shutil.which("nvidia-smi") is not None
    if not gpu:
        print(
            "  no GPU was found: with the published models, training takes a day or more without "
            "one"
        )
    print(f"wrote {folder / _CONFIG} and {folder / _TABLE}; next:")
    print(command("gpu" if gpu else "cpu", "promptsrc_vit_l14", "promptkd_vit_b16", "run"))


def _with_validation(images: list[FoundImage], share: float | None) -> list[FoundImage]:
    """Split validation images off the labelled ones if there are none, unless ``share`` is 0.

    None: split them off if there are enough labels.
    """
    if share == 0 or any(image.split == "val" for image in images):
        return images
    if share:
        return set_aside(images, "val", share)
    divided = set_aside(images, "val", _VAL_SHARE, _VAL_LEAST)
    # fewer would be too few for all that they are for
    return divided if _validating(divided) >= min(ENOUGH.values()) else images


def _copy(image: FoundImage, kept: FoundImage) -> str:
    other = (
        f" of class {visible(kept.label)}, not {visible(image.label)}: correct one of the labels"
    )
    contrary = image.label and kept.label and image.label != kept.label
    return f"{image.path} is a copy of {kept.path} ({kept.split}){other if contrary else ''}"


def _require_classes(
    path: Path, names: Mapping[str, ClassName], untrained: set[str], why: Mapping[str, str]
) -> None:
    if len(names) == 1:
        raise DataError(
            f"{path} has one class, {visible(min(names))!r}, expected several: write a name on "
            "each line of --class-names, or give the folder above"
        )
    for label, named in sorted(names.items()):
        fault = fault_of_name(label) or fault_of_name(named.name)
        if label != label.strip():
            # cells of a table have none
            fault = f"begins or ends with a space ({label!r})"
        if fault:
            raise DataError(f"{path} has a class name that {fault}: rename the class")
        if label in untrained:
            raise DataError(
                f"class {label!r} in {path} has no usable training image{why.get(label, '')}: "
                "add some, or remove it"
            )


def _counts(images: list[FoundImage]) -> Counter[str]:
    return Counter(name for image in images if image.split == "train" for name in image.classes)


def _print(
    path: Path,
    images: list[FoundImage],
    names: Mapping[str, ClassName],
    shots: int | None,
    notes: Mapping[str, str],
) -> None:
    several = any(image.separator is not None for image in images)
    labeled = {names[label].name: count for label, count in _counts(images).items()}
    tested = {
        names[name].name
        for image in images
        if image.split in ("test", HELD_OUT)
        for name in image.classes
    }
    splits = Counter("unlabelled" if not image.label else image.split for image in images)
    edges = {edge for image in images if image.size for edge in image.size}
    pixels = f"{min(edges)} to {max(edges)}" if len(edges) > 1 else f"{min(edges)}"
    print(f"{path}: {len(names)} classes, {len(images)} images of {pixels} pixels an edge")
    for split, count in splits.items():
        note = f", {notes[split]} by chance with seed 0" if split in notes else ""
        print(f"  {'test' if split == HELD_OUT else split}: {count}{note}")
    if none := sum(bool(image.label) and not image.classes for image in images):
        print(f"  of none of the classes: {none} of these")
    fewest = sorted(labeled.items(), key=lambda item: item[1])
    trained = _some([f"{name} ({count})" for name, count in fewest])
    print(
        "  labelled to train on: "
        f"{trained or 'none, so that the teacher is the original CLIP (zero-shot)'}"
    )
    if poor := [name for name, count in fewest if count < _FEW]:
        print(f"  fewer than {_FEW} of: {_some(poor)}: label more if you can")
    seen = {name: count if shots is None else min(shots, count) for name, count in fewest}
    if unused := sum(labeled.values()) - sum(seen.values()):
        print(
            f"  {unused} of these {sum(labeled.values())} labels are used in no stage, as "
            f"--shots is {shots}"
        )
    if fewest and not several and max(seen.values()) > _UNEVEN * max(1, fewest[0][1]):
        print(f"  very different numbers of labels: {_BALANCE}")
    if not tested:
        print(
            "  no test image: label some, in test/<class>/ or with split test, to measure the "
            "accuracy"
        )
    elif untested := sorted({each.name for each in names.values()} - tested):
        print(f"  no test image of: {_some(untested)}: label more of their images")
    if labeled and shots != 0 and not several:
        _print_validation(_validating(images), splits["val"])
    elif labeled and shots != 0 and not splits["val"]:
        print(
            "  no validation image: thresholds of classes rest on unlabelled images, until "
            "python -m kdpl thresholds chooses them"
        )
    if uninformative := [each.name for _, each in sorted(names.items()) if _is_uninformative(each)]:
        words = (
            "give words for all classes by --class-names, "
            f"a .csv with lines such as {uninformative[0]},WORDS"
        )
        print(f"  names that tell the text tower nothing: {_some(uninformative)}: {words}")
    print(
        "  the default augmentation crops and mirrors: for digits, letters, or left and right, "
        "add to the last command"
    )
    print(f"    {_AFFINE}")
    if plain := [visible(image.path) for image in images if image.plain]:
        print(
            f"  images of one colour, or nearly so: {len(plain)} ({_some(plain)}): look whether "
            "they show anything"
        )


def _validating(images: Iterable[FoundImage]) -> int:
    """Count the validation images of different groups, as only these count for bounds."""
    return len({image.group or image.path for image in images if image.split == "val"})


def _print_validation(number: int, images: int) -> None:
    """Say if so many validation images are enough, or what it costs that there are none."""
    if not number:
        print(_WITHOUT_VALIDATION)
    if short := [f"{least} for {what}" for what, least in ENOUGH.items() if least > number]:
        of_groups = ", one of each group" if number < images else ""
        print(f"  validation images{of_groups}: {number}; enough would be {', '.join(short)}")


def _print_lines(title: str, lines: Sequence[str], where: str = "") -> None:
    for line in lines[:_NAMED]:
        print(f"  {title}: {visible(line)}")
    if len(lines) > _NAMED:
        print(f"  {title}: {len(lines) - _NAMED} more{where}")


def _is_uninformative(named: ClassName) -> bool:
    texts = named.text if isinstance(named.text, tuple) else (named.text or named.name,)
    return all(map(_UNINFORMATIVE.fullmatch, texts))


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _write_table(out: Path, images: Sequence[FoundImage], reader: Table) -> None:
    unknown = "" if reader.label_separator is None else UNKNOWN
    header = ("image", "label", "split", "group")
    rows = [(image.path, image.label or unknown, image.split, image.group) for image in images]
    columns = len(header) if any(image.group for image in images) else len(header) - 1
    write_rows(out / _TABLE, [row[:columns] for row in (header, *rows)])


def _write_left_out(out: Path, reader: Table, kept: set[str], left_out: dict[str, str]) -> bool:
    """Write the images that are left out; returns whether a run needs the file."""
    kept = kept | {os.path.normpath(path) for path in kept}
    more = {
        source: f"{source} is listed under another name"
        for source in reader.read().sources
        if source not in kept
    }
    (out / _LEFT_OUT).unlink(missing_ok=True)
    if left_out or more:
        write_rows(out / _LEFT_OUT, [("image", "why"), *(more | left_out).items()])
    return bool(more)


def _write_config(
    out: Path,
    images: list[FoundImage],
    split_off: bool,
    reader: Table,
    skips: bool,
    shots: int | None,
) -> None:
    smallest = min(_counts(images).values(), default=0)
    if not smallest or shots == 0:
        taken = "0  # no labelled image is used, but to test"
    elif shots is None:
        taken = (
            f"null  # all labelled images, of the smallest class {smallest}; "
            "a number takes at most so many a class"
        )
    else:
        taken = f"{shots}  # labelled images a class; the smallest class has {smallest}"
    splits = {image.split for image in images}
    test = "its test images are yours" if "test" in splits else "there are no test images"
    if HELD_OUT in splits:
        test = "its test images were held out of your labelled ones, by chance"
    if split_off:
        test += ", and its validation images were split off them"
    given = {
        "root": reader.root,
        "unlabeled": reader.unlabeled,
        "class_names": reader.class_names,
        "label_separator": reader.label_separator,
        "skip_list": str((out / _LEFT_OUT).absolute()) if skips else None,
        "allow_fewer_shots": True if smallest else None,
    }
    comments = {
        "skip_list": "  # unusable images, and copies",
        "allow_fewer_shots": "  # classes with fewer images give all they have",
    }
    settings = "".join(
        f"    {name}: {json.dumps(value, ensure_ascii=False)}{comments.get(name, '')}\n"
        for name, value in given.items()
        if value is not None
    )
    text = f"""\
# Written by python -m kdpl init;
# {test}.
# {_TABLE} lists the images: to move one to another split, or to leave one out, edit its row.
data:
  class_path: kdpl.DomainDataModule
  init_args:
    dataset: table
{settings}\
    shots: {taken}
    val_shots: null  # validate on all validation images, if there are any
    # augmentation: light_affine  # where a mirrored or closely cropped image would be of \
another class
    # protocol: base_to_novel  # to measure the accuracy on classes that the teacher had no \
labels of
"""
    write_text(out / _CONFIG, text)
