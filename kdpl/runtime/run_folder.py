"""Names of what lies in a run's folder; imports no torch."""

from pathlib import Path

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
DECODED_FILE = "checked_images.json"
PROMPTS_FILE = "prompts.safetensors"
CLASS_VECTORS_FILE = "class_vectors.safetensors"
CLASSIFIER_FOLDER = "classifier"
FIGURES_FOLDER = "figures"
RESULTS_FILE = "test.json"
PREDICTIONS_FILE = "test_predictions.csv"
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"

RUN_FILE = "run.json"
"""Of a whole run: digests of its configs, its seed and its settings."""
SUMMARY_FILE = "results.json"
"""Of a whole run: the accuracies of all its tests."""

CHECKPOINTS_FOLDER = "checkpoints"
LAST = f"{CHECKPOINTS_FOLDER}/last.ckpt"
"""The newest checkpoint, from which an interrupted run resumes."""
PREVIOUS = f"{CHECKPOINTS_FOLDER}/previous.ckpt"
"""The checkpoint before it, kept until the run is finished, in case the newest is damaged."""


def handed_over(folder: Path) -> bool:
    """Return whether a fit in this folder is finished: prompts and class vectors, or a classifier, are there."""
    teacher = (folder / PROMPTS_FILE).exists() and (folder / CLASS_VECTORS_FILE).exists()
    return teacher or (folder / CLASSIFIER_FOLDER).exists()
