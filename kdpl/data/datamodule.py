"""The one datamodule that both stages share."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from PIL.Image import Image
from torch.utils.data import DataLoader

from kdpl.data.augmentation import Augmentation, build_augmentation
from kdpl.data.caching import CachingDataModule
from kdpl.data.consumer import TrainSplit, consumer_of, refuse_second_sharding
from kdpl.data.datasets import CachedImages, LabeledImages, RandomView, UnlabeledImages
from kdpl.data.feature_cache import CachedImages as FeatureCachedImages
from kdpl.data.labeled import Labeled
from kdpl.data.loader import Batches, LazyLoader
from kdpl.data.parallel import cores
from kdpl.data.readers.registry import check_dataset
from kdpl.data.reading import BadImages, Reading, files_around
from kdpl.data.sampler import TrainSampler, ViewSampler
from kdpl.data.sampling import base_count
from kdpl.data.scan import FILE
from kdpl.data.splits import Record, Splits
from kdpl.data.unlabeled import Unlabeled
from kdpl.errors import ConfigError, DataError

_WORKERS = 4


class DomainDataModule(CachingDataModule):
    """A domain's images, as both stages and the test take them.

    Images are uint8 tensors [B, 3, S, S], un-normalised: every CLIP tower normalises with its own mean and standard
    deviation. Batches are

    - training, ``labeled``: (images, labels), the k-shot sample (of the base classes under ``base_to_novel``);
    - training, ``unlabeled``: (images, indices), ALL training images, or those of the ``unlabeled`` folder, or a share
      of them, and no labels anywhere; with a teacher cache ``CachedView`` (images, indices, rows, features);
    - validation and test: (images, labels, indices), each image exactly once over all processes.

    Validation and test hold the images of all classes under either protocol; labels index ``class_names``.

    Args:
        dataset: ``digits``, ``folder``, ``table``, or a dataset of the benchmark (``kdpl/data/benchmark.py``).
        root: Folder of the dataset, where it has one; the table's file; the folder of all datasets for one of the
            benchmark.
        unlabeled: Where unlabelled images are (datasets ``folder`` and ``table``): folders, patterns, lists and shards,
            see ``kdpl/data/sources.py``; None: the table's rows without a label, or the training images without labels.
        class_names: JSON or CSV file that gives class folders or labels names, and texts for the text tower (datasets
            ``folder`` and ``table``); None: they are the names.
        class_text: What the text tower reads for a class, with ``{}`` in the place of the name (likewise).
        held_out: Share of each class's training images that become test images, where there are no others; None: none.
        bad_images: What becomes of images that cannot be decoded: ``error`` names them before anything is trained,
            ``skip`` leaves them out.
        scan: Whether all images are looked at for that before a fit; None: those of ``folder`` and ``table``.
        skip_list: File of images to leave out: a ``.txt``, a ``.csv``, or a run's ``checked_images.json``.
        protocol: ``all`` classes alike, or ``base_to_novel``: labels of the first half of the classes alone.
        shots: Labelled training images a class; None: all.
        val_shots: Validation images a class, at most ``shots`` of them; None: the whole validation split.
        unlabeled_share: Share of the unlabelled training images to distil on, above 0 and at most 1.
        allow_fewer_shots: Take classes that have fewer than ``shots`` training images as they are.
        augmentation: Views of training images: ``random_resized_crop``, ``light_affine``, ``none``, or an object.
        batch_size: Training images a batch, on each process.
        eval_batch_size: Validation and test images a batch, on each process.
        num_workers: Worker processes of each loader; None: 4, or one for each processor core where there are fewer.
        teacher_cache: Folder with the teacher's features of views of the unlabelled images, for whoever distils; epoch
            e then sees view e mod V of each image, as the cache's own seed draws it. None: the teacher runs on each
            image of each epoch.
        fill_teacher_cache: Whether features that ``teacher_cache`` lacks are computed in training and written into it.
        seed: Seed of the k-shot sample, of the training order and of the augmentation; at least 0.

    Raises:
        ConfigError: If arguments are out of range or do not go together.
    """

    def __init__(
        self,
        dataset: str,
        root: str | None = None,
        unlabeled: list[str] | str | None = None,
        class_names: str | None = None,
        class_text: str | None = None,
        held_out: float | None = None,
        bad_images: BadImages = "error",
        scan: bool | None = None,
        skip_list: str | None = None,
        protocol: Literal["all", "base_to_novel"] = "all",
        shots: int | None = 16,
        val_shots: int | None = 4,
        unlabeled_share: float = 1.0,
        allow_fewer_shots: bool = False,
        augmentation: Augmentation | str = "random_resized_crop",
        batch_size: int = 8,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        teacher_cache: str | None = None,
        fill_teacher_cache: bool = False,
        seed: int = 1,
    ) -> None:
        super().__init__()
        # the run's folder is one for all nodes
        self.prepare_data_per_node = False
        options = {"root": root, "unlabeled": unlabeled, "class_names": class_names, "class_text": class_text}
        check_dataset(dataset, **options)
        self._reading = Reading(dataset, options, bad_images, scan, skip_list, held_out)
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
        self.num_workers = min(_WORKERS, cores()) if num_workers is None else num_workers
        self.teacher_cache = teacher_cache
        self.fill_teacher_cache = fill_teacher_cache
        self.seed = seed

    @cached_property
    def splits(self) -> Splits:
        """The dataset before protocol and sampling, less images that are left out; read once, on first use.

        Raises:
            DataError: If the dataset is missing or damaged, or has too few classes for the protocol.
        """
        splits = self._reading.splits
        if self.protocol == "base_to_novel" and len(splits.class_names) < 2:
            raise DataError(
                f"{splits.origin} has {len(splits.class_names)} class, but protocol base_to_novel needs two or more: "
                "set protocol to all."
            )
        return splits

    @cached_property
    def _labeled(self) -> Labeled:
        names, fewer = self.tuning_class_names, self.allow_fewer_shots
        return Labeled(self.splits, names, self.shots, self.val_shots, fewer, self.seed)

    @cached_property
    def _unlabeled(self) -> Unlabeled:
        return Unlabeled(self.splits, self.unlabeled_share, self.seed)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, by label."""
        return self.splits.class_names

    @property
    def class_texts(self) -> tuple[str, ...]:
        """What the text tower reads for each class, by label; mostly its name."""
        return self.splits.class_texts or self.class_names

    @property
    def num_base(self) -> int | None:
        """Number of base classes, which are the first ones; None where the protocol makes no difference."""
        return base_count(len(self.class_names)) if self.protocol == "base_to_novel" else None

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """The names that the teacher is tuned on, by label: the base classes, or all."""
        return self.class_names[: self.num_base]

    @property
    def held_out(self) -> bool:
        """Whether the test images are labelled images that were held out, since the dataset came with no others."""
        return self.splits.held_out

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
        return self._unlabeled.preview(n, image_size)

    def of_run(self, folder: Path) -> None:
        """Take the images that the run in this folder took; to be said before anything is read."""
        self._reading.files = files_around(folder)

    def prepare_data(self) -> None:
        """Look at all images before they are trained on, unless that was done; on one process, the others wait."""
        trainer = cast(Trainer, self.trainer)
        self._reading.files = self._files_of(trainer)
        self._reading.prepare(trains=trainer.state.fn == "predict" or (trainer.state.fn == "fit" and self._trains))

    def _files_of(self, trainer: Trainer) -> tuple[Path, ...]:
        """Where it is remembered which images can be used; a cache is filled without a run's folder."""
        own, *others = files_around(Path(trainer.default_root_dir))
        if self.teacher_cache is None:
            return (own, *others)
        cache = Path(f"{Path(self.teacher_cache).expanduser()}.{FILE}")
        return (cache, own, *others) if trainer.state.fn == "predict" else (own, cache, *others)

    def setup(self, stage: str = "fit") -> None:
        """Read the dataset, and check it as far as the stage needs it.

        Raises:
            ConfigError: If the trainer would shard the batches a second time.
            DataError: If the dataset is missing or damaged, or lacks the images that the stage needs.
        """
        if self.trainer is not None:
            self._reading.files = self._files_of(self.trainer)
        _ = self.splits  # reads the dataset
        if self.trainer is None:
            return
        refuse_second_sharding(self.trainer)
        if stage in ("fit", "test"):
            for line in self._reading.notes():
                rank_zero_info(line)
        # here rather than with the first batch: nothing has been written yet
        trains = stage == "fit" and self._trains
        if trains:
            self.splits.require_training_images()
        if trains and getattr(self.trainer.lightning_module, "train_split", None) == "labeled":
            self._labeled.training()
        if trains and self._has_new_cache and not self.fill_teacher_cache:
            _ = self.feature_cache
        if stage == "test":
            self._labeled.evaluation("test")
        if stage == "validate":
            self._labeled.evaluation("val")

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the split that the trainer's module asks for."""
        module = consumer_of(self.trainer)
        return self.train_dataloader_for(module.train_split, module.image_size, *self._processes())

    def predict_dataloader(self) -> Batches:
        """Views of unlabelled images as ``CachedView``: the (image index, view) pairs of the module's ``views``."""
        module: Any = cast(Trainer, self.trainer).lightning_module
        sampler = ViewSampler(module.views, *self._processes())
        size = consumer_of(self.trainer).image_size
        dataset = self._unlabeled.images(self.augmentation, size, self._cache, all_of_them=True)
        return Batches(LazyLoader(dataset, sampler, self.eval_batch_size, self.num_workers))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches; an empty list, which skips validation, where the dataset has no such split."""
        if not self.splits.val:
            return []
        return self.val_dataloader_for(consumer_of(self.trainer).image_size, *self._processes())

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self.test_dataloader_for(consumer_of(self.trainer).image_size, *self._processes())

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
            A loader of (uint8 [B, 3, S, S], int64 [B]), the latter labels or indices, or of ``CachedView`` if
            ``open_teacher_cache`` has opened one. The epoch is set on its ``sampler``.

        Raises:
            DataError: If the split has no images, or a class has fewer than ``shots``.
        """
        dataset: LabeledImages | UnlabeledImages | CachedImages | FeatureCachedImages
        if split == "labeled":
            view = RandomView(self.splits.open_image, self.augmentation, image_size, self.seed)
            dataset = LabeledImages(self._labeled.training(), view)
        else:
            dataset = self._unlabeled.images(self.augmentation, image_size, self._cache)
            cache = self.feature_cache if self._has_new_cache else None
            if cache is not None:
                view = RandomView(self.splits.open_image, self.augmentation, image_size, cache.manifest.view_seed)
                sources, indices = self._unlabeled.sources, self._unlabeled.indices
                dataset = FeatureCachedImages(UnlabeledImages([sources[i] for i in indices], view, indices), cache)
        sampler = TrainSampler(len(dataset), self.batch_size, self.seed, rank, world_size)
        if isinstance(dataset, CachedImages) and dataset.fill and sampler.num_used > len(dataset):
            raise ConfigError(
                f"{len(dataset)} unlabelled images do not fill one batch on each of {world_size} processes, which "
                "cannot fill a teacher cache: fill it with python -m kdpl cache, or lower data.init_args.batch_size"
            )
        return LazyLoader(dataset, sampler, self.batch_size, self.num_workers, self._batches_done)

    def val_dataloader_for(self, image_size: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Validation batches without a trainer: (uint8 [B, 3, S, S], labels [B], indices [B])."""
        size, workers = self.eval_batch_size, self.num_workers
        return self._labeled.evaluation_loader("val", image_size, size, workers, rank, world_size)

    def test_dataloader_for(self, image_size: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Test batches without a trainer: (uint8 [B, 3, S, S], labels [B], indices [B])."""
        size, workers = self.eval_batch_size, self.num_workers
        return self._labeled.evaluation_loader("test", image_size, size, workers, rank, world_size)

    @property
    def _trains(self) -> bool:
        return cast(Trainer, self.trainer).max_epochs != 0

    def _batches_done(self) -> int:
        """Batches of the current epoch that a run which is resumed has had already."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready) if self.trainer else 0

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _require_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, not {value}.")
