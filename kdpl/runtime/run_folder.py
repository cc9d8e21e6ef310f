"""Names of what lies in a run's folder; imports no torch."""

from pathlib import Path

from kdpl.errors import ArtifactError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
DECODED_FILE = "checked_images.json"
PROMPTS_FILE = "prompts.safetensors"
CLASS_VECTORS_FILE = "class_vectors.safetensors"
CLASSIFIER_FOLDER = "classifier"
CLASSIFIER_FILES = ("classifier.json", "model.safetensors")
CLASSIFIER_REMEDY = "give the classifier folder of a student's run"
LEFT_OUT_FILE = "left_out.csv"
FIGURES_FOLDER = "figures"
RESULTS_FILE = "test.json"
PREDICTIONS_FILE = "test_predictions.csv"
REPORT_FILE = "report.html"
PROBE_FOLDER = "probe"
PROBE_FILE = "probe.json"
LOCK_FILE = ".lock"

RUN_FILE = "run.json"
"""Of a whole run: digests of its configs, its seed and its settings."""
STAGE_FOLDERS = ("teacher", "teacher2", "student")
"""Of a whole run: its stages; the second teacher's is seldom there."""
SUMMARY_FILE = "results.json"
"""Of a whole run: the accuracies of all its tests."""

CHECKPOINTS_FOLDER = "checkpoints"
LAST = f"{CHECKPOINTS_FOLDER}/last.ckpt"
"""The newest checkpoint, from which an interrupted run resumes."""


def handed_over(folder: Path) -> bool:
    """Return whether a fit is finished: prompts and class vectors, or a classifier, are there."""
    teacher = (folder / PROMPTS_FILE).exists() and (folder / CLASS_VECTORS_FILE).exists()
    return teacher or (folder / CLASSIFIER_FOLDER).exists()


def require_classifier(folder: Path) -> None:
    """Raise an ArtifactError if a folder does not exist or lacks a file of a classifier."""
    if not folder.is_dir():
        raise ArtifactError(f"the classifier {folder} does not exist: {CLASSIFIER_REMEDY}")
    missing = [name for name in CLASSIFIER_FILES if not (folder / name).is_file()]
    if missing:
        below = [folder / CLASSIFIER_FOLDER, folder / "student" / CLASSIFIER_FOLDER]
        near = next((f"give {each}" for each in below if each.is_dir()), CLASSIFIER_REMEDY)
        raise ArtifactError(f"{folder} is not a classifier, because it has no {missing[0]}: {near}")
