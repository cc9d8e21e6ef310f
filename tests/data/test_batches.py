import pytest
import torch
import world
from torch.utils.data import DataLoader

from kdpl.data.batches import EvaluationBatch, LabeledBatch, UnlabeledBatch, collate

IMAGES = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).reshape(3, 3, 4, 4)
INDICES = torch.tensor([7, 5, 9])

BATCHES = [
    LabeledBatch(IMAGES, INDICES),
    EvaluationBatch(IMAGES, torch.tensor([1, 0, 1]), INDICES),
    UnlabeledBatch(IMAGES, INDICES),
    UnlabeledBatch(IMAGES, INDICES, IMAGES[:, :, ::2, ::2]),
    UnlabeledBatch(IMAGES, INDICES, None, torch.linspace(0, 1, 6).reshape(3, 2).half()),
]


def item_of(batch, i):
    values = {name: None if value is None else value[i] for name, value in vars(batch).items()}
    return type(batch)(**values)


def tensors_of(batch):
    return {name: tensor for name, tensor in vars(batch).items() if tensor is not None}


def assert_same(made, batch):
    assert type(made) is type(batch)
    torch.testing.assert_close(tensors_of(made), tensors_of(batch), rtol=0, atol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_items_are_stacked_field_by_field_in_every_process(batch):
    num_workers = int(batch is BATCHES[-1])  # a process is as good for all
    items = [item_of(batch, i) for i in range(3)]
    (made,) = DataLoader(items, 3, collate_fn=collate, num_workers=num_workers)
    assert_same(made, batch)
    assert_same(items[0], item_of(batch, 0))  # the items stay as they are


@pytest.mark.parametrize("batch", BATCHES)
def test_every_field_is_pinned_and_moved_to_another_device_by_lightning(batch, monkeypatch):
    moved = world.Probe().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert type(moved) is type(batch)
    assert list(tensors_of(moved)) == list(tensors_of(batch))
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone()
    )
    assert_same(batch.pin_memory(), batch)
    assert list(map(id, pinned)) == list(map(id, tensors_of(batch).values()))


def test_unlabelled_batches_have_no_field_for_a_label():
    assert not [name for name in UnlabeledBatch.__dataclass_fields__ if "label" in name]
