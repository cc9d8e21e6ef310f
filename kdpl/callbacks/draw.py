"""Draws a run's pictures into its folder and shows them in the loggers."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.Image import Image

from kdpl.callbacks.pictures import can_draw, choose_for_sheet, draw_confusion, draw_curves, draw_sheet
from kdpl.runtime.disagreements import find_disagreements
from kdpl.runtime.loggers import METRICS_FILE, log_images, log_picture, read_metrics
from kdpl.runtime.messages import inform
from kdpl.runtime.predictions import Answer, read_answers

FIGURES = "figures"

_DISAGREEMENTS = 30


class DrawPictures(Callback):
    """Learning curves after a fit; confusion matrix and, for a student, sheets of test images after a test.

    One sheet is of all kinds of images, one of those on which the student disagrees with its teacher.
    Without matplotlib it says so once and draws nothing.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the learning curves from metrics.csv, before a result is handed over that stands for a finished fit."""
        del pl_module
        metrics = Path(trainer.default_root_dir) / METRICS_FILE
        if self._can_draw(trainer) and metrics.is_file():
            path = _figure(trainer, "learning_curves")
            draw_curves(read_metrics(metrics), path)
            _show(trainer, path)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the test answered, beside the teacher's answers if there are any."""
        if not self._can_draw(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        answers = read_answers(Path(trainer.default_root_dir))
        path = _figure(trainer, "confusion")
        draw_confusion(answers, data.class_names, path)
        _show(trainer, path)
        teacher = read_answers(getattr(pl_module, "teacher_folder", Path("/nonexistent")))
        if [a.source for a in teacher] == [a.source for a in answers]:
            _draw_beside_the_teacher(trainer, answers, teacher)

    def _can_draw(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero:
            return False
        if not can_draw():
            inform("no pictures, because matplotlib is not installed: pip install 'kdpl[quickstart]'")
            return False
        return True


def _draw_beside_the_teacher(trainer: Trainer, answers: list[Answer], teacher: list[Answer]) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def images_of(of: list[Answer]) -> list[Image]:
        return [data.test_item(answer.index)[1] for answer in of]

    chosen = choose_for_sheet(answers, teacher)
    path = _figure(trainer, "test_images")
    mine, theirs = [answers[i] for i in chosen], [teacher[i] for i in chosen]
    draw_sheet(images_of(mine), mine, theirs, path)
    _show(trainer, path)
    all_of_them = find_disagreements(zip(teacher, answers, strict=True))
    found = all_of_them.some(_DISAGREEMENTS)
    if found:
        theirs, mine = [pair[0] for pair in found], [pair[1] for pair in found]
        images = images_of(mine)
        path = _figure(trainer, "disagreements")
        draw_sheet(images, mine, theirs, path, f"{len(found)} of {sum(map(len, all_of_them))} on which they disagree")
        _show(trainer, path)
        log_images(trainer.loggers, "disagreements", images, [_caption(*pair) for pair in found])


def _caption(teacher: Answer, student: Answer) -> str:
    said = (f"{who} {a.prediction} {100 * a.probability:.0f} %" for who, a in (("T", teacher), ("S", student)))
    return f"{teacher.label}: {', '.join(said)}"


def _figure(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / FIGURES / f"{name}.png"


def _show(trainer: Trainer, path: Path) -> None:
    log_picture(trainer.loggers, f"{FIGURES}/{path.stem}", path)
    inform(f"picture: {path}")
