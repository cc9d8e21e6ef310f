"""What a run may see of a dataset: the k-shot sample, the unlabelled pool and the test images."""

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL.Image import Image

from kdpl.data.archives import pool_of
from kdpl.data.augmentation import Augmentation, resize_and_crop, to_tensor
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.decoding import Decoding
from kdpl.data.feature_cache import Manifest
from kdpl.data.names import Indices, Names, digest_of, unlisted
from kdpl.data.needs import TeacherDescription
from kdpl.data.reading import Reading
from kdpl.data.sampling import base_count, few_shot, generator, require_shots, share_of, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import DataError
from kdpl.runtime.class_names import ClassText
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import DECODED_FILE

EvaluationSplit = Literal["labeled", "val", "test"]


class DomainImages:
    """The images of a domain without a trainer: the base of ``DomainDataModule``, which sets the attributes.

    Under ``base_to_novel``, labels of training and validation images are those of the base classes alone.

    Attributes:
        reading: How the dataset is read. All others are as of ``DomainDataModule``.
        left_out: Unlabelled images that are not distilled on, by their content.
    """

    reading: Reading
    dataset: str
    protocol: Literal["all", "base_to_novel"]
    shots: int | None
    val_shots: int | None
    unlabeled_share: float
    allow_fewer_shots: bool
    augmentation: Augmentation
    seed: int
    left_out: Collection[str] = ()
    _kept: Indices | None = None

    @cached_property
    def splits(self) -> Splits:
        """The dataset before protocol and sampling, less what is left out; read once, on first use."""
        splits = self.reading.splits
        if self.protocol == "base_to_novel" and len(splits.class_names) < 2:
            raise DataError(f"{splits.origin} has one class, but protocol base_to_novel needs two: set protocol to all")
        return splits.without_labels() if self.shots == 0 else splits

    def of_run(self, folder: Path) -> None:
        """Use the images that the run in this folder used; to be called before anything is read."""
        self.reading.file = folder / DECODED_FILE

    @property
    def decoding(self) -> Decoding:
        """How image files are opened."""
        return self.reading.reader.decoding

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
        return self.class_names[: self.num_base]

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

    @cached_property
    def _sample(self) -> tuple[list[Record], list[Record]]:
        return few_shot(self.splits.train, self.splits.val, self.shots, self.val_shots, self.seed)

    def training_records(self) -> list[Record]:
        """Labelled training images of the classes that the teacher is tuned on; a DataError if there are none."""
        self.splits.require_training_images()
        # the sample comes before the base subset, so that base classes get the same images under either protocol
        names = self.tuning_class_names
        if self.shots == 0:
            said = "shots is 0, so that no labelled image is used, but prompts and pool_filter need some"
            raise DataError(f"{said}: set shots above 0, or do without them (config teacher/zero_shot)")
        records = with_labels(self._sample[0], range(len(names)))
        if not records:
            raise DataError(f"{self.splits.origin} has no labelled training images: add some, or set shots to 0")
        if self.shots is not None and not self.allow_fewer_shots:
            require_shots(records, names, self.shots)
        return records

    def tuning_records(self, split: Literal["labeled", "val"]) -> list[Record]:
        """Labelled images, or validation images, of the classes that the teacher is tuned on, with their labels."""
        if split == "labeled":
            return self.training_records() if self.shots != 0 else []
        return with_labels(self._sample[1], range(len(self.tuning_class_names)))

    def labels_seen(self, stage: int, trained: Sequence[Record]) -> str:
        """Say how many labels are in the batches of a stage, how many it validates on, and how many no stage sees."""
        there, tuned = self.reading.splits, range(len(self.tuning_class_names))
        train, val = (with_labels(records, tuned) for records in self._sample)
        said = f"labels in the batches of stage {stage}: {len(trained)} of {len(there.train)}"
        said += f"; validation: {len(val)} of {len(there.val)}"
        if unseen := len(there.train) + len(there.val) - len(train) - len(val):
            named = {"shots": self.shots, "val_shots": self.val_shots, "protocol": self.protocol}
            why = [f"{name} {value}" for name, value in named.items() if value not in (None, "all")]
            said += f"; in no stage: {unseen} ({', '.join(why)})"
        return said

    def evaluation_records(self, split: EvaluationSplit) -> Sequence[Record]:
        """Images to measure accuracies on, of all classes but for ``labeled``; a DataError if there are none."""
        if split == "labeled":
            return self.training_records()
        records = self._sample[1] if split == "val" else self.splits.test
        if split == "val" and self.shots == 0:
            raise DataError("shots is 0, so that no labelled image is used for validation: set shots above 0")
        if not records:
            remedy = ", set data.init_args.held_out to 0.25 to hold some training images out" if split == "test" else ""
            raise DataError(f"{self.splits.origin} has no {split} split: add one{remedy}, or do without its accuracy")
        return records

    @cached_property
    def pool(self) -> Names:
        """All unlabelled images; a DataError if there are none."""
        self.splits.require_training_images()
        if not (pool := self.splits.pool):
            raise DataError(f"{self.splits.origin} has no images to distil on: add some")
        return pool

    @cached_property
    def _share(self) -> Indices | None:
        """Indices of ``unlabeled_share`` of the unlabelled images, among all; None for all."""
        return share_of(len(self.pool), self.unlabeled_share, self.seed) if self.unlabeled_share < 1 else None

    @property
    def _chosen(self) -> Indices | None:
        """Indices of the unlabelled images to distil on, among all; None for all."""
        return self._share if self._kept is None else self._kept

    @property
    def _used(self) -> Names:
        """The unlabelled images to distil on."""
        return self.pool if self._chosen is None else self.pool.take(self._chosen)

    @property
    def unlabeled_indices(self) -> Indices:
        """Indices of the unlabelled images to distil on, among all."""
        return np.arange(len(self.pool)) if self._chosen is None else self._chosen

    def leave_out(self, sources: Collection[str]) -> None:
        """Distil on the other unlabelled images alone; to be called before the training loader is made."""
        self.left_out = sources
        indices = self.unlabeled_indices
        self._kept = indices[[source not in sources for source in self._used]]

    @property
    def pool_digest(self) -> str:
        """Digest of the list of all unlabelled images."""
        return digest_of(self.pool)

    def preview(self, n: int, resizing: Resizing) -> torch.Tensor:
        """Up to n unlabelled images under the evaluation transform, spread over the list, uint8 [n, 3, S, S]."""
        sources, opened = self._used, self.splits.open_image
        n = min(n, len(sources))
        images = (opened(sources[i * len(sources) // n]) for i in range(n))
        return torch.stack([to_tensor(resize_and_crop(image, resizing)) for image in images])

    def pool_sample(self, n: int) -> Names:
        """Up to n of the unlabelled images, also those left out, drawn at random by the seed; none without any."""
        if not self.splits.train and not self.splits.unlabeled:
            return Names.of([])
        # images like the pool are like all of it, not like its most typical ones
        sources = self.pool if self._share is None else self.pool.take(self._share)
        if len(sources) <= n:
            return sources
        chosen = generator(self.seed, "sample").choice(len(sources), n, replace=False, shuffle=False)
        return sources.take(np.sort(chosen))

    @property
    def known_labels(self) -> Sequence[Record]:
        """Labelled training images: all of somebody's own dataset, of another one the k-shot sample alone."""
        return self.splits.train if self.reading.reader.own else self.tuning_records("labeled")

    @property
    def images_without_label(self) -> Names:
        """The unlabelled images that are not among those."""
        return unlisted(self.pool, (record.source for record in self.known_labels))

    def view(self, resizing: Resizing, seed: int | None = None) -> RandomView:
        """Random views of images of this domain for a tower, by default of the run's seed."""
        return RandomView(self.splits.open_image, self.augmentation, resizing, self.seed if seed is None else seed)

    def unlabeled_images(self, resizing: Resizing) -> UnlabeledImages:
        """Views of all unlabelled images, whatever ``unlabeled_share``, for filling a teacher cache."""
        return UnlabeledImages(pool_of(self.pool).sources, self.view(resizing))

    def labeled_images(self, resizing: Resizing) -> UnlabeledImages:
        """Views of the labelled training images, without their labels."""
        return self.images_of([record.source for record in self.training_records()], resizing)

    def images_of(self, sources: Sequence[str], resizing: Resizing) -> UnlabeledImages:
        """Views of images of this domain."""
        return UnlabeledImages(Names.of(sources), self.view(resizing))

    def cache_manifest(
        self,
        teacher: TeacherDescription,
        views: int | None = None,
        view_seed: int | None = None,
        images: Names | None = None,
    ) -> Manifest:
        """Describe the teacher cache that a run needs, by default of the pool, any number of views, the run's seed."""
        return Manifest.of(
            teacher=teacher.fingerprint,
            width=teacher.width,
            dataset=self.dataset,
            sources=self.pool if images is None else images,
            resizing=teacher.resizing,
            decoding=self.decoding,
            augmentation=self.augmentation,
            view_seed=self.seed if view_seed is None else view_seed,
            views=views or 0,
        )
