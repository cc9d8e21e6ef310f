"""The report's section on several labels, with a linear probe: a regression for each class."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kdpl.data.labels import EvaluationSplit
from kdpl.data.probe import STRENGTHS, logistic_regression, scale_of
from kdpl.data.sampling import spread
from kdpl.errors import ArtifactError, reason
from kdpl.metrics import BASE_MAP, CHANCE, MACRO_F1, MAP, MICRO_F1, MULTILABEL_COLUMNS, test_key
from kdpl.multilabel.callback import PER_CLASS_FILE
from kdpl.multilabel.metrics import class_scores
from kdpl.multilabel.task import MultiLabel
from kdpl.report.accuracy import titles_of, with_thumbnails
from kdpl.report.page import Section
from kdpl.report.probes import clip_of, encode, load_encoder, require_probe
from kdpl.report.run_folder import Run, attempt
from kdpl.runtime.files import read_rows
from kdpl.runtime.predictions import write_results
from kdpl.runtime.run_folder import PREDICTIONS_FILE, PROBE_FOLDER
from kdpl.tasks import SEPARATOR

METRICS = {name: MULTILABEL_COLUMNS[name] for name in (MAP, MACRO_F1, MICRO_F1)}

_DRAWS, _SHOWN, _MATRIX_CLASSES = 500, 12, 40


def several_labels(run: Run) -> dict[str, Any]:
    """Collect scores of all tested models and probes, and classes and images of the last one."""
    tested, probes, gaps = dict[str, list[float]](), dict[str, float](), list[str]()
    titles = titles_of(run)
    for key, title in titles.items():
        stage = getattr(run, key, None)  # a probe is none
        results = {} if stage is None else stage.results
        if test_key(MAP) in results:
            tested[title] = [results[test_key(name)] for name in METRICS]
    labelled = run.main.settings("data").get("shots") != 0
    for role in run.stages if labelled else ():
        title = titles[f"{role}_probe"]
        precision, gap = attempt(partial(linear_probe, run, role))
        if precision is None:
            gaps.append(f"{title}: {gap}")
        else:
            probes[title] = precision
    tested |= {title: [precision] for title, precision in probes.items()}
    if (chance := run.main.results.get(test_key(CHANCE))) is not None:
        tested[CHANCE] = [chance]

    # the student over the classes that a probe has
    key = test_key(MAP if run.vectors.num_base is None else BASE_MAP)
    of_student = {} if run.student is None else run.student.results

    folder = run.main.folder
    try:
        rows, classes = (read_rows(folder / name) for name in (PREDICTIONS_FILE, PER_CLASS_FILE))
        names = [row["class"] for row in classes]
        labels, predicted = (
            np.array([[name in row[column].split(SEPARATOR) for name in names] for row in rows])
            for column in ("labels", "predicted")
        )
        numbers = [[float(p) for p in row["probabilities"].split(SEPARATOR)] for row in rows]
        intervals = [
            average_precision_interval(scores, has)
            for scores, has in zip(np.array(numbers).T, labels.T, strict=True)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"the test of {folder} is missing or damaged ({reason(error)}): run it again"
        ) from error

    # mAP at the top of the page: role, share and words of each tile
    shown = {"teacher": titles["teacher"], "student": titles["student"], CHANCE: CHANCE}
    tiles = [
        (role, tested[title][0], f"mAP of {title}")
        for role, title in shown.items()
        if title in tested
    ]
    return {
        "tiles": tiles,
        "models": tested,
        "verdict": below_probes(of_student.get(key, 1.0), probes),
        "gaps": gaps,
        "metrics": METRICS.values(),
        "images": len(rows),
        "classes": list(zip(classes, intervals, strict=True)),
        "names": names if len(names) <= _MATRIX_CLASSES else None,
        # images with the label of the row and the prediction of the column
        "together": (labels.T.astype(float) @ predicted).astype(int).tolist(),
        "having": labels.sum(axis=0).tolist(),
        **with_thumbnails(lambda: run.data, map(_example, spread(rows, _SHOWN))),
    }


def below_probes(student: float, probes: Mapping[str, float]) -> str | None:
    """Return a sentence if the student's test mAP is below the mAP of a probe, by title."""
    better = [
        f"the {title} ({100 * precision:.1f} %)"
        for title, precision in probes.items()
        if precision > student
    ]
    if not better:
        return None
    return (
        f"The student's mAP is {100 * student:.1f} %, less than with the same labels "
        f"{' and '.join(better)}: label more images, or see docs/several_labels.md."
    )


