"""PromptKD's published figures of the base-to-novel experiment, in %.

Source: arXiv 2403.02781, the table of base-to-novel results over the eleven datasets, as printed,
even where the harmonic mean does not match the two accuracies: for StanfordCars and UCF101 it would
be 83.08 and 85.83.
"""

from collections.abc import Mapping

from kdpl.metrics import test_key

Figures = Mapping[str, float]
"""Accuracies in % by metric."""

METRICS = tuple(map(test_key, ("base_acc", "novel_acc", "hm")))


def _figures(base: float, novel: float, harmonic_mean: float) -> Figures:
    return dict(zip(METRICS, (base, novel, harmonic_mean), strict=True))


FIGURES: Mapping[str, Figures] = {
    "imagenet": _figures(80.83, 74.66, 77.62),
    "caltech101": _figures(98.91, 96.65, 97.77),
    "oxford_pets": _figures(96.30, 98.01, 97.15),
    "stanford_cars": _figures(82.80, 83.37, 83.13),
    "oxford_flowers": _figures(99.42, 82.62, 90.24),
    "food101": _figures(92.43, 93.68, 93.05),
    "fgvc_aircraft": _figures(49.12, 41.81, 45.17),
    "sun397": _figures(83.69, 81.54, 82.60),
    "dtd": _figures(85.84, 71.37, 77.94),
    "eurosat": _figures(97.54, 82.08, 89.14),
    "ucf101": _figures(89.71, 82.27, 86.10),
}
