"""The labelled images of a domain that a run may see, and what for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kdpl.data.sampling import few_shot, require_shots, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError

EvaluationSplit = Literal["labeled", "val", "test"]


@dataclass
class Labels:
    """The k-shot sample of a dataset; of the base classes alone where labels of the others are not to be seen.

    Attributes:
        splits: The dataset, without labels but those of the test images where ``shots`` is 0.
        num_base: Number of base classes, which are the first ones; None where all classes are alike.
        shots: As of ``DomainDataModule``, like the following.
        val_shots: Likewise.
        allow_fewer_shots: Likewise.
        seed: Seed of the sample.
    """

    splits: Splits
    num_base: int | None
    shots: int | None
    val_shots: int | None
    allow_fewer_shots: bool
    seed: int

    @cached_property
    def _sample(self) -> tuple[list[Record], list[Record]]:
        return few_shot(self.splits.train, self.splits.val, self.shots, self.val_shots, self.seed)

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """The names that the teacher is tuned on, by label: the base classes, or all."""
        return self.splits.class_names[: self.num_base]

    def training(self) -> list[Record]:
        """Labelled training images of the classes that the teacher is tuned on; a DataError if there are none."""
        self.splits.require_training_images()
        # the sample comes before the base subset, so that base classes get the same images under either protocol
        names = self.tuning_class_names
        if self.shots == 0:
            said = "shots is 0, so that no labelled image is used, but prompts, pool_filter and label_weight need some"
            raise DataError(f"{said}: set shots above 0, or do without them (configs/teacher/zero_shot.yaml)")
        records = with_labels(self._sample[0], range(len(names)))
        if not records:
            raise DataError(f"{self.splits.origin} has no labelled training images: add some, or set shots to 0")
        if self.shots is not None and not self.allow_fewer_shots:
            require_shots(records, names, self.shots)
        return records

    def companions(self) -> list[Record]:
        """The labelled images of a student with labels, of every class, or a ConfigError."""
        names, records = self.splits.class_names, [] if self.shots == 0 else self.training()
        missing = sorted(set(range(len(names))) - {record.label for record in records})
        if missing:
            # the head would learn that these classes never occur
            protocol = "all" if self.num_base is None else "base_to_novel"
            lacks = f"{names[missing[0]]!r} has none (shots {self.shots}, protocol {protocol})"
            raise ConfigError(f"label_weight needs labelled images of every class, but {lacks}: set label_weight to 0")
        return records

    def tuning(self, split: Literal["labeled", "val"]) -> list[Record]:
        """Labelled images, or validation images, of the classes that the teacher is tuned on."""
        if split == "labeled":
            return self.training() if self.shots != 0 else []
        return with_labels(self._sample[1], range(len(self.tuning_class_names)))

    def evaluation(self, split: EvaluationSplit) -> Sequence[Record]:
        """Images to measure accuracies on, of all classes but for ``labeled``; a DataError if there are none."""
        if split == "labeled":
            return self.training()
        records = self._sample[1] if split == "val" else self.splits.test
        if split == "val" and self.shots == 0:
            raise DataError("shots is 0, so that no labelled image is used for validation: set shots above 0")
        if not records:
            remedy = ", set data.init_args.held_out to 0.25 to hold some training images out" if split == "test" else ""
            raise DataError(f"{self.splits.origin} has no {split} split: add one{remedy}, or do without its accuracy")
        return records
