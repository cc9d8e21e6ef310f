"""What a stage leaves once it has come to its planned end; imports no torch."""

from pathlib import Path

CLASS_VECTORS_FILE = "class_vectors.safetensors"
"""Of stage 1."""

CLASSIFIER_FOLDER = "classifier"
"""Of stage 2: a folder."""


def handed_over(folder: Path) -> bool:
    """Whether a fit in this run's folder came to its planned end."""
    return any((folder / name).exists() for name in (CLASS_VECTORS_FILE, CLASSIFIER_FOLDER))
