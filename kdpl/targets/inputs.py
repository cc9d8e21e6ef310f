"""Inputs of a student's plan: images, labels, the teacher, and its features of images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig, ClipIdentity, ImageClip, load_image_clip
from kdpl.clip.modules import normalized
from kdpl.clip.towers.image import ImageTower
from kdpl.data.batches import Batch
from kdpl.data.identity import FILES, digest_of
from kdpl.data.inference import infer
from kdpl.data.labels import Labels
from kdpl.data.names import Indices
from kdpl.data.parallel import progress_bar
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import Groups
from kdpl.data.splits import Record
from kdpl.runtime.origin import Origin, digest
from kdpl.targets.encoding import PREPARED_FOLDER, Encoder, Encoding, Network, folder_name
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.store import FeatureStore

_AT_ONCE = 4096  # images whose views are averaged at a time


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


@dataclass(frozen=True, eq=False)
class TargetInputs(Encoding):
    """Inputs of a student's plan before the first step of a fit, equal on every process.

    Attributes:
        folder: The run's folder.
        resumes: True if the fit resumes from a checkpoint.
        epochs: Number of epochs of the fit; below 0 without a limit.
        dataset: Name of the dataset.
        pool: The unlabelled images.
        labels: The labels that may be seen.
        student: The student's CLIP as it is before training.
        student_identity: Its identity.
        student_tower: Its image tower.
        stored_views: Number of views of each image whose features by the student's tower are
            stored; 0 for a tower that learns.
        teacher: The teacher, possibly not loaded yet.
        load_teacher: Loads the teacher once, in the precision of the training.
        teacher_cache: Folder of the teacher's cache; None: no cache.
    """

    folder: Path
    resumes: bool
    epochs: int
    dataset: str
    pool: UnlabeledPool
    labels: Labels
    student: ClipConfig
    student_identity: ClipIdentity
    student_tower: ImageTower
    stored_views: int
    teacher: FrozenTeacher
    load_teacher: Callable[[], object]
    teacher_cache: Path | None

    @property
    def vectors(self) -> ClassVectors:
        """The teacher's class vectors."""
        return self.teacher.vectors

    @cached_property
    def labeled(self) -> list[Record]:
        """Labelled training images of the classes that the teacher was tuned on."""
        return self.labels.tuning("labeled")

    @cached_property
    def val(self) -> list[Record]:
        """Validation images of these classes."""
        return self.labels.tuning("val")

    @property
    def groups(self) -> Groups:
        """Groups of labelled images by source."""
        return self.labels.splits.groups

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Origin of targets regardless of their settings, by name."""
        return {
            "teacher": self.vectors.teacher,
            "class vectors": digest([self.vectors.digest()]),
            "images": digest_of(self.pool.images),
            **self.files_of(None),
            "images with a target": digest([self.pool.targeted.tobytes()]),
            "labels": self._digest(self.labeled),
            "validation labels": self._digest(self.val),
            "validation images": self.files_of([r.source for r in self.val]),
            "precision": self.precision,
            **self.views_origin,
        }

    def _digest(self, records: Sequence[Record]) -> str:
        return digest(f"{r.label} {self.groups.get(r.source)} {r.source}" for r in records)

    def shared(self, origin: Origin) -> Path:
        """Return the folder in the teacher's for what students of this origin share."""
        return self.teacher.folder / PREPARED_FOLDER / folder_name(origin)

    def encoder(self, pooled: bool = False) -> Encoder:
        """Return the teacher as a function of images; it is loaded on the first call.

        With ``pooled``, the pooled features of its image tower follow its features, see
        ``FrozenTeacher.both_features``.
        """
        load, teacher = cache(self.load_teacher), self.teacher

        def encode(images: Tensor) -> Tensor:
            load()
            with self.autocast():
                if not pooled:
                    return teacher.features(images.to(self.device))
                return torch.cat(teacher.both_features(images.to(self.device)), dim=1)

        return encode

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
        identity = {"teacher": self.teacher.image_identity, "pooled": pooled}
        network = Network(
            identity, vectors.clip, vectors.preprocessing, self.teacher, self.encoder(pooled)
        )
        rows = self._read(self._stored(network, images, views, mean=True))
        width = vectors.vectors.shape[1]
        return ImageFeatures.of(rows[..., :width]), ImageFeatures.of(rows[..., width:])

    def features_of(
        self, clip: ImageClip, images: Sequence[str] | None, views: int
    ) -> ImageFeatures:
        """Return the pooled features of images by another CLIP; kept as in ``features``."""
        tower = clip.image_tower.to(self.device).eval()

        def encode(batch: Tensor) -> Tensor:
            with self.autocast():
                return normalized(tower.pooled(batch.to(self.device)))

        identity = {"clip": clip.identity.fingerprint}
        network = Network(identity, clip.identity, tower.preprocessing, tower, encode)
        return ImageFeatures.of(self._read(self._stored(network, images, views, mean=True)))

    def student_features_of(self, images: Sequence[str] | None, views: int) -> ImageFeatures:
        """Return the pooled features of images by the student's tower as it is before training."""
        if not self.stored_views or views != self.stored_views:
            return self.features_of(load_image_clip(self.student), images, views)
        # a part at a time, as they are of all views
        shards = map(np.load, self.student_store(images, views).shards)
        parts = [
            (normalized(rows[:, 0]), normalized(rows).mean(dim=1))
            for shard in shards
            for rows in torch.split(torch.from_numpy(shard).to(self.device), _AT_ONCE)
        ]
        still, mean = map(torch.cat, zip(*parts, strict=True))
        return ImageFeatures(still, normalized(mean))

    def student_store(self, images: Sequence[str] | None, views: int) -> FeatureStore:
        """Return the store of the student's pooled features, not normalised, of all views.

        The first view is as in evaluation, and the others are random. Arguments as in ``features``.
        """
        tower = self.student_tower

        @torch.no_grad()
        def encode(batch: Tensor) -> Tensor:
            with self.autocast():
                return tower.pooled(batch.to(self.device))

        clip = self.student_identity
        identity = {"clip": clip.fingerprint, "normalised": False}
        network = Network(identity, clip, tower.preprocessing, tower, encode)
        return self._stored(network, images, views)

    def _read(self, store: FeatureStore) -> Tensor:
        return torch.from_numpy(store.read_all()).to(self.device).float()

    def _stored(
        self, network: Network, images: Sequence[str] | None, views: int, mean: bool = False
    ) -> FeatureStore:
        """Return the features of images or, for None, of the unlabelled ones that need a target."""
        if images is not None:
            return self.store(network, images, views, mean)
        targeted = self.pool.targeted
        names = {"images", "images with a target", *FILES}
        files = {name: value for name, value in self.origin.items() if name in names}
        return self.store(network, self.pool.images.take(targeted), views, mean, targeted, files)

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
        share = np.arange(self.processes.rank, count, self.processes.world_size)
        with progress_bar() as progress:
            batches = progress.track(load(share), description=title)
            parts = [rows.float() for rows, _ in infer(network, batches, self.device)]

        # join the rows; a process without images gets the width from the others
        width = torch.tensor(parts[0].shape[1] if parts else 0, device=self.device)
        shape = count, int(self.processes.reduce(width, "max"))
        rows = torch.zeros(shape, device=self.device)
        rows[share] = torch.cat([rows[:0], *parts])
        return self.processes.reduce(rows, "sum")