def average_precision_interval(
    scores: npt.NDArray[np.float64], has: npt.NDArray[np.bool_]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a class's average precision, by bootstrap over images.

    Scores and labels are [N]. None if no image has the class; draws without a positive image are
    left out.
    """
    if not has.any():
        return None
    # how often a draw has each image, by falling score
    order = np.argsort(-scores, kind="stable")
    drawn = np.random.default_rng(0).multinomial(len(has), [1 / len(has)] * len(has), _DRAWS)
    weights, is_hit = drawn[:, order], has[order]

    # the mean precision at the positive images of a draw
    hits = (weights * is_hit).cumsum(axis=1)
    precisions = hits / weights.cumsum(axis=1).clip(min=1)
    positives = hits[:, -1]
    averages = (precisions * weights * is_hit).sum(axis=1)[positives > 0] / positives[positives > 0]
    low, high = np.quantile(averages, [0.025, 0.975])
    return float(low), float(high)


def _example(row: dict[str, str]) -> dict[str, Any]:
    labels, predicted = (
        [name for name in row[column].split(SEPARATOR) if name]
        for column in ("labels", "predicted")
    )
    judged = [(name, name in labels) for name in predicted]
    missing = [name for name in labels if name not in predicted]
    return {"source": row["source"], "said": judged, "missing": missing}


def linear_probe(run: Run, role: str) -> float:
    """Return the test mAP of a probe on the network of a run's ``teacher`` or ``student``.

    The probe learns from the teacher's labels; with ``base_to_novel``, it has only the base
    classes. The result is kept in the run's folder, next to the results of the stages.
    """
    config, data = clip_of(run.stages[role]), run.labeled.data
    require_probe(config, data)

    clip, classes = load_encoder(config), len(data.tuning_class_names)

    def encoded(split: EvaluationSplit) -> tuple[Tensor, Tensor]:
        features, labels = encode(clip, data, split)
        return features, labels[:, :classes]

    labeled, test = encoded("labeled"), encoded("test")
    val = encoded("val") if data.splits.val else None
    precision = probed_map(labeled, val, test)
    key = test_key(MAP if data.num_base is None else BASE_MAP)
    if not run.read_only:
        write_results(run.folder / PROBE_FOLDER / role, len(test[0]), {key: precision})
    return precision


def probed_map(
    labeled: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, test: tuple[Tensor, Tensor]
) -> float:
    """Fit a probe, and return its mean average precision on test images.

    Features are centred on the labelled images, and scaled to a total variance of one. A class that
    all or none of the labelled images have is not learned.

    Args:
        labeled: Normalised features float32 [N, D] and labels, 0 or 1, [N, C], to learn from.
        val: Features and labels that choose among ``STRENGTHS``; None: the first strength is used.
        test: Features and labels to measure on.
    """
    mean, scale = scale_of(labeled[0])
    rows, classes = (labeled[0] - mean) / scale, labeled[1].bool().T

    def fit(strength: float) -> tuple[Tensor, Tensor]:
        weights, biases = rows.new_zeros(rows.shape[1], len(classes)), rows.new_zeros(len(classes))
        for label, has in enumerate(classes):
            if has.any() and not has.all():
                weight, bias, _ = logistic_regression(rows, has, strength)
                weights[:, label], biases[label] = weight[:, 1], bias[1]
        return weights, biases

    def precision(probe: tuple[Tensor, Tensor], part: tuple[Tensor, Tensor]) -> float:
        logits = (part[0] - mean) / scale @ probe[0] + probe[1]
        return float(class_scores(logits, part[1], None).average_precision.nanmean())

    if val is None:
        return precision(fit(STRENGTHS[0]), test)
    return precision(max(map(fit, STRENGTHS), key=lambda probe: precision(probe, val)), test)


SECTION = Section(
    "Several labels",
    several_labels,
    Path(__file__).parent / "templates" / "several.html.jinja",
    "accuracy",
    task=MultiLabel.name,
)
