"""Inputs of a student's fit and of targets: data, teacher, labels, and features of images."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kdpl import __version__
from kdpl.class_vectors import FrozenTeacher
from kdpl.clip import ImageClip
from kdpl.data.batches import Batch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.identity import FILES, digest_of
from kdpl.data.inference import infer
from kdpl.data.names import Indices, Names
from kdpl.data.parallel import progress_bar
from kdpl.data.pool import Selection
from kdpl.data.splits import Record
from kdpl.prompts.method import normalized
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.files import copy, write_json
from kdpl.runtime.origin import Origin, as_json, digest
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import PROMPTS_FILE
from kdpl.targets.shards import Work, fill_shards, images_per_shard, shards_in

PREPARED_FOLDER = "prepared"
"""Folder in a teacher's run folder: features and targets shared by students; safe to remove."""

ORIGIN_FILE = "made_from.json"

REMEDY = "remove it, or choose another --out"
"""Remedy for a file of targets of another origin."""

T = TypeVar("T")

Encoder = Callable[[Tensor], Tensor]
"""Encodes images uint8 [B, 3, S, S] into features [B, D]."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """Inputs of the preparation of a student's fit.

    Attributes:
        teacher: The teacher, possibly not loaded yet.
        load_teacher: Loads the teacher once, in the precision of the training.
        teacher_cache: Folder of the teacher's cache; None: no cache.
    """

    trainer: Trainer
    data: DomainDataModule
    teacher: FrozenTeacher
    load_teacher: Callable[[], object]
    device: torch.device
    teacher_cache: str | None = None

    def encoder(self, pooled: bool = False) -> Encoder:
        """Return the teacher as a function of images; it is loaded on the first call.

        With ``pooled``, the pooled features of its image tower follow its features, see
        ``FrozenTeacher.both_features``.
        """
        load, teacher = cache(self.load_teacher), self.teacher

        def encode(images: Tensor) -> Tensor:
            load()
            with self.trainer.precision_plugin.forward_context():
                if not pooled:
                    return teacher.features(images.to(self.device))
                return torch.cat(teacher.both_features(images.to(self.device)), dim=1)

        return encode

    def work(self, images: UnlabeledImages, encode: Encoder, mean: bool = False) -> Work:
        """Return this process's share in computing features of images."""
        data, rank, processes = self.data, self.trainer.global_rank, self.trainer.world_size
        return Work(images, encode, data.eval_batch_size, data.num_workers, rank, processes, mean)


class ImageFeatures(NamedTuple):
    """Normalised features of N images by one network.

    Attributes:
        still: Features of the evaluation view, float32 [N, D].
        mean: Mean over several views, including the evaluation view, float32 [N, D].
    """

    still: Tensor
    mean: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "ImageFeatures":
        """Normalise rows [N, 2, D]."""
        return cls(*normalized(rows).unbind(dim=1))

    @property
    def blend(self) -> Tensor:
        """Normalised sum of twice the evaluation view and the mean, float32 [N, D]."""
        return normalized(2 * self.still + self.mean)


