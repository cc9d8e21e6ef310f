"""Disk cache of a teacher's features of views of unlabelled images, for any number of students.

A cache of V views of N images is a folder with ``manifest.json`` and shards. Shard s,
``shard-00000.npy`` and so on, is a float16 array [n, V, D] with the normalised features of images
s·n, s·n + 1, …. A shard takes its name once it is complete, so filling resumes at the first missing
shard. View v of an image is the view that the augmentation draws for the cache's seed in epoch v;
its pixels are not stored.
"""

import json
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from kdpl.class_vectors import ClassVectors
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.identity import CHANGED, FILES, digest_of
from kdpl.errors import ConfigError, DataError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, as_json, require_same
from kdpl.runtime.run_folder import LOCK_FILE
from kdpl.targets.inputs import Preparation
from kdpl.targets.shards import SHARD, Work, fill_shards, images_per_shard, shards_in

MANIFEST = "manifest.json"
_OTHER_FOLDER = "choose another folder as model.init_args.teacher_cache, or remove it"
_FILL = "fill it with python -m kdpl cache and the settings of this fit"
_VERSION = 3
# ``made_with`` is of earlier versions
_MAY_DIFFER = {"views", "view_seed", "images_per_shard", "made_with"}


def manifest_of(data: DomainDataModule, vectors: ClassVectors, views: int = 0) -> Origin:
    """Describe the cache of features of the pool by the teacher of class vectors that a run needs.

    It has this number V of ``views`` of each image (0: any number) with the run's seed. The images
    are described independently of the dataset's location.
    """
    images = data.pool.images
    return as_json(
        {
            "version": _VERSION,
            "teacher": vectors.teacher,
            "width": vectors.vectors.shape[1],
            "dataset": data.dataset,
            "images": len(images),
            "sources": digest_of(images),
            **data.files_of(),
            "resizing": asdict(vectors.preprocessing.resizing),
            "decoding": asdict(data.decoding),
            "augmentation": data.views_origin["augmentation"],
            "view_seed": data.seed,
            "views": views,
            "images_per_shard": images_per_shard(len(images), views),
        }
    )


