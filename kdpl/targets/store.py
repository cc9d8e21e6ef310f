"""Store of features of many images by one network, which processes fill together.

Shard s, ``shard-00000.npy`` and so on, is a float16 array [n, R, D] with R features of each of the
images s·n, s·n + 1, …. A shard takes its name once it is complete, so an interrupted filling
resumes at the first missing shard. What the features were made of is written beside the shards by
those who keep them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.batches import Batch
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.inference import read_in_workers
from kdpl.data.parallel import progress_bar
from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path

_MOST_SHARDS = 256  # each is an open file in each worker process
_FEATURES_PER_SHARD = 8192  # for small pools, so that an interruption loses little


def images_per_shard(images: int, views: int) -> int:
    """Return the number of images per shard, for a number of images with so many views."""
    return max(-(-images // _MOST_SHARDS), _FEATURES_PER_SHARD // max(views, 1), 1)


@dataclass(frozen=True)
class Work:
    """Share of one process in computing the features of ``images``.

    Attributes:
        encode: Network: uint8 [B, 3, S, S] on the CPU to features, float [B, D].
        batch_size: Maximum number of views B encoded at a time.
        num_workers: Worker processes that decode.
        rank: This process; it computes every ``world_size``-th shard.
        still: Make the first view the evaluation view; otherwise all V views are random.
        mean: Store the first view and the mean over all views, [n, 2, D], instead of all views,
            [n, V, D].
    """

    images: UnlabeledImages
    encode: Callable[[Tensor], Tensor]
    batch_size: int
    num_workers: int
    rank: int = 0
    world_size: int = 1
    still: bool = False
    mean: bool = False


class FeatureStore:
    """Features of images in a folder; each worker process opens the shards for itself.

    Args:
        folder: Folder of the shards.
        images: Number of images.
        per_shard: Number of images per shard.
    """

    def __init__(self, folder: Path, images: int, per_shard: int) -> None:
        self.folder, self.images, self.per_shard = folder, images, per_shard
        self._opened: dict[int, npt.NDArray[np.float16]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": {}}

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{shard:05d}.npy"

    @property
    def shards(self) -> dict[Path, range]:
        """The files of the shards, each with the indices of its images."""
        starts = range(0, self.images, self.per_shard)
        return {
            self.path(shard): range(self.images)[start : start + self.per_shard]
            for shard, start in enumerate(starts)
        }

    @property
    def missing(self) -> int:
        """Number of shards that are not there."""
        return sum(not path.is_file() for path in self.shards)

    def read(self, row: int, index: int) -> npt.NDArray[np.float16]:
        """Read a feature of an image, float16 [D]."""
        shard, local = divmod(index, self.per_shard)
        if shard not in self._opened:
            self._opened[shard] = np.load(self.path(shard), mmap_mode="r")
        return np.array(self._opened[shard][local, row])

    def rows(self, images: npt.NDArray[np.int64], views: Iterable[int]) -> Tensor:
        """Return the features of a view of each image, by its position, float32 [B, D]."""
        rows = [self.read(view, image) for image, view in zip(images, views, strict=True)]
        return torch.from_numpy(np.stack(rows)).float()

    def read_all(self) -> npt.NDArray[np.float16]:
        """Read the features of all images, float16 [N, R, D]."""
        return np.concatenate([np.load(path, mmap_mode="r") for path in self.shards])

    def fill(self, views: int, work: Work) -> int:
        """Compute the missing shards of this process; returns the number of its new features."""
        # by their positions among all shards, regardless of what other processes have finished
        share = [*self.shards.items()][work.rank :: work.world_size]
        missing = {path: indices for path, indices in share if not path.is_file()}

        # batches of whole images, none of two shards, loaded ahead by worker processes; a
        # generator, as there may be millions
        at_once = max(1, work.batch_size // views)
        batches = (
            list(indices[start : start + at_once])
            for indices in missing.values()
            for start in range(0, len(indices), at_once)
        )
        load = partial(_all_views, work.images, views, work.still)
        loader = read_in_workers(load, range(len(work.images)), batches, work.num_workers)
        encoded = (_encode(batch.images, work) for batch in loader)

        # a shard is written once its last batch is encoded
        total = sum(map(len, missing.values())) * views
        with progress_bar() as progress:
            bar = progress.add_task("features of images", total=total)
            for path, indices in missing.items():
                parts = []
                for part in islice(encoded, -(-len(indices) // at_once)):
                    parts.append(part)
                    progress.advance(bar, len(part) * views)
                features = np.concatenate(parts)
                if not np.isfinite(features).all():
                    raise DataError(
                        f"the features of images {indices[0]} to {indices[-1]} are not finite: "
                        "check the network's weights and prompts, or set trainer.precision to "
                        "32-true"
                    )
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features)
        return total


def _all_views(images: UnlabeledImages, views: int, still: bool, positions: list[int]) -> Batch:
    """Make all V views of images, uint8 [n, V, 3, S, S], with ``still`` as in ``Work``."""
    view, batch = images.view, []
    for i in positions:
        # decode once for all views
        image, index = view.open_image(images.sources[i]), images.index_of(i)
        pictures = [to_tensor(resize_and_crop(image, view.resizing))] if still else []
        pictures += [
            view.make(image, view.draw(image, index, n)) for n in range(views - len(pictures))
        ]
        batch.append(torch.stack(pictures))
    return Batch(torch.stack(batch))


@torch.no_grad()
def _encode(images: Tensor, work: Work) -> npt.NDArray[np.float16]:
    """Encode all views of images, uint8 [n, V, 3, S, S], to float16 [n, V or 2, D]."""
    parts = [work.encode(part) for part in torch.split(images.flatten(0, 1), work.batch_size)]
    features = torch.cat(parts).view(*images.shape[:2], -1)
    if work.mean:
        features = torch.stack([features[:, 0], features.mean(dim=1)], dim=1)
    rows: npt.NDArray[np.float16] = features.half().cpu().numpy()
    return rows
