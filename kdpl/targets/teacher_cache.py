"""Disk cache of a teacher's features of views of unlabelled images, for any number of students.

A cache is a store of the normalised features of V views of each image, with ``manifest.json``
beside the shards. View v of an image is the view that the augmentation draws for the cache's seed
in epoch v; its pixels are not stored.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from kdpl.data.datasets import UnlabeledImages
from kdpl.data.identity import CHANGED, FILES, digest_of
from kdpl.errors import ConfigError, DataError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, as_json, require_same
from kdpl.runtime.run_folder import LOCK_FILE
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.store import FeatureStore, Work, images_per_shard

MANIFEST = "manifest.json"
_OTHER_FOLDER = "choose another folder as model.init_args.teacher_cache, or remove it"
_VERSION = 3
# ``made_with`` is of earlier versions
_MAY_DIFFER = {"views", "view_seed", "images_per_shard", "made_with"}


def manifest_of(inputs: TargetInputs, views: int = 0) -> Origin:
    """Describe the cache of features of the pool that a fit needs.

    It has this number V of ``views`` of each image (0: any number) with the run's seed. The images
    are described independently of the dataset's location.
    """
    images, vectors = inputs.pool.images, inputs.vectors
    return as_json(
        {
            "version": _VERSION,
            "teacher": vectors.teacher,
            "width": vectors.vectors.shape[1],
            "dataset": inputs.dataset,
            "images": len(images),
            "sources": digest_of(images),
            **inputs.files_of(None),
            "resizing": asdict(vectors.preprocessing.resizing),
            "decoding": inputs.views_origin["decoding"],
            "augmentation": inputs.views_origin["augmentation"],
            "view_seed": inputs.views_origin["seed"],
            "views": views,
            "images_per_shard": images_per_shard(len(images), views),
        }
    )


def read_manifest(folder: Path, expected: Origin) -> Origin:
    """Read the manifest of a cache.

    DataError if it is missing, damaged, of another version or of other data or settings.

    ``expected`` is the manifest that a run would write; number and seed of the views may differ.
    What only one of them says of the images' files is not compared.
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
            f"{file} is damaged ({reason(error)}): remove the folder {folder}; the next fit fills "
            "the cache again"
        ) from error
    may_differ = _MAY_DIFFER | FILES & (stored.keys() ^ expected.keys())
    before, now = (
        {name: value for name, value in manifest.items() if name not in may_differ}
        for manifest in (stored, expected)
    )
    what = f"the teacher cache {folder}"
    copied = f"{_OTHER_FOLDER}, or, if the images are copies, delete this line of {MANIFEST}"
    require_same(what, before, now, _OTHER_FOLDER, {CHANGED: copied}, DataError)
    return stored


class TeacherCache(FeatureStore):
    """A complete cache, ``CachedFeatures`` of a datamodule."""

    def __init__(self, folder: Path, manifest: Origin) -> None:
        super().__init__(folder, manifest["images"], manifest["images_per_shard"])
        self.manifest = manifest
        self.views: int = manifest["views"]
        self.view_seed: int = manifest["view_seed"]

    @classmethod
    def open(cls, folder: Path, expected: Origin) -> "TeacherCache":
        """Open a filled cache, see ``read_manifest``; DataError also if a shard is damaged."""
        manifest = read_manifest(folder, expected)
        cache = cls(folder, manifest)
        # all shards must be there, with the right shape
        for path, indices in cache.shards.items():
            shape = (len(indices), manifest["views"], manifest["width"])
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
                if stored.dtype != np.float16 or stored.shape != shape:
                    raise ValueError(
                        f"it is {stored.dtype} {stored.shape}, expected float16 {shape}"
                    )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path} is damaged ({reason(error)}): remove it, and run this fit again"
                ) from error
        if FILES & expected.keys() and not FILES & expected.keys() & manifest.keys():
            inform(f"{folder / MANIFEST} has only the paths of its images: trusting their content")
        return cache


def fill(folder: Path, expected: Origin, work: Work) -> int:
    """Compute the missing shards of a cache; returns the number of features of this process.

    Number and seed of the views in the manifest ``expected`` count only for a new cache. A
    DataError also if another command fills the cache.
    """
    # a new cache starts with its manifest
    if not (folder / MANIFEST).is_file():
        if not expected["views"]:
            raise ConfigError(
                f"the number of views in the teacher cache {folder} is unknown: set "
                "trainer.max_epochs"
            )
        write_text(folder / MANIFEST, json.dumps(expected, indent=2, ensure_ascii=False))
    manifest = read_manifest(folder, expected)
    cache = TeacherCache(folder, manifest)
    if not cache.missing:
        return 0

    # the shards, with the seed of the existing views
    images = replace(work.images, view=replace(work.images.view, seed=manifest["view_seed"]))
    first = work.rank == 0  # holds the lock for all processes; they wait for it at the end
    try:
        with FileLock(folder / LOCK_FILE).acquire(timeout=0) if first else nullcontext():
            return cache.fill(cache.views, replace(work, images=images))
    except Timeout as error:
        raise DataError(
            f"the teacher cache {folder} is being filled by another command: wait until it ends"
        ) from error


def filled_cache(inputs: TargetInputs) -> TeacherCache | None:
    """Compute what the teacher's cache lacks, on all processes together; None without a cache.

    A new cache has as many views of each image as there are epochs.
    """
    folder = inputs.teacher_cache
    if folder is None:
        return None
    manifest = manifest_of(inputs, max(inputs.epochs, 0))
    view = inputs.view(inputs.vectors.preprocessing.resizing)
    images = UnlabeledImages(inputs.pool.images, view)
    fill(folder, manifest, inputs.work(images, inputs.encoder()))
    inputs.processes.wait()
    return TeacherCache.open(folder, manifest)
