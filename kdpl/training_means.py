"""Means of a training's values over the images of an epoch, with which a run goes on that was cut within the epoch."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class ImageMean(Metric):
    """Mean over images, those of all processes, of values that are means over a batch each."""

    # not torchmetrics' MeanMetric: it looks for NaN at each step, and so waits for the device
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        # whatever the precision: lazily made, it would have that of the step
        self.add_state("total", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Count a batch.

        Args:
            mean: Mean over its images, a number.
            images: How many these are.
        """
        self.total += mean.float() * images
        self.images += images

    def compute(self) -> Tensor:
        """Give the mean so far."""
        return self.total / self.images


class TrainingMeans(nn.ModuleDict):
    """An ``ImageMean`` for each name, made when it is first counted; Lightning, which logs them, resets them."""

    def count(self, name: str, mean: Tensor, images: int) -> ImageMean:
        """Count a batch under a name, and give its mean.

        Args:
            name: What the values are called.
            mean: Mean over the batch's images, a number.
            images: How many these are.
        """
        if name not in self:
            self[name] = ImageMean().to(mean.device)
        metric = cast("ImageMean", self[name])
        metric.update(mean, images)
        return metric

    def parts(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Give each process's sum and number of images, float32 [processes, 2], by name; call on all processes.

        Args:
            gather: Gives a tensor of all processes, their number as first dimension; or, of one, the tensor itself.
        """
        counted = [(name, metric) for name, metric in self.items() if isinstance(metric, ImageMean) and metric.images]
        return {name: gather(torch.stack([m.total, m.images])).reshape(-1, 2).cpu() for name, m in counted}

    def go_on(self, parts: Mapping[str, Tensor], rank: int, processes: int, device: torch.device) -> None:
        """Begin with what was counted before.

        Args:
            parts: What ``parts`` gave, perhaps of another number of processes.
            rank: Number of this process.
            processes: How many there are now.
            device: Where to count.
        """
        for name, of_all in parts.items():
            self[name] = metric = ImageMean().to(device)
            if len(of_all) == processes:
                # each its own, or the sums would be rounded otherwise than those of a run never cut
                metric.total, metric.images = of_all[rank].to(device)
            elif rank == 0:
                metric.total, metric.images = of_all.sum(dim=0).to(device)
