"""Choice of images to label and of doubtful labels, from a frozen teacher's features."""

import math

import torch
from torch import Tensor

from kdpl.data.groups import FOLDS, folds

# of the covariance; 0.1 to 0.9 find as many wrong labels
_SHRINKAGE = 0.5
_TEMPERATURES = 2.0 ** torch.arange(-1, 10.1, 1 / 3)
# shares of wrong labels
_WRONG = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-10, -1.4, 1 / 2)])
_CELLS = 2**24  # similarities in memory at a time


def to_label(features: Tensor, predictions: Tensor, n: int, labeled: Tensor) -> list[int]:
    """Choose n images that cover all images, by greedy facility location; the first cover most.

    Each step adds the image that increases Σ_i w_i max_{j ∈ S} max(f_i·f_j, 0) most, where S are
    the chosen and the labelled images, and w_i = 1 + H(p_i) / log C, so that an image with an
    uncertain prediction counts up to twice. After a step, only the terms that the chosen image
    covers best are computed again: O(N² log n) time, O(N) memory.

    Args:
        features: Normalised features f of unlabelled images, float [N, D].
        predictions: Their probabilities p, float [N, C].
        n: How many to choose, at most N.
        labeled: Normalised features of images that have labels, float [L, D].

    Returns:
        Indices of the chosen images.
    """
    # weights by uncertainty
    choices = max(predictions.shape[-1], 2)
    entropies = torch.special.entr(predictions).sum(dim=-1) / math.log(choices)
    weights = 1 + entropies
    # similarity of each image to the nearest labelled one
    everything = torch.arange(len(features), device=features.device)
    step = max(1, _CELLS // len(features))
    covered = torch.zeros_like(weights)
    if len(labeled):
        parts = torch.split(features, max(1, _CELLS // len(labeled)))
        covered = torch.cat([(part @ labeled.T).max(dim=1).values for part in parts]).clamp_min(0)

    def gains(terms: Tensor, after: Tensor | None = None) -> Tensor:
        """Return what each image adds to the terms of these images.

        With ``after``, returns how much less it adds once the images are covered so well.
        """
        total = torch.zeros_like(weights, dtype=torch.float64)
        for chunk in torch.split(terms, step):
            similarities = features @ features[chunk].T
            increase = (similarities - covered[chunk]).clamp_min_(0)
            if after is not None:
                increase -= (similarities - after[chunk]).clamp_min_(0)
            total += increase @ weights[chunk]
        return total

    # take the largest gain, and update the gains of the terms that it covers better
    gain, chosen = gains(everything), list[int]()
    for _ in range(n):
        chosen.append(int(gain.argmax()))
        near = features @ features[chosen[-1]]
        gain -= gains(everything[near > covered], near)
        gain[chosen] = -torch.inf
        covered = torch.maximum(covered, near)
    return chosen


def cross_validated_scores(
    features: Tensor, labels: Tensor, classes: int, groups: Tensor, seed: int = 0
) -> Tensor:
    """Return log-likelihoods of images in each class, by models without the image, float [N, C].

    They are up to a constant of the image. The model of a fold of ``kdpl.data.groups.folds`` is a
    linear discriminant, with class means and one shared covariance, shrunk towards a multiple of
    the identity, fitted to the images outside the fold. A class without an image has -inf, and an
    image in no fold, such as the only one of its class, has NaN.

    Args:
        features: Normalised features of the images, float [N, D].
        labels: Their labels, [N].
        classes: Number of classes C.
        groups: Groups of the images as numbers, [N].
        seed: Seed of the folds.
    """
    # folds of shuffled images
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fold_of = torch.empty_like(labels)
    numbers = folds(labels.cpu()[order].numpy(), groups.cpu()[order].numpy())
    fold_of[order.to(labels.device)] = torch.from_numpy(numbers).to(labels.device)
    # score each fold by the rest
    result = features.new_full((len(labels), classes), float("nan"))
    for number in range(FOLDS):
        in_fold = fold_of == number
        if in_fold.any():
            result[in_fold] = discriminant(
                features[~in_fold], labels[~in_fold], classes, features[in_fold]
            )
    return result


def wrong_labels(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability that each label is wrong, by a model fitted to all labels.

    With probability 1 - ε an image has the label y of its class, and otherwise any other label,
    all equally probable; its class has the probabilities p = softmax(scores / T), so that

        P(y) = (1 - ε) p_y + ε (1 - p_y) / (C - 1),    P(wrong | y) = ε (1 - p_y) / (C - 1) / P(y).

    T and ε maximise Σ log P(y) on a grid. Labels that are all right mostly give ε = 0, and then no
    label is wrong.

    Args:
        scores: ``cross_validated_scores``, float [N, C]; rows of NaN are left out of the fit.
        labels: The labels y, [N].

    Returns:
        P(wrong | y) [N], NaN where the scores are NaN; and p [N, C].
    """
    scored = ~scores.isnan().any(dim=1)
    targets, num_others = labels[scored, None], max(scores.shape[1] - 1, 1)
    shares = _WRONG.to(scores)

    def likelihood(temperature: Tensor) -> Tensor:
        right = (scores[scored] / temperature).softmax(dim=1).gather(1, targets)
        observed = (1 - shares) * right + shares * (1 - right) / num_others
        return observed.clamp_min(1e-30).log().sum(dim=0)

    # the most likely T and ε of the grid
    fit = torch.stack([likelihood(temperature) for temperature in _TEMPERATURES.to(scores)])
    best, share = divmod(int(fit.argmax()), len(shares))
    # Bayes' rule
    probabilities = (scores / _TEMPERATURES[best].to(scores)).softmax(dim=1)
    right = probabilities.gather(1, labels[:, None])[:, 0]
    wrong = shares[share] * (1 - right) / num_others
    return wrong / ((1 - shares[share]) * right + wrong), probabilities


def discriminant(train: Tensor, labels: Tensor, classes: int, queries: Tensor) -> Tensor:
    """Return log-likelihoods [M, C] of queries [M, D], up to a constant, by N labelled images."""
    count = torch.bincount(labels, minlength=classes)
    sums = train.new_zeros(classes, train.shape[1]).index_add_(0, labels, train)
    means = sums / count.clamp_min(1)[:, None]
    # the covariance within classes, shrunk
    centered = train - means[labels]
    covariance = centered.T @ centered / len(train)
    variance = covariance.trace().clamp_min(1e-6) / len(covariance)
    shrunk = (1 - _SHRINKAGE) * covariance
    shrunk.diagonal().add_(_SHRINKAGE * variance)
    # linear, as the quadratic term is the same for all classes
    weights = torch.linalg.solve(shrunk, means.T)
    scores: Tensor = queries @ weights - 0.5 * (means.T * weights).sum(dim=0)
    return scores.masked_fill(count == 0, -torch.inf)
