"""Pictures of a test, drawn with matplotlib: a confusion matrix and a sheet of test images."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image

from kdpl.data.domain import domain_of
from kdpl.errors import reason
from kdpl.report.accuracy import confusion_matrix
from kdpl.report.logged import log_picture
from kdpl.report.names import shorten
from kdpl.report.pairs import Pair
from kdpl.runtime.files import atomic_path
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.predictions import ImagePrediction, read_predictions, spread
from kdpl.runtime.run_folder import FIGURES_FOLDER
from kdpl.student import StudentDistillation
from kdpl.tasks import MULTI_CLASS

_MOST_CLASSES, _NAMED_CLASSES, _COUNTED_CLASSES = 200, 40, 16
_SHEET = 40
_CORRECT, _WRONG = "#1a7f37", "#c62828"


class DrawPictures(Callback):
    """Draws a confusion matrix and a sheet of test images after a test.

    The sheet shows a selection of them with the predictions of student and teacher. Without
    matplotlib it says so and draws nothing.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the predictions, beside those of the teacher if there are any."""
        if domain_of(trainer).task != MULTI_CLASS.name or not self._can_draw(trainer):
            return
        try:
            teacher = (
                pl_module.teacher_folder if isinstance(pl_module, StudentDistillation) else None
            )
            self._draw_test(trainer, teacher)
        except Exception as error:  # such as an image that is gone; the results are written
            warn(f"cannot draw pictures of the test ({reason(error)})")

    def _draw_test(self, trainer: Trainer, teacher_folder: Path | None) -> None:
        data = domain_of(trainer)
        predictions = read_predictions(Path(trainer.default_root_dir))
        if len(data.class_names) <= _MOST_CLASSES:
            _show(trainer, "confusion", partial(draw_confusion, predictions, data.class_names))
        else:
            inform(
                f"no picture of the confusions of {len(data.class_names)} classes: a report "
                "lists the largest ones"
            )
        teacher = read_predictions(teacher_folder) if teacher_folder is not None else []
        if [p.source for p in teacher] == [p.source for p in predictions]:
            pairs = list(zip(teacher, predictions, strict=True))
            chosen = [pairs[i] for i in choose_for_sheet(pairs)]
            images = [data.test_item(student.index)[1] for _, student in chosen]
            wrong = sum(not (teacher.correct and student.correct) for teacher, student in chosen)
            title = (
                f"{len(chosen)} of {len(pairs)} test images, "
                f"{wrong} of them misclassified by teacher or student"
            )
            _show(trainer, "test_images", partial(draw_sheet, images, chosen, title))

    def _can_draw(self, trainer: Trainer) -> bool:
        drawable = can_draw()
        if trainer.is_global_zero and not drawable:
            inform(
                "no pictures, because matplotlib is not installed: pip install 'kdpl[quickstart]'"
            )
        return trainer.is_global_zero and drawable


def can_draw() -> bool:
    """Return True if matplotlib is installed."""
    return find_spec("matplotlib") is not None


def _show(trainer: Trainer, name: str, draw: Callable[[Path], None]) -> None:
    import matplotlib

    path = Path(trainer.default_root_dir) / FIGURES_FOLDER / f"{name}.png"
    data = domain_of(trainer)
    try:
        with matplotlib.rc_context({"font.family": font_families(data.class_names)}):
            draw(path)
    except Exception as error:  # the results are written, and no picture is worth a test
        warn(f"cannot draw {path} ({reason(error)})")
        return
    log_picture(trainer.loggers, f"{FIGURES_FOLDER}/{name}", path)
    inform(f"picture: {path}")


@cache
def font_families(texts: tuple[str, ...]) -> list[str]:
    """Return matplotlib's own font, and installed ones with the characters that it lacks.

    Such characters are, for example, Chinese ones.
    """
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font

    families = ["DejaVu Sans"]
    missing = set(map(ord, "".join(texts))) - get_font(findfont(families[0])).get_charmap().keys()
    for path in findSystemFonts() if missing else ():
        font = get_font(path)
        if available := missing & font.get_charmap().keys():
            fontManager.addfont(path)  # it may be newer than matplotlib's list
            families.append(font.family_name)
            missing -= available
    if missing:
        warn(
            f"no installed font has the characters {''.join(map(chr, sorted(missing)[:5]))} of "
            "the class names"
        )
    return families


def draw_confusion(
    predictions: Sequence[ImagePrediction], class_names: Sequence[str], path: Path
) -> None:
    """Draw the confusion matrix of all classes, in order, as shares of each class's images."""
    from matplotlib.figure import Figure

    counts = np.array(confusion_matrix(class_names, predictions), float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.42 * min(len(class_names), _COUNTED_CLASSES)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, label="share of the class's images")
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if len(class_names) <= _NAMED_CLASSES:
        labels = [shorten(name, 24) for name in class_names]
        style: dict[str, Any] = {"fontsize": 8, "parse_math": False}
        axis.set_xticks(
            range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", **style
        )
        axis.set_yticks(range(len(labels)), labels, **style)
    if len(class_names) <= _COUNTED_CLASSES:
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(
                j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=7, color=colour
            )
    correct = sum(p.correct for p in predictions)
    axis.set_title(
        f"{correct} of {len(predictions)} test images classified correctly", loc="left", fontsize=10
    )
    _save(figure, path)


def choose_for_sheet(pairs: Sequence[Pair], count: int = _SHEET) -> list[int]:
    """Choose at most ``count`` positions in ``pairs``, in order.

    Half of them are mistakes of either model, the others are spread.
    """
    wrong = [
        i for i, (teacher, student) in enumerate(pairs) if not (teacher.correct and student.correct)
    ]
    chosen = set(spread(wrong, count // 2))
    rest = sorted(set(range(len(pairs))) - set(wrong))
    return sorted(chosen | set(spread(rest, count - len(chosen))))


def draw_sheet(images: Sequence[Image], pairs: Sequence[Pair], title: str, path: Path) -> None:
    """Draw images of any size with true class and predictions; the title says which they are."""
    from matplotlib.figure import Figure

    columns = min(8, max(1, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.95 * rows + 0.5))
    below = "above each its true class, below it the predictions of teacher (T) and student (S)"
    figure.suptitle(f"{title}\n{below}", fontsize=10, ha="left", x=0.125, va="bottom", y=0.92)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    style: dict[str, Any] = {"ha": "center", "parse_math": False}

    for axis in axes:
        axis.axis("off")
    for axis, image, pair in zip(axes, images, pairs, strict=False):
        axis.imshow(image, interpolation="nearest" if image.width < 100 else "antialiased")
        axis.set_title(shorten(pair[0].label, 18), fontsize=8, pad=3, parse_math=False)
        for line, (letter, each) in enumerate(zip("TS", pair, strict=True)):
            axis.annotate(
                _line(letter, each),
                xy=(0.5, 0),
                xycoords="axes fraction",
                xytext=(0, -4 - 12 * line),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color=_CORRECT if each.correct else _WRONG,
                **style,
            )
    _save(figure, path)


def _line(letter: str, each: ImagePrediction) -> str:
    mark, name = "✓" if each.correct else "✗", shorten(each.prediction, 18)
    return f"{letter} {mark} {name} {100 * each.probability:.0f} %"


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
