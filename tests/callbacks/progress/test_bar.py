from types import SimpleNamespace

import pytest
import torch
import world
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from kdpl.callbacks.progress import ProgressBar
from kdpl.runtime.messages import inform


def test_of_base_and_novel_classes_the_harmonic_mean_is_shown():
    metrics = {"val/acc": 0.7, "val/base_acc": 0.9, "val/novel_acc": 0.5, "val/hm": 0.64}
    trainer = SimpleNamespace(progress_bar_metrics=metrics, loggers=[], is_global_zero=True)
    assert ProgressBar().get_metrics(trainer, None) == {"acc": "0.7", "HM": "0.64"}


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


@pytest.mark.parametrize(("columns", "bar"), [(80, False), (200, True)])
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
    assert lines[0].startswith("Epoch 0/99 ")
    assert lines[0].endswith("loss: 0.00123 acc: 0.975 img/s: 12346 wait: 1")
    # what is left to do is blank where there are no colours
    assert (lines[0].index(" 1/1234 ") > 40) == bar


LINE = f"picture: {'/a folder with blanks' * 9}"


class Seen(Callback):
    """Says something after each batch, and notes the time left, at 1.5 batches a second."""

    def __init__(self, bar):
        self.bar, self.left = bar, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        inform(LINE)
        *_, left = self.bar.configure_columns(trainer)
        task = SimpleNamespace(id=self.bar.train_progress_bar_id, total=3)
        task.remaining, task.speed = 2 - batch_idx, 1.5
        self.left.append(str(left.render(task)))


def test_the_time_left_is_that_of_the_whole_fit_and_a_message_beside_it_one_line_however_long(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = ProgressBar()
    seen, options = Seen(bar), {"enable_progress_bar": True, "limit_train_batches": 3}
    world.quiet_trainer(tmp_path, 2, callbacks=[bar, seen], **options).fit(Long())
    assert seen.left == [f"0:00:0{seconds}" for seconds in (3, 3, 2, 1, 1, 0)]
    assert LINE in capsys.readouterr().out
