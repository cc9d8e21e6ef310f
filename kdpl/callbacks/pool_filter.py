"""Unlabelled images that the teacher finds unlike all classes, left out before a student's first epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.callbacks.teacher_cache import mean_features
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.reading import read_skip_list
from kdpl.errors import DataError
from kdpl.metrics import POOL_KEPT
from kdpl.runtime.files import write_rows
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import LEFT_OUT_FILE

_VIEWS = 4


class FilterPool(Callback):
    """Leaves out unlabelled images that are less similar to the classes than nearly all labelled images are.

    An image's similarity is that of the teacher's feature, the normalised mean over four views, to the nearest class
    vector, a cosine. Images below the ``quantile`` of the labelled training images' similarities are left out; which
    class those belong to plays no part. Under ``base_to_novel`` all are of base classes, so that more
    images of novel classes are left out (measured in docs/own_data.md). Listed in ``left_out.csv``
    in the run's folder, they stay out when the run is resumed.
    """

    def __init__(self, quantile: float) -> None:
        self.quantile = quantile
        self.kept = 1.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images, on all processes together; a DataError if none would be left."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        student: Any = pl_module
        file = Path(trainer.default_root_dir) / LEFT_OUT_FILE
        resizing = student.needs.teachers()[0].resizing
        pool, indices = data.unlabeled_images(resizing), data.unlabeled_indices
        if trainer.ckpt_path is None or not file.is_file():
            labeled = data.labeled_images(resizing)
            least = _similarities(trainer, student, labeled, np.arange(len(labeled))).quantile(self.quantile).item()
            found = _similarities(trainer, student, pool, indices).cpu().numpy()
            unlike = [(pool.sources[indices[i]], found[i]) for i in np.flatnonzero(found < least)]
            if trainer.is_global_zero:
                write_rows(file, [("image", "similarity"), *unlike])
            trainer.strategy.barrier("kdpl pool filter")
        data.leave_out(read_skip_list(file))
        kept = len(data.unlabeled_indices)
        if not kept:
            raise DataError(f"pool_filter leaves out all {len(indices)} unlabelled images: check what they show")
        self.kept = kept / len(indices)
        inform(f"pool filter: keeps {kept} of {len(indices)} unlabelled images; the others are in {file}")
        if data.num_base is not None:
            inform("pool filter: its limit is of base classes, and leaves out more images of novel ones than of these")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the share of images that are kept."""
        pl_module.log(POOL_KEPT, self.kept)


def _similarities(trainer: Trainer, student: Any, images: UnlabeledImages, indices: npt.NDArray[np.int64]) -> Tensor:
    """The similarity of each of these images, float32 [N]."""
    features = mean_features(trainer, student, images, indices, _VIEWS)
    return torch.cat(
        [(part @ student.shared_vectors.vectors.to(part).T).amax(dim=1) for part in torch.split(features, 4096)]
    )
