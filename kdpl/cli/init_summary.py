"""What ``init`` prints: the survey of the images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdpl.data.class_mapping import ClassName
from kdpl.data.readers.table import HELD_OUT
from kdpl.data.survey import FoundImage
from kdpl.errors import visible

_SHOWN = 10  # classes on the terminal
_NAMED = 100  # images left out


def print_survey(
    path: Path,
    images: list[FoundImage],
    names: Mapping[str, ClassName],
    notes: Mapping[str, str],
    affine: str | None,
    left_out: Sequence[str],
) -> None:
    """Print the survey: splits, labels to train on, and images that are left out and why."""
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

    # labels of each class, the fewest first
    fewest = sorted(training_counts(images).items(), key=lambda item: item[1])
    trained = ", ".join(f"{names[label].name} ({count})" for label, count in fewest[:_SHOWN])
    trained += f" and {len(fewest) - _SHOWN} more" if len(fewest) > _SHOWN else ""
    print(
        "  labelled to train on: "
        f"{trained or 'none, so that the teacher is the original CLIP (zero-shot)'}"
    )
    if affine:
        print(f"  images are not mirrored (augmentation light_affine), since {affine}")

    # images that are left out
    for line in left_out[:_NAMED]:
        print(f"  left out: {visible(line)}")
    if len(left_out) > _NAMED:
        print(f"  left out: {len(left_out) - _NAMED} more, all in left_out.csv")


def training_counts(images: list[FoundImage]) -> Counter[str]:
    """Count the training images of each class."""
    return Counter(name for image in images if image.split == "train" for name in image.classes)


def count_validating(images: Iterable[FoundImage]) -> int:
    """Count the validation images of different groups, since only these count for bounds."""
    return len({image.group or image.path for image in images if image.split == "val"})
