"""Pictures of a run: learning curves, confusion matrix, a sheet of test images with answers.

They need matplotlib, which is in the extra ``quickstart``.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from kdpl.runtime.disagreements import spread
from kdpl.runtime.files import atomic_path
from kdpl.runtime.predictions import Answer

Curves = Mapping[str, Sequence[tuple[int, float]]]

_NAMED_CLASSES = 40
_RIGHT, _WRONG = "#1a7f37", "#c62828"
_LABELS = {"acc": "all classes", "base_acc": "base classes", "novel_acc": "novel classes", "hm": "harmonic mean"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_curves(curves: Curves, path: Path) -> None:
    """Draw the training loss and the validation accuracies over the epochs.

    Args:
        curves: (step, value) pairs by metric name, as ``read_metrics`` gives them; ``epoch`` among them.
        path: PNG file to write.
    """
    epoch_of = dict(curves.get("epoch", []))
    panels: dict[str, dict[str, Sequence[tuple[int, float]]]] = {
        "training loss": {"loss": curves.get("train/loss", [])},
        "validation accuracy, %": {
            label: [(s, 100 * v) for s, v in curves.get(f"val/{key}", [])] for key, label in _LABELS.items()
        },
    }
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        drawn = {label: line for label, line in lines.items() if line}
        for label, line in drawn.items():
            epochs = [epoch_of.get(step, step) + 1 for step, _ in line]
            axis.plot(epochs, [value for _, value in line], marker="." if len(line) < 30 else "", label=label)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(drawn) > 1:
            axis.legend(frameon=False, fontsize=9)
        if not drawn:
            axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes, color="0.5")
    _save(figure, path)


def draw_confusion(answers: Sequence[Answer], class_names: Sequence[str], path: Path) -> None:
    """Draw which class was answered for which, as shares of each class's images.

    Args:
        answers: The answers on the test images.
        class_names: All class names, in order.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    number = {name: i for i, name in enumerate(class_names)}
    counts = np.zeros((len(class_names), len(class_names)))
    for answer in answers:
        counts[number[answer.label], number[answer.prediction]] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.42 * min(len(class_names), 16)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, label="share of the class's images")
    axis.set_xlabel("answered")
    axis.set_ylabel("true class")
    if len(class_names) <= _NAMED_CLASSES:
        labels = [_short(name, 24) for name in class_names]
        style: dict[str, Any] = {"fontsize": 8, "parse_math": False}
        axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", **style)
        axis.set_yticks(range(len(labels)), labels, **style)
    if len(class_names) <= 16:
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=7, color=colour)
    right = sum(a.label == a.prediction for a in answers)
    axis.set_title(f"{right} of {len(answers)} test images right", loc="left", fontsize=10)
    _save(figure, path)


def choose_for_sheet(student: Sequence[Answer], teacher: Sequence[Answer], count: int = 40) -> list[int]:
    """Choose test images to show: half of them among those that teacher or student got wrong, the rest evenly spread.

    Args:
        student: The student's answers.
        teacher: The teacher's answers on the same images, in the same order.
        count: How many images at most.

    Returns:
        Positions in ``student``, in order.
    """
    wrong = [
        i for i, (s, t) in enumerate(zip(student, teacher, strict=True)) if {s.prediction, t.prediction} != {s.label}
    ]
    chosen = set(spread(wrong, count // 2))
    rest = [i for i in range(len(student)) if i not in chosen and i not in set(wrong)]
    return sorted(chosen | set(spread(rest, count - len(chosen))))


def draw_sheet(
    images: Sequence[Image],
    student: Sequence[Answer],
    teacher: Sequence[Answer],
    path: Path,
    chosen: str = "mistakes are over-represented",
) -> None:
    """Draw images with the true class and what teacher and student answered.

    Args:
        images: The images, of any size.
        student: The student's answers, one per image.
        teacher: The teacher's answers, one per image.
        path: PNG file to write.
        chosen: Which images these are, for the title.
    """
    from matplotlib.figure import Figure

    columns = min(8, max(1, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.95 * rows + 0.5), layout="constrained")
    figure.suptitle(
        f"true class, teacher's answer (T) and student's (S); {chosen}",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, mine, theirs in zip(axes, images, student, teacher, strict=False):
        axis.imshow(np.asarray(image), interpolation="nearest" if image.width < 100 else "antialiased")
        axis.set_title(_short(mine.label), fontsize=8, pad=3, parse_math=False)
        for line, (letter, answer) in enumerate((("T", theirs), ("S", mine))):
            axis.text(
                0.5,
                -0.05 - 0.15 * line,
                f"{letter} {_short(answer.prediction)} {100 * answer.probability:.0f} %",
                transform=axis.transAxes,
                ha="center",
                va="top",
                fontsize=7.5,
                parse_math=False,
                color=_RIGHT if answer.prediction == answer.label else _WRONG,
            )
    _save(figure, path)


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib is imported by those who draw
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
