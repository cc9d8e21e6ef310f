"""All views of each image together, for which it is decoded once."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from kdpl.data.batches import Batch, collate
from kdpl.data.datasets import UnlabeledImages


@dataclass(eq=False)
class AllViews(Dataset[Batch]):
    """All V views of image i; in a batch, uint8 [B, V, 3, S, S]."""

    images: UnlabeledImages
    views: int

    def __getitem__(self, index: int) -> Batch:
        view = self.images.view
        image = view.open_image(self.images.sources[index])
        views = [view.make(image, view.draw(image, index, number)) for number in range(self.views)]
        return Batch(torch.stack(views))


def load_all_views(
    images: UnlabeledImages, views: int, batches: Iterable[list[int]], num_workers: int
) -> DataLoader[Batch]:
    """Load batches of images by index, with all V views of each, uint8 [images, V, 3, S, S]."""
    return DataLoader(
        AllViews(images, views),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # of its own, so that torch's global one stays where it is
        generator=torch.Generator(),
    )
