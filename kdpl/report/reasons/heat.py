"""Heat maps by gradients of masks, for any network, without use of its layers.

A mask m in [0, 1]^(G×G) mixes an image with a blurred copy of itself. A cell's importance for a
class is the derivative of the class's log odds with respect to its entry of m, averaged over random
masks that keep every share of the cells. This estimates the cells' Shapley values by Owen's formula
(Multilinear extensions of games, Management Science 18, 1972), with derivatives for differences.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from kdpl.classifier import Classifier
from kdpl.data.augmentation import GivenImage, open_given
from kdpl.errors import ConfigError

GRID, MASKS = 16, 16
"""Cells along an edge G, and number of masks; docs/experiments.md compares others."""


def heat_map(
    classifier: Classifier, images: GivenImage | Iterable[GivenImage], class_name: str | None = None
) -> Tensor:
    """Return how much each part of an image speaks for a class; deterministic.

    Args:
        classifier: The classifier, in float32.
        images: One image or several: paths, PIL images, or uint8 tensors [3, H, W].
        class_name: The class; None: the most probable one of each image.

    Returns:
        A map [S, S] of the image as ``classifier.prepare`` returns it, or [N, S, S] of several
        images: 1 where the image speaks most for the class, 0 where it speaks not at all for it,
        or against it.

    Raises:
        ConfigError: The classifier has no such class.
        DataError: An image is missing or unreadable.
    """
    if isinstance(images, str | Path | Image.Image) or (
        isinstance(images, Tensor) and images.ndim == 3
    ):
        return heat_map(classifier, [images], class_name)[0]
    label = None if class_name is None else label_of(classifier, class_name)
    edge = classifier.preprocessing.image_size
    maps = [torch.zeros(0, edge, edge)]
    for image in images:
        seen = classifier.prepare(open_given(image, classifier.decoding))
        # a smooth map from the grid, with 1 as its maximum
        coarse = cell_importance(classifier, seen, label).clamp_min(0)
        fine = F.interpolate(coarse[None, None], (edge, edge), mode="bilinear")[0]
        maps.append(fine / fine.max().clamp_min(1e-30))
    return torch.cat(maps)


def label_of(classifier: Classifier, class_name: str) -> int:
    """Return the label of a class; a ConfigError if the classifier does not have it."""
    names = classifier.class_names
    if class_name not in names:
        expected = f"expected one of its {len(names)}: give a name such as {names[0]!r}"
        raise ConfigError(f"the classifier has no class {class_name!r}, {expected}")
    return names.index(class_name)


@torch.inference_mode(False)
@torch.enable_grad()
def cell_importance(classifier: Classifier, image: Tensor, label: int | None = None) -> Tensor:
    """Return how much each cell [G, G] of a prepared image, uint8 [3, S, S], speaks for a class.

    A cell that speaks against it is negative. Label None is the most probable class.
    """
    # the image and its blurred copy
    sharp = image.to(classifier.head.class_vectors.device)[None].float() / 255
    deviation = sharp.shape[-1] / 8
    kernel = 2 * max(1, round(3 * deviation)) + 1
    blurred = gaussian_blur(sharp, [kernel, kernel], [deviation, deviation])
    if label is None:
        label = int(classifier(sharp).topk(1).indices)
    # gradient of the log odds with respect to the masks that mix them
    masks = random_masks().to(sharp.device).requires_grad_()
    weights = F.interpolate(masks, sharp.shape[-2:], mode="bilinear")
    odds = log_odds(classifier, blurred + weights * (sharp - blurred), label)
    (gradient,) = torch.autograd.grad(odds.sum(), masks)
    return gradient.mean(dim=(0, 1)).cpu()


def random_masks() -> Tensor:
    """Return masks of zeros and ones [MASKS, 1, G, G], the same at each call.

    The first half keep shares of the cells from 0 to 1/2, evenly spread; the second half are their
    complements, to reduce the variance of the mean.
    """
    shares = (torch.arange(MASKS // 2) + 0.5) / MASKS
    drawn = torch.rand(len(shares), 1, GRID, GRID, generator=torch.Generator().manual_seed(0))
    kept = drawn < shares.view(-1, 1, 1, 1)
    return torch.cat([kept, ~kept]).float()


def log_odds(classifier: Classifier, images: Tensor, label: int) -> Tensor:
    """Return log p/(1 - p) [B] of a class's probability p for images [B, 3, S, S] in [0, 1]."""
    logits: Tensor = classifier(images)
    if classifier.task.per_class:
        return logits[:, label]
    # not from p, as it rounds to 1 where the classifier is sure
    scores = classifier.task.log_probabilities(logits)
    return scores[:, label] - torch.cat([scores[:, :label], scores[:, label + 1 :]], 1).logsumexp(1)
