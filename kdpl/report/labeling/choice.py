"""Images that would teach most, and labels that look wrong, from a frozen teacher's features."""

import math

import torch
from torch import Tensor

from kdpl.data.groups import FOLDS, folds

# of the covariance; with 0.1 to 0.9 as many wrong labels were found: docs/labelling.md
_SHRINKAGE = 0.5
_TEMPERATURES = 2.0 ** torch.arange(-1, 10.1, 1 / 3)
# shares of wrong labels
_WRONG = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-10, -1.4, 1 / 2)])
_CELLS = 2**24  # of similarities at a time


def to_label(
    features: Tensor, predictions: Tensor, n: int, labeled: Tensor | None = None
) -> list[int]:
    """Choose n images that cover the others, by greedy facility location; the first cover most.

    Each step adds the image that increases Σ_i w_i max_{j ∈ S} max(f_i·f_j, 0) most, where S are
    the chosen and the labelled images, and w_i = 1 + H(p_i) / log C, so that an image of an
    uncertain prediction counts up to twice. After a step, only terms of images to which the chosen
    one is nearest are computed anew: O(N² log n) time, O(N) memory.

    Args:
        features: Normalised features f of unlabelled images, float [N, D].
        predictions: Their probabilities p, float [N, C]. With several labels an image, those of
            lacking and having each class, float [N, C, 2]: w_i then has the mean over classes of
            H / log 2.
        n: How many to choose, at most N.
        labeled: Normalised features of images that have labels, float [L, D].

    Returns:
        Indices of the chosen images.
    """
    choices = max(predictions.shape[-1], 2)
    entropies = torch.special.entr(predictions).sum(dim=-1) / math.log(choices)
    weights = 1 + entropies.view(len(features), -1).mean(dim=1)
    everything = torch.arange(len(features), device=features.device)
    step = max(1, _CELLS // len(features))
    covered = torch.zeros_like(weights)
    if labeled is not None and len(labeled):
        parts = torch.split(features, max(1, _CELLS // len(labeled)))
        covered = torch.cat([(part @ labeled.T).max(dim=1).values for part in parts]).clamp_min(0)

    def gains(of: Tensor, after: Tensor | None = None) -> Tensor:
        """Return what each image adds to the terms of these images.

        If ``after`` is given, returns by how much less it adds once they are covered so well.
        """
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


def scores_without_own_label(
    features: Tensor, labels: Tensor, classes: int, groups: Tensor, seed: int = 0
) -> Tensor:
    """Return log-likelihoods of images in each class by a model without their label, float [N, C].

    They are known up to a constant of the image. The model is a linear discriminant, with class
    means and one shared covariance, shrunk towards a multiple of the identity, fitted to the images
    that are not in the same one of ``kdpl.data.groups.folds``. A class without an image has -inf,
    and an image that is in no fold, such as the only one of its class, has NaN.

    Args:
        features: Normalised features of the images, float [N, D].
        labels: Their labels, [N].
        classes: Number of classes C.
        groups: Groups of the images as numbers, [N].
        seed: Seed of the folds.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fold_of = torch.empty_like(labels)
    numbers = folds(labels.cpu()[order].numpy(), groups.cpu()[order].numpy())
    fold_of[order.to(labels.device)] = torch.from_numpy(numbers).to(labels.device)
    result = features.new_full((len(labels), classes), float("nan"))
    for number in range(FOLDS):
        held_out = fold_of == number
        if held_out.any():
            result[held_out] = discriminant(
                features[~held_out], labels[~held_out], classes, features[held_out]
            )
    return result


def wrong_labels(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability that each label is wrong, by a model that is fitted to all of them.

    With probability 1 - ε an image has the label y of its class, and otherwise any of the others,
    all alike; its class has the probabilities p = softmax(scores / T), so that

        P(y) = (1 - ε) p_y + ε (1 - p_y) / (C - 1),    P(wrong | y) = ε (1 - p_y) / (C - 1) / P(y).

    T and ε are those of a grid with the largest Σ log P(y). With ε = 0, which labels that are all
    right mostly give, none is wrong.

    Args:
        scores: ``scores_without_own_label``, float [N, C]; rows of NaN are left out of the fit.
        labels: The labels y, [N].

    Returns:
        P(wrong | y) [N], NaN where the scores are; and p [N, C].
    """
    known = ~scores.isnan().any(dim=1)
    own, other = labels[known, None], max(scores.shape[1] - 1, 1)
    shares = _WRONG.to(scores)

    def likelihood(temperature: Tensor) -> Tensor:
        right = (scores[known] / temperature).softmax(dim=1).gather(1, own)
        given = (1 - shares) * right + shares * (1 - right) / other
        return given.clamp_min(1e-30).log().sum(dim=0)

    fit = torch.stack([likelihood(each) for each in _TEMPERATURES.to(scores)])
    best, share = divmod(int(fit.argmax()), len(shares))
    probabilities = (scores / _TEMPERATURES[best].to(scores)).softmax(dim=1)
    right = probabilities.gather(1, labels[:, None])[:, 0]
    wrong = shares[share] * (1 - right) / other
    return wrong / ((1 - shares[share]) * right + wrong), probabilities


def discriminant(seen: Tensor, labels: Tensor, classes: int, asked: Tensor) -> Tensor:
    """Return log-likelihoods [M, C] up to a constant, by images seen [N, D] with their labels."""
    count = torch.bincount(labels, minlength=classes)
    sums = seen.new_zeros(classes, seen.shape[1]).index_add_(0, labels, seen)
    means = sums / count.clamp_min(1)[:, None]
    rest = seen - means[labels]
    covariance = rest.T @ rest / len(seen)
    variance = covariance.trace().clamp_min(1e-6) / len(covariance)
    shrunk = (1 - _SHRINKAGE) * covariance
    shrunk.diagonal().add_(_SHRINKAGE * variance)
    precise = torch.linalg.solve(shrunk, means.T)
    scores: Tensor = asked @ precise - 0.5 * (means.T * precise).sum(dim=0)
    return scores.masked_fill(count == 0, -torch.inf)
