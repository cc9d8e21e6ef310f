"""``python -m kdpl data check``: is a dataset whole, and can every image of it be decoded?"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL.Image import Image

from kdpl.data.parallel import in_parallel
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.data.readers.registry import read_dataset
from kdpl.data.scan import fault_of
from kdpl.data.splits import Splits

_FEW = 12  # class names that are shown in full


def check(name: str, workers: int | None = None, **options: Any) -> bool:  # noqa: ANN401 - each of a type of its own
    """Print what a dataset holds and every fault: classes without images, images that cannot be decoded.

    Args:
        name: A dataset of the registry.
        workers: Processes that decode; None: one for each processor core; 1: this process alone.
        options: What the dataset takes (``root``, ``unlabeled``, ``class_names``).

    Returns:
        Whether it is whole: every split has the classes that the dataset is known to have, and every image decodes.

    Raises:
        DataError: If the dataset cannot be read at all.
    """
    splits = read_dataset(name, **options)
    benchmark = BENCHMARKS.get(name)
    print(splits.origin)
    print(f"classes: {_shown(splits.class_names)}")
    faults = list(_count_faults(splits, benchmark.num_classes if benchmark else None))
    for fault in faults:
        print(fault)
    sources = splits.sources
    num_bad = 0
    for fault in decode_all(sources, splits.open_image, workers):
        print(fault, flush=True)
        num_bad += 1
    print(f"{len(sources)} images decoded, {num_bad} of them bad")
    return not faults and not num_bad


def decode_all(sources: Sequence[str], open_image: Callable[[str], Image], workers: int | None = None) -> Iterator[str]:
    """Decode every image once, under a progress bar on standard error, and say of each that fails what is wrong.

    Args:
        sources: What ``open_image`` takes.
        open_image: A function at module level.
        workers: Processes; None: one for each processor core; 1: this process alone.
    """
    look = partial(fault_of, open_image=open_image)
    return filter(None, in_parallel(look, sources, "decoding", workers))


def _count_faults(splits: Splits, num_classes: int | None) -> Iterator[str]:
    if num_classes is not None and len(splits.class_names) != num_classes:
        yield f"wrong: {len(splits.class_names)} classes where the dataset has {num_classes}."
    for name, records in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        counts = Counter(record.label for record in records)
        print(f"{name + ':':<10}{len(records)} images of {len(counts)} classes")
        if num_classes is not None and records and len(counts) != num_classes:
            without = [repr(each) for label, each in enumerate(splits.class_names) if label not in counts]
            named = f"; without images: {_shown(without)}" if without else ""
            yield f"wrong: {name} has images of {len(counts)} classes where the dataset has {num_classes}{named}."
    if splits.unlabeled is not None:
        print(f"unlabeled: {len(splits.unlabeled)} images")


def _shown(names: Sequence[str]) -> str:
    shown = names if len(names) <= _FEW else [*names[: _FEW // 2], "…", names[-1]]
    return f"{', '.join(shown)} ({len(names)})"
