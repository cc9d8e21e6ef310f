"""Filter of the unlabelled images, before a student's first step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdpl.data.pool import UnlabeledPool
from kdpl.errors import DataError
from kdpl.runtime.files import read_rows, write_rows
from kdpl.runtime.messages import inform
from kdpl.targets.inputs import TargetInputs

LEFT_OUT_FILE = "left_out.csv"
"""Table of left-out images in a run's folder; written before the first step, read on resume."""

_VIEWS = 4


def without_unlike(inputs: TargetInputs, quantile: float) -> UnlabeledPool:
    """Leave out unlabelled images that are less like the classes than nearly all labelled images.

    The similarity of an image is the cosine between the teacher's feature, the normalised
    mean over four views, and the nearest class vector. Images below the ``quantile`` of the
    labelled training images' similarities are left out, regardless of their classes. Under
    ``base_to_novel`` all labelled images are of base classes, so more images of novel classes are
    left out (measured in docs/sources.md).

    Called on all processes. Writes the images to ``left_out.csv`` in the run's folder. A resumed
    fit reads the file without a check; a new fit writes it again.
    """
    _ = inputs.labels.training()  # refused before any image is encoded
    targeted, file = inputs.pool.targeted, inputs.folder / LEFT_OUT_FILE
    if not inputs.resumes or not file.is_file():
        # the limit, from labelled images
        labeled = [record.source for record in inputs.labeled]
        least = _similarities(inputs, labeled).quantile(quantile).item()

        # the unlabelled images below it
        similarities = _similarities(inputs, None).cpu().numpy()
        below = np.flatnonzero(similarities < least)
        unlike = [(inputs.pool.images[targeted[i]], similarities[i]) for i in below]
        inputs.processes.on_first(lambda: write_rows(file, [("image", "similarity"), *unlike]))
    filtered = inputs.pool.leaving_out({row["image"] for row in read_rows(file)})

    # report the result
    images, kept = len(targeted), len(filtered.targeted)
    if not kept:
        raise DataError(
            f"pool_filter leaves out all {images} unlabelled images: check what they show"
        )
    inform(f"pool filter: keeps {kept} of {images} unlabelled images; the others are in {file}")
    if inputs.labels.num_base is not None:
        inform(
            "pool filter: its limit comes from base classes, and leaves out more images of novel "
            "classes than of base classes"
        )
    return filtered


def _similarities(inputs: TargetInputs, images: Sequence[str] | None) -> Tensor:
    features = inputs.features(images, _VIEWS)[0].mean
    vectors = inputs.vectors.vectors.to(features)
    return torch.cat([(part @ vectors.T).amax(dim=1) for part in torch.split(features, 4096)])
