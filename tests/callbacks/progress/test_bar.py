import re
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import world
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from kdpl.callbacks.progress import ProgressBar
from kdpl.runtime.messages import inform


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (
            {"train/images_per_s": 151.7, "val/acc": 0.9, "train/loss": 1391.6},
            {"loss": "1392", "acc": "0.9", "img/s": "152"},
        ),
        ({"train/images_per_s": 0.2345}, {"img/s": "0.234"}),
        (
            {"val/acc": 0.7, "val/base_acc": 0.9, "val/novel_acc": 0.5, "val/hm": 0.64},
            {"HM": "0.64"},
        ),
    ],
)
def test_metrics_have_short_names_and_of_base_and_novel_accuracies_the_harmonic_mean_is_shown(
    metrics, shown
):
    trainer = SimpleNamespace(progress_bar_metrics=metrics, loggers=[], is_global_zero=True)
    numbers = ProgressBar().get_metrics(trainer, None)
    assert {name: str(number) for name, number in numbers.items()} == shown


class Long(LightningModule):
    """Logs the longest numbers that are usual."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, _):
        numbers = {"loss": 0.00123456, "images_per_s": 12345.6, "data_wait": 1.0}
        self.log_dict({f"train/{name}": value for name, value in numbers.items()}, prog_bar=True)
        self.log("val/acc", 0.97531, prog_bar=True)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(range(1234))


@pytest.mark.parametrize(("columns", "bar"), [(80, 0), (200, 40)])
def test_the_line_fits_into_the_console_with_a_bar_where_there_is_room(
    columns, bar, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", str(columns))
    trainer = world.quiet_trainer(
        tmp_path, 100, callbacks=[ProgressBar()], enable_progress_bar=True, max_steps=1
    )
    trainer.fit(Long())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 1
    assert len(lines[0]) <= columns
    assert lines[0].startswith("epoch 1/100 ")
    assert lines[0].endswith("loss: 0.00123 acc: 0.975 img/s: 12346 wait: 100%")
    # what is left to do is blank where there are no colours
    assert lines[0].index(" 1/1234 ") == len("epoch 1/100") + (bar and bar + 1)


class Counting(Long):
    """Has the losses 1, 2, 3 in each epoch."""

    def training_step(self, _, batch_idx):
        return self.weight.sum() * 0 + batch_idx + 1

    def train_dataloader(self):
        return DataLoader(range(3))


class Seen(Callback):
    """Notes the bar's loss, label and time left after each batch, at 1.5 batches a second."""

    def __init__(self, bar):
        self.bar, self.losses, self.lines = bar, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(self.bar.get_metrics(trainer, pl_module)["loss"]))
        label, *_, left = self.bar.configure_columns(trainer)
        line = self.bar.train_progress_bar
        task = SimpleNamespace(description=line.description, fields=line.fields)
        task.total, task.remaining, task.speed = 3, 2 - batch_idx, 1.5
        self.lines.append(f"{label.render(task)} {left.render(task)}")


def test_the_epochs_mean_loss_and_the_time_left_for_the_whole_fit_are_shown_after_each_batch(
    tmp_path, monkeypatch
):
    seconds = count(2, 2)
    monkeypatch.setattr("kdpl.callbacks.progress.time.monotonic", lambda: next(seconds))
    bar = ProgressBar()
    seen = Seen(bar)
    world.quiet_trainer(tmp_path, 2, callbacks=[bar, seen], enable_progress_bar=True).fit(
        Counting()
    )
    assert seen.losses == [1, 1.5, 2, 1, 1.5, 2]
    left = ["00:03", "00:03", "00:02", "00:01", "00:01", "00:00"]
    assert seen.lines == [f"epoch {1 + i // 3}/2 {time}" for i, time in enumerate(left)]


class SaveAfter(Callback):
    """Saves a checkpoint after the first step of the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)


def printed(folder, monkeypatch, capsys, callbacks=(), ckpt_path=None):
    """What is printed to a terminal while two epochs are trained."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    trainer = world.quiet_trainer(
        folder, 2, callbacks=[ProgressBar(), *callbacks], enable_progress_bar=True
    )
    trainer.fit(Counting(), ckpt_path=ckpt_path)
    return capsys.readouterr().out


def test_epochs_are_counted_from_one_from_the_first_moment_and_where_one_is_resumed(
    tmp_path, monkeypatch, capsys
):
    saved = tmp_path / "middle.ckpt"
    for options in ({"callbacks": [SaveAfter(saved)]}, {"ckpt_path": saved}):
        out = printed(tmp_path, monkeypatch, capsys, **options)
        epochs = re.findall(r"epoch \d+(?:/\d+)?", out, re.IGNORECASE)
        assert list(dict.fromkeys(epochs)) == ["epoch 1/2", "epoch 2/2"]


LINE = f"picture: {'/a folder with blanks' * 9}"


class Says(Callback):
    def on_train_batch_end(self, *_):
        inform(LINE)


def test_a_message_beside_the_bar_is_one_line_however_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert LINE in printed(tmp_path, monkeypatch, capsys, [Says()])