def read_manifest(folder: Path, expected: Origin, same: Collection[str] = ()) -> Origin:
    """Read the manifest of a cache.

    DataError if it is missing, damaged, of another version or of other data or settings.

    ``expected`` is the manifest that a run would write; number and seed of the views may differ,
    except the fields in ``same``. What only one of them says of the images' files is not compared.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise DataError(f"{folder} is not a teacher cache (it has no {MANIFEST}): {_OTHER_FOLDER}")
    try:
        stored: Origin = json.loads(file.read_bytes())
        for name in ("views", "view_seed", "images_per_shard"):
            stored[name]  # used, and not compared
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{file} is damaged ({reason(error)}): remove the folder {folder} and fill the cache "
            "again"
        ) from error
    may_differ = _MAY_DIFFER - {*same} | FILES & (stored.keys() ^ expected.keys())
    before, now = (
        {name: value for name, value in manifest.items() if name not in may_differ}
        for manifest in (stored, expected)
    )
    what = f"the teacher cache {folder}"
    copied = f"{_OTHER_FOLDER}, or, if the images are copies, delete this line of {MANIFEST}"
    require_same(what, before, now, _OTHER_FOLDER, {CHANGED: copied}, DataError)
    return stored


class FeatureCache:
    """A complete cache, ``CachedFeatures`` of a datamodule.

    Each worker process opens the shards for itself.
    """

    def __init__(self, folder: Path, manifest: Origin) -> None:
        self.folder, self.manifest = folder, manifest
        self.views: int = manifest["views"]
        self.view_seed: int = manifest["view_seed"]
        self._shards: dict[int, npt.NDArray[np.float16]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}

    @classmethod
    def open(cls, folder: Path, expected: Origin, same: Collection[str] = ()) -> "FeatureCache":
        """Open a cache, see ``read_manifest``; DataError also if it is missing or incomplete."""
        if not folder.exists():
            raise DataError(f"the teacher cache {folder} does not exist: {_FILL}")
        manifest = read_manifest(folder, expected, same)
        # all shards must be there, with the right shape
        shards = shards_in(folder, manifest["images"], manifest["images_per_shard"])
        if missing := sum(not path.is_file() for path in shards):
            raise DataError(
                f"the teacher cache {folder} is incomplete, {missing} of {len(shards)} shards are "
                f"missing: {_FILL}"
            )
        for path, indices in shards.items():
            shape = (len(indices), manifest["views"], manifest["width"])
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
                if stored.dtype != np.float16 or stored.shape != shape:
                    raise ValueError(
                        f"it is {stored.dtype} {stored.shape}, expected float16 {shape}"
                    )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path} is damaged ({reason(error)}): remove {path.name} and {_FILL}"
                ) from error
        if FILES & expected.keys() and not FILES & expected.keys() & manifest.keys():
            inform(f"{folder / MANIFEST} has only the paths of its images: trusting their content")
        return cls(folder, manifest)

    def read(self, view: int, index: int) -> npt.NDArray[np.float16]:
        """Read the normalised feature of a view of an image, float16 [D]."""
        shard, local = divmod(index, self.manifest["images_per_shard"])
        if shard not in self._shards:
            self._shards[shard] = np.load(self.folder / SHARD.format(shard), mmap_mode="r")
        return np.array(self._shards[shard][local, view])


def fill(folder: Path, expected: Origin, work: Work, same: Collection[str] = ()) -> int:
    """Compute the missing shards of a cache; returns the number of features of this process.

    Number and seed of the views in the manifest ``expected`` count only for a new cache. ``same``
    is as in ``read_manifest``. A DataError also if another command fills the cache.
    """
    # a new cache starts with its manifest
    if not (folder / MANIFEST).is_file():
        if not expected["views"]:
            raise ConfigError(
                f"the number of views in the teacher cache {folder} is unknown: set "
                "trainer.max_epochs"
            )
        write_text(folder / MANIFEST, json.dumps(expected, indent=2, ensure_ascii=False))
    manifest = read_manifest(folder, expected, same)

    # the shards, with the seed of the existing views
    images = replace(work.images, view=replace(work.images.view, seed=manifest["view_seed"]))
    first = work.rank == 0  # holds the lock for all processes; they wait for it at the end
    try:
        with FileLock(folder / LOCK_FILE).acquire(timeout=0) if first else nullcontext():
            shards = shards_in(folder, manifest["images"], manifest["images_per_shard"])
            return fill_shards(shards, manifest["views"], replace(work, images=images))
    except Timeout as error:
        raise DataError(
            f"the teacher cache {folder} is being filled by another command: wait until it ends"
        ) from error


def teacher_features(preparation: Preparation) -> FeatureCache | None:
    """Open the teacher's complete cache; None if the fit has none."""
    if preparation.teacher_cache is None:
        return None
    needed = manifest_of(preparation.data, preparation.teacher.vectors)
    return FeatureCache.open(Path(preparation.teacher_cache).expanduser(), needed)


def fill_cache(preparation: Preparation, views: int | None = None) -> None:
    """Compute what the teacher's cache lacks, on all processes together.

    Without ``views`` of each image, as many as the cache has, or as there are epochs. A teacher
    that was loaded for this stays on the device; a rerun with a complete cache does without it.
    """
    trainer, data = preparation.trainer, preparation.data
    folder = Path(str(preparation.teacher_cache)).expanduser()
    wanted = views or max(trainer.max_epochs or 0, 0)
    vectors, same = preparation.teacher.vectors, ["views"] if views else []
    needed = manifest_of(data, vectors, wanted)
    images = UnlabeledImages(data.pool.images, data.view(vectors.preprocessing.resizing))
    work = preparation.work(images, preparation.encoder())
    done = fill(folder, needed, work, same) * trainer.world_size
    trainer.strategy.barrier("kdpl cache")
    cache = FeatureCache.open(folder, needed, same)
    inform(
        f"teacher cache {folder}: complete, {len(images)} images, {cache.views} views of "
        f"each{f', {done} features computed' if done else ': nothing to do'}"
    )
