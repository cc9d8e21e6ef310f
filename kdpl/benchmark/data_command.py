"""``python -m kdpl data download|check NAME``: download or check a benchmark dataset."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

_FEW = 12  # largest number of class names printed in full


def data(
    action: Literal["download", "check"],
    name: str,
    *,
    root: str,
    workers: PositiveInt | None = None,
) -> int:
    """Download a benchmark dataset, or count its classes and decode every image.

    Args:
        action: download gets a dataset, and resumes if it was interrupted; check reads a downloaded
            one.
        name: A dataset of the benchmark, such as oxford_pets.
        root: The folder of all datasets.
        workers: Processes that decode; by default one for each processor core.
    """
    from kdpl.data.inspection import inspect
    from kdpl.data.readers.benchmark import BENCHMARKS, BenchmarkSet
    from kdpl.errors import ConfigError

    if name not in BENCHMARKS:
        raise ConfigError(
            f"dataset {name!r} is not part of the benchmark: choose one of {', '.join(BENCHMARKS)}"
        )
    if action == "download":
        from kdpl.benchmark.download import download

        return 0 if download(name, Path(root).expanduser()) else 1

    splits, expected = BenchmarkSet(name, root).read(), BENCHMARKS[name].num_classes
    print(splits.origin)
    print(f"classes: {_shown(splits.class_names)}")
    wrong = False
    if len(splits.class_names) != expected:
        print(f"wrong: {len(splits.class_names)} classes, expected {expected}")
        wrong = True
    for split, records in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        counts = Counter(record.label for record in records)
        print(f"{split + ':':<10}{len(records)} images of {len(counts)} classes")
        if records and len(counts) != expected:
            without = [repr(n) for label, n in enumerate(splits.class_names) if label not in counts]
            named = f"; without images: {_shown(without)}" if without else ""
            print(f"wrong: {split} has images of {len(counts)} classes, expected {expected}{named}")
            wrong = True

    num_bad = 0
    for image in inspect(splits.sources, "decoding", splits.open_image, workers=workers):
        if image.problem is not None:
            print(image.problem, flush=True)
            num_bad += 1
    print(f"{len(splits.sources)} images decoded, {num_bad} of them bad")
    return int(wrong or num_bad > 0)


def _shown(names: Sequence[str]) -> str:
    shown = names if len(names) <= _FEW else [*names[: _FEW // 2], "…", names[-1]]
    return f"{', '.join(shown)} ({len(names)})"
