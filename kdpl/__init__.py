"""Distil a large CLIP into a small image classifier for your domain.

Public names load on first use, so ``import kdpl`` costs nothing.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.optional import lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdpl.callbacks.handover import FreezeClassVectors
    from kdpl.class_vectors import ClassVectors
    from kdpl.classifier import Classifier
    from kdpl.data.datamodule import DomainDataModule
    from kdpl.errors import KdplError
    from kdpl.student import StudentDistillation
    from kdpl.teacher import TeacherPromptTuning

__all__ = [
    "ClassVectors",
    "Classifier",
    "DomainDataModule",
    "FreezeClassVectors",
    "KdplError",
    "StudentDistillation",
    "TeacherPromptTuning",
    "__version__",
]

__getattr__ = lazily(
    __name__,
    {
        "callbacks.handover": ["FreezeClassVectors"],
        "class_vectors": ["ClassVectors"],
        "classifier": ["Classifier"],
        "data.datamodule": ["DomainDataModule"],
        "errors": ["KdplError"],
        "student": ["StudentDistillation"],
        "teacher": ["TeacherPromptTuning"],
    },
)
