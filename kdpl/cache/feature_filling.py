"""Computation of the teacher's features that a cache lacks, on all processes together."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdpl.cache.feature_cache import MANIFEST, Manifest
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.parallel import progress_bar
from kdpl.errors import ConfigError, DataError
from kdpl.preparation.views import load_all_views
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


def fill(folder: Path, needed: Manifest, work: Work, same: Collection[str] = ()) -> int:
    """Compute the shards that a cache lacks; returns how many features this process computed.

    Args:
        folder: The cache's folder, which is made if it does not exist.
        needed: The manifest of the cache; number and seed of the views count only where it does not
            exist yet.
        work: How this process computes its share.
        same: What else must be as needed, see ``Manifest.load``.

    Raises:
        ConfigError: The cache does not exist, and ``needed`` has no number of views.
        DataError: The cache is of something else, another command fills it, or a feature is not
            finite.
    """
    if not (folder / MANIFEST).is_file():
        if not needed.views:
            raise ConfigError(
                f"the number of views in the teacher cache {folder} is unknown: set "
                "trainer.max_epochs"
            )
        write_text(folder / MANIFEST, json.dumps(needed.model_dump(), indent=2, ensure_ascii=False))
    manifest = Manifest.load(folder, needed, same)
    first = work.rank == 0  # locks for all, which wait for it at the end
    try:
        with FileLock(folder / ".lock").acquire(timeout=0) if first else contextlib.nullcontext():
            # by their places among all, whatever the others have finished by now
            own = [*manifest.shards(folder).items()][work.rank :: work.world_size]
            missing = {path: indices for path, indices in own if not path.is_file()}
            return _fill_shards(missing, manifest, work)
    except Timeout as error:
        raise DataError(
            f"the teacher cache {folder} is being filled by another command: wait until it ends"
        ) from error


def _fill_shards(shards: dict[Path, range], manifest: Manifest, work: Work) -> int:
    at_once = max(1, work.batch_size // manifest.views)
    images = replace(work.images, view=replace(work.images.view, seed=manifest.view_seed))
    batches = batches_of(shards.values(), at_once)
    loader = load_all_views(images, manifest.views, batches, work.num_workers)
    encoded = (_encode(batch.images, work) for batch in loader)
    total = sum(map(len, shards.values())) * manifest.views
    with progress_bar(shown=work.rank == 0) as progress:
        bar = progress.add_task("teacher's features", total=total)
        for path, indices in shards.items():
            parts = []
            for part in islice(encoded, -(-len(indices) // at_once)):
                parts.append(part)
                progress.advance(bar, len(part))
            features = np.concatenate(parts).reshape(len(indices), manifest.views, manifest.width)
            if not np.isfinite(features).all():
                numbers = f"{indices[0]} to {indices[-1]}"
                raise DataError(
                    f"the teacher's features of unlabelled images {numbers} are not finite: check "
                    "its weights and prompts, or set trainer.precision to 32-true"
                )
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, features)
    return total


def batches_of(shards: Iterable[range], at_once: int) -> Iterator[list[int]]:
    """Yield batches of images, one by one as there may be millions, none across a shard's end."""
    for indices in shards:
        for start in range(0, len(indices), at_once):
            yield list(indices[start : start + at_once])


@torch.no_grad()
def _encode(images: Tensor, work: Work) -> npt.NDArray[np.float16]:
    """Encode all views of some images, uint8 [images, V, 3, S, S], to float16 [images · V, D]."""
    parts = torch.split(images.flatten(0, 1), work.batch_size)
    return np.concatenate([work.encode(part).half().cpu().numpy() for part in parts])
