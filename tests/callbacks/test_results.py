from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from world import quiet_trainer

from kdpl import DomainDataModule
from kdpl.callbacks.results import SaveTestResults
from kdpl.data.splits import Record
from kdpl.runtime.predictions import ImagePrediction, read_predictions, read_results
from kdpl.tasks import MULTI_CLASS

LOGITS = torch.tensor(
    [[2.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 4.0, 0.0], [0.5, 0.2, 0.1], [0.0, 9.0, 0.0]]
)
LABELS = torch.tensor([0, 1, 1, 2, 1])
NAMES = ("a, b", 'c "d"', "e")


class Fixed(LightningModule):
    """Predicts given logits, for images in another order than that of the test split."""

    task = MULTI_CLASS

    def test_step(self, batch, batch_idx):
        del batch_idx
        logits, labels, indices = batch
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log("test/acc", accuracy, batch_size=len(labels))
        self.log("other", accuracy, batch_size=len(labels))
        return {"logits": logits, "labels": labels, "indices": indices}


class Images(DomainDataModule):
    class_names = NAMES
    num_base = None
    splits = SimpleNamespace(
        test=[Record(f"image {i}.png", int(y)) for i, y in enumerate(LABELS)], held_out=False
    )

    def __init__(self):
        super().__init__("digits")

    def prepare_data(self):
        """Nothing is read."""

    def setup(self, stage):
        """Nothing is read."""

    def test_dataloader(self):
        order = torch.tensor([3, 0, 4, 2, 1])
        return DataLoader(TensorDataset(LOGITS[order], LABELS[order], order), batch_size=2)


def run_test(folder, *callbacks):
    quiet_trainer(folder, callbacks=[*callbacks]).test(Fixed(), datamodule=Images(), verbose=False)


def test_predictions_and_accuracies_are_saved_in_the_order_of_the_split(tmp_path):
    callback = SaveTestResults()
    for _ in range(2):  # a second test starts anew
        run_test(tmp_path, callback)
    predictions = read_predictions(tmp_path)
    powers = LOGITS.double().exp()
    probabilities = (powers / powers.sum(dim=1, keepdim=True)).amax(dim=1).tolist()
    near = partial(pytest.approx, abs=1e-6)
    columns = zip(LABELS.tolist(), (0, 2, 1, 0, 1), probabilities, strict=True)
    assert predictions == [
        ImagePrediction(i, f"image {i}.png", NAMES[y], NAMES[p], near(q), y, p)
        for i, (y, p, q) in enumerate(columns)
    ]
    accuracy = sum(p.correct for p in predictions) / 5
    assert read_results(tmp_path) == {"images": 5, "test/acc": near(accuracy)}


def test_with_a_split_the_prediction_within_base_or_novel_classes_is_saved_too(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Images, "num_base", 2)
    run_test(tmp_path, SaveTestResults())
    predictions = read_predictions(tmp_path)
    # the second image is predicted as the novel class, of the base classes as the first of two equal ones
    assert [p.half_prediction_number for p in predictions] == [0, 0, 1, 2, 1]
    assert [p.prediction_number for p in predictions] == [0, 2, 1, 0, 1]


def test_accuracies_mark_a_finished_test_and_are_written_after_other_callbacks(tmp_path):
    class Draws(Callback):
        def on_test_end(self, *_):
            assert len(read_predictions(tmp_path)) == 5
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_test(tmp_path, SaveTestResults(), Draws())
    assert read_results(tmp_path) == {}
    run_test(tmp_path, SaveTestResults())
    assert read_results(tmp_path)["images"] == 5
