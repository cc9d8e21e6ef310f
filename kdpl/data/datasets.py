"""The three kinds of torch datasets: what each yields, and so what can leak from it, is visible in its type."""

from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from kdpl.data.augmentation import Augmentation
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.randomness import generator
from kdpl.data.splits import Record

OpenImage = Callable[[str], Image]


class RandomView:
    """Opens an image and makes the view of it that belongs to a seed, an index and an epoch.

    Args:
        open_image: Opens a source as an RGB image.
        augmentation: Family of views.
        image_size: Edge of the views in pixels.
        seed: Seed of the run.
    """

    def __init__(self, open_image: OpenImage, augmentation: Augmentation, image_size: int, seed: int) -> None:
        self.open_image = open_image
        self.augmentation = augmentation
        self.image_size = image_size
        self.seed = seed

    def __call__(self, source: str, index: int, epoch: int) -> torch.Tensor:
        """View of ``source`` as uint8 [3, S, S]."""
        image = self.open_image(source)
        rng = generator(self.seed, "augmentation", epoch=epoch, index=index)
        parameters = self.augmentation.parameters(rng, image.width, image.height)
        return to_tensor(self.augmentation.apply(image, parameters, self.image_size))


class LabeledImages(Dataset[tuple[torch.Tensor, int]]):
    """Random views of labelled images: item (index, epoch) is (uint8 [3, S, S], label)."""

    def __init__(self, records: Sequence[Record], view: RandomView) -> None:
        self.records = tuple(records)
        self.view = view

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        source, label = self.records[index]
        return self.view(source, index, epoch), label

    def __len__(self) -> int:
        return len(self.records)


class UnlabeledImages(Dataset[tuple[torch.Tensor, int]]):
    """Random views of unlabelled images: item (index, epoch) is (uint8 [3, S, S], index).

    It is given sources alone, so there is no label that could leak.
    """

    def __init__(self, sources: Sequence[str], view: RandomView) -> None:
        self.sources = tuple(sources)
        self.view = view

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        return self.view(self.sources[index], index, epoch), index

    def __len__(self) -> int:
        return len(self.sources)


class EvaluationImages(Dataset[tuple[torch.Tensor, int, int]]):
    """Labelled images under the evaluation transform: item i is (uint8 [3, S, S], label, i)."""

    def __init__(self, records: Sequence[Record], open_image: OpenImage, image_size: int) -> None:
        self.records = tuple(records)
        self.open_image = open_image
        self.image_size = image_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        source, label = self.records[index]
        return to_tensor(resize_and_crop(self.open_image(source), self.image_size)), label, index

    def __len__(self) -> int:
        return len(self.records)
