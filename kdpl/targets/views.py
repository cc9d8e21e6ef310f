"""Images that worker processes load in batches, such as all views of each image."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.batches import Batch
from kdpl.data.datasets import UnlabeledImages

T = TypeVar("T")


def load_all_views(
    images: UnlabeledImages,
    views: int,
    batches: Iterable[list[int]],
    num_workers: int,
    still: bool = False,
) -> DataLoader[Batch]:
    """Load batches of images by their places, with all V views of each, uint8 [n, V, 3, S, S].

    With ``still``, the first of them is that of evaluation, and the others are random.
    """
    load, numbers = partial(_all_views, images, views, still), range(len(images))
    return load_in_workers(load, numbers, batches, num_workers)


def _all_views(images: UnlabeledImages, views: int, still: bool, numbers: list[int]) -> Batch:
    view, loaded = images.view, []
    for number in numbers:
        # decoded once for all of them
        image, index = view.open_image(images.sources[number]), images.index_of(number)
        made = [to_tensor(resize_and_crop(image, view.resizing))] if still else []
        made += [view.make(image, view.draw(image, index, n)) for n in range(views - len(made))]
        loaded.append(torch.stack(made))
    return Batch(torch.stack(loaded))


def load_in_workers(
    load: Callable[[list[T]], Batch],
    items: Sequence[T],
    batches: Iterable[list[int]],
    num_workers: int,
) -> DataLoader[Batch]:
    """Return what a function loads of each batch of items, which are given by their places."""
    return DataLoader(
        cast("Dataset[Batch]", items),
        batch_sampler=batches,
        num_workers=num_workers,
        # in the worker, as what a dataset does with an item
        collate_fn=load,
        pin_memory=torch.cuda.is_available(),
        # of its own, so that torch's global one stays where it is
        generator=torch.Generator(),
    )
