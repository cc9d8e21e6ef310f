"""The one datamodule that both stages share."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule, Trainer
from PIL.Image import Image
from torch.utils.data import DataLoader

from kdpl.data.augmentation import (
    Augmentation,
    HalfWhole,
    build_augmentation,
    resize_and_crop,
    to_tensor,
)
from kdpl.data.batches import EvaluationBatch, LabeledBatch, UnlabeledBatch
from kdpl.data.datasets import (
    CachedFeatures,
    EvaluationImages,
    LabeledImages,
    RandomView,
    UnlabeledImages,
)
from kdpl.data.decoding import Decoding, cores
from kdpl.data.groups import one_of_each
from kdpl.data.identity import CONTENTS, digest_of, files_of
from kdpl.data.labels import ClassProtocol, EvaluationSplit, Labels
from kdpl.data.loader import EvaluationSampler, LazyLoader, RepeatedSampler, TrainSampler
from kdpl.data.names import Indices
from kdpl.data.needs import Needs, TrainSplit
from kdpl.data.options import ClassOptions, ReadingOptions
from kdpl.data.pool import UnlabeledPool
from kdpl.data.readers.registry import build_reader
from kdpl.data.reading import Reading
from kdpl.data.sampling import spread
from kdpl.data.splits import Label, Reader, Splits
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import ClassText
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import as_json, digest
from kdpl.runtime.resizing import Resizing
from kdpl.tasks import MULTI_CLASS

_WORKERS = 4
_VAL_SHOTS = 4  # of the published protocol


class DomainDataModule(LightningDataModule):
    """A domain's images, for both stages and the test.

    Images are un-normalised: every CLIP tower normalises with its mean and standard deviation.
    Batches are

    - training, ``labeled``: ``LabeledBatch``, the k-shot sample (of the base classes under
      ``base_to_novel``);
    - training, ``unlabeled``: ``UnlabeledBatch``, ALL training images and the unlabelled images,
      or a share of them, and no labels anywhere;
    - validation and test: ``EvaluationBatch``, each image exactly once over all processes.

    Validation and test hold the images of all classes under either protocol; labels index
    ``class_names``. The module that a trainer runs says in its property ``needs``
    (``kdpl.data.needs``) which images are made, and for what.

    Args:
        dataset: ``digits``, ``folder``, ``table``, a dataset of the benchmark
            (``kdpl/data/readers/benchmark.py``), or your reader with its ``class_path`` and
            ``init_args``.
        root: Folder of the dataset, the table's file, or the folder of all datasets of the
            benchmark.
        unlabeled: Places of unlabelled images (``folder`` and ``table``): folders, patterns, lists
            and shards, see ``kdpl/data/sources.py``; None: the table's rows without a label, or
            the images in the folder ``unlabeled`` in root. The training images are distilled on
            too.
        classes: Names and texts of the classes, a tree of them, and the meaning of labels.
        reading: Background of transparent images, images to leave out, and a share of the training
            images to test on.
        protocol: ``all`` classes alike, or ``base_to_novel``: training labels of the first half of
            the classes alone.
        shots: Labelled training images a class; None: all; 0: no labelled image is used, for
            validation either.
        val_shots: Validation images a class, at most ``shots`` of them; None: the whole validation
            split; ``auto``: 4 of a benchmark's dataset, as published, and all of your images.
        train_on_val: Train on the validation images as well, so that none is left to validate, or
            to calibrate the classifier, on. ``run PATH`` sets it for refined targets. Give both
            stages the same.
        unlabeled_share: Share of the unlabelled training images to distil on, above 0 and at most
            1.
        allow_fewer_shots: Use classes that have fewer than ``shots`` training images as they are.
        balance_classes: Sample labelled training images so that all classes are equally frequent;
            the length of an epoch does not change.
        augmentation: Views of training images: ``random_resized_crop``, ``light_affine``, ``none``,
            or your ``Augmentation``.
        batch_size: Training images a batch, on each process.
        eval_batch_size: Validation and test images a batch, on each process.
        num_workers: Worker processes of each loader; None: 4, or one for each processor core where
            there are fewer.
        seed: Seed of the k-shot sample, of the training order and of the augmentation; at least 0.
    """

    def __init__(
        self,
        dataset: Reader | str,
        root: str | None = None,
        unlabeled: list[str] | str | None = None,
        classes: ClassOptions = ClassOptions(),
        reading: ReadingOptions = ReadingOptions(),
        protocol: ClassProtocol = "all",
        shots: NonNegativeInt | None = 16,
        val_shots: PositiveInt | Literal["auto"] | None = "auto",
        train_on_val: bool = False,
        unlabeled_share: float = 1.0,
        allow_fewer_shots: bool = False,
        balance_classes: bool = False,
        augmentation: Augmentation | str = "random_resized_crop",
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 64,
        num_workers: NonNegativeInt | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        # the run's folder is one for all nodes
        self.prepare_data_per_node = False

        # the dataset; it is read later
        reader = build_reader(
            dataset,
            root=root,
            unlabeled=unlabeled,
            class_names=classes.names,
            class_text=classes.text,
            label_separator=classes.label_separator,
            background=reading.background,
        )
        self.reading = Reading(reader, reading)

        # the settings
        if protocol not in ("all", "base_to_novel"):
            raise ConfigError(f"protocol {protocol!r} is unknown: choose all or base_to_novel")
        if not 0 < unlabeled_share <= 1:
            raise ConfigError(
                f"unlabeled_share must be above 0 and at most 1, not {unlabeled_share}"
            )
        if balance_classes and reader.task != MULTI_CLASS.name:
            raise ConfigError(
                "balance_classes draws images of one class each, and these data have several "
                "labels an image: set balance_classes to false"
            )
        self.dataset = (
            dataset
            if isinstance(dataset, str)
            else f"{type(reader).__module__}.{type(reader).__qualname__}"
        )
        self.classes = classes
        self.protocol = protocol
        self.shots = shots
        if val_shots == "auto":
            val_shots = None if reader.from_user else _VAL_SHOTS
        self.val_shots = val_shots
        self.train_on_val = train_on_val
        self.unlabeled_share = unlabeled_share
        self.allow_fewer_shots = allow_fewer_shots
        self.balance_classes = balance_classes
        self.augmentation = build_augmentation(augmentation)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = min(_WORKERS, cores()) if num_workers is None else num_workers
        self.seed = seed

    def prepare_data(self) -> None:
        """Check that all images can be decoded, on one process, while all others wait."""
        inform(f"reading dataset {self.dataset}")
        self.reading.of_run(Path(self._trainer.default_root_dir))
        self.reading.scan(trains=self._trainer.state.fn == "fit" and self._trains)
        _ = self.splits  # keeps the index of shards, which the others then read

    def setup(self, stage: str = "fit") -> None:
        """Read the dataset and check it for the stage; DataError if it lacks something."""
        if self.trainer is None:
            _ = self.splits  # reads the dataset
            return
        self.reading.of_run(Path(self._trainer.default_root_dir))
        if stage in ("fit", "test"):
            for line in self.reading.notes():
                inform(line)
        # what training needs: refused here rather than with the first batch, as nothing has been
        # written yet
        if stage == "fit" and self.task == MULTI_CLASS.name and len(self.class_names) < 2:
            raise DataError(
                f"{self.splits.origin} has one class, {self.class_names[0]!r}, expected several: "
                "give the folder above, or images of another class as well"
            )
        if stage == "fit" and self._trains:
            self.splits.require_training_images()
            inform(self.labels.counts_in_stage(1 if self._needs.split == "labeled" else 2))

        # what the accuracies are measured on
        if stage in ("test", "validate"):
            self.labels.evaluation("test" if stage == "test" else "val")

    @property
    def views_origin(self) -> dict[str, Any]:
        """Settings that views depend on beside their image and the tower's resizing."""
        kind, decoding = type(self.augmentation), asdict(self.decoding)
        settings = {"class": f"{kind.__module__}.{kind.__qualname__}", **vars(self.augmentation)}
        return {"augmentation": as_json(settings), "seed": self.seed, "decoding": decoding}

    def files_of(self, images: Sequence[str] | None = None) -> dict[str, str]:
        """Describe images besides their paths, by default the pool; on all processes together."""
        if checked := self.reading.check():
            # validation images that are trained on are in the pool
            only_others = images is None and not self.labels.trains_on_val
            return {CONTENTS: " ".join(checked.contents[only_others:])}
        images = self.pool.images if images is None else images
        if self.trainer is None:
            return files_of(images)
        files = files_of(images) if self.trainer.is_global_zero else {}
        return self.trainer.strategy.broadcast(files)

    def origin(self, prepared: bool) -> dict[str, Any]:
        """Return the images and views that a fit depends on, as checkpoints note them.

        With ``prepared``, also the choices before the first step: views from a cache, and images
        that are held out or left out.
        """
        if not self._trains:
            return {}
        origin = {"images a step": self.batch_size * self._trainer.world_size}
        if self._needs.split == "labeled":
            records = self.labels.training()
            origin |= {
                "images": digest_of([record.source for record in records]),
                "labels": digest(str(record.label) for record in records),
                "class texts": digest(map(str, self.class_texts)),
            }
            if prepared:
                stored = self._needs.stored_views
                origin |= {"views": f"{stored} of each, stored" if stored else None}
        else:
            origin |= {"images": digest_of(self.pool.images)}
            if prepared:
                cached, epochs = self._needs.features, self._trainer.max_epochs
                # with as many views as epochs, each sees new ones
                repeat = cached and not (epochs and 0 <= epochs <= cached.views)
                views = "one in each epoch"
                if cached and repeat:
                    views = f"{cached.views} of each"
                if self._needs.stored_views:
                    views = f"{self._needs.stored_views} of each, stored"
                origin |= {
                    "views": views,
                    "seed of the views": cached.view_seed if cached else self.seed,
                    "images held out": len(self.training_pool.held_out),
                    "images to distil on": digest([self.training_pool.train.tobytes()]),
                }
        return {**origin, **self.views_origin}

    def train_dataloader(self) -> DataLoader[LabeledBatch] | DataLoader[UnlabeledBatch]:
        """Batches of the split that the trainer's module asks for."""
        return self.train_dataloader_for(**vars(self._needs))

    def val_dataloader(self) -> DataLoader[EvaluationBatch] | list[EvaluationBatch]:
        """Return validation batches; without such a split an empty list, to skip validation."""
        if not self.splits.val:
            return []
        needs, processes = self._needs, self._processes()
        pixels = not needs.stored_views
        return self.evaluation_dataloader_for("val", needs.resizing, *processes, pixels=pixels)

    def validation_images(self) -> DataLoader[EvaluationBatch] | list[EvaluationBatch]:
        """Return validation batches with images, also of a module that has stored features."""
        if not (self._needs.stored_views and self.splits.val):
            return self.val_dataloader()
        return self.evaluation_dataloader_for("val", self._needs.resizing, *self._processes())

    def test_dataloader(self) -> DataLoader[EvaluationBatch]:
        """Test batches."""
        return self.evaluation_dataloader_for("test", self._needs.resizing, *self._processes())

    def train_dataloader_for(
        self,
        split: TrainSplit,
        resizing: Resizing,
        teacher: Resizing | None = None,
        half_whole: bool = False,
        pool: UnlabeledPool | None = None,
        features: CachedFeatures | None = None,
        stored_views: int = 0,
    ) -> DataLoader[LabeledBatch] | DataLoader[UnlabeledBatch]:
        """Training batches without a trainer, as in ``Needs``; the ``sampler`` takes the epoch."""
        view, labels = self.view(resizing), None
        dataset: Any
        if split == "labeled":
            records = self.labels.training()
            if self.balance_classes:
                labels = np.array([record.single for record in records])
            dataset = LabeledImages(records, view, len(self.tuning_class_names), stored_views)
        else:
            # the views that the cache has, or views for student and teacher
            if features:
                view, teacher = replace(view, seed=features.view_seed), None
            if half_whole:
                view = replace(view, augmentation=HalfWhole(view.augmentation))
            pool = pool or self.pool
            dataset = UnlabeledImages(
                pool.train_images, view, pool.train, teacher, features, stored_views
            )
        sampler = TrainSampler(
            len(dataset),
            self.batch_size,
            self.seed,
            *self._processes(),
            labels,
            self._batches_done,
        )
        # without images to open, worker processes cost more than they save
        num_workers = 0 if stored_views else self.num_workers
        return self._loader(dataset, sampler, self.batch_size, num_workers)

    def evaluation_dataloader_for(
        self,
        split: EvaluationSplit,
        resizing: Resizing,
        rank: int = 0,
        world_size: int = 1,
        pixels: bool = True,
    ) -> DataLoader[EvaluationBatch]:
        """Batches without a trainer and without augmentation, also of ``labeled`` training images.

        ``resizing`` is that of the tower which sees the images; without ``pixels``, none are made.
        """
        records = self.labels.evaluation(split)
        if len(records) < world_size:
            # a process without a batch would leave the others waiting for its metrics
            raise ConfigError(
                f"{self.splits.origin} has {len(records)} {split} images for {world_size} "
                f"processes: set trainer.devices to {len(records)} or fewer"
            )
        classes = self.tuning_class_names if split == "labeled" else self.class_names
        dataset = EvaluationImages(records, self.splits.open_image, resizing, len(classes), pixels)
        sampler = EvaluationSampler(len(records), rank, world_size)
        num_workers = self.num_workers if pixels else 0
        return self._loader(dataset, sampler, self.eval_batch_size, num_workers)

    def _loader(
        self, dataset: Any, sampler: Iterable[Any], batch_size: int, num_workers: int
    ) -> LazyLoader[Any]:
        # Lightning sets the attribute without declaring it
        if getattr(self.trainer, "overfit_batches", 0) and self._trainer.state.fn == "fit":
            sampler = RepeatedSampler(sampler)
        return LazyLoader(dataset, sampler, batch_size, num_workers)

    def bounding_images(self) -> tuple[Indices, bool]:
        """Return the validation images from which errors are bounded, and if they are a sample.

        One image of each group is drawn by the seed, as near-copies show no more than one of them.
        A sample, of ``val_shots`` images a class, is not like images as they come.
        """
        records = self.labels.evaluation("val")
        indices = one_of_each([record.source for record in records], self.splits.groups, self.seed)
        return indices, len(records) < len(self.splits.val)

    @cached_property
    def labels(self) -> Labels:
        """The labels of the dataset that may be seen; it is read on first use."""
        return Labels(
            self.reading.splits,
            self.protocol,
            self.shots,
            self.val_shots,
            self.allow_fewer_shots,
            self.seed,
            self.train_on_val,
        )

    @property
    def splits(self) -> Splits:
        """The dataset before protocol and sampling, without invalid images."""
        return self.labels.splits

    @cached_property
    def pool(self) -> UnlabeledPool:
        """The unlabelled images; a DataError if there are none."""
        self.splits.require_training_images()
        if not (images := self.splits.pool):
            raise DataError(f"{self.splits.origin} has no images to distil on: add some")
        return UnlabeledPool.share(images, self.unlabeled_share, self.seed)

    @property
    def training_pool(self) -> UnlabeledPool:
        """The pool of a planned fit, without the images that it holds out or leaves out."""
        return (self._needs.pool if self.trainer else None) or self.pool

    @property
    def decoding(self) -> Decoding:
        """Conversion of image files to RGB."""
        return self.reading.reader.decoding

    @property
    def task(self) -> str:
        """Name of the task that the labels are for, see ``kdpl.tasks.build_task``."""
        return self.reading.reader.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, by label."""
        return self.splits.class_names

    @property
    def class_texts(self) -> tuple[ClassText, ...]:
        """The text or texts that the text tower reads for each class, by label; mostly its name."""
        return self.splits.class_texts or self.class_names

    @property
    def num_base(self) -> int | None:
        """Number of base classes, the first ones; None if the protocol has no such distinction."""
        return self.labels.num_base

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """The names that the teacher is tuned on, by label: the base classes, or all."""
        return self.labels.tuning_class_names

    def test_item(self, index: int) -> tuple[str, Image, Label]:
        """Source, RGB image in its own size, and label of a test image."""
        source, label = self.splits.test[index]
        return source, self.splits.open_image(source), label

    def preview(self, n: int, resizing: Resizing) -> torch.Tensor:
        """Return up to n unlabelled images, evenly spread, as in evaluation, uint8 [n, 3, S, S]."""
        images = map(self.splits.open_image, spread(self.training_pool.train_images, n))
        return torch.stack([to_tensor(resize_and_crop(image, resizing)) for image in images])

    def view(self, resizing: Resizing) -> RandomView:
        """Random views of images of this domain for a tower."""
        return RandomView(self.splits.open_image, self.augmentation, resizing, self.seed)

    def _batches_done(self) -> int:
        # Lightning sets ``ready`` to 0 when an epoch starts. On resume it is the number of batches
        # that were done when the checkpoint was saved, not of steps, and it is read after that, see
        # LazyLoader. A checkpoint's ``completed`` is one less, which Lightning makes up for
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _trainer(self) -> Trainer:
        return cast(Trainer, self.trainer)

    @property
    def _needs(self) -> Needs:
        return cast(Needs, self._trainer.lightning_module.needs)

    @property
    def _trains(self) -> bool:
        # a fit of 0 epochs makes the zero-shot CLIP and needs no training images
        return self._trainer.max_epochs != 0
