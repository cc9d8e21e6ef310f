"""The images of a dataset that each split uses: the k-shot sample, the evaluation images, the unlabelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from kdpl.data.augmentation import Augmentation
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.sampling import few_shot, require_shots, share_of, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError


@dataclass(frozen=True)
class Labeled:
    """The labelled images of a dataset, less what protocol and sampling leave out; see ``DomainDataModule``."""

    splits: Splits
    tuning_class_names: tuple[str, ...]
    shots: int | None
    val_shots: int | None
    allow_fewer_shots: bool
    seed: int

    def training(self) -> list[Record]:
        """The k-shot sample of the classes that are tuned on; DataError if a class has too few images."""
        self.splits.require_training_images()
        # the sample comes before the base subset, so that base classes get the same images under either protocol
        records = few_shot(self.splits.train, self.splits.val, self.shots, self.val_shots, self.seed)[0]
        records = with_labels(records, range(len(self.tuning_class_names)))
        if self.shots is not None and not self.allow_fewer_shots:
            note = ", others having been held out for the test," if self.splits.held_out else ""
            require_shots(records, self.tuning_class_names, self.shots, note)
        if not records:
            raise DataError(f"{self.splits.origin} has no labelled training images: add some")
        return records

    def evaluation(self, split: Literal["val", "test"]) -> Sequence[Record]:
        """The sample of validation images, or all test images, of all classes; DataError without such a split."""
        records = self.splits.val if split == "val" else self.splits.test
        if not records:
            remedy = ", set data.init_args.held_out to 0.25 to hold some training images out" if split == "test" else ""
            raise DataError(f"{self.splits.origin} has no {split} split: add one{remedy}, or do without its accuracy")
        if split == "test":
            return records
        return few_shot(self.splits.train, records, self.shots, self.val_shots, self.seed)[1]


@dataclass(frozen=True)
class Unlabeled:
    """The unlabelled images of a dataset, and the ``share`` of them that is distilled on, drawn with a seed."""

    splits: Splits
    share: float
    seed: int

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """All of them; DataError if there are none."""
        self.splits.require_training_images()
        sources = self.splits.unlabeled
        if sources is None:
            sources = tuple(record.source for record in self.splits.train)
        if not sources:
            raise DataError(f"{self.splits.origin} has no images to distil on: add some")
        return sources

    @cached_property
    def indices(self) -> Sequence[int]:
        """Indices of those that are distilled on."""
        count = len(self.sources)
        return share_of(count, self.share, self.seed) if self.share < 1 else range(count)

    def images(self, augmentation: Augmentation, image_size: int, seed: int, every: bool = False) -> UnlabeledImages:
        """Views of the images that are distilled on, or of ``every`` one, drawn with a seed."""
        indices = range(len(self.sources)) if every else self.indices
        view = RandomView(self.splits.open_image, augmentation, image_size, seed)
        return UnlabeledImages([self.sources[i] for i in indices], view, indices)

    def preview(self, n: int, image_size: int) -> torch.Tensor:
        """Up to n images under the evaluation transform, spread evenly over the list, uint8 [n, 3, S, S]."""
        n = min(n, len(self.indices))
        chosen = [self.sources[self.indices[i * len(self.indices) // n]] for i in range(n)]
        return torch.stack([to_tensor(resize_and_crop(self.splits.open_image(s), image_size)) for s in chosen])
