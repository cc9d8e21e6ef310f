"""Opening a cache of teacher features for a run, so that before the first step it is known to be the right one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kdpl.data.feature_manifest import FILE as MANIFEST_FILE
from kdpl.data.feature_manifest import Manifest
from kdpl.data.teacher_features import Rows, TeacherFeatures
from kdpl.errors import ConfigError, DataError

_FILL = "fill it with python -m kdpl cache and the settings of this fit, or set data.init_args.fill_teacher_cache: true"


class TeacherCache:
    """A cache as a run uses it: some of its images, some of its views.

    Args:
        features: The cache.
        indices: The images of the run, by their indices in the list of all unlabelled images.
        views: The views that the run comes to.
        fill: Whether the run computes what is missing.

    Raises:
        DataError: Something is missing and the run may not compute it.
    """

    def __init__(self, features: TeacherFeatures, indices: Rows, views: range, fill: bool) -> None:
        self.features = features
        self.fill = fill
        self._indices = indices
        self._views = views
        self.num_missing = len(self.missing())
        if self.num_missing and not fill:
            raise DataError(
                f"the teacher cache {features.folder} lacks {self.num_missing} of {len(indices) * len(views)} "
                f"features: {_FILL}"
            )

    def missing(self) -> npt.NDArray[np.int64]:
        """What is not there, as (image index, view) pairs, int64 [R, 2]."""
        images = self.features.manifest.images
        rows = [self.features.missing(view * images + self._indices) for view in self._views]
        views, indices = np.divmod(np.concatenate(rows), images)
        return np.stack([indices, views], axis=1)

    def sample(self, n: int, seed: int) -> npt.NDArray[np.int64]:
        """Draw n of its entries, or all if there are fewer, as (image index, view) pairs, int64 [R, 2]."""
        size = len(self._indices) * len(self._views)
        chosen = np.random.default_rng(seed).choice(size, min(n, size), replace=False)
        views, positions = np.divmod(chosen, len(self._indices))
        return np.stack([self._indices[positions], np.array(self._views)[views]], axis=1)

    def write(self, rows: torch.Tensor, features: torch.Tensor) -> None:
        """Write features that were missing.

        Args:
            rows: Their rows as the batches give them, int64 [B].
            features: Normalised features [B, D].

        Raises:
            DataError: One of them is no finite number, and none is written.
        """
        wrong = rows[~features.isfinite().all(dim=1)].tolist()
        if wrong:
            view, index = divmod(wrong[0], self.features.manifest.images)
            raise DataError(
                f"the teacher gives no finite features of {len(wrong)} images, such as unlabelled image {index} in "
                f"view {view}: check its weights and prompts, or set trainer.precision to 32-true"
            )
        self.features.write_features(rows.cpu().numpy(), features.half().cpu().numpy())


def open_features(
    folder: Path, needed: Manifest, views: int | None, fill: bool, is_first: bool, barrier: Callable[[], None]
) -> TeacherFeatures:
    """Open a cache; where it may be filled, make one that is not there yet.

    Args:
        folder: Where it is.
        needed: What a run needs it to be.
        views: Views that it must have; None: as many as it has, or ``needed`` says if it is made now.
        fill: Whether it may be made, repaired and written.
        is_first: Whether this process is the one that does so; the others wait for it.
        barrier: Waits for all processes.

    Raises:
        ConfigError: It is to be made, and nobody says with how many views.
        DataError: It is not there, damaged, of something else, or being filled by another process.
    """
    writable: TeacherFeatures | None = None
    if fill:
        try:
            if is_first:
                writable = _prepare(folder, needed, views)
        finally:
            barrier()
    elif not folder.exists():
        raise DataError(f"the teacher cache {folder} does not exist: {_FILL}")
    features = writable or TeacherFeatures.open(folder)
    try:
        _require(features, needed, views)
        features.require_shards()
    except BaseException:
        # the error may live on, and the features with it
        features.unlock()
        raise
    return features


def _prepare(folder: Path, needed: Manifest, views: int | None) -> TeacherFeatures:
    if not (folder / MANIFEST_FILE).is_file():
        if not needed.views:
            raise ConfigError(
                f"nothing says how many views the teacher cache {folder} is to have: set trainer.max_epochs, or fill "
                "it with python -m kdpl cache and --views"
            )
        features = TeacherFeatures.create(folder, needed)
        features.lock()
    else:
        features = TeacherFeatures.open(folder)
        _require(features, needed, views)
        features.lock()
        features.restore_shards()
    return features


def _require(features: TeacherFeatures, needed: Manifest, views: int | None) -> None:
    features.manifest.require(features.folder, needed)
    if views is not None and features.manifest.views != views:
        raise DataError(
            f"the teacher cache {features.folder} has {features.manifest.views} views of each image, {views} are asked "
            "for: leave --views out, or choose another folder as data.init_args.teacher_cache"
        )
