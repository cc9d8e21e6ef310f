"""What a run answered on the test images: a CSV file and the accuracies beside it."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdpl.runtime.files import atomic_path

PREDICTIONS_FILE = "test_predictions.csv"
RESULTS_FILE = "test.json"
_NO_UTF8 = "surrogateescape"  # how Python has a path that is no UTF-8; it is written as the bytes that it is
_COLUMNS = ("index", "source", "label", "prediction", "probability")


@dataclass(frozen=True)
class Answer:
    """One test image and what was said of it.

    Attributes:
        index: Position in the test split.
        source: File or name of the image.
        label: The class it is of.
        prediction: The class that was answered, of all classes.
        probability: Softmax of the answer over all classes.
    """

    index: int
    source: str
    label: str
    prediction: str
    probability: float


def write_answers(folder: Path, answers: Iterable[Answer]) -> None:
    """Write the answers into a run's folder, in the order of the test split."""
    rows = sorted(answers, key=lambda a: a.index)
    with (
        atomic_path(folder / PREDICTIONS_FILE) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=_NO_UTF8) as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([a.index, a.source, a.label, a.prediction, f"{a.probability:.6f}"] for a in rows)


def write_results(folder: Path, images: int, metrics: Mapping[str, float]) -> None:
    """Write the accuracies of so many images, which stand for a finished test: after all else that a test leaves."""
    with atomic_path(folder / RESULTS_FILE) as temporary:
        temporary.write_text(json.dumps({"images": images, **metrics}, indent=2), encoding="utf-8")


def read_answers(folder: Path) -> list[Answer]:
    """Read a run's answers; none if it was not tested yet."""
    file = folder / PREDICTIONS_FILE
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors=_NO_UTF8) as lines:
        rows = list(csv.DictReader(lines))
    # raises where one is no UTF-8: paths alone may be anything
    "".join(row["label"] + row["prediction"] for row in rows).encode()
    return [
        Answer(int(row["index"]), row["source"], row["label"], row["prediction"], float(row["probability"]))
        for row in rows
    ]


def read_results(folder: Path) -> dict[str, float]:
    """Read a run's test accuracies, fractions by metric name; empty if it was not tested yet."""
    file = folder / RESULTS_FILE
    if not file.is_file():
        return {}
    try:
        results: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("lists within lists without end") from error
    if not isinstance(results, dict):
        raise ValueError("it is no JSON object")
    return results
