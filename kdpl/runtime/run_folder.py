"""Names of what lies in a run's folder; imports no torch."""

from pathlib import Path

from kdpl.errors import ArtifactError

# of a fit; other parts have further files, which they name themselves
# written before the first step; read on resume, and by all that needs a run's settings
CONFIG_FILE = "config.yaml"
# written by the default logger
METRICS_FILE = "metrics.csv"
# written once all images were decoded; read on resume, and copied from a run's teacher to the rest
DECODED_FILE = "checked_images.json"
# written by stage 1 at its end; read by stage 2, and to encode further class names
PROMPTS_FILE = "prompts.safetensors"
# written by stage 1 last of all, and by stage 2, as a copy, at its start; read by stage 2 and tests
CLASS_VECTORS_FILE = "class_vectors.safetensors"
# written by stage 2 at its end; read by all commands that classify
CLASSIFIER_FOLDER = "classifier"
CLASSIFIER_FILES = ("classifier.json", "model.safetensors")
CLASSIFIER_REMEDY = "give the classifier folder of a student's run"
# locked while a command writes into the folder
LOCK_FILE = ".lock"

# of a test: accuracies, which the summary and the report of a run read, and predictions
RESULTS_FILE = "test.json"
PREDICTIONS_FILE = "test_predictions.csv"

# of a report
REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"
PROBE_FOLDER = "probe"
PROBE_FILE = "probe.json"
PROBE_FEATURES = "pooled"
"""What a probe reads, as its file says it; earlier versions read other features."""

RUN_FILE = "run.json"
"""Of a whole run: paths of its configs, its seed and its settings, for information.

Marks the folder as a run's; that settings stay is seen to by ``config.yaml`` of each stage.
"""
STAGE_FOLDERS = ("teacher", "teacher2", "student")
"""Of a whole run: its stages; the second teacher's is seldom there."""
SUMMARY_FILE = "results.json"
"""Of a whole run: the accuracies of all its tests."""

CHECKPOINTS_FOLDER = "checkpoints"
LAST = f"{CHECKPOINTS_FOLDER}/last.ckpt"
"""The newest checkpoint, from which an interrupted run resumes."""


def handed_over(folder: Path) -> bool:
    """Return whether a fit is finished: prompts and class vectors, or a classifier, are there."""
    # not class vectors alone: a student has a copy of its teacher's from the start
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
