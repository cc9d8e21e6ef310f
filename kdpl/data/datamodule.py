"""The one datamodule that both stages share."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from PIL.Image import Image
from torch.utils.data import DataLoader

from kdpl.data.augmentation import Augmentation, Square, build_augmentation, resize_and_crop, to_tensor
from kdpl.data.datasets import EvaluationImages, LabeledImages, RandomView, UnlabeledImages, WithLabels
from kdpl.data.decoding import Decoding
from kdpl.data.feature_cache import CachedImages, FeatureCache, Manifest, require_same_views
from kdpl.data.labels import EvaluationSplit, Labels
from kdpl.data.loader import EvaluationSampler, LazyLoader, TrainSampler
from kdpl.data.names import Names, unlisted
from kdpl.data.parallel import cores
from kdpl.data.pieces import Indices, InPieces
from kdpl.data.pool import Pool
from kdpl.data.readers.registry import build_reader
from kdpl.data.reading import BadImages, Reading
from kdpl.data.sampling import base_count, generator
from kdpl.data.splits import Reader, Record, Splits
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import ClassText
from kdpl.runtime.faults import in_one_sentence
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import DECODED_FILE

TrainSplit = Literal["labeled", "unlabeled"]
_WORKERS = 4


class DomainDataModule(LightningDataModule):
    """A domain's images, for both stages and the test.

    Images are uint8 tensors [B, 3, S, S], un-normalised: every CLIP tower normalises with its own mean and standard
    deviation. Batches are

    - training, ``labeled``: (images, labels), the k-shot sample (of the base classes under ``base_to_novel``);
    - training, ``unlabeled``: (images, indices), ALL training images, or those of ``unlabeled``, or a share of them,
      and no labels anywhere; with a teacher cache ``CachedView`` (images, indices, features); without one, for
      teachers of other image sizes T, (images, indices, and for each T the same views as uint8 [B, 3, T, T]);
    - training, ``unlabeled``, for a module with a ``label_weight`` above 0: ``Accompanied`` (labelled images, labels, a
      batch as above), each kind B times;
    - validation and test: (images, labels, indices), each image exactly once over all processes.

    Validation and test hold the images of all classes under either protocol; labels index ``class_names``. The module
    that a trainer runs has a ``train_split``, ``labeled`` or ``unlabeled``, an ``image_size`` S, and for its teachers
    ``teacher_image_sizes`` T.

    Args:
        dataset: ``digits``, ``letters``, ``folder``, ``table``, a dataset of the benchmark
            (``kdpl/data/readers/benchmark.py``), or a reader of one's own with its ``class_path`` and ``init_args``.
        root: Folder of the dataset, the table's file, or the folder of all datasets of the benchmark.
        unlabeled: Places of unlabelled images (``folder`` and ``table``): folders, patterns, lists and shards, see
            ``kdpl/data/sources.py``; None: the table's rows without a label, or the training images without labels.
        class_names: JSON or CSV file that maps class folders or labels to names, and texts for the text tower
            (``folder`` and ``table``), or a .txt list of them; None: they are the names. Without labelled training
            images, its classes are those of the dataset.
        class_text: Text that the text tower reads for a class, with ``{}`` instead of the name or text (likewise).
        background: Colour [red, green, blue], 0 to 255, on which transparent images are put (``folder`` and ``table``);
            None: white. The benchmark's images lose their transparency, and their orientation tags are not followed.
        held_out: Share of each class's training images that become test images, where there are no others; None: none.
        bad_images: Treatment of images that cannot be decoded: ``error`` names them before anything is trained,
            ``skip`` leaves them out.
        scan: Whether all images are decoded for that before a fit; None: those of one's own, not a benchmark's.
        skip_list: File of images to leave out: a ``.txt``, or a ``.csv``.
        protocol: ``all`` classes alike, or ``base_to_novel``: labels of the first half of the classes alone.
        shots: Labelled training images a class; None: all; 0: no labelled image is used, for validation either.
        val_shots: Validation images a class, at most ``shots`` of them; None: the whole validation split.
        unlabeled_share: Share of the unlabelled training images to distil on, above 0 and at most 1.
        allow_fewer_shots: Use classes that have fewer than ``shots`` training images as they are.
        balance_classes: Draw the labelled training images of an epoch so that each class comes equally often, however
            many it has; an epoch is as long as without.
        augmentation: Views of training images: ``random_resized_crop``, ``light_affine``, ``none``, or an object.
        batch_size: Training images a batch, on each process.
        eval_batch_size: Validation and test images a batch, on each process.
        num_workers: Worker processes of each loader; None: 4, or one for each processor core where there are fewer.
        teacher_cache: Folder with the teacher's features of views of the unlabelled images; epoch e then sees view
            e mod V of each image, as the cache's own seed draws it. None: the teacher runs on each image of each epoch.
            Further teachers' features of the same views are in FOLDER.2, FOLDER.3 and so on.
        fill_teacher_cache: Whether features that ``teacher_cache`` lacks are computed before the first epoch.
        seed: Seed of the k-shot sample, of the training order and of the augmentation; at least 0.
    """

    def __init__(
        self,
        dataset: Reader | str,
        root: str | None = None,
        unlabeled: list[str] | str | None = None,
        class_names: str | None = None,
        class_text: str | None = None,
        background: tuple[int, int, int] | None = None,
        held_out: float | None = None,
        bad_images: BadImages = "error",
        scan: bool | None = None,
        skip_list: str | None = None,
        protocol: Literal["all", "base_to_novel"] = "all",
        shots: int | None = 16,
        val_shots: int | None = 4,
        unlabeled_share: float = 1.0,
        allow_fewer_shots: bool = False,
        balance_classes: bool = False,
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
        named = {"class_names": class_names, "class_text": class_text}
        reader = build_reader(dataset, root=root, unlabeled=unlabeled, background=background, **named)
        self._reading = Reading(reader, bad_images, scan, skip_list, held_out)
        if protocol not in ("all", "base_to_novel"):
            raise ConfigError(f"protocol {protocol!r} is unknown: choose all or base_to_novel")
        if not 0 < unlabeled_share <= 1:
            raise ConfigError(f"unlabeled_share must be above 0 and at most 1, not {unlabeled_share}")
        if fill_teacher_cache and teacher_cache is None:
            raise ConfigError("fill_teacher_cache fills a folder, but teacher_cache names none: set it, or do not fill")
        self.dataset = dataset if isinstance(dataset, str) else f"{type(reader).__module__}.{type(reader).__qualname__}"
        self.protocol = protocol
        self.shots = shots
        self.val_shots = val_shots
        self.unlabeled_share = unlabeled_share
        self.allow_fewer_shots = allow_fewer_shots
        self.balance_classes = balance_classes
        self.augmentation = build_augmentation(augmentation)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = min(_WORKERS, cores()) if num_workers is None else num_workers
        self.teacher_cache = teacher_cache
        self.fill_teacher_cache = fill_teacher_cache
        self.seed = seed
        self._caches: list[FeatureCache] = []
        least = {"shots": 0, "val_shots": 1, "batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ConfigError(f"{name} must be at least {minimum}, not {value}")

    @cached_property
    def splits(self) -> Splits:
        """The dataset before protocol and sampling, less what is left out; read once, on first use."""
        splits = self._reading.splits
        if self.protocol == "base_to_novel" and len(splits.class_names) < 2:
            raise DataError(f"{splits.origin} has one class, but protocol base_to_novel needs two: set protocol to all")
        return splits.without_labels() if self.shots == 0 else splits

    @property
    def decoding(self) -> Decoding:
        """How image files are opened."""
        return self._reading.reader.decoding

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
        """Number of base classes, which are the first ones; None where the protocol makes no difference."""
        return base_count(len(self.class_names)) if self.protocol == "base_to_novel" else None

    @property
    def tuning_class_names(self) -> tuple[str, ...]:
        """The names that the teacher is tuned on, by label: the base classes, or all."""
        return self._labels.tuning_class_names

    @property
    def test_records(self) -> tuple[Record, ...]:
        """Source and label of the test images, by the indices in batches."""
        return self.splits.test

    @property
    def held_out(self) -> bool:
        """Whether the test images are labelled images that were set aside, for lack of others."""
        return self.splits.held_out

    def test_item(self, index: int) -> tuple[str, Image, int]:
        """Source, RGB image in its own size, and label of a test image."""
        source, label = self.splits.test[index]
        return source, self.splits.open_image(source), label

    def preview(self, n: int, image_size: int) -> torch.Tensor:
        """Up to n unlabelled images under the evaluation transform, spread over the list, uint8 [n, 3, S, S]."""
        sources, opened = self._pool.used, self.splits.open_image
        n = min(n, len(sources))
        images = (opened(sources[i * len(sources) // n]) for i in range(n))
        return torch.stack([to_tensor(resize_and_crop(image, image_size)) for image in images])

    def pool_sample(self, n: int) -> Names:
        """Up to n of the unlabelled images that are distilled on, drawn at random by the seed; none without any."""
        if not self.splits.train and not self.splits.unlabeled:
            return Names.of([])
        sources = self._pool.used
        if len(sources) <= n:
            return sources
        chosen = generator(self.seed, "sample").choice(len(sources), n, replace=False, shuffle=False)
        return sources.take(np.sort(chosen))

    @cached_property
    def _labels(self) -> Labels:
        splits, sample = self.splits, (self.shots, self.val_shots, self.allow_fewer_shots, self.seed)
        return Labels(splits, self.num_base, *sample)

    @cached_property
    def _pool(self) -> Pool:
        return Pool(self.splits, self.unlabeled_share, self.seed)

    @property
    def _sees_labels(self) -> bool:
        return getattr(self._module, "label_weight", 0) > 0

    @property
    def unlabeled_indices(self) -> Indices:
        """Indices of the unlabelled images to distil on, among all."""
        return self._pool.indices

    def keep_unlabeled(self, indices: Indices) -> None:
        """Distil on these unlabelled images alone; to be called before the training loader is made."""
        self._pool.keep(indices)

    def of_run(self, folder: Path) -> None:
        """Use the images that the run in this folder used; to be called before anything is read."""
        self._reading.file = folder / DECODED_FILE

    def prepare_data(self) -> None:
        """Decode all images before they are trained on, unless that was done; on one process, the others wait."""
        trainer = cast(Trainer, self.trainer)
        inform(f"reading dataset {self.dataset}")
        self._reading.file = self._file_of(trainer)
        self._reading.prepare(trains=trainer.state.fn == "fit" and self._needs_images(trainer))
        _ = self.splits  # keeps the index of shards, which the others then read

    def _needs_images(self, trainer: Trainer) -> bool:
        return trainer.max_epochs != 0 or self.fills_cache

    @property
    def fills_cache(self) -> bool:
        """Whether the trainer's module learns from a cache that is filled first; a teacher's fit has none."""
        return self.fill_teacher_cache and getattr(self._module, "train_split", None) == "unlabeled"

    def _file_of(self, trainer: Trainer) -> Path:
        # a cache may be filled without a run's folder
        alone = self.teacher_cache if self.fills_cache and not trainer.max_epochs else None
        run = Path(trainer.default_root_dir)
        return Path(f"{Path(alone).expanduser()}.{DECODED_FILE}") if alone else run / DECODED_FILE

    def setup(self, stage: str = "fit") -> None:
        """Read the dataset, and check it as far as the stage needs it; DataError if it lacks something."""
        if self.trainer is None:
            _ = self.splits  # reads the dataset
            return
        self._reading.file = self._file_of(self.trainer)
        if stage in ("fit", "test"):
            for line in self._reading.notes():
                inform(line)
        # here rather than with the first batch: nothing has been written yet
        if stage == "fit" and self._needs_images(self.trainer):
            self.splits.require_training_images()
            if self._module.train_split == "labeled":
                self._labels.training()
            else:
                if self._sees_labels:
                    seen = f"{len(self._labels.companions())} labelled images of {len(self.class_names)} classes"
                    inform(f"labels are seen in stage 2: {seen}")
                if not self.fill_teacher_cache:
                    _ = self.teacher_caches
        if stage in ("test", "validate"):
            self._labels.evaluation("test" if stage == "test" else "val")

    def cache_manifest(
        self, teacher: str, width: int, image_size: int, views: int | None = None, view_seed: int | None = None
    ) -> Manifest:
        """Describe the teacher cache that a run needs, by default of as many views as epochs, of the run's seed."""
        epochs = self.trainer.max_epochs if self.trainer else None
        return Manifest.of(
            teacher=teacher,
            width=width,
            dataset=self.dataset,
            sources=self._pool.all,
            image_size=image_size,
            decoding=self.decoding,
            augmentation=self.augmentation,
            view_seed=self.seed if view_seed is None else view_seed,
            views=views or max(epochs or 0, 0),
        )

    def unlabeled_images(self, image_size: int) -> UnlabeledImages:
        """Views of all unlabelled images, whatever ``unlabeled_share``, for filling a teacher cache."""
        return UnlabeledImages(InPieces(self._pool.all), self._view(image_size, self.seed))

    def labeled_images(self, image_size: int) -> UnlabeledImages:
        """Views of the labelled training images, without their labels."""
        return self.images_of([record.source for record in self._labels.training()], image_size)

    def images_of(self, sources: Sequence[str], image_size: int) -> UnlabeledImages:
        """Views of images of this domain."""
        return UnlabeledImages(Names.of(sources), self._view(image_size, self.seed))

    def tuning_records(self, split: Literal["labeled", "val"]) -> list[Record]:
        """Labelled images, or validation images, of the classes that the teacher is tuned on, with their labels."""
        return self._labels.tuning(split)

    @property
    def known_labels(self) -> Sequence[Record]:
        """Labelled training images: all of somebody's own dataset, of another one the k-shot sample alone."""
        return self.splits.train if self._reading.reader.own else self.tuning_records("labeled")

    @property
    def images_without_label(self) -> Names:
        """The unlabelled images that are not among those."""
        return unlisted(self._pool.all, (record.source for record in self.known_labels))

    @property
    def pool_digest(self) -> str:
        """Digest of the list of all unlabelled images."""
        return self._pool.digest

    def _view(self, image_size: int, seed: int) -> RandomView:
        return RandomView(self.splits.open_image, self.augmentation, image_size, seed)

    @property
    def view_source(self) -> tuple[int, int | None]:
        """Seed of the views of unlabelled images, and their number for each; None for a new one in each epoch."""
        caches = self.teacher_caches
        if not caches:
            return self.seed, None
        views, epochs = caches[0].manifest.views, cast(Trainer, self.trainer).max_epochs
        return caches[0].manifest.view_seed, None if epochs is not None and 0 <= epochs <= views else views

    def cache_folders(self) -> list[tuple[Path, tuple[str, int, int]]]:
        """For each teacher of the trainer's module, folder of its cache, and fingerprint, width and image size."""
        folder = Path(cast(str, self.teacher_cache)).expanduser()
        teachers = enumerate(self._module.teacher_descriptions, start=1)
        return [(Path(f"{folder}.{number}") if number > 1 else folder, teacher) for number, teacher in teachers]

    @property
    def teacher_caches(self) -> list[FeatureCache]:
        """The teachers' caches of a fit, opened on first use; none where nothing is trained."""
        if self.teacher_cache is None or self.trainer is None or self.trainer.max_epochs == 0:
            return []
        if not self._caches:
            rank, world_size = self._processes()
            self._caches = [
                FeatureCache.open(folder, self.cache_manifest(*teacher), rank=rank, world_size=world_size)
                for folder, teacher in self.cache_folders()
            ]
            require_same_views(self._caches)
        return self._caches

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the split that the trainer's module asks for."""
        module, teacher_sizes = self._module, getattr(self._module, "teacher_image_sizes", ())
        return self.train_dataloader_for(
            module.train_split, module.image_size, *self._processes(), teacher_sizes, self._sees_labels
        )

    @property
    def _square(self) -> int | Square:
        square: int | Square = getattr(self._module, "preprocessing", self._module.image_size)
        return square

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches; an empty list, which skips validation, where the dataset has no such split."""
        if not self.splits.val:
            return []
        return self.evaluation_dataloader_for("val", self._square, *self._processes())

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches."""
        return self.evaluation_dataloader_for("test", self._square, *self._processes())

    def train_dataloader_for(
        self,
        split: TrainSplit,
        image_size: int,
        rank: int = 0,
        world_size: int = 1,
        teacher_sizes: Sequence[int] = (),
        with_labels: bool = False,
    ) -> DataLoader[Any]:
        """Training batches without a trainer: (uint8 [B, 3, S, S], int64 [B]), the latter labels or indices.

        With a trainer and a teacher cache, of ``CachedView``; without one, unlabelled views are rendered at other
        ``teacher_sizes`` as well. ``with_labels``, unlabelled batches are ``Accompanied``. The epoch is set on the
        loader's ``sampler``.
        """
        dataset: LabeledImages | UnlabeledImages | CachedImages | WithLabels
        pieces = labels = None
        if split == "labeled":
            records = self._labels.training()
            dataset = LabeledImages(records, self._view(image_size, self.seed))
            labels = np.array([record.label for record in records]) if self.balance_classes else None
        else:
            caches, pool = self.teacher_caches, self._pool
            view = self._view(image_size, caches[0].manifest.view_seed if caches else self.seed)
            in_pieces = InPieces(pool.used)
            dataset, pieces = UnlabeledImages(in_pieces, view, pool.chosen), in_pieces.starts
            if caches:
                dataset = CachedImages(dataset, caches)
            else:
                dataset.teacher_sizes = tuple(dict.fromkeys(teacher_sizes))
            if with_labels:
                dataset = WithLabels(dataset, self._labels.companions(), self._view(image_size, self.seed))
        sampler = TrainSampler(len(dataset), self.batch_size, self.seed, rank, world_size, pieces, labels)
        return LazyLoader(dataset, sampler, self.batch_size, self.num_workers, self._batches_done)

    def evaluation_dataloader_for(
        self, split: EvaluationSplit, square: int | Square, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        """Validation or test batches without a trainer: (uint8 [B, 3, S, S], labels [B], indices [B]).

        ``labeled`` are the labelled training images without augmentation. ``square`` is the tower's preprocessing, or S
        for images resized by their short edge, bicubic.
        """
        records = self._labels.evaluation(split)
        if len(records) < world_size:  # a process without a batch would leave the others waiting for its metrics
            said = f"{self.splits.origin} has {len(records)} {split} images for {world_size} processes"
            raise ConfigError(f"{said}: set trainer.devices to {len(records)} or fewer")
        dataset = EvaluationImages(records, self.splits.open_image, square)
        sampler = EvaluationSampler(len(records), rank, world_size)
        return LazyLoader(dataset, sampler, self.eval_batch_size, self.num_workers)

    def _batches_done(self) -> int:
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready) if self.trainer else 0

    @property
    def _module(self) -> Any:
        return cast(Trainer, self.trainer).lightning_module

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def build_data(sections: Sequence[Mapping[str, Any]], settings: Sequence[str] = ()) -> LightningDataModule:
    """Build the datamodule of ``data`` sections of configs, of which later ones win, without a trainer or a model.

    ``settings`` are further ones as on the command line, such as ``--data.init_args.shots=4``. ConfigError if they do
    not parse.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
    # a config of a whole run has other sections too, which this parser does not know: it gets the data section alone
    configs = [f"--config={json.dumps({'data': section})}" for section in sections]
    with in_one_sentence():
        data: LightningDataModule = parser.instantiate_classes(parser.parse_args([*configs, *settings])).data
    return data
