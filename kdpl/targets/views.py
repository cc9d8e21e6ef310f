"""Loading of images in batches by worker processes, such as all views of each image."""

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
    """Load batches of images by their positions, with all V views of each, uint8 [n, V, 3, S, S].

    With ``still``, the first view is the evaluation view, and the others are random.
    """
    load, numbers = partial(_all_views, images, views, still), range(len(images))
    return load_in_workers(load, numbers, batches, num_workers)


def _all_views(images: UnlabeledImages, views: int, still: bool, numbers: list[int]) -> Batch:
    view, loaded = images.view, []
    for number in numbers:
        # decode once for all views
        image, index = view.open_image(images.sources[number]), images.index_of(number)
        tensors = [to_tensor(resize_and_crop(image, view.resizing))] if still else []
        random_views = range(views - len(tensors))
        tensors += [view.make(image, view.draw(image, index, n)) for n in random_views]
        loaded.append(torch.stack(tensors))
    return Batch(torch.stack(loaded))


def load_in_workers(
    load: Callable[[list[T]], Batch],
    items: Sequence[T],
    batches: Iterable[list[int]],
    num_workers: int,
) -> DataLoader[Batch]:
    """Load batches of items, given by their positions, with a function in worker processes."""
    return DataLoader(
        cast("Dataset[Batch]", items),
        batch_sampler=batches,
        num_workers=num_workers,
        # runs in the worker, like a dataset's __getitem__
        collate_fn=load,
        pin_memory=torch.cuda.is_available(),
        # a separate generator leaves the state of torch's global one unchanged
        generator=torch.Generator(),
    )
