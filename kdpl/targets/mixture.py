"""Several teachers as one: what the student learns is the weighted mean of their predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.targets.student_teacher import open_teacher

Mixture = Literal["mean", "confidence", "validation"]

_MOST_ROUNDS, _TOLERANCE = 10_000, 1e-9


class TeacherMixture(nn.Module):
    """The teachers of several runs, with the interface of a ``FrozenTeacher``.

    p(x) = Σ_m w_m(x) p_m(x), where p_m is the prediction of teacher m with its own CLIP, image size, class vectors and
    scale. The weights are 1/M (``mean``); proportional to exp(−H(p_m(x))) with the entropy H in nats (``confidence``);
    or ``weights``, which are set from outside (``validation``). Its features are those of the teachers side by side.

    Args:
        first: The teacher whose class vectors the student has.
        more: Run folders of the others.
        mixture: Kind of weights.
    """

    def __init__(self, first: FrozenTeacher, more: Sequence[str], mixture: Mixture) -> None:
        super().__init__()
        self.teachers = nn.ModuleList([first])
        self.mixture = mixture
        self.weights = [1 / (1 + len(more))] * (1 + len(more))
        self._unopened = [Path(folder) for folder in more]

    @property
    def opened(self) -> bool:
        """Whether ``open`` was called."""
        return not self._unopened

    @property
    def vectors(self) -> ClassVectors:
        """Class vectors of the first teacher."""
        return cast(FrozenTeacher, self.teachers[0]).vectors

    def open(self) -> list[FrozenTeacher]:
        """Return the teachers; the first call reads the class vectors of all but the first, which a test does not need.

        An ArtifactError if they are missing, damaged, or for other class names than the first teacher's.
        """
        first = cast(FrozenTeacher, self.teachers[0])
        while self._unopened:
            folder = self._unopened[0]
            vectors = ClassVectors.of_teacher(str(folder))
            vectors.require_names(first.vectors.class_names, str(folder), str(first.folder))
            self.teachers.append(open_teacher(folder, vectors).to(first.head.class_vectors.device))
            del self._unopened[0]
        return cast(list[FrozenTeacher], list(self.teachers))

    def load(self) -> None:
        """Load all teachers, unless that was done; errors are those of ``FrozenTeacher``."""
        for teacher in self.open():
            teacher.load()

    def features(self, *views: Tensor) -> Tensor:
        """Encode views into the teachers' normalised features side by side, float32 [B, D_1 + … + D_M].

        ``views`` are the same ones for each teacher, uint8 [B, 3, S, S] with its own S.
        """
        return torch.cat([teacher.features(own) for teacher, own in zip(self.open(), views, strict=True)], dim=1)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Return log p_m, float32 [M, B, C], of features [B, D_1 + … + D_M]."""
        teachers = self.open()
        widths = [teacher.vectors.vectors.shape[1] for teacher in teachers]
        parts = zip(teachers, torch.split(features, widths, dim=1), strict=True)
        return torch.stack([teacher.logits(part).log_softmax(dim=1) for teacher, part in parts])

    def logits(self, features: Tensor) -> Tensor:
        """Return log p, float32 [B, C], of features [B, D_1 + … + D_M]."""
        each = self.log_probabilities(features)
        if self.mixture == "confidence":
            log_weights = (each.exp() * each).sum(dim=2, keepdim=True).log_softmax(dim=0)
        else:
            log_weights = features.new_tensor(self.weights).log()[:, None, None]
        return torch.logsumexp(log_weights + each, dim=0)


def likeliest_weights(likelihoods: Tensor) -> list[float]:
    """Weights w_m ≥ 0, of sum 1, that minimise −Σ_i log Σ_m w_m p_m(y_i | x_i), by expectation maximisation.

    Args:
        likelihoods: p_m(y_i | x_i), the probability that teacher m gives to the label of image i, above 0, [M, N].
    """
    p = likelihoods.double()
    weights = torch.full_like(p[:, :1], 1 / len(p))
    for _ in range(_MOST_ROUNDS):
        shares, before = weights * p, weights
        weights = (shares / shares.sum(dim=0)).mean(dim=1, keepdim=True)
        if (weights - before).abs().max() < _TOLERANCE:
            break
    return cast(list[float], weights[:, 0].tolist())
