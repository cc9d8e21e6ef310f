"""The labelled images that stage 1 tunes on, and those that both stages are measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import DataLoader

from kdpl.data.datasets import EvaluationImages
from kdpl.data.loader import LazyLoader
from kdpl.data.sampler import EvaluationSampler
from kdpl.data.sampling import few_shot, require_shots, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError


@dataclass(frozen=True)
class Labeled:
    """The labelled images of a dataset, less what protocol and sampling leave out.

    Attributes:
        splits: The dataset.
        tuning_class_names: The names that the teacher is tuned on, those of the first labels.
        shots: Training images a class; None: all.
        val_shots: Validation images a class, at most ``shots`` of them; None: all.
        allow_fewer_shots: Whether a class may have fewer than ``shots``.
        seed: Seed of the sample.
    """

    splits: Splits
    tuning_class_names: tuple[str, ...]
    shots: int | None
    val_shots: int | None
    allow_fewer_shots: bool
    seed: int

    def training(self) -> list[Record]:
        """The k-shot sample of the classes that are tuned on.

        Raises:
            DataError: There are none, or a class has fewer than it must.
        """
        self.splits.require_training_images()
        # the sample comes before the base subset, so that base classes get the same images under either protocol
        records = few_shot(self.splits.train, self.splits.val, self.shots, self.val_shots, self.seed)[0]
        records = with_labels(records, range(len(self.tuning_class_names)))
        if self.shots is not None and not self.allow_fewer_shots:
            note = ", others having been held out for the test," if self.splits.held_out else ""
            require_shots(records, self.tuning_class_names, self.shots, note)
        if not records:
            raise DataError(f"{self.splits.origin} has no labelled training images: add some.")
        return records

    def evaluation(self, split: Literal["val", "test"]) -> Sequence[Record]:
        """The images of a split, of all classes: the sample of validation images, or all test images.

        Raises:
            DataError: There is no such split.
        """
        records = self.splits.val if split == "val" else self.splits.test
        if not records:
            remedy = ", set data.init_args.held_out to 0.25 to hold some training images out" if split == "test" else ""
            raise DataError(
                f"{self.splits.origin} has no {split} split: add one{remedy}, or do not ask for its accuracy."
            )
        if split == "test":
            return records
        return few_shot(self.splits.train, records, self.shots, self.val_shots, self.seed)[1]

    def evaluation_loader(
        self,
        split: Literal["val", "test"],
        image_size: int,
        batch_size: int,
        num_workers: int,
        rank: int,
        world_size: int,
    ) -> DataLoader[Any]:
        """Batches of the images of a split, each image once over all processes.

        Raises:
            ConfigError: There are more processes than images.
            DataError: There is no such split.
        """
        records = self.evaluation(split)
        if len(records) < world_size:  # a process without a batch would leave the others waiting for its metrics
            raise ConfigError(
                f"{self.splits.origin} has {len(records)} {split} images for {world_size} processes: "
                f"set trainer.devices to {len(records)} or fewer."
            )
        dataset = EvaluationImages(records, self.splits.open_image, image_size)
        return LazyLoader(dataset, EvaluationSampler(len(records), rank, world_size), batch_size, num_workers)
