"""Checking a dataset: its classes and counts, and whether every image can be decoded."""

from collections import Counter
from collections.abc import Iterator, Sequence

from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.data.readers.registry import build_reader
from kdpl.data.scan import faults_of
from kdpl.data.splits import Splits

_FEW = 12  # class names that are shown in full


def check(name: str, workers: int | None = None, **options: str | list[str] | None) -> bool:
    """Print the contents of a dataset and every fault: classes without images, images that cannot be decoded.

    Args:
        name: A dataset of the registry.
        workers: Processes that decode; see ``in_parallel``.
        options: Its settings (``root``, ``unlabeled``, ``class_names``).

    Returns:
        Whether every split has the classes that the dataset is known to have, and every image decodes.

    Raises:
        KdplError: The dataset cannot be read at all.
    """
    splits = build_reader(name, **options).read()
    print(splits.origin)
    print(f"classes: {_shown(splits.class_names)}")
    faults = list(_count_faults(splits, BENCHMARKS[name].num_classes if name in BENCHMARKS else None))
    for fault in faults:
        print(fault)
    num_bad = 0
    for _, fault in faults_of(splits.sources, splits.open_image, "decoding", workers):
        print(fault, flush=True)
        num_bad += 1
    print(f"{len(splits.sources)} images decoded, {num_bad} of them bad")
    return not faults and not num_bad


def _count_faults(splits: Splits, num_classes: int | None) -> Iterator[str]:
    if num_classes is not None and len(splits.class_names) != num_classes:
        yield f"wrong: {len(splits.class_names)} classes, expected {num_classes}"
    for name, records in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        counts = Counter(record.label for record in records)
        print(f"{name + ':':<10}{len(records)} images of {len(counts)} classes")
        if num_classes is not None and records and len(counts) != num_classes:
            without = [repr(each) for label, each in enumerate(splits.class_names) if label not in counts]
            named = f"; without images: {_shown(without)}" if without else ""
            yield f"wrong: {name} has images of {len(counts)} classes, expected {num_classes}{named}"
    if splits.unlabeled is not None:
        print(f"unlabeled: {len(splits.unlabeled)} images")


def _shown(names: Sequence[str]) -> str:
    shown = names if len(names) <= _FEW else [*names[: _FEW // 2], "…", names[-1]]
    return f"{', '.join(shown)} ({len(names)})"
