from types import SimpleNamespace

import pytest
from rich.progress import BarColumn

from kdpl.callbacks.progress import ProgressBar

BASE_TO_NOVEL = {"val/acc": 0.7, "val/base_acc": 0.9, "val/novel_acc": 0.5, "val/hm": 0.64}


def shown(metrics):
    trainer = SimpleNamespace(progress_bar_metrics=metrics, loggers=[], is_global_zero=True)
    return ProgressBar().get_metrics(trainer, None)


def test_loss_accuracy_and_speed_have_short_names():
    metrics = {"train/images_per_s": 151.7, "val/acc": 0.9, "train/loss": 0.5}
    assert list(shown(metrics).items()) == [("loss", 0.5), ("acc", 0.9), ("images/s", "152")]
    assert shown({}) == {}


def test_of_base_and_novel_accuracies_the_harmonic_mean_is_shown():
    assert shown(BASE_TO_NOVEL) == {"HM": 0.64}


@pytest.mark.parametrize(("columns", "width"), [("80", 6), ("100", 22), ("300", 40)])
def test_the_bar_leaves_room_for_the_rest_of_the_line(columns, width, monkeypatch):
    monkeypatch.setattr("kdpl.callbacks.progress.get_console", lambda: SimpleNamespace(width=int(columns)))
    bars = [c for c in ProgressBar().configure_columns(None) if isinstance(c, BarColumn)]
    assert [bar.bar_width for bar in bars] == [width]
