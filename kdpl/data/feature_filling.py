"""Computation of the teacher's features that a cache lacks, on all processes together."""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdpl.data.batches import Batch
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.feature_cache import MANIFEST, Manifest
from kdpl.data.inference import infer
from kdpl.data.loader import load_all_views
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import atomic_path, write_text


@dataclass(frozen=True)
class Work:
    """Share of one process in computing the features of ``images``, all unlabelled ones.

    Attributes:
        encode: Teacher: uint8 [B, 3, S, S] on the CPU to normalised features, float [B, D].
        batch_size: Most views B that are encoded at a time.
        num_workers: Worker processes that decode.
        rank: This process, which does every ``world_size``-th part.
    """

    images: UnlabeledImages
    encode: Callable[[Tensor], Tensor]
    batch_size: int
    num_workers: int
    rank: int = 0
    world_size: int = 1


def fill(
    folder: Path,
    needed: Manifest,
    work: Work,
    views: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,  # noqa: ARG005
) -> int:
    """Compute the shards that a cache lacks; returns how many features this process computed.

    Args:
        folder: The cache's folder, which is made if it does not exist.
        needed: The manifest of the cache; number and seed of the views count only where it does not
            exist yet.
        work: How this process computes its share.
        views: Views of each image that the cache must have; None: any number.
        on_progress: Called after each batch with the numbers of features computed and to be
            computed here.

    Raises:
        ConfigError: The cache does not exist, and ``needed`` has no number of views.
        DataError: The folder holds something else, another command fills the cache, or a feature is
            not finite.
    """
    _make(folder, needed)
    manifest = Manifest.load(folder, needed, views)
    try:
        with (
            FileLock(folder / ".lock").acquire(timeout=0)
            if work.rank == 0
            else contextlib.nullcontext()
        ):
            missing = [shard for shard in manifest.shards(folder).items() if not shard[0].is_file()]
            missing = missing[work.rank :: work.world_size]
            done, total = 0, sum(len(indices) for _, indices in missing) * manifest.views
            batches = _load_views(work, manifest, [indices for _, indices in missing])
            encoded = infer(partial(_encode, work), batches, torch.device("cpu"))
            for path, indices in missing:
                features = np.empty(
                    (len(indices), manifest.views, manifest.width), dtype=np.float16
                )
                flat, filled = features.reshape(-1, manifest.width), 0
                while filled < len(flat):
                    rows, _ = next(encoded)
                    flat[filled : filled + len(rows)] = rows
                    filled, done = filled + len(rows), done + len(rows)
                    on_progress(done, total)
                if not np.isfinite(features).all():
                    numbers = f"{indices[0]} to {indices[-1]}"
                    problem = (
                        f"the teacher's features of unlabelled images {numbers} are not finite"
                    )
                    raise DataError(
                        f"{problem}: check its weights and prompts, or set "
                        "trainer.precision to 32-true"
                    )
                _write(path, features)
            return done
    except Timeout as error:
        raise DataError(
            f"the teacher cache {folder} is being filled by another command: wait until it ends"
        ) from error


def _encode(work: Work, images: Tensor) -> npt.NDArray[np.float16]:
    """Encode all views of some images, uint8 [images, V, 3, S, S], to float16 [images · V, D]."""
    parts = torch.split(images.flatten(0, 1), work.batch_size)
    return np.concatenate([work.encode(part).half().cpu().numpy() for part in parts])


def _load_views(work: Work, manifest: Manifest, shards: Iterable[range]) -> Iterator[Batch]:
    """Load batches of whole images, uint8 [images, V, 3, S, S], none across a shard's border."""
    at_once = max(1, work.batch_size // manifest.views)
    starts = ((indices, start) for indices in shards for start in range(0, len(indices), at_once))
    images = replace(work.images, view=replace(work.images.view, seed=manifest.view_seed))
    # one by one, since there may be millions
    batches = (list(indices[start : start + at_once]) for indices, start in starts)
    yield from load_all_views(images, manifest.views, batches, work.num_workers)


def _make(folder: Path, needed: Manifest) -> None:
    if (folder / MANIFEST).is_file():
        return
    if not needed.views:
        raise ConfigError(
            f"the number of views in the teacher cache {folder} is unknown: set trainer.max_epochs"
        )
    # another process of the same command may be ahead
    own = (".", MANIFEST, "shard-")
    if folder.is_file() or (
        folder.is_dir() and not all(path.name.startswith(own) for path in folder.iterdir())
    ):
        raise DataError(
            f"{folder} holds something else than a teacher cache: choose another "
            "folder, or remove it"
        )
    write_text(folder / MANIFEST, json.dumps(needed.model_dump(), indent=2, ensure_ascii=False))


def _write(path: Path, features: npt.NDArray[np.float16]) -> None:
    # the checksum first: a shard that exists is complete
    write_text(path.with_suffix(".json"), json.dumps({"crc32": zlib.crc32(features.data)}))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, features)
