"""Similarity of unlabelled images to the classes, compared with that of labelled ones."""

import csv
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from kdpl.preparation import TargetInputs
from kdpl.runtime.files import write_rows

LEFT_OUT_FILE = "left_out.csv"
"""Images that are left out, in a run's folder; written before the first step, read on resume."""

_VIEWS = 4


def filter_pool(inputs: TargetInputs, quantile: float) -> Collection[str]:
    """Return the unlabelled images that are less like the classes than nearly all labelled ones.

    An image's similarity is that of the first teacher's feature, the normalised mean over four
    views, to the nearest class vector, a cosine. Images below the ``quantile`` of the labelled
    training images' similarities are left out; which class those belong to plays no part. Under
    ``base_to_novel`` all are of base classes, so that more images of novel classes are left out
    (measured in docs/own_data.md).

    The images are listed in ``left_out.csv`` in the run's folder, from which a resumed fit reads
    them without a check; a new fit writes it again.
    """
    file = inputs.folder / LEFT_OUT_FILE
    if not inputs.resumes or not file.is_file():
        labeled = [record.source for record in inputs.labeled]
        least = _similarities(inputs, inputs.features(labeled, _VIEWS)).quantile(quantile).item()

        similarities = _similarities(inputs, inputs.features(None, _VIEWS)).cpu().numpy()
        below = np.flatnonzero(similarities < least)
        unlike = [(inputs.pool[inputs.indices[i]], similarities[i]) for i in below]
        inputs.on_first_process(lambda: write_rows(file, [("image", "similarity"), *unlike]))
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return {row["image"] for row in csv.DictReader(lines)}


def _similarities(inputs: TargetInputs, features: Tensor) -> Tensor:
    """The similarity of each image to the nearest class vector, float32 [N]."""
    vectors = inputs.teachers[0].vectors.to(features)
    return torch.cat([(part @ vectors.T).amax(dim=1) for part in torch.split(features, 4096)])
