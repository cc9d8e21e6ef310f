"""Disk cache of a teacher's features of views of unlabelled images, for any number of students.

A cache of V views of N images is a folder with ``manifest.json`` and shards. Shard s,
``shard-00000.npy`` and so on, is a float16 array [n, V, D] with the normalised features of images
s·n, s·n + 1, …. A shard takes its name once it is complete, so filling resumes at the first missing
shard. View v of an image is the view that the augmentation draws for the cache's seed in epoch v;
its pixels are not stored.
"""

import json
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from torch.utils.data import Dataset

from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.decoding import Decoding
from kdpl.data.names import digest_of
from kdpl.data.needs import TeacherDescription
from kdpl.errors import ConfigError, DataError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.origin import require_same
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import LOCK_FILE
from kdpl.targets.shards import SHARD, Work, fill_shards, images_per_shard, shards_in

MANIFEST = "manifest.json"
_OTHER_FOLDER = "choose another folder as model.init_args.teacher_cache, or remove it"
_FILL = (
    "fill it with python -m kdpl cache and the settings of this fit, "
    "or set model.init_args.fill_teacher_cache: true"
)
_MAY_DIFFER = {"views", "view_seed", "images_per_shard", "made_with"}


class Manifest(BaseModel):
    """The settings that the features of a cache depend on.

    Attributes:
        teacher: Fingerprint of the teacher; its features have ``width`` D.
        sources: Digest of the list of the N ``images``, independent of the dataset's location.
        resizing: Resizing of the teacher's images; the augmentation makes its views for it.
        decoding: Decoding of image files.
        augmentation: Class and settings of the augmentation.
        views: Number V of views of each image; 0 in the manifest of a run that accepts any number.
        made_with: Versions of the libraries that made the views, for information.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[3] = 3
    teacher: str
    width: PositiveInt
    dataset: str
    images: PositiveInt
    sources: str
    resizing: Resizing
    decoding: Decoding
    augmentation: dict[str, Any]
    view_seed: NonNegativeInt
    views: NonNegativeInt
    images_per_shard: PositiveInt
    made_with: dict[str, str]

    @classmethod
    def of(
        cls,
        data: DomainDataModule,
        teacher: TeacherDescription,
        images: Sequence[str],
        views: int = 0,
    ) -> "Manifest":
        """Describe the cache of a teacher's features of images that a run needs.

        It has this number of ``views`` of each image (0: any number) with the run's seed.
        """
        return cls(
            teacher=teacher.fingerprint,
            width=teacher.width,
            dataset=data.dataset,
            images=len(images),
            sources=digest_of(images),
            resizing=teacher.resizing,
            decoding=data.decoding,
            augmentation=data.views_origin["augmentation"],
            view_seed=data.seed,
            views=views,
            images_per_shard=images_per_shard(len(images), views),
            made_with={name: version(name) for name in ("pillow", "torch", "torchvision", "numpy")},
        )

    @classmethod
    def load(cls, folder: Path, expected: "Manifest", same: Collection[str] = ()) -> "Manifest":
        """Read the manifest of a cache.

        DataError if it is missing, damaged, of another version or of other data or settings.

        ``expected`` is the manifest that a run would write; number and seed of the views may
        differ, except the fields in ``same``.
        """
        # read it
        file = folder / MANIFEST
        if not file.is_file():
            raise DataError(
                f"{folder} is not a teacher cache (it has no {MANIFEST}): {_OTHER_FOLDER}"
            )
        try:
            manifest = cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the file"
            raise DataError(
                f"{file} is damaged, or of another version ({where}: {problem['msg']:.200}): "
                f"remove the folder {folder} and fill the cache again"
            ) from error

        # compare the fields that must not differ
        compared = {*cls.model_fields} - (_MAY_DIFFER - {*same})
        before, now = manifest.model_dump(include=compared), expected.model_dump(include=compared)
        require_same(f"the teacher cache {folder}", before, now, _OTHER_FOLDER, kind=DataError)
        return manifest

    def shards(self, folder: Path) -> dict[Path, range]:
        """Return the files of the shards, each with the indices of its images."""
        return shards_in(folder, self.images, self.images_per_shard)


class FeatureCache:
    """A complete cache, ``CachedFeatures`` of a datamodule.

    Each worker process opens the shards for itself.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards: dict[int, npt.NDArray[np.float16]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}

    @classmethod
    def open(cls, folder: Path, expected: Manifest, same: Collection[str] = ()) -> "FeatureCache":
        """Open a cache; DataError if it is missing, different, damaged or incomplete.

        ``expected`` and ``same`` are as in ``Manifest.load``.
        """
        if not folder.exists():
            raise DataError(f"the teacher cache {folder} does not exist: {_FILL}")
        manifest = Manifest.load(folder, expected, same)
        # all shards must be there, with the right shape
        shards = manifest.shards(folder)
        if missing := sum(not path.is_file() for path in shards):
            raise DataError(
                f"the teacher cache {folder} is incomplete, {missing} of {len(shards)} shards are "
                f"missing: {_FILL}"
            )
        for path, indices in shards.items():
            _require_shape(path, (len(indices), manifest.views, manifest.width))
        return cls(folder, manifest)

    @property
    def views(self) -> int:
        """Number of views of each image."""
        return self.manifest.views

    @property
    def view_seed(self) -> int:
        """The seed that the views are drawn with."""
        return self.manifest.view_seed

    def with_features(self, images: UnlabeledImages) -> Dataset[UnlabeledBatch]:
        """Return a dataset of the images and the features of their views."""
        return CachedImages(images, self)

    def read(self, view: int, index: int) -> npt.NDArray[np.float16]:
        """Read the normalised feature of a view of an image, float16 [D]."""
        shard, local = divmod(index, self.manifest.images_per_shard)
        if shard not in self._shards:
            self._shards[shard] = np.load(self.folder / SHARD.format(shard), mmap_mode="r")
        return np.array(self._shards[shard][local, view])


