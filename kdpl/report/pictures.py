"""Pictures of a run, drawn with matplotlib.

They are learning curves, a confusion matrix and sheets of test images.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image

from kdpl.data.domain import domain_of
from kdpl.errors import reason
from kdpl.metrics import ACCURACY_TITLES, TRAIN_LOSS, val_key
from kdpl.report.accuracy import confusion_matrix
from kdpl.report.logged import log_images, log_picture
from kdpl.report.pairs import Pair, choose_examples, disagreements
from kdpl.runtime.class_names import shorten
from kdpl.runtime.files import atomic_path
from kdpl.runtime.loggers import read_metrics
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.predictions import ImagePrediction, read_predictions, spread
from kdpl.runtime.run_folder import FIGURES_FOLDER, METRICS_FILE
from kdpl.student import StudentDistillation
from kdpl.tasks import MULTI_CLASS

Curves = Mapping[str, Sequence[tuple[int, float]]]

_MOST_CLASSES, _NAMED_CLASSES, _COUNTED_CLASSES = 200, 40, 16
_SHEET = 40
_CORRECT, _WRONG = "#1a7f37", "#c62828"


class DrawPictures(Callback):
    """Draws learning curves after a fit; a confusion matrix and image sheets after a test.

    One sheet shows a selection of all test images, one those on which the student disagrees with
    its teacher. Without matplotlib it says so and draws nothing.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the learning curves from metrics.csv.

        This comes before the results are written, since those stand for a finished fit.
        """
        metrics = Path(trainer.default_root_dir) / METRICS_FILE
        if self._can_draw(trainer) and metrics.is_file():
            title = f"{type(pl_module).__name__}, {trainer.default_root_dir}"
            _show(trainer, "learning_curves", partial(draw_curves, read_metrics(metrics), title))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them after a resume from the last epoch's end, in which no training ends."""
        if not _figure(trainer, "learning_curves").is_file():
            self.on_train_end(trainer, pl_module)

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
            _draw_sheets(trainer, list(zip(teacher, predictions, strict=True)))

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


def _draw_sheets(trainer: Trainer, pairs: list[Pair]) -> None:
    data = domain_of(trainer)

    def draw(name: str, chosen: list[Pair], title: str) -> list[Image]:
        images = [data.test_item(student.index)[1] for _, student in chosen]
        _show(trainer, name, partial(draw_sheet, images, chosen, title))
        return images

    sheet = [pairs[i] for i in choose_for_sheet(pairs)]
    wrong = sum(not (teacher.correct and student.correct) for teacher, student in sheet)
    title = (
        f"{len(sheet)} of {len(pairs)} test images, "
        f"{wrong} of them misclassified by teacher or student"
    )
    draw("test_images", sheet, title)
    kinds = disagreements(pairs)
    if chosen := choose_examples(kinds):
        title = (
            f"{len(chosen)} of {sum(map(len, kinds))} test images "
            "on which teacher and student disagree"
        )
        images = draw("disagreements", chosen, title)
        captions = [f"{t.label}: {_line('T', t)}, {_line('S', s)}" for t, s in chosen]
        log_images(trainer.loggers, "disagreements", images, captions)


def _figure(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / FIGURES_FOLDER / f"{name}.png"


def _show(trainer: Trainer, name: str, draw: Callable[[Path], None]) -> None:
    import matplotlib

    path = _figure(trainer, name)
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


def panels(curves: Curves) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Sort the curves of ``read_metrics`` into loss and accuracies, by title and name.

    They are over epochs from 1. With several labels an image, accuracies are mean average
    precisions.
    """
    epoch_of = dict(curves.get("epoch", []))

    def line(key: str, scale: float = 1) -> list[tuple[float, float]]:
        # a test logs values too, at steps without an epoch
        return [
            (epoch_of[step] + 1, scale * value)
            for step, value in curves.get(key, [])
            if step in epoch_of
        ]

    several = val_key("map") in curves
    keys = {key.replace("acc", "map") if several else key: t for key, t in ACCURACY_TITLES.items()}
    measured = {title: line(val_key(key), 100) for key, title in keys.items()}
    heading = f"validation {'mAP' if several else 'accuracy'}, %"
    return {"training loss": {"loss": line(TRAIN_LOSS)}, heading: measured}


def draw_curves(curves: Curves, title: str, path: Path) -> None:
    """Draw training loss and validation accuracies over the epochs.

    ``curves`` are those of ``read_metrics``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    for axis, (heading, lines) in zip(figure.subplots(1, 2), panels(curves).items(), strict=True):
        drawn = {label: line for label, line in lines.items() if line}
        for label, line in drawn.items():
            axis.plot(*zip(*line, strict=True), marker="." if len(line) < 30 else "", label=label)
        axis.set_title(heading, loc="left", fontsize=10)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(drawn) > 1:
            axis.legend(frameon=False, fontsize=9)
        if not drawn:
            axis.text(
                0.5,
                0.5,
                "not measured",
                ha="center",
                va="center",
                transform=axis.transAxes,
                color="0.5",
            )
    _save(figure, path)


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
    width, height = 1.45 * columns, 1.95 * rows + 0.5
    figure = Figure(figsize=(width, height))
    # one coordinate system for all images, in inches from the top left: axes for each would take
    # seconds
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    heading = (
        f"{title}\nabove each its true class, "
        "below it the predictions of teacher (T) and student (S)"
    )
    axis.text(0.05, 0.05, heading, fontsize=10, va="top")

    for number, (image, pair) in enumerate(zip(images, pairs, strict=True)):
        row, column = divmod(number, columns)
        x, y = 1.45 * (column + 0.5), 1.95 * row + 1.35
        edges = 0.65 * np.array(image.size) / max(image.size)
        interpolation = "nearest" if image.width < 100 else "antialiased"
        extent = (x - edges[0], x + edges[0], y + edges[1], y - edges[1])
        axis.imshow(np.asarray(image), extent=extent, aspect="auto", interpolation=interpolation)

        style: dict[str, Any] = {"ha": "center", "parse_math": False}
        axis.text(
            x, y - edges[1] - 0.04, shorten(pair[0].label, 18), va="bottom", fontsize=8, **style
        )
        for line, (letter, each) in enumerate(zip("TS", pair, strict=True)):
            color, below = _CORRECT if each.correct else _WRONG, y + edges[1] + 0.06 + 0.18 * line
            axis.text(
                x, below, _line(letter, each, 18), va="top", fontsize=7.5, color=color, **style
            )
    _save(figure, path)


def _line(letter: str, each: ImagePrediction, limit: int | None = None) -> str:
    name = each.prediction if limit is None else shorten(each.prediction, limit)
    return f"{letter} {'✓' if each.correct else '✗'} {name} {100 * each.probability:.0f} %"


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
