"""The one datamodule that both stages share."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from PIL.Image import Image
from torch.utils.data import DataLoader

from kdpl.data.augmentation import Augmentation, build_augmentation
from kdpl.data.datasets import EvaluationImages, LabeledImages, RandomView, UnlabeledImages
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.loader import LazyLoader
from kdpl.data.registry import check_dataset, read_dataset
from kdpl.data.sampler import EvaluationSampler, TrainSampler
from kdpl.data.sampling import base_count, few_shot, require_shots, share_of, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError

TrainSplit = Literal["labeled", "unlabeled"]


class DataConsumer(Protocol):
    """What a LightningModule tells the datamodule.

    Attributes:
        train_split: The split that it trains on.
        image_size: Edge in pixels of the square images that it takes.
    """

    train_split: TrainSplit
    image_size: int


class DomainDataModule(LightningDataModule):
    """A domain's images, as both stages and the test take them.

    Images are uint8 tensors [B, 3, S, S], un-normalised: every CLIP tower normalises with its own mean and standard
    deviation. Batches are

    - training, ``labeled``: (images, labels), the k-shot sample (of the base classes under ``base_to_novel``);
    - training, ``unlabeled``: (images, indices), ALL training images, or those of the ``unlabeled`` folder, or a share
      of them, and no labels anywhere;
    - validation and test: (images, labels, indices), each image exactly once over all processes.

    Validation and test hold the images of all classes under either protocol; labels index ``class_names``.

    Args:
        dataset: ``digits``, ``folder``, or a dataset of the benchmark (``kdpl/data/benchmark.py``).
        root: Folder of the dataset, where it has one; the folder of all datasets for one of the benchmark.
        unlabeled: Folder of unlabelled images, searched recursively (dataset ``folder``); None: the training images
            without their labels.
        class_names: JSON or CSV file that maps class folders to names (dataset ``folder``); None: folder names.
        protocol: ``all`` classes alike, or ``base_to_novel``: labels of the first half of the classes alone.
        shots: Labelled training images a class; None: all.
        val_shots: Validation images a class, at most ``shots`` of them; None: the whole validation split.
        unlabeled_share: Share of the unlabelled training images to distil on, above 0 and at most 1.
        allow_fewer_shots: Take classes that have fewer than ``shots`` training images as they are.
        augmentation: Views of training images: ``random_resized_crop``, ``light_affine``, ``none``, or an object.
        batch_size: Training images a batch, on each process.
        eval_batch_size: Validation and test images a batch, on each process.
        num_workers: Worker processes of each loader.
        seed: Seed of the k-shot sample, of the training order and of the augmentation; at least 0.

    Raises:
        ConfigError: If arguments are out of range or do not go together.
    """

    def __init__(
        self,
        dataset: str,
        root: str | None = None,
        unlabeled: str | None = None,
        class_names: str | None = None,
        protocol: Literal["all", "base_to_novel"] = "all",
        shots: int | None = 16,
        val_shots: int | None = 4,
        unlabeled_share: float = 1.0,
        allow_fewer_shots: bool = False,
        augmentation: Augmentation | str = "random_resized_crop",
        batch_size: int = 8,
        eval_batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self._options = {"root": root, "unlabeled": unlabeled, "class_names": class_names}
        check_dataset(dataset, **self._options)
        if protocol not in ("all", "base_to_novel"):
            raise ConfigError(f"protocol {protocol!r} is unknown: choose all or base_to_novel.")
        _require_at_least(1, shots=shots, val_shots=val_shots, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _require_at_least(0, num_workers=num_workers, seed=seed)
        if not 0 < unlabeled_share <= 1:
            raise ConfigError(f"unlabeled_share must be above 0 and at most 1, not {unlabeled_share}.")
        self.dataset = dataset
        self.protocol = protocol
        self.shots = shots
        self.val_shots = val_shots
        self.unlabeled_share = unlabeled_share
        self.allow_fewer_shots = allow_fewer_shots
        self.augmentation = build_augmentation(augmentation)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    @cached_property
    def splits(self) -> Splits:
        """The dataset as it is, before protocol and sampling; read once, on first use.

        Raises:
            DataError: If the dataset is missing or damaged, or has too few classes for the protocol.
        """
        splits = read_dataset(self.dataset, **self._options)
        if self.protocol == "base_to_novel" and len(splits.class_names) < 2:
            raise DataError(
                f"{splits.origin} has {len(splits.class_names)} class, but protocol base_to_novel needs two or more: "
                "set protocol to all."
            )
        return splits

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, by label."""
        return self.splits.class_names

    @property
    def num_base(self) -> int | None:
        """Number of base classes, which are the first ones; None where the protocol makes no difference."""
        return base_count(len(self.class_names)) if self.protocol == "base_to_novel" else None

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """The names that the teacher is tuned on, by label: the base classes, or all."""
        return self.class_names[: self.num_base]

    @property
    def test_records(self) -> tuple[Record, ...]:
        """Source and label of the test images; a batch's indices index them."""
        return self.splits.test

    def test_item(self, index: int) -> tuple[str, Image, int]:
        """Source, RGB image in its own size, and label of a test image."""
        source, label = self.splits.test[index]
        return source, self.splits.open_image(source), label

    def preview(self, n: int, image_size: int) -> torch.Tensor:
        """Unlabelled images under the evaluation transform, spread evenly over the list.

        Args:
            n: How many; where there are fewer, all are taken.
            image_size: Edge S in pixels.

        Returns:
            uint8 tensor [n, 3, S, S].
        """
        sources = self._unlabeled_sources()
        n = min(n, len(sources))
        chosen = [sources[i * len(sources) // n] for i in range(n)]
        return torch.stack([to_tensor(resize_and_crop(self.splits.open_image(s), image_size)) for s in chosen])

    def setup(self, stage: str = "fit") -> None:
        """Read the dataset, and check it as far as the stage needs it.

        Raises:
            ConfigError: If the trainer would shard the batches a second time.
            DataError: If the dataset is missing or damaged, or lacks the images that the stage needs.
        """
        _ = self.splits  # reads the dataset
        if self.trainer is None:
            return
        self._refuse_second_sharding()
        # here rather than with the first batch: nothing has been written yet
        trains = stage == "fit" and self.trainer.max_epochs != 0
        if trains:
            self._require_training_images()
        if trains and getattr(self.trainer.lightning_module, "train_split", None) == "labeled":
            self._labeled_records()
        if stage == "test":
            self._evaluation_records("test")
        if stage == "validate":
            self._evaluation_records("val")

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the split that the trainer's module asks for."""
        module = self._consumer()
        return self.train_dataloader_for(module.train_split, module.image_size, *self._processes())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches; an empty list, which skips validation, where the dataset has no such split."""
        if not self.splits.val:
            return []
        return self.val_dataloader_for(self._consumer().image_size, *self._processes())

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self.test_dataloader_for(self._consumer().image_size, *self._processes())

    def train_dataloader_for(
        self, split: TrainSplit, image_size: int, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        """Training batches without a trainer.

        Args:
            split: ``labeled`` or ``unlabeled``.
            image_size: Edge S in pixels.
            rank: This process.
            world_size: Number of processes.

        Returns:
            A loader of (uint8 [B, 3, S, S], int64 [B]); the latter are labels or indices. The epoch is set on its
            ``sampler``.

        Raises:
            DataError: If the split has no images, or a class has fewer than ``shots``.
        """
        view = RandomView(self.splits.open_image, self.augmentation, image_size, self.seed)
        dataset: LabeledImages | UnlabeledImages
        if split == "labeled":
            dataset = LabeledImages(self._labeled_records(), view)
        else:
            dataset = UnlabeledImages(self._unlabeled_sources(), view)
        sampler = TrainSampler(len(dataset), self.batch_size, self.seed, rank, world_size)
        return LazyLoader(dataset, sampler, self.batch_size, self.num_workers)

    def val_dataloader_for(self, image_size: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Validation batches without a trainer: (uint8 [B, 3, S, S], labels [B], indices [B])."""
        return self._evaluation_loader("val", image_size, rank, world_size)

    def test_dataloader_for(self, image_size: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Test batches without a trainer: (uint8 [B, 3, S, S], labels [B], indices [B])."""
        return self._evaluation_loader("test", image_size, rank, world_size)

    def _require_training_images(self) -> None:
        if self.splits.test_only:
            raise DataError(
                f"{self.splits.origin} is for tests alone: train on another dataset, then test on this one."
            )

    def _labeled_records(self) -> list[Record]:
        self._require_training_images()
        # the sample comes before the base subset, so that base classes get the same images under either protocol
        records = few_shot(self.splits.train, self.splits.val, self.shots, self.val_shots, self.seed)[0]
        records = with_labels(records, range(len(self.tuning_class_names)))
        if self.shots is not None and not self.allow_fewer_shots:
            require_shots(records, self.tuning_class_names, self.shots)
        if not records:
            raise DataError(f"{self.splits.origin} has no labelled training images: add some.")
        return records

    def _unlabeled_sources(self) -> tuple[str, ...]:
        self._require_training_images()
        sources = self.splits.unlabeled
        if sources is None:
            sources = tuple(record.source for record in self.splits.train)
        if not sources:
            raise DataError(f"{self.splits.origin} has no images to distil on: add some.")
        return share_of(sources, self.unlabeled_share, self.seed) if self.unlabeled_share < 1 else sources

    def _evaluation_records(self, split: Literal["val", "test"]) -> Sequence[Record]:
        records = self.splits.val if split == "val" else self.splits.test
        if not records:
            raise DataError(f"{self.splits.origin} has no {split} split: add one, or do not ask for its accuracy.")
        if split == "test":
            return records
        return few_shot(self.splits.train, records, self.shots, self.val_shots, self.seed)[1]

    def _evaluation_loader(
        self, split: Literal["val", "test"], image_size: int, rank: int, world_size: int
    ) -> DataLoader[Any]:
        records = self._evaluation_records(split)
        if len(records) < world_size:  # a process without a batch would leave the others waiting for its metrics
            raise ConfigError(
                f"{self.splits.origin} has {len(records)} {split} images for {world_size} processes: "
                f"set trainer.devices to {len(records)} or fewer."
            )
        dataset = EvaluationImages(records, self.splits.open_image, image_size)
        sampler = EvaluationSampler(len(records), rank, world_size)
        return LazyLoader(dataset, sampler, self.eval_batch_size, self.num_workers)

    def _consumer(self) -> DataConsumer:
        module = self.trainer.lightning_module if self.trainer else None
        for name, expected in (("train_split", "labeled or unlabeled"), ("image_size", "the edge of its images")):
            if not hasattr(module, name):
                raise ConfigError(
                    f"{type(module).__name__} has no {name}: the datamodule expects a LightningModule with "
                    f"{name}, {expected}."
                )
        consumer = cast(DataConsumer, module)
        if consumer.train_split not in get_args(TrainSplit):
            raise ConfigError(
                f"train_split of {type(module).__name__} is {consumer.train_split!r}: expected labeled or unlabeled."
            )
        return consumer

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _refuse_second_sharding(self) -> None:
        # Lightning would wrap the samplers of this datamodule, and images would go missing without a word
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if self._processes()[1] > 1 and getattr(connector, "use_distributed_sampler", False):
            raise ConfigError(
                "trainer.use_distributed_sampler must be false on several processes: the datamodule shards by itself."
            )


def _require_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, not {value}.")
