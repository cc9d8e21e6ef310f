"""Classes by example images: class vectors that can stand beside the vectors of names.

Features of images are far closer to each other than to any class vector, so a class whose vector is
their mean would take every image. Its logit is instead the log density of a Gaussian (as in linear
discriminant analysis), on the scale of the logits of the other classes.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.classifier.companion import companion_kinds
from kdpl.classifier.folder import Stored
from kdpl.errors import ArtifactError

# chosen on validation images of the digits: the ridge of the covariance as a multiple of its mean
# variance, and the number of images that a name counts for
_RIDGE, _NAME_WEIGHT = 0.1, 0.5


class PoolModel:
    """Gaussians of features [N, D] of a pool: a mean for each predicted class, and one covariance.

    ``vectors`` are the class vectors [C, D] that the student was distilled with.
    """

    def __init__(self, features: Tensor, vectors: Tensor) -> None:
        features, vectors = features.double(), vectors.double()
        predicted = (features @ vectors.T).argmax(dim=1)
        shown, labels = torch.unique(predicted, return_inverse=True)
        members = F.one_hot(labels).double()
        means = members.T @ features / members.sum(dim=0)[:, None]
        residuals = features - means[labels]
        covariance = residuals.T @ residuals / max(len(features) - len(means), 1)
        ridge = _RIDGE * covariance.diagonal().mean().clamp(min=1e-6)
        self.precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).double())
        self.noise = (self.precision * covariance).sum()
        self.center, self.text_center = means.mean(dim=0), vectors[shown].mean(dim=0)
        means, texts = means - self.center, vectors[shown] - self.text_center
        # least squares from texts to means, without directions in which the texts hardly differ
        self.text_to_mean = torch.linalg.pinv(texts, rtol=0.1) @ means

        # log densities get the spread of cosines
        constants = -0.5 * (means @ self.precision * means).sum(dim=1)
        densities = (features - self.center) @ self.precision @ means.T + constants
        densities = densities - densities.mean(dim=1, keepdim=True)
        self.level, self.scale = constants.mean(), (features @ texts.T).norm() / densities.norm()

    @classmethod
    def read(cls, folder: Path | None) -> "PoolModel":
        """Fit the sample of the pool in a classifier's folder; an ArtifactError without one."""
        if folder is not None:
            stored = Stored.read(folder)
            digest, vectors = stored.fingerprint(), stored.vectors.vectors
            for kind in companion_kinds().values():
                features = kind.pool_features(folder, digest, vectors.shape)
                model = None if features is None else cls(features, vectors)
                # with one predicted class the scale is 0 / 0
                if model is not None and model.scale.isfinite():
                    return model
        raise ArtifactError(
            "the classifier has no sample of its pool, of two classes or more, to compare examples "
            "with: read it from the folder of a student's run, or add the class by its name"
        )

    def score(self, images: Tensor, name: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return vector [D] and bias of a class: its score of a feature is their product plus bias.

        ``images`` are features of its examples [K, D], and ``name`` the text feature of its name
        [D], which counts by the mean that it predicts.
        """
        count, offset = float(len(images)), images.double().mean(dim=0) - self.center
        if name is not None:
            predicted = (name.double() - self.text_center) @ self.text_to_mean
            offset = (count * offset + _NAME_WEIGHT * predicted) / (count + _NAME_WEIGHT)
            count += _NAME_WEIGHT
        # the noise of a mean of few images lengthens it, and flattens the density of a new image
        direction, certainty = self.precision @ offset, count / (count + 1)
        constant = -0.5 * (offset @ direction - self.noise / count) - self.center @ direction
        vector = self.text_center + self.scale * certainty * direction
        return vector, self.scale * (certainty * constant - self.level)
