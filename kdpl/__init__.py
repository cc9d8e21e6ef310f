"""Distil a large CLIP into a small image classifier for your own domain.

The public names load on first use, so that ``import kdpl`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdpl.version import __version__

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

_HOMES = {
    "ClassVectors": "kdpl.class_vectors",
    "Classifier": "kdpl.classifier",
    "DomainDataModule": "kdpl.data.datamodule",
    "FreezeClassVectors": "kdpl.callbacks.handover",
    "KdplError": "kdpl.errors",
    "StudentDistillation": "kdpl.student",
    "TeacherPromptTuning": "kdpl.teacher",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdpl' has no attribute {name!r}")
