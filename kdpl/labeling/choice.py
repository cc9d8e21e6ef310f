"""What to label: images that would teach most, and labels that look wrong, from a frozen teacher's features."""

import math

import torch
from torch import Tensor

_FOLDS = 5
_SHRINKAGE = 0.5  # of the covariance; with 0.1 to 0.9 as many wrong labels were found: docs/labelling.md
_CELLS = 2**24  # of similarities at a time


def to_label(features: Tensor, predictions: Tensor, n: int, labeled: Tensor | None = None) -> list[int]:
    """Choose n images that cover the others, by greedy facility location; the first ones cover most.

    Each step adds the image that increases Σ_i w_i max_{j ∈ S} max(f_i·f_j, 0) most, where S are the chosen and the
    labelled images, and w_i = 1 + H(p_i) / log C, so that an image of an uncertain prediction counts up to twice. After
    a step, only terms of images to which the chosen one is nearest are computed anew: O(N² log n) time, O(N) memory.

    Args:
        features: Normalised features f of unlabelled images, float [N, D].
        predictions: Their probabilities p, float [N, C].
        n: How many to choose, at most N.
        labeled: Normalised features of images that have labels, float [L, D].

    Returns:
        Indices of the chosen images.
    """
    weights = 1 + torch.special.entr(predictions).sum(dim=1) / math.log(max(predictions.shape[1], 2))
    everything = torch.arange(len(features), device=features.device)
    step = max(1, _CELLS // len(features))
    covered = torch.zeros_like(weights)
    if labeled is not None and len(labeled):
        parts = torch.split(features, max(1, _CELLS // len(labeled)))
        covered = torch.cat([(part @ labeled.T).max(dim=1).values for part in parts]).clamp_min(0)

    def gains(of: Tensor, after: Tensor | None = None) -> Tensor:
        """What each image adds to the terms of these images; or adds less once they are covered so well."""
        total = torch.zeros_like(weights, dtype=torch.float64)
        for some in torch.split(of, step):
            similarities = features @ features[some].T
            more = (similarities - covered[some]).clamp_min_(0)
            if after is not None:
                more -= (similarities - after[some]).clamp_min_(0)
            total += more @ weights[some]
        return total

    gain, chosen = gains(everything), list[int]()
    for _ in range(n):
        chosen.append(int(gain.argmax()))
        near = features @ features[chosen[-1]]
        gain -= gains(everything[near > covered], near)
        gain[chosen] = -torch.inf
        covered = torch.maximum(covered, near)
    return chosen


def probabilities_without_own_label(features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Tensor:
    """Probability of each class for labelled images, by a model that has not seen the image, float [N, C].

    The model is a linear discriminant, with class means and one shared covariance, shrunk towards a multiple of the
    identity, fitted to the images of the other folds of five; each class is spread evenly over the folds. A class of
    which a fold leaves nothing has probability 0, and an image that is the only one of its class has NaN.

    Args:
        features: Normalised features of the images, float [N, D].
        labels: Their labels, [N].
        classes: Number of classes C.
        seed: Seed of the folds.
    """
    count = torch.bincount(labels, minlength=classes)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(labels)
    # the place of each image within its class, whose images are next to each other in this order
    places = torch.arange(len(labels), device=labels.device) - (count.cumsum(dim=0) - count)[labels[order]]
    fold[order] = places % _FOLDS
    result = features.new_full((len(labels), classes), float("nan"))
    for held_out in (fold == number for number in range(_FOLDS)):
        if held_out.any() and not held_out.all():
            scores = discriminant(features[~held_out], labels[~held_out], classes, features[held_out])
            result[held_out] = scores.softmax(dim=1)
    result[count[labels] < 2] = float("nan")
    return result


def discriminant(seen: Tensor, labels: Tensor, classes: int, asked: Tensor) -> Tensor:
    """Log-likelihoods of images [M, D] in each class, up to a constant, by those seen [N, D] with their labels."""
    count = torch.bincount(labels, minlength=classes)
    means = seen.new_zeros(classes, seen.shape[1]).index_add_(0, labels, seen) / count.clamp_min(1)[:, None]
    rest = seen - means[labels]
    covariance = rest.T @ rest / len(seen)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variance = covariance.trace().clamp_min(1e-6) / len(covariance)
    precise = torch.linalg.solve((1 - _SHRINKAGE) * covariance + _SHRINKAGE * variance * identity, means.T)
    scores: Tensor = asked @ precise - 0.5 * (means.T * precise).sum(dim=0)
    return scores.masked_fill(count == 0, -torch.inf)
