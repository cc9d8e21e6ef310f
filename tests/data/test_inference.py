import torch
from torch import nn

from kdpl.data.batches import EvaluationBatch
from kdpl.data.inference import infer


def batches(taken):
    for i in range(3):
        taken.append(i)
        yield EvaluationBatch(
            torch.full((2, 3), i, dtype=torch.uint8), torch.tensor([i, 7]), torch.tensor([i, 9])
        )


def test_a_network_sees_the_images_of_one_batch_after_the_other_without_gradients():
    network, taken = nn.Linear(3, 2), []
    outputs = infer(lambda images: network(images.float()), batches(taken), torch.device("cpu"))
    for i, (output, batch) in enumerate(outputs):
        assert taken == list(range(i + 1))
        assert torch.equal(output, network(torch.full((2, 3), float(i))))
        assert (batch.labels.tolist(), batch.indices.tolist()) == ([i, 7], [i, 9])
        assert not output.requires_grad
        assert torch.is_grad_enabled(), "the caller's own"
    assert taken == [0, 1, 2]


def test_images_are_moved_to_the_device_and_the_batch_stays_where_it_is():
    devices = [
        (output, batch.images.device.type)
        for output, batch in infer(_device, batches([]), torch.device("meta"))
    ]
    assert devices == [("meta", "cpu")] * 3


def _device(images):
    return images.device.type
