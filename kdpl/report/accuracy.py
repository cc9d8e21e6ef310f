"""Accuracies, confusions and disagreements of teacher, student and their original CLIPs."""

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

from PIL.Image import Image

from kdpl.data.datamodule import DomainDataModule
from kdpl.data.sampling import spread
from kdpl.errors import ArtifactError
from kdpl.metrics import ACC, ACCURACY_TITLES, BASE_ACC
from kdpl.report.intervals import Scores, accuracy_of, paired_difference, scores_of
from kdpl.report.probes import linear_probe
from kdpl.report.run_folder import Pair, Run, Stage, attempt
from kdpl.report.training import name_of
from kdpl.runtime.predictions import ImagePrediction

MATRIX_CLASSES = 20
"""Largest number of classes for which a confusion matrix is readable."""

MAX_EXAMPLES = 30
"""Largest number of shown images on which teacher and student disagree."""

_EDGE = 112
_TITLES = {
    "teacher_clip": "teacher's original CLIP (zero-shot)",
    "teacher": "tuned teacher",
    "student_clip": "student's original CLIP (zero-shot)",
    "student": "distilled student",
    "teacher_probe": "linear probe of the teacher's CLIP",
    "student_probe": "linear probe of the student's network",
}


def titles_of(run: Run) -> dict[str, str]:
    """Return the titles of a run's models by key; an untuned teacher is the original CLIP."""
    titles = dict(_TITLES)
    if run.untuned:
        titles["teacher"] = titles.pop("teacher_clip")
    return titles


def accuracies(run: Run) -> dict[str, Any]:
    """Collect the accuracies of all tested models; an ArtifactError if none was tested."""
    titles = titles_of(run)
    main = "teacher" if run.student is None else "student"
    gaps, tested = [], dict[str, Scores]()
    labelled = run.main.settings("data").get("shots") != 0
    # score each model, or note why it has no scores
    for key, title in titles.items():
        role, _, kind = key.partition("_")
        if kind == "probe" and not (labelled and role in run.stages and main in tested):
            continue
        scores, gap = attempt(partial(_scores, run, key))
        if scores is None:
            gaps.append(f"{title}: {gap}")
        else:
            tested[key] = scores
    if not tested:
        raise ArtifactError(f"nothing of {run.folder} was tested: {'; '.join(gaps)}")
    models = {
        key: {name: accuracy_of(name, array[None]) for name, array in scores.items()}
        for key, scores in tested.items()
    }
    measured = set().union(*models.values())
    # teacher and student are paired if they were tested on the same images
    pairs, _ = attempt(lambda: run.pairs)
    difference = None
    if pairs and {"teacher", "student"} <= tested.keys():
        first, second = (tested[role][ACC][None] for role in ("teacher", "student"))
        difference = paired_difference(first, second)
    return {
        "columns": {key: title for key, title in ACCURACY_TITLES.items() if key in measured},
        "titles": titles,
        "models": models,
        "images": max(len(array) for scores in tested.values() for array in scores.values()),
        "gaps": gaps,
        "difference": difference,
        "verdict": against_probes(tested, advice_for(run)),
    }


def _scores(run: Run, key: str) -> Scores:
    role, _, kind = key.partition("_")
    if kind == "probe":
        return linear_probe(run, role)[0]
    stage: Stage | None = getattr(run, key)
    if stage is None:
        raise ArtifactError(f"not part of {run.folder}")
    return scores_of(run, stage)


def against_probes(tested: Mapping[str, Scores], advice: str) -> str | None:
    """Say how much more of the test images the student classifies correctly than linear probes.

    None without a probe. What can be done is added if one is better.
    """
    student, parts, share, worse = tested.get("student", {}), list[str](), "", False
    # a probe has one accuracy: of all classes, or of the base classes
    for role, network in {"student": "its own network", "teacher": "the teacher's CLIP"}.items():
        for key, probe in tested.get(f"{role}_probe", {}).items():
            if key not in student:
                continue
            more, (low, high) = paired_difference(probe[None], student[key][None])
            doubt = "" if low > 0 or high < 0 else ", not clear"
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}{doubt}"
            parts.append(f"{100 * more:+.1f} points ({interval}) with those of {network}")
            worse = worse or more < 0
            images = "test images of the base classes" if key == BASE_ACC else "test images"
            share = f"{100 * student[key].mean():.1f} % of the {images}"
    if not parts:
        return None
    return (
        f"The student classifies {share} correctly. Compared with logistic regression on frozen "
        f"features and the same labels: {' and '.join(parts)}"
        + (f". To improve it, {advice} (docs/targets.md)." if worse else ".")
    )


