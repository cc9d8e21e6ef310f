import pickle

import pytest
import torch
from PIL import Image
from runs import reachable

from kdpl.data.augmentation import LightAffine, to_tensor
from kdpl.data.datasets import LabeledImages, RandomView, UnlabeledImages
from kdpl.data.sampling import generator
from kdpl.data.splits import Record
from kdpl.runtime.resizing import Resizing

RECORDS = [Record(f"{shade}", shade % 3) for shade in range(10, 130, 10)]


def open_grey(source):
    image = Image.new("RGB", (20, 20))
    image.paste((int(source),) * 3, (5, 5, 15, 15))
    return image


def labeled(seed=1):
    return LabeledImages(RECORDS, RandomView(open_grey, LightAffine(), Resizing(16), seed))


def unlabeled():
    return UnlabeledImages([record.source for record in RECORDS], labeled().view)


def test_view_is_drawn_from_seed_epoch_and_index():
    item = labeled(seed=7)[4, 2]
    parameters = LightAffine().parameters(generator(7, "augmentation", epoch=2, index=4), 20, 20)
    expected = to_tensor(LightAffine().apply(open_grey("50"), parameters, Resizing(16)))
    assert torch.equal(item.images, expected)
    assert (item.labels, item.images.dtype) == (RECORDS[4].label, torch.uint8)
    without = unlabeled()[4, 2]
    assert torch.equal(without.images, labeled()[4, 2].images)
    assert without.indices == 4


def test_a_teacher_of_another_size_sees_the_same_crop():
    sources, larger = unlabeled().sources, Resizing(24)
    images = UnlabeledImages(sources, labeled().view, teacher=larger)
    of_its_size = UnlabeledImages(sources, RandomView(open_grey, LightAffine(), larger, seed=1))
    for epoch in (0, 1):
        assert torch.equal(images[4, epoch].teacher_images, of_its_size[4, epoch].images)
    assert not torch.equal(images[4, 0].teacher_images, images[4, 1].teacher_images)


def test_no_label_can_be_reached_from_the_unlabelled_split():
    assert not any(isinstance(value, Record) for value in reachable(unlabeled()).values())
    # the search would find them
    assert any(isinstance(value, Record) for value in reachable(labeled()).values())


@pytest.mark.parametrize("build", [labeled, unlabeled])
def test_datasets_travel_to_worker_processes(build):
    assert torch.equal(pickle.loads(pickle.dumps(build()))[1, 1].images, build()[1, 1].images)  # noqa: S301
