"""What ``init`` prints: the survey of the images."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdpl.data.class_mapping import ClassName
from kdpl.data.readers.table import HELD_OUT
from kdpl.data.survey.found import FoundImage
from kdpl.errors import visible

_FEW = 4  # a class with fewer labelled images is named
_AFFINE = "--data.init_args.augmentation light_affine"
# names such as 7, class_07, n01440764
_UNINFORMATIVE = re.compile(r"([a-z]+[\W_]*)?\d+|[a-z]", re.IGNORECASE)
_SHOWN = 10  # of a list on the terminal
_NAMED = 100  # of images left out


def print_survey(
    path: Path,
    images: list[FoundImage],
    names: Mapping[str, ClassName],
    shots: int | None,
    notes: Mapping[str, str],
    affine: str | None,
) -> None:
    """Print the survey: splits, labels to train on, and what is missing or looks wrong."""
    labeled = {names[label].name: count for label, count in training_counts(images).items()}
    tested = {
        names[name].name
        for image in images
        if image.split in ("test", HELD_OUT)
        for name in image.classes
    }

    # size and splits
    splits = Counter("unlabelled" if not image.label else image.split for image in images)
    edges = {edge for image in images if image.size for edge in image.size}
    pixels = f"{min(edges)} to {max(edges)}" if len(edges) > 1 else f"{min(edges)}"
    print(f"{path}: {len(names)} classes, {len(images)} images of {pixels} pixels an edge")
    for split, count in splits.items():
        note = f", {notes[split]} by chance with seed 0" if split in notes else ""
        print(f"  {'test' if split == HELD_OUT else split}: {count}{note}")
    if none := sum(bool(image.label) and not image.classes for image in images):
        print(f"  of none of the classes: {none} of these")

    # labels of each class
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

    # test and validation images
    if not tested:
        print(
            "  no test image: label some, in test/<class>/ or with split test, to measure the "
            "accuracy"
        )
    elif untested := sorted({named.name for named in names.values()} - tested):
        print(f"  no test image of: {_some(untested)}: label more of their images")
    if labeled and shots != 0 and not splits["val"]:
        print(
            "  no validation image: to choose targets and thresholds, label some, in val/<class>/ "
            "or with split val, or take some of the labels above by init --val-share 20%"
        )

    # names and pictures that look wrong
    if numbers := [named.name for _, named in sorted(names.items()) if _is_uninformative(named)]:
        print(
            f"  names that tell the text tower nothing: {_some(numbers)}: give words for all "
            f"classes by --class-names, a .csv with lines such as {numbers[0]},WORDS"
        )
    if affine:
        print(f"  images are not mirrored (augmentation light_affine), since {affine}")
    else:
        print("  images are mirrored and cropped: if that would change the class of one, add")
        print(f"    {_AFFINE}")


def print_lines(title: str, lines: Sequence[str], where: str = "") -> None:
    """Print the first lines, and the number of the others with ``where`` to read them."""
    for line in lines[:_NAMED]:
        print(f"  {title}: {visible(line)}")
    if len(lines) > _NAMED:
        print(f"  {title}: {len(lines) - _NAMED} more{where}")


def training_counts(images: list[FoundImage]) -> Counter[str]:
    """Count the training images of each class."""
    return Counter(name for image in images if image.split == "train" for name in image.classes)


def count_validating(images: Iterable[FoundImage]) -> int:
    """Count the validation images of different groups, since only these count for bounds."""
    return len({image.group or image.path for image in images if image.split == "val"})


def _is_uninformative(named: ClassName) -> bool:
    return bool(_UNINFORMATIVE.fullmatch(named.text or named.name))


def _some(items: Sequence[str]) -> str:
    """Join the first items, with the number of the others."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
