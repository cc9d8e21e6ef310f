import pytest
import torch
import world
from runs import noise
from torch import nn

from kdpl.data.batches import EvaluationBatch
from kdpl.data.datasets import EvaluationImages
from kdpl.data.inference import infer, infer_labeled
from kdpl.data.loader import LazyLoader
from kdpl.data.sources import open_source
from kdpl.data.splits import Record
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing


def test_images_are_moved_to_the_device_and_the_batch_stays_where_it_is():
    batch = EvaluationBatch(torch.zeros(2, 3), torch.zeros(2), torch.arange(2))
    outputs = infer(lambda images: images.device.type, [batch, batch], torch.device("meta"))
    assert [(where, b.images.device.type) for where, b in outputs] == [("meta", "cpu")] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_pass_gives_outputs_and_labels_in_order_or_names_an_unreadable_image(
    tmp_path, num_workers
):
    records = [Record(str(tmp_path / f"{label}.png"), label) for label in range(7)]
    for source, label in records:
        noise(9, 8, seed=label).save(source)
    images, network = EvaluationImages(records, open_source, Resizing(8)), nn.Linear(8, 2)
    state = torch.get_rng_state()
    batches = LazyLoader(images, range(7), 3, num_workers)
    outputs, labels = infer_labeled(lambda x: network(x.float()), batches, torch.device("cpu"))
    assert (labels.tolist(), outputs.requires_grad) == ([*range(7)], False)
    pixels = torch.stack([images[i].images for i in range(7)]).float()
    assert torch.equal(outputs, torch.cat([network(part) for part in pixels.split(3)]))
    assert torch.equal(torch.get_rng_state(), state), "of the caller"
    (tmp_path / "1.png").write_bytes(b"no image")
    with world.refused(DataError, "1.png cannot be read"):
        [*LazyLoader(images, range(7), 2, num_workers)]