def advice_for(run: Run) -> str:
    """Name the remedies for a weak student that the run does not use yet."""
    target = None if run.student is None else run.student.settings("model").get("target")
    remedies = [] if name_of(target) in ("refined", "Refined") else ["--student refined"]
    if not (run.folder / "search").is_dir():
        remedies.append("--search")
    if not remedies:
        return "label more images, or train a student longer that is far below its teacher"
    return f"add {' or '.join(remedies)} and another --out to the command of run"


class ClassRow(NamedTuple):
    """Label, name and number of test images of a class, and the share correct by model."""

    number: int
    name: str
    images: int
    teacher: float | None
    student: float | None

    @property
    def difference(self) -> float | None:
        """The student's share minus the teacher's."""
        return None if self.teacher is None or self.student is None else self.student - self.teacher


def classes(run: Run) -> dict[str, Any]:
    """Collect accuracies by class; ``gap`` says why the teacher's are missing."""
    names, main = run.vectors.class_names, run.main.predictions
    if run.student is None:
        return {"rows": class_rows(names, main, None), "gap": None}
    teacher, gap = attempt(lambda: [prediction for prediction, _ in run.pairs])
    return {"rows": class_rows(names, teacher, main), "gap": gap}


def class_rows(
    names: Sequence[str],
    teacher: Sequence[ImagePrediction] | None,
    student: Sequence[ImagePrediction] | None,
) -> list[ClassRow]:
    """Count by class, the student's largest losses first; None for a model without a test."""
    images = Counter(p.label_number for p in student or teacher or ())
    correct = [
        None if predictions is None else Counter(p.label_number for p in predictions if p.correct)
        for predictions in (teacher, student)
    ]
    rows = []
    for i, name in enumerate(names):
        if images[i]:
            shares = [None if counts is None else counts[i] / images[i] for counts in correct]
            rows.append(ClassRow(i, name, images[i], *shares))
    # without a difference, the lowest accuracies first
    return sorted(
        rows, key=lambda r: next(x for x in (r.difference, r.student, r.teacher) if x is not None)
    )


def confusions(run: Run) -> dict[str, Any]:
    """Collect the largest confusions and, for a few classes, the confusion matrix."""
    names, predictions = run.vectors.class_names, run.main.predictions
    images = Counter(p.label_number for p in predictions)
    counts = Counter((p.label_number, p.prediction_number) for p in predictions)
    # true class, predicted class, images, share of the true class
    wrong = [
        (names[label], names[prediction], n, n / images[label])
        for (label, prediction), n in counts.items()
        if label != prediction
    ]
    # ties by name, so that the order is always the same
    wrong.sort(key=lambda row: (-row[2], row))
    numbers, readable = range(len(names)), len(names) <= MATRIX_CLASSES
    return {
        "who": "student" if run.student is not None else "teacher",
        "names": names,
        # rows are true classes
        "matrix": [[counts[i, j] for j in numbers] for i in numbers] if readable else None,
        # a longer list where there is no matrix
        "largest": wrong[: 10 if readable else 40],
        "wrong": sum(n for _, _, n, _ in wrong),
    }


def find_examples(run: Run) -> dict[str, Any]:
    """Count disagreements, and collect thumbnails of examples of each kind."""
    kinds = disagreements(run.pairs)
    examples = [
        {"teacher": teacher, "student": student, "source": student.source}
        for kind in kinds
        for teacher, student in spread(kind, MAX_EXAMPLES // len(kinds))
    ]
    counts = {"images": len(run.pairs), "kinds": [len(kind) for kind in kinds]}
    # the counts need no images
    return counts | with_thumbnails(run.tested_data, examples)


def disagreements(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Sort the differing pairs: only the teacher is correct, only the student, neither."""
    kinds: tuple[list[Pair], list[Pair], list[Pair]] = [], [], []
    for teacher, student in pairs:
        if teacher.prediction_number != student.prediction_number:
            kind = 0 if teacher.correct else 1 if student.correct else 2
            kinds[kind].append((teacher, student))
    return kinds


def with_thumbnails(
    load: Callable[[], DomainDataModule], examples: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add thumbnails to examples, each with the ``source`` of its image, as ``shown``.

    ``gap`` says why an image, the first such one, or all are left out; None if all are shown.
    """
    data, gap = attempt(load)
    if data is None:
        return {"shown": [], "gap": gap}
    shown = []
    for example in examples:
        image, problem = attempt(partial(data.splits.open_image, example["source"]))
        if image is not None:
            shown.append({**example, **thumbnail(image)})
        gap = gap or problem
    return {"shown": shown, "gap": gap}


def thumbnail(image: Image, edge: int = _EDGE) -> dict[str, Any]:
    """Return a data URI of an image of at most ``edge`` pixels, with its width and height."""
    small = image.convert("RGB")
    small.thumbnail((edge, edge))
    buffer = BytesIO()
    small.save(buffer, "webp", quality=80)
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "width": small.width, "height": small.height}