class TargetInputs:
    """Inputs for preparing a target before the first step of a fit, equal on every process.

    All processes call its methods together: each does its share, and all get the whole result.

    Attributes:
        folder: The run's folder.
        teacher_folder: The run folder of the teacher.
        vectors: The teacher's class vectors.
        resumes: True if the fit resumes from a checkpoint.
        class_names: The names of the C classes, by label.
        num_base: Number of base classes, which come first; None without a base/novel split.
        pool: Sources of all unlabelled images.
        targeted: Indices in the pool of the images that need a target, int64 [N]; they are
            distilled on, or held out to compare student and target.
        labeled: Labelled training images of the classes that the teacher was tuned on.
        val: Validation images of these classes.
        groups: Groups of both by source.
        encoder: The teacher, of images uint8 [B, 3, S, S]; loaded on the first call.
        predict: Returns the teacher's logits [N, C] of its features [N, D].
        device: Device of this process.
        open_image: Opens a source as an RGB image.
        num_workers: Number of worker processes that load images.
    """

    def __init__(self, preparation: Preparation, selection: Selection) -> None:
        self._preparation = preparation
        self._trainer, self._data = preparation.trainer, preparation.data
        # the run and its teacher
        self.folder = Path(self._trainer.default_root_dir)
        self.teacher_folder = preparation.teacher.folder
        self.resumes = self._trainer.ckpt_path is not None
        self.vectors = preparation.teacher.vectors
        self.encoder = preparation.encoder()
        self.predict = preparation.teacher.logits
        self.device = preparation.device
        # the images, and the labels that may be seen
        self.class_names = self._data.class_names
        self.num_base = self._data.num_base
        self.pool = self._data.pool.images
        self.targeted = selection.targeted
        self.labeled = self._data.labels.tuning("labeled")
        self.val = self._data.labels.tuning("val")
        self.groups = self._data.splits.groups
        self.open_image = self._data.splits.open_image
        self.num_workers = self._data.num_workers

    @property
    def tuned(self) -> bool:
        """True if the teacher was tuned on labels, so it may have seen the ``labeled`` images."""
        return bool(TunedPrompts.load(self.teacher_folder / PROMPTS_FILE).tensors)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Origin of targets regardless of their settings, by name."""
        return {
            "teachers": [self.vectors.teacher],
            "class vectors": digest([self.vectors.digest()]),
            "images": digest_of(self.pool),
            **self._data.files_of(),
            "images with a target": digest([np.asarray(self.targeted).tobytes()]),
            "labels": self._digest(self.labeled),
            "validation labels": self._digest(self.val),
            "validation images": self._data.files_of([r.source for r in self.val]),
            "precision": str(self._trainer.precision),
            **self._data.views_origin,
        }

    def _digest(self, records: Sequence[Record]) -> str:
        return digest(f"{r.label} {self.groups.get(r.source)} {r.source}" for r in records)

    def kept(
        self, name: str, settings: Mapping[str, Any], make: Callable[[Path, Origin], None]
    ) -> tuple[Path, Origin]:
        """Return a file of prepared targets in the run's folder, and its expected origin.

        A missing file is copied from the teacher's folder, where other students share it, or made.

        Args:
            name: Name of the file.
            settings: Settings of the target, added to ``origin``.
            make: Writes the file at a path, with its origin; called on all processes.
        """
        origin = as_json({**self.origin, **settings})
        file, shared = self.folder / name, self._shared(origin) / name
        is_kept, is_shared = self._agreed(lambda: (file.is_file(), shared.is_file()))
        if not is_kept and not is_shared:
            make(shared, origin)
        if not is_kept:
            self.on_first_process(lambda: copy(shared, file))
        return file, origin

    def features(
        self, images: Sequence[str] | None, views: int, pooled: bool = False
    ) -> tuple[ImageFeatures, ImageFeatures]:
        """Return the teacher's features of images, kept for other students and restarts.

        The first are in the space of the class vectors. The second are the pooled features of the
        image tower, before the projection and without prompts; [N, 0] without ``pooled``.

        Args:
            images: Sources of labelled or validation images; None: the unlabelled images that need
                a target.
            views: Views of each image.
            pooled: Return pooled features as well.
        """
        vectors = self.vectors
        name = {"teacher": vectors.teacher, "pooled": pooled}
        encode = self._preparation.encoder(pooled)
        rows = self._rows(name, encode, vectors.preprocessing.resizing, images, views)
        width = vectors.vectors.shape[1]
        return ImageFeatures.of(rows[..., :width]), ImageFeatures.of(rows[..., width:])

    def features_of(
        self, clip: ImageClip, images: Sequence[str] | None, views: int
    ) -> ImageFeatures:
        """Return the pooled features of images by another CLIP; kept as in ``features``."""
        tower = clip.image_tower.to(self.device).eval()

        def encode(batch: Tensor) -> Tensor:
            with self._trainer.precision_plugin.forward_context():
                return normalized(tower.pooled(batch.to(self.device)))

        name = {"clip": clip.identity.fingerprint}
        resizing = tower.preprocessing.resizing
        return ImageFeatures.of(self._rows(name, encode, resizing, images, views))

    def _rows(
        self,
        network: Mapping[str, Any],
        encode: Encoder,
        resizing: Resizing,
        images: Sequence[str] | None,
        views: int,
    ) -> Tensor:
        """Return the features of the evaluation view and the mean over views, float32 [N, 2, D]."""
        # the images, and everything that their features depend on
        data, trainer = self._data, self._trainer
        if images is None:
            sources = self.pool.take(self.targeted)
            dataset = UnlabeledImages(sources, data.view(resizing), self.targeted)
            names = {"images", "images with a target", *FILES}
            named = {name: value for name, value in self.origin.items() if name in names}
        else:
            dataset = UnlabeledImages(Names.of(images), data.view(resizing))
            named = {"images": digest(images), **data.files_of(images)}
        origin = {
            **network,
            **named,
            "views": f"one as in evaluation, and their mean with {views - 1} random ones",
            "resizing": asdict(resizing),
            "precision": self.origin["precision"],
            **data.views_origin,
        }

        # compute missing shards
        folder = self._shared(origin)
        shards = shards_in(folder, len(dataset), images_per_shard(len(dataset), views))
        if not self._agreed(lambda: all(path.is_file() for path in shards)):
            work = self._preparation.work(dataset, encode, mean=True)
            self.on_first_process(lambda: write_json(folder / ORIGIN_FILE, as_json(origin)))
            # another run that does the same writes the same files
            fill_shards(shards, views, work)
            trainer.strategy.barrier("kdpl features")
        rows = np.concatenate([np.load(path, mmap_mode="r") for path in shards])
        return torch.from_numpy(rows).to(self.device).float()

    def _shared(self, origin: Origin) -> Path:
        # other versions may compute something else
        name = digest([__version__, json.dumps(as_json(origin))])
        return self.teacher_folder / PREPARED_FOLDER / name

    def _agreed(self, function: Callable[[], T]) -> T:
        value = function() if self._trainer.is_global_zero else None
        return cast(T, self._trainer.strategy.broadcast(value))

    def rows(
        self, count: int, load: Callable[[Indices], Iterable[Batch]], network: Encoder, title: str
    ) -> Tensor:
        """Return a row for each image in order, float32 [N, K].

        Args:
            count: Number N of images.
            load: Loads batches of the images of the given numbers, int64 [n], in order.
            network: Maps images of a batch, on the device, to rows [B, K].
            title: Label of the progress bar.
        """
        share = np.arange(self._trainer.global_rank, count, self._trainer.world_size)
        with progress_bar() as progress:
            batches = progress.track(load(share), description=title)
            parts = [rows.float() for rows, _ in infer(network, batches, self.device)]

        # join the rows; a process without images gets the width from the others
        strategy = self._trainer.strategy
        width = torch.tensor(parts[0].shape[1] if parts else 0, device=self.device)
        rows = torch.zeros(count, int(strategy.reduce(width, reduce_op="max")), device=self.device)
        rows[share] = torch.cat([rows[:0], *parts])
        total: Tensor = strategy.reduce(rows, reduce_op="sum")
        return total

    def on_first_process(self, function: Callable[[], object]) -> None:
        """Call a function on the first process; the other processes wait."""
        if self._trainer.is_global_zero:
            function()
        self._trainer.strategy.barrier("kdpl targets")


def rows_of(images: Tensor) -> Tensor:
    """Return the row of each image by its index in the pool; -1 for images without a row."""
    rows = torch.full((int(images.max()) + 1,), -1)
    rows[images] = torch.arange(len(images))
    return rows
