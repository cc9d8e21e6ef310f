import pytest
import torch
import world
from runs import noise
from torch import nn

from kdpl.data.batches import EvaluationBatch
from kdpl.data.datasets import EvaluationImages
from kdpl.data.inference import infer, infer_labeled, read_evaluation_images
from kdpl.data.sources import open_source
from kdpl.data.splits import Record
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing


def batches(taken):
    for i in range(3):
        taken.append(i)
        images = torch.full((2, 3), i, dtype=torch.uint8)
        yield EvaluationBatch(images, torch.tensor([i, 7]), torch.tensor([i, 9]))


def test_a_network_sees_the_images_of_one_batch_after_the_other_without_gradients():
    network, taken = nn.Linear(3, 2), []
    outputs = infer(lambda images: network(images.float()), batches(taken), torch.device("cpu"))
    for i, (output, batch) in enumerate(outputs):
        assert taken == list(range(i + 1))
        assert torch.equal(output, network(torch.full((2, 3), float(i))))
        assert (batch.labels.tolist(), batch.indices.tolist()) == ([i, 7], [i, 9])
        assert not output.requires_grad
        assert torch.is_grad_enabled(), "for the caller"
    assert taken == [0, 1, 2]


def test_images_are_moved_to_the_device_and_the_batch_stays_where_it_is():
    outputs = infer(lambda images: images.device.type, batches([]), torch.device("meta"))
    assert [(where, b.images.device.type) for where, b in outputs] == [("meta", "cpu")] * 3


def evaluation_images(folder, count):
    records = []
    for label in range(count):
        noise(9, 8, seed=label).save(folder / f"{label}.png")
        records.append(Record(str(folder / f"{label}.png"), label))
    return EvaluationImages(records, open_source, Resizing(8))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_pass_gives_all_outputs_and_labels_in_the_order_of_the_images(tmp_path, num_workers):
    images, network = evaluation_images(tmp_path, 7), nn.Linear(8, 2)
    state = torch.get_rng_state()
    batches = read_evaluation_images(images, 3, num_workers)
    outputs, labels = infer_labeled(lambda x: network(x.float()), batches, torch.device("cpu"))
    assert labels.tolist() == [*range(7)]
    pixels = torch.stack([images[i].images for i in range(7)]).float()
    assert torch.equal(outputs, torch.cat([network(part) for part in pixels.split(3)]))
    assert torch.equal(torch.get_rng_state(), state), "of the caller"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_a_data_error_from_any_process(tmp_path, num_workers):
    images = evaluation_images(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    with world.refused(DataError, "1.png cannot be read"):
        [*read_evaluation_images(images, 2, num_workers)]
