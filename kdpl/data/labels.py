"""Labels that a run may see: the few-shot sample, and the evaluation images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from kdpl.data.sampling import few_shot, require_shots, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.data.stratified import are_sets
from kdpl.errors import DataError

ClassProtocol = Literal["all", "base_to_novel"]
EvaluationSplit = Literal["labeled", "val", "test"]


@dataclass(frozen=True)
class Labels:
    """Labelled images of a dataset that protocol and shots allow a run to see.

    Under ``base_to_novel``, no label of a novel class is trained on (``training``) or used to
    prepare targets (``tuning``); validation and test have all classes (``evaluation``).

    Attributes:
        read: The dataset as it was read. The other attributes are as in ``DomainDataModule``.
    """

    read: Splits
    protocol: ClassProtocol
    shots: int | None
    val_shots: int | None
    allow_fewer_shots: bool
    seed: int
    train_on_val: bool = False

    @cached_property
    def splits(self) -> Splits:
        """The dataset before sampling; with 0 shots, only test images have labels.

        Validation images that are trained on are training images.
        """
        if self.protocol == "base_to_novel" and len(self.read.class_names) < 2:
            raise DataError(
                f"{self.read.origin} has one class, but protocol base_to_novel needs two: set "
                "protocol to all"
            )
        if self.shots == 0:
            return self.read.without_labels()
        if self.trains_on_val:
            return replace(self.read, train=(*self.read.train, *self.read.val), val=())
        return self.read

    @cached_property
    def trains_on_val(self) -> bool:
        """Whether validation images are trained on, and none is left to validate on."""
        return self.train_on_val and bool(self._drawn[1])

    @property
    def num_base(self) -> int | None:
        """Number of base classes, half of them and rounded up; None if the protocol has none."""
        return -(-len(self.read.class_names) // 2) if self.protocol == "base_to_novel" else None

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """Names of the classes that the teacher is tuned on, by label: the base classes, or all."""
        return self.read.class_names[: self.num_base]

    @property
    def _sample(self) -> tuple[list[Record], list[Record]]:
        train, val = self._drawn
        return ([*train, *val], []) if self.trains_on_val else (train, val)

    @cached_property
    def _drawn(self) -> tuple[list[Record], list[Record]]:
        splits = self.read.without_labels() if self.shots == 0 else self.read
        settings = (self.shots, self.val_shots, self.seed, splits.groups)
        if not are_sets((*splits.train, *splits.val)):
            return few_shot(splits.train, splits.val, *settings)

        # choose no image for a label that no stage may see
        train, val = map(self._tunable, (splits.train, splits.val))
        sample, chosen = few_shot(train, val, *settings)
        whole = {record.source: record for record in splits.val}
        return sample, [whole[record.source] for record in chosen]

    def _tunable(self, records: Iterable[Record]) -> list[Record]:
        return with_labels(records, range(len(self.tuning_class_names)))

    def training(self) -> list[Record]:
        """Return labelled training images of the tuning classes; DataError if there are none."""
        self.splits.require_training_images()
        # sample before taking the base classes: they get the same images under either protocol
        self.require_shots()
        records = self._tunable(self._sample[0])
        if not records:
            raise DataError(
                f"{self.splits.origin} has no labelled training images: add some, or set shots to 0"
            )
        if self.shots is not None and not self.allow_fewer_shots:
            require_shots(records, self.tuning_class_names, self.shots)
        return records

    def require_shots(self) -> None:
        """Raise a DataError if no label of a training image is used."""
        if self.shots == 0:
            raise DataError(
                "shots is 0, so that no labelled image is used, but prompts and pool_filter need "
                "some: set shots above 0, or do without them (config teacher/zero_shot)"
            )

    def tuning(self, split: Literal["labeled", "val"]) -> list[Record]:
        """Return labelled or validation images of the tuning classes, with their labels."""
        if split == "labeled":
            return self.training() if self.shots != 0 else []
        return self._tunable(self._sample[1])

    def counts_in_stage(self, stage: int) -> str:
        """Describe in a line how many labels a stage trains and validates on, and no stage uses."""
        trained = self.training() if stage == 1 else []
        read = self.splits if self.trains_on_val else self.read
        sample, val = self._sample
        train = self._tunable(sample)
        line = f"labels in the batches of stage {stage}: {len(trained)} of {len(read.train)}"
        line += f"; validation: {len(val)} of {len(read.val)}"
        # name the settings that keep labels from all stages
        if unseen := len(read.train) + len(read.val) - len(train) - len(val):
            named = {"shots": self.shots, "val_shots": self.val_shots, "protocol": self.protocol}
            why = [f"{name} {value}" for name, value in named.items() if value not in (None, "all")]
            line += f"; in no stage: {unseen} ({', '.join(why)})"
        if self.trains_on_val:
            line += f"; {len(self._drawn[1])} validation images are trained on (train_on_val), and "
            line += "none is left to calibrate a classifier on"
        return line

    def evaluation(self, split: EvaluationSplit) -> Sequence[Record]:
        """Return the images that accuracies are measured on; DataError if there are none."""
        if split == "labeled":
            return self.training()
        # validation images are sampled, test images are not
        records = self._sample[1] if split == "val" else self.splits.test
        if split == "val" and self.shots == 0:
            raise DataError(
                "shots is 0, so that no labelled image is used for validation: set shots above 0"
            )
        if not records:
            remedy = ""
            if split == "test":
                remedy = ", set data.init_args.reading.test_share to 0.25 to hold some training "
                remedy += "images out"
            elif self.trains_on_val:
                remedy = ", set data.init_args.train_on_val to false"
            raise DataError(
                f"{self.splits.origin} has no {split} split: add one{remedy}, or do without its "
                "accuracy"
            )
        return records
