"""Crops of an image that look like whole objects, after Edge Boxes (Zitnick, Dollár, ECCV 2014)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from kdpl.data.augmentation import resize_and_crop, to_tensor, without_ends
from kdpl.runtime.resizing import Resizing

# Best for training pages (docs/several_labels.md). The shorter edge of the image searched, pixels;
# neighbours' distance and a box's border, as shares of its edge; weight of the border; overlap
# (IoU) above which the weaker of two boxes is dropped
_SEARCH_EDGE = 64
_STRIDE, _BORDER, _BORDER_WEIGHT, _MOST_OVERLAP = 1 / 6, 0.06, 2.0, 0.5

# views of a box: its edge, and how far right and down, as shares of the box's edge
_VIEWS = (
    *((scale, 0.0, 0.0) for scale in (0.9, 1.0, 1.15, 1.3)),
    *((1.05, right, down) for down in (-0.07, 0.07) for right in (-0.07, 0.07)),
)


@dataclass(frozen=True)
class Crops:
    """Makes crops of an image: boxes that look like whole objects, each in several views.

    A box scores high if many edges of the picture lie inside it and few cross its border:
    I − 2·B, over its edge to the power of 1.5, with the sums I and B of the gradient's magnitude.
    Candidates of all scales lie on a grid; non-maximum suppression selects from them. Scale 1 adds
    the whole image in one view.

    Attributes:
        scales: The shorter edge of the image over the edges of boxes, at least 1.
        count: Number of boxes in an image.
        resizing: Resizing of the teacher's images.
    """

    scales: tuple[float, ...]
    count: int
    resizing: Resizing

    def __call__(self, image: Image) -> Tensor:
        """Make the V crops of an RGB image, uint8 [V, 3, S, S]."""
        # the whole image, then all views of each box, kept inside the image
        image = without_ends(image)
        crops = [image] if 1 in self.scales else []
        for left, top, edge in self.boxes(image).tolist():
            for scale, right, down in _VIEWS:
                side = min(max(1, round(scale * edge)), *image.size)
                middle = edge / 2 - side / 2
                x = min(max(0, round(left + right * edge + middle)), image.width - side)
                y = min(max(0, round(top + down * edge + middle)), image.height - side)
                crops.append(image.crop((x, y, x + side, y + side)))
        return torch.stack([to_tensor(resize_and_crop(crop, self.resizing)) for crop in crops])

    def features(self, views: Tensor) -> Tensor:
        """Average an image's features of crops [V, D] over the views of a box, float [K, D]."""
        whole = int(1 in self.scales)
        boxes = views[whole:].view(-1, len(_VIEWS), views.shape[1]).mean(dim=1)
        return F.normalize(torch.cat([views[:whole], boxes]), dim=1)

    def boxes(self, image: Image) -> NDArray[np.float64]:
        """Return left, top and edge of each box in pixels, the best first, float [count, 3]."""
        # the gradient of a small copy, and its sums over all that is above and to the left
        shrink = _SEARCH_EDGE / min(image.size)
        width, height = (round(edge * shrink) for edge in image.size)
        small = image.convert("L").resize((width, height), Resampling.BOX)
        gradient = np.hypot(*np.gradient(np.asarray(small, dtype=np.float64)))
        sums = np.pad(gradient.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))

        # boxes on a grid for each scale above 1: left, top and edge, int [M, 3]
        edges = [max(4, round(min(width, height) / scale)) for scale in self.scales if scale > 1]
        candidates = np.array(
            [
                (left, top, edge)
                for edge in edges
                for top in _starts(height, edge)
                for left in _starts(width, edge)
            ]
        )
        left, top, edge = candidates.T
        border = np.maximum(1, np.rint(_BORDER * edge)).astype(int)

        def total(more: NDArray[np.int_]) -> NDArray[np.float64]:
            """Sum the gradient over boxes grown by ``more`` on each side."""
            x0, x1 = np.clip([left - more, left + edge + more], 0, width)
            y0, y1 = np.clip([top - more, top + edge + more], 0, height)
            totals: NDArray[np.float64] = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
            return totals

        inside, around = total(-border), total(border)
        score = (inside - _BORDER_WEIGHT * (around - inside)) / edge**1.5

        corners = np.column_stack([left, top, left + edge, top + edge]).astype(np.float64)
        kept = nms(torch.from_numpy(corners), torch.from_numpy(score), _MOST_OVERLAP)
        # repeat the best ones if the image has too little room for ``count`` boxes
        return np.resize(candidates[kept.numpy()], (self.count, 3)) / shrink


def _starts(length: int, edge: int) -> list[int]:
    steps = math.ceil((length - edge) / max(1.0, _STRIDE * edge))
    return [round(start) for start in np.linspace(0, length - edge, steps + 1).tolist()]
