"""Pictures of a test, drawn with matplotlib: a confusion matrix and a sheet of test images."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL.Image import Image

from kdpl.callbacks.results import SaveTestResults
from kdpl.data.domain import domain_of
from kdpl.errors import reason
from kdpl.report.accuracy import confusion_matrix
from kdpl.report.run_folder import Pair
from kdpl.runtime.class_names import shorten
from kdpl.runtime.files import atomic_path
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.predictions import ImagePrediction, read_predictions, spread
from kdpl.runtime.run_folder import FIGURES_FOLDER
from kdpl.student import StudentDistillation
from kdpl.tasks import MULTI_CLASS

_MOST_CLASSES, _NAMED_CLASSES, _COUNTED_CLASSES = 200, 40, 16
_SHEET = 40


def callbacks(module: LightningModule) -> list[Callback]:
    """Return the callback that draws a test, if the test's results are saved."""
    # Lightning sets the attribute without declaring it
    trainer_callbacks: list[Callback] = getattr(module.trainer, "callbacks", [])
    saved = any(isinstance(callback, SaveTestResults) for callback in trainer_callbacks)
    return [DrawPictures()] if saved else []


class DrawPictures(Callback):
    """Draws a confusion matrix and test images after a test, if matplotlib is installed."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the predictions, next to the teacher's predictions if there are any."""
        if domain_of(trainer).task != MULTI_CLASS.name or not trainer.is_global_zero:
            return
        if find_spec("matplotlib") is None:
            inform(
                "no pictures, because matplotlib is not installed: pip install 'kdpl[quickstart]'"
            )
            return
        teacher = pl_module.teacher_folder if isinstance(pl_module, StudentDistillation) else None
        try:
            _draw_test(trainer, teacher)
        except Exception as error:  # such as a removed image; the results are written
            warn(f"cannot draw pictures of the test ({reason(error)})")


def _draw_test(trainer: Trainer, teacher_folder: Path | None) -> None:
    # the matrix
    data = domain_of(trainer)
    predictions = read_predictions(Path(trainer.default_root_dir))
    if len(data.class_names) <= _MOST_CLASSES:
        _show(trainer, "confusion", partial(draw_confusion, predictions, data.class_names))
    else:
        inform(
            f"no picture of the confusions of {len(data.class_names)} classes: a report "
            "lists the largest ones"
        )
    # the sheet, if the teacher was tested on the same images
    teacher = read_predictions(teacher_folder) if teacher_folder is not None else []
    if [p.source for p in teacher] == [p.source for p in predictions]:
        pairs = list(zip(teacher, predictions, strict=True))
        chosen = [pairs[i] for i in choose_for_sheet(pairs)]
        images = [data.test_item(student.index)[1] for _, student in chosen]
        title = (
            f"{len(chosen)} of {len(pairs)} test images, "
            f"{sum(map(_is_wrong, chosen))} of them misclassified by teacher or student"
        )
        _show(trainer, "test_images", partial(draw_sheet, images, chosen, title))


def _show(trainer: Trainer, name: str, draw: Callable[[Path], None]) -> None:
    """Draw a picture into the run's folder, and show it in loggers that can."""
    import matplotlib

    path = Path(trainer.default_root_dir) / FIGURES_FOLDER / f"{name}.png"
    fonts = font_families(domain_of(trainer).class_names)
    try:
        with matplotlib.rc_context({"font.family": fonts}):
            draw(path)
    except Exception as error:  # the results are written; a missing picture must not fail the test
        warn(f"cannot draw {path} ({reason(error)})")
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"{FIGURES_FOLDER}/{name}", [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from torchvision.io import decode_image

            logger.experiment.add_image(f"{FIGURES_FOLDER}/{name}", decode_image(str(path)))
        elif (log_picture := getattr(logger, "log_picture", None)) is not None:
            # another logger that can, such as kdpl's for MLflow
            log_picture(f"{FIGURES_FOLDER}/{name}", path)
    inform(f"picture: {path}")


@cache
def font_families(texts: tuple[str, ...]) -> list[str]:
    """Return matplotlib's font, and installed fonts with characters it lacks, such as Chinese."""
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font

    # matplotlib tries the families in order, for each character
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
    """Draw the confusion matrix of all classes, as shares of each true class's images."""
    from matplotlib.figure import Figure

    # shares as colours
    counts = np.array(confusion_matrix(class_names, predictions), float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.42 * min(len(class_names), _COUNTED_CLASSES)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03, label="share of the class's images")
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    # names and counts, as long as they are readable
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
    title = f"{correct} of {len(predictions)} test images classified correctly"
    axis.set_title(title, loc="left", fontsize=10)
    _save(figure, path)


def choose_for_sheet(pairs: Sequence[Pair], count: int = _SHEET) -> list[int]:
    """Choose positions in ``pairs``, in order: half are mistakes of either, the rest is correct."""
    wrong = [i for i, pair in enumerate(pairs) if _is_wrong(pair)]
    chosen = spread(wrong, count // 2)
    rest = [i for i, pair in enumerate(pairs) if not _is_wrong(pair)]
    return sorted([*chosen, *spread(rest, count - len(chosen))])


def _is_wrong(pair: Pair) -> bool:
    return not all(prediction.correct for prediction in pair)


def draw_sheet(images: Sequence[Image], pairs: Sequence[Pair], title: str, path: Path) -> None:
    """Draw images of any size in a grid, with true classes and predictions, below a title."""
    from matplotlib.figure import Figure

    # a grid of at most eight columns
    columns = min(8, max(1, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.45 * columns, 1.95 * rows + 0.5))
    below = "above each its true class, below it the predictions of teacher (T) and student (S)"
    figure.suptitle(f"{title}\n{below}", fontsize=10, ha="left", x=0.125, va="bottom", y=0.92)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, image, pair in zip(axes, images, pairs, strict=False):
        axis.imshow(image, interpolation="nearest" if image.width < 100 else "antialiased")
        axis.set_title(shorten(pair[0].label, 18), fontsize=8, pad=3, parse_math=False)
        for line, (letter, prediction) in enumerate(zip("TS", pair, strict=True)):
            mark = "✓" if prediction.correct else "✗"
            name = shorten(prediction.prediction, 18)
            axis.annotate(
                f"{letter} {mark} {name} {100 * prediction.probability:.0f} %",
                xy=(0.5, 0),
                xycoords="axes fraction",
                xytext=(0, -4 - 12 * line),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7.5,
                color="#1a7f37" if prediction.correct else "#c62828",
                parse_math=False,
            )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