def fill(folder: Path, expected: Manifest, work: Work, same: Collection[str] = ()) -> int:
    """Compute the missing shards of a cache; returns the number of features of this process.

    Args:
        folder: The cache's folder; created if it does not exist.
        expected: The manifest of the cache; number and seed of the views count only for a new
            cache.
        work: The share of this process.
        same: Further fields that must match, see ``Manifest.load``.

    Raises:
        ConfigError: The cache does not exist, and ``expected`` has no number of views.
        DataError: The cache is of something else, another command fills it, or a feature is not
            finite.
    """
    # a new cache starts with its manifest
    if not (folder / MANIFEST).is_file():
        if not expected.views:
            raise ConfigError(
                f"the number of views in the teacher cache {folder} is unknown: set "
                "trainer.max_epochs"
            )
        text = json.dumps(expected.model_dump(), indent=2, ensure_ascii=False)
        write_text(folder / MANIFEST, text)
    manifest = Manifest.load(folder, expected, same)

    # the shards, with the seed of the existing views
    images = replace(work.images, view=replace(work.images.view, seed=manifest.view_seed))
    first = work.rank == 0  # holds the lock for all processes; they wait for it at the end
    try:
        with FileLock(folder / LOCK_FILE).acquire(timeout=0) if first else nullcontext():
            shards = manifest.shards(folder)
            return fill_shards(shards, manifest.views, replace(work, images=images))
    except Timeout as error:
        raise DataError(
            f"the teacher cache {folder} is being filled by another command: wait until it ends"
        ) from error


@dataclass(eq=False)
class CachedImages(Dataset[UnlabeledBatch]):
    """Unlabelled images with the teacher's cached features.

    Item (i, epoch) is view ``epoch mod V`` of the i-th image. The images' views use the seed of the
    cache.
    """

    images: UnlabeledImages
    cache: FeatureCache

    def __getitem__(self, key: tuple[int, int]) -> UnlabeledBatch:
        view = key[1] % self.cache.views
        item = self.images[key[0], view]
        features = torch.from_numpy(self.cache.read(view, int(item.indices)))
        return replace(item, teacher_features=features)

    def __len__(self) -> int:
        return len(self.images)


def _require_shape(path: Path, shape: tuple[int, ...]) -> None:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        if features.dtype != np.float16 or features.shape != shape:
            raise ValueError(f"it is {features.dtype} {features.shape}, expected float16 {shape}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({reason(error)}): remove {path.name} and {_FILL}"
        ) from error
