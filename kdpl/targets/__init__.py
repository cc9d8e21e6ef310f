"""What the student learns from: one file for each kind of target, behind ``Target`` and the registry ``TARGETS``."""

from torch import Tensor, nn

from kdpl.class_vectors import FrozenTeacher
from kdpl.targets.mixture import TeacherMixture


class Target(nn.Module):
    """The distribution that the student learns: this one is the published target, the teacher's prediction of the view.

    A subclass is another target; the setting ``target`` names its class.
    """

    def __init__(self, teacher: FrozenTeacher | TeacherMixture) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return logits of the target distribution, such as log probabilities, [B, C].

        Args:
            features: The teacher's normalised features of the views, float32 [B, D]; those of several side by side.
            indices: Indices of the images in the list of unlabelled images, [B].
        """
        return self.teacher.logits(features)


TARGETS = {"teacher": "kdpl.targets.Target", "refined": "kdpl.refinement.target.RefinedTarget"}
"""The package's own targets: their names in settings, and their classes."""
