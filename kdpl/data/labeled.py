"""The labelled images that stage 1 tunes on, and those that both stages are measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdpl.data.sampling import few_shot, require_shots, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError


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
            require_shots(records, self.tuning_class_names, self.shots)
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
            raise DataError(f"{self.splits.origin} has no {split} split: add one, or do not ask for its accuracy.")
        if split == "test":
            return records
        return few_shot(self.splits.train, records, self.shots, self.val_shots, self.seed)[1]
