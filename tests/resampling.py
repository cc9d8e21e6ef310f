"""Intervals by resampling images, which those of the report and of comparisons are tested against."""

import numpy as np

DRAWS = 20_000


def harmonic_mean(base, novel):
    total = base + novel
    return np.where(total > 0, 2 * base * novel / np.where(total > 0, total, 1), 0.0)


def bootstrap_harmonic_mean(base, novel):
    """Of the harmonic mean of two accuracies, each the numbers of correct and of all images."""
    # resampling n images of which r are correct gives Binomial(n, r/n) correct ones
    draw = np.random.default_rng(0)
    shares = (draw.binomial(n, r / n, DRAWS) / n for r, n in (base, novel))
    return tuple(np.quantile(harmonic_mean(*shares), [0.025, 0.975]))


def bootstrap_difference(first, second):
    """Of the second accuracy minus the first, of correct images, bool [N], drawn in pairs."""
    images = len(first)
    gained, lost = (second & ~first).sum() / images, (first & ~second).sum() / images
    drawn = np.random.default_rng(0).multinomial(images, [gained, lost, 1 - gained - lost], DRAWS)
    return tuple(np.quantile((drawn[:, 0] - drawn[:, 1]) / images, [0.025, 0.975]))
