import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import reachable

from kdpl.data.augmentation import LightAffine, to_tensor
from kdpl.data.datasets import LabeledImages, RandomView, UnlabeledImages, WithLabels
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
    image, label = labeled(seed=7)[(4, 2)]
    parameters = LightAffine().parameters(generator(7, "augmentation", epoch=2, index=4), 20, 20)
    assert torch.equal(image, to_tensor(LightAffine().apply(open_grey("50"), parameters, Resizing(16))))
    assert label == RECORDS[4].label
    assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
    view, index = unlabeled()[(4, 2)]
    assert torch.equal(view, labeled()[(4, 2)][0])
    assert index == 4


def test_no_label_can_be_reached_from_the_unlabelled_split():
    assert not any(isinstance(value, Record) for value in reachable(unlabeled()).values())
    # the search would find them
    assert any(isinstance(value, Record) for value in reachable(labeled()).values())


def accompanied(indices=None, seed=7):
    # class 0 has ten images, the others one each
    records = [Record(f"{shade}", max(0, shade - 19)) for shade in range(10, 22)]
    return WithLabels(replace(unlabeled(), indices=indices), records, labeled(seed).view)


def test_a_labelled_companion_is_drawn_from_seed_epoch_and_unlabelled_image_with_balanced_classes():
    images = accompanied()
    image, label, (view, index) = images[(4, 2)]
    assert torch.equal(view, unlabeled()[(4, 2)][0])
    assert (index, len(images)) == (4, len(RECORDS))
    rng = generator(7, "labels", epoch=2, index=4)
    drawn = int(rng.integers(3))
    source = ([str(shade) for shade in range(10, 20)], ["20"], ["21"])[drawn][rng.integers(1 if drawn else 10)]
    parameters = LightAffine().parameters(rng, 20, 20)
    assert torch.equal(image, to_tensor(LightAffine().apply(open_grey(source), parameters, Resizing(16))))
    assert label == drawn
    # a companion belongs to the unlabelled image, wherever that stands
    assert torch.equal(accompanied(indices=np.array([7, 4]))[(1, 2)].image, image)
    drawn = [int(images[(i, epoch)].label) for i in range(12) for epoch in range(50)]
    assert all(160 < count < 240 for count in Counter(drawn).values()), "of 600, a third each"
    assert len({int(accompanied(seed=seed)[(4, 2)].label) for seed in range(20)}) == 3


@pytest.mark.parametrize("build", [labeled, unlabeled, accompanied])
def test_datasets_travel_to_worker_processes(build):
    assert torch.equal(pickle.loads(pickle.dumps(build()))[(1, 1)][0], build()[(1, 1)][0])  # noqa: S301
