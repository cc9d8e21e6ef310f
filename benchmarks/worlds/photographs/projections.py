"""A CLIP of an image classifier and a sentence encoder, by projections in closed form.

A linear classifier has one row for each of its classes, in the space of image features; a sentence
encoder turns the names of the classes into text features. Ridge regression of the rows on the text
features predicts a row, and so a score, for any other text. Its matrix is split into two
projections, so that images and texts meet in one space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SCALES = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)
FOLDS = 10


@dataclass(frozen=True)
class Projections:
    """Projections of image features [N, D] and text features [N, E] into one space of width E."""

    image: Tensor  # [E, D]
    image_bias: Tensor  # [E]
    text: Tensor  # [E, E], without a bias

    def cosines(self, features: Tensor, texts: Tensor) -> Tensor:
        """Compute cosine similarities [N, C] of image features [N, D] and text features [C, E]."""
        images = F.normalize(features @ self.image.T + self.image_bias, dim=1)
        return images @ F.normalize(texts @ self.text.T, dim=1).T


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of image features [N, D], and text features of its classes' names."""

    weight: Tensor  # [C, D]
    bias: Tensor  # [C]
    texts: Tensor  # [C, E]

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Compute log-probabilities [N, C] of image features [N, D]."""
        return (features @ self.weight.T + self.bias).log_softmax(dim=1)

    def of_classes(self, classes: Tensor) -> "Classifier":
        """Restrict it to some classes, by their indices [K]."""
        return Classifier(self.weight[classes], self.bias[classes], self.texts[classes])


def fit_projections(classifier: Classifier, image_mean: Tensor, ridge: float) -> Projections:
    """Fit the projections to a classifier.

    With centred and normalised rows w, centred text features t, and P the projection that removes
    the mean text, which tells no class from another, the regression's matrix is B = K⁻¹ P Σ t wᵀ
    for K = P Σ t tᵀ P + λ. A text's row for an image is t P B; of B = K⁻¹ᐟ² K⁻¹ᐟ² P Σ t wᵀ, each
    side gets one root.

    Args:
        classifier: The classifier.
        image_mean: Mean image feature [D], which becomes the origin.
        ridge: λ.
    """
    texts = F.normalize(classifier.texts.double(), dim=1)
    mean_text = texts.mean(dim=0)
    texts = texts - mean_text
    direction = F.normalize(mean_text, dim=0)
    identity = torch.eye(len(mean_text), dtype=torch.float64)
    without_mean = identity - torch.outer(direction, direction)

    rows = classifier.weight.double()
    rows = F.normalize(rows - rows.mean(dim=0), dim=1)

    texts = texts @ without_mean
    values, vectors = torch.linalg.eigh(texts.T @ texts + ridge * identity)
    root = (vectors * values.rsqrt()) @ vectors.T
    image = root @ texts.T @ rows
    bias = -image @ image_mean.double()
    return Projections(image.float(), bias.float(), (root @ without_mean).float())


def choose_settings(
    classifier: Classifier,
    features: Tensor,
    ridges: Sequence[float] = RIDGES,
    scales: Sequence[float] = SCALES,
    folds: int = FOLDS,
) -> tuple[float, float]:
    """Choose the ridge and the scale of cosines by cross-validation over classes, without labels.

    The projections are fitted without one part of the classes, and have to predict these from their
    names: the loss is the cross-entropy with the classifier's own probabilities of them.

    Args:
        classifier: The classifier.
        features: Image features [N, D] of any photographs.
        ridges: Candidates of λ.
        scales: Candidates of the factor on cosine similarities.
        folds: Parts into which the classes are divided.
    """
    mean = features.mean(dim=0)
    probabilities = classifier.log_probabilities(features).exp()
    classes = torch.arange(len(classifier.texts))
    losses = dict.fromkeys(((ridge, scale) for ridge in ridges for scale in scales), 0.0)
    for fold in range(folds):
        held_out = classes[fold::folds]
        others = classifier.of_classes(classes[classes % folds != fold])
        for ridge in ridges:
            projections = fit_projections(others, mean, ridge)
            cosines = projections.cosines(features, classifier.texts[held_out])
            for scale in scales:
                predicted = (scale * cosines).log_softmax(dim=1)
                losses[ridge, scale] -= (probabilities[:, held_out] * predicted).sum().item()
    return min(losses, key=lambda settings: losses[settings])
