import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset
from world import quiet_trainer

from kdpl.doubt.logit_sketch import LogitSketch, SaveLogitSketch
from kdpl.errors import ArtifactError


def logits_of(images, classes):
    draw = torch.Generator().manual_seed(classes)
    return 20 + 3 * torch.randn(images, classes, generator=draw)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("classes", "largest", "mean"), [(2, 2e-3, 2e-3), (64, 2e-3, 2e-3), (1000, 5e-3, 1e-3)]
)
def test_confidences_are_those_of_the_logits(classes, largest, mean, temperature):
    logits = logits_of(200, classes)
    expected = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
    error = torch.from_numpy(LogitSketch.of(logits).confidences(temperature)) - expected
    assert error.abs().max() < largest
    assert error.mean().abs() < mean


def test_a_sketch_of_many_classes_is_small_counts_every_class_and_is_read_as_written(tmp_path):
    sketch = LogitSketch.of(logits_of(7, 1000))
    assert (sketch.values.shape, sketch.counts.sum().item()) == ((7, 64), 1000)
    assert (sketch.values.diff(dim=1) <= 0).all()
    sketch.save(tmp_path)
    read = LogitSketch.load(tmp_path)
    assert torch.equal(read.values, sketch.values)
    assert torch.equal(read.counts, sketch.counts)


@pytest.mark.parametrize(
    "change",
    [
        lambda sketch: (sketch.values.float(), sketch.counts),
        lambda sketch: (sketch.values * float("nan"), sketch.counts),
        lambda sketch: (sketch.values, -sketch.counts),
    ],
)
def test_invalid_numbers_are_refused(change, tmp_path):
    LogitSketch(*change(LogitSketch.of(logits_of(4, 3)))).save(tmp_path)
    with pytest.raises(ArtifactError, match="its numbers are invalid"):
        LogitSketch.load(tmp_path)


class FourImages(LightningModule):
    """Returns given logits, for images in another order than that of the test split."""

    def test_step(self, batch, batch_idx):
        return {"logits": batch[0], "indices": batch[1]}


def test_a_test_leaves_the_sketch_of_its_logits_in_the_order_of_the_split(tmp_path):
    logits, order = logits_of(4, 3), torch.tensor([3, 0, 2, 1])
    batches = DataLoader(TensorDataset(logits[order], order), batch_size=3)
    callback = SaveLogitSketch()
    for _ in range(2):  # a second test starts anew
        quiet_trainer(tmp_path, callbacks=[callback]).test(FourImages(), batches, verbose=False)
    assert torch.equal(LogitSketch.load(tmp_path).values, LogitSketch.of(logits).values)
