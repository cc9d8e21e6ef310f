"""Names of files in a run's folder; imports no torch."""

from glob import glob
from pathlib import Path

from kdpl.errors import ArtifactError, ConfigError

# of a fit; other parts name their files themselves
# written before the first step; read on resume, and wherever a run's settings are needed
CONFIG_FILE = "config.yaml"
# written by the default logger
METRICS_FILE = "metrics.csv"
# written once all images are decoded; read on resume, and copied from a run's teacher to the rest
DECODED_FILE = "checked_images.json"
# written by stage 1 at its end; read by stage 2, and to encode further class names
PROMPTS_FILE = "prompts.safetensors"
# written by stage 1 last of all, and by stage 2, as a copy, at its start; read by stage 2 and tests
CLASS_VECTORS_FILE = "class_vectors.safetensors"
# written by stage 2 at its end; read by all commands that classify
CLASSIFIER_FOLDER = "classifier"
CLASSIFIER_FILES = ("classifier.json", "model.safetensors")
CARD_FILE = "README.md"
CLASSIFIER_REMEDY = "give the classifier folder of a student's run"
# locked while a command writes into the folder
LOCK_FILE = ".lock"

# of a test: accuracies, for the summary and the report of a run, and predictions
RESULTS_FILE = "test.json"
PREDICTIONS_FILE = "test_predictions.csv"

# of a report
REPORT_FILE = "report.html"
PROBE_FOLDER = "probe"
PROBE_FILE = "probe.json"
PROBE_FEATURES = "pooled"
"""Features that a probe reads, recorded in its file; earlier versions read other features."""

RUN_FILE = "run.json"
"""Paths of a whole run's configs, its seed and its settings, for information.

Marks the folder as a run's; ``config.yaml`` of each stage ensures that settings stay the same.
"""
STAGE_FOLDERS = ("teacher", "student")
"""Stages of a whole run."""
DATA_FOLDER = "data"
"""Survey of the images of ``run PATH``, and what was chosen for them."""
CHOICE_FILE = "choice.json"
"""What ``run PATH`` chose, in ``DATA_FOLDER``."""
ESTIMATE = "_estimate"
"""Ending of the default folder of an estimate, after the name of its images."""
ESTIMATED = "estimate.json"
"""What an estimate expects of the student, for the report of a run next to it."""
FEATURES_FOLDER = "features"
"""Stored features next to the folders of whole runs, which share them; safe to remove."""
SUMMARY_FILE = "results.json"
"""Accuracies of all tests of a whole run."""

CHECKPOINTS_FOLDER = "checkpoints"
LAST = f"{CHECKPOINTS_FOLDER}/last.ckpt"
"""Newest checkpoint, for resuming an interrupted run."""


def handed_over(folder: Path) -> bool:
    """Return whether a fit is finished: it has prompts and class vectors, or a classifier."""
    # class vectors alone do not count: a student starts with a copy of its teacher's
    teacher = (folder / PROMPTS_FILE).exists() and (folder / CLASS_VECTORS_FILE).exists()
    return teacher or (folder / CLASSIFIER_FOLDER).exists()


def runs_of(argument: str) -> tuple[str, list[Path]]:
    """Return the name and the folders of ``RUN`` or ``NAME=RUN,PATTERN,…``, which are a run's."""
    name, paths = Path(argument).resolve().name, [argument]
    if "=" in argument and not Path(argument).is_dir():
        name, _, listed = argument.partition("=")
        paths = [path for part in listed.split(",") for path in sorted(glob(part)) or [part]]  # noqa: PTH207
    for path in paths:
        require_run(Path(path))
    return name, list(map(Path, paths))


def require_run(folder: Path) -> None:
    """Raise a ConfigError if a folder does not exist or has no settings of a fit."""
    if not folder.is_dir():
        raise ConfigError(f"run folder {folder} does not exist: give the --out of run or of fit")
    if not any((folder / name / CONFIG_FILE).is_file() for name in ("", *STAGE_FOLDERS)):
        raise ConfigError(
            f"{folder} is not a run's folder, because neither it nor teacher/ or student/ in it "
            f"has a {CONFIG_FILE}: give the --out of run or of fit"
        )


def require_classifier(folder: Path) -> None:
    """Raise an ArtifactError if a folder does not exist or lacks a file of a classifier."""
    if not folder.is_dir():
        raise ArtifactError(f"the classifier {folder} does not exist: {CLASSIFIER_REMEDY}")
    missing = [name for name in CLASSIFIER_FILES if not (folder / name).is_file()]
    if missing:
        # the folder may be a stage's or a whole run's
        candidates = [folder / CLASSIFIER_FOLDER, folder / "student" / CLASSIFIER_FOLDER]
        near = next((f"give {path}" for path in candidates if path.is_dir()), CLASSIFIER_REMEDY)
        raise ArtifactError(f"{folder} is not a classifier, because it has no {missing[0]}: {near}")
