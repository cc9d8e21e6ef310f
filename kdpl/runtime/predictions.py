"""Predictions and accuracies of a test in a run's folder, and what an estimate expected."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kdpl.errors import ArtifactError
from kdpl.runtime.files import read_json, read_rows, write_json, write_rows
from kdpl.runtime.run_folder import (
    CHOICE_FILE,
    DATA_FOLDER,
    ESTIMATE,
    ESTIMATED,
    PREDICTIONS_FILE,
    RESULTS_FILE,
)


@dataclass(frozen=True)
class ImagePrediction:
    """Class predicted for a test image, out of all classes, with its probability.

    ``label`` and ``prediction`` are names to show, possibly shared by several classes; the numbers
    tell classes apart. ``half_prediction_number`` is predicted out of only the base or only the
    novel classes, whichever include the label; None without such a split.
    """

    index: int
    source: str
    label: str
    prediction: str
    probability: float
    label_number: int
    prediction_number: int
    half_prediction_number: int | None = None

    @property
    def correct(self) -> bool:
        """True if the prediction is the label."""
        return self.prediction_number == self.label_number


def write_predictions(folder: Path, predictions: Iterable[ImagePrediction]) -> None:
    """Write predictions into a run's folder, in the order of the test split."""
    # one row per image, without the last column if there is no split into halves
    rows = [
        {**asdict(p), "probability": f"{p.probability:.6f}"}
        for p in sorted(predictions, key=lambda p: p.index)
    ]
    columns = list(ImagePrediction.__annotations__)
    if all(row[columns[-1]] is None for row in rows):
        columns.pop()
    lines = ([row[name] for name in columns] for row in rows)
    write_rows(folder / PREDICTIONS_FILE, [columns, *lines])


def read_predictions(folder: Path) -> list[ImagePrediction]:
    """Read a run's predictions; empty if it was not tested yet."""
    file = folder / PREDICTIONS_FILE
    if not file.is_file():
        return []
    rows = read_rows(file)
    if rows and "label" not in rows[0]:
        raise ArtifactError(
            f"{file} has predictions of several labels an image, expected one class for each: read "
            f"{RESULTS_FILE} and per_class.csv beside it instead"
        )
    # only paths may hold bytes that are not UTF-8: raise if a class name does
    "".join(row["label"] + row["prediction"] for row in rows).encode()
    kinds = ImagePrediction.__annotations__ | {"half_prediction_number": int}
    return [
        ImagePrediction(**{name: kinds[name](text) for name, text in row.items() if name in kinds})
        for row in rows
    ]


def write_results(folder: Path, images: int, metrics: Mapping[str, float]) -> None:
    """Write the number of test images and the accuracies, last: the file marks a finished test."""
    write_json(folder / RESULTS_FILE, {"images": images, **metrics})


def read_results(folder: Path) -> dict[str, float]:
    """Read a run's test accuracies, fractions by metric name; empty if it was not tested yet."""
    file = folder / RESULTS_FILE
    results: dict[str, float] = read_json(file) if file.is_file() else {}
    return results


def read_estimate(run: Path) -> tuple[float, float, float] | None:
    """Return the student's accuracy and its interval that an estimate expected.

    The estimate for the same images is kept next to the folder of the whole run; None without one.
    """
    try:
        path = read_json(run / DATA_FOLDER / CHOICE_FILE)["path"]
        kept = read_json(run.with_name(f"{Path(path).name}{ESTIMATE}") / ESTIMATED)
        value, (low, high) = kept["student"]["value"], kept["student"]["interval"]
        return (float(value), float(low), float(high)) if kept["path"] == path else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
