"""Results of stages as artifacts in Weights & Biases; each run lists the artifacts it used."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipIdentity
from kdpl.data.needs import needs_of
from kdpl.metrics import ACCURACY_TITLES, val_key
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, PROMPTS_FILE

if TYPE_CHECKING:
    from wandb import Artifact
    from wandb.sdk.wandb_run import Run

TEACHER, CLASS_VECTORS, CLASSIFIER = "teacher", "class-vectors", "classifier"
"""Types of the artifacts."""

_SHOWN = 16  # digits of a fingerprint


class _Student(Protocol):
    clip: ClipIdentity
    vectors: ClassVectors


def artifact_callbacks(module: LightningModule) -> list[Callback]:
    """Return the callback that logs artifacts if W&B is among the loggers."""
    uses_wandb = any(isinstance(logger, WandbLogger) for logger in module.trainer.loggers)
    return [LogArtifacts()] if uses_wandb else []


def _is_student(module: LightningModule) -> bool:
    return needs_of(module).split == "unlabeled"


class LogArtifacts(Callback):
    """Logs a teacher's prompts and class vectors, and a student's classifier, as artifacts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the class vectors that a student starts from; its folder has a copy by now."""
        if not _is_student(pl_module):
            return
        metadata = _about(cast(_Student, pl_module).vectors)
        name = artifact_name(CLASS_VECTORS, metadata["teacher"])
        file = Path(trainer.default_root_dir) / CLASS_VECTORS_FILE
        for run in _runs(trainer):
            artifact = _artifact(CLASS_VECTORS, name, file, metadata)
            # in the config as well, for runs that are offline
            inputs = {CLASS_VECTORS: {"artifact": name, "digest": artifact.digest, **metadata}}
            run.config.update({"inputs": inputs}, allow_val_change=True)  # type: ignore[no-untyped-call]  # W&B has no types
            if not run.offline:
                # uploads the file unless the project has it
                run.use_artifact(artifact)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the results once a fit has written them, with the last validation's accuracies."""
        if stage != "fit":
            return
        # accuracies of the last validation
        folder = Path(trainer.default_root_dir)
        keys = {val_key(name) for name in ACCURACY_TITLES} & trainer.callback_metrics.keys()
        accuracies = {key: float(trainer.callback_metrics[key]) for key in keys}
        for run in _runs(trainer):
            # after stage 1: prompts, then the class vectors made with them
            if not _is_student(pl_module) and (folder / CLASS_VECTORS_FILE).is_file():
                vectors = ClassVectors.load(folder / CLASS_VECTORS_FILE)
                metadata = {**_about(vectors), **accuracies}
                name = artifact_name(TEACHER, vectors.teacher)
                _log(run, TEACHER, name, folder / PROMPTS_FILE, metadata)
                metadata |= {**vectors.fields(), "made_with": name}
                name = artifact_name(CLASS_VECTORS, vectors.teacher)
                _log(run, CLASS_VECTORS, name, folder / CLASS_VECTORS_FILE, metadata)
            # after stage 2: the classifier
            if _is_student(pl_module) and (folder / CLASSIFIER_FOLDER).is_dir():
                student = cast(_Student, pl_module)
                vectors = student.vectors
                metadata = {
                    **_about(vectors),
                    **accuracies,
                    "clip": asdict(student.clip),
                    "made_with": artifact_name(CLASS_VECTORS, vectors.teacher),
                }
                name = f"{CLASSIFIER}-{run.id}"
                _log(run, CLASSIFIER, name, folder / CLASSIFIER_FOLDER, metadata)


def _about(vectors: ClassVectors) -> dict[str, Any]:
    return {"teacher": vectors.teacher, "num_classes": len(vectors.class_names)}


def artifact_name(kind: str, fingerprint: str) -> str:
    """Name an artifact by its teacher, so a student's run can name it without the server."""
    return f"{kind}-{fingerprint[:_SHOWN]}"


def _runs(trainer: Trainer) -> list["Run"]:
    """Return the W&B runs on the process that logs, none on others."""
    loggers = trainer.loggers if trainer.is_global_zero else ()
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    return [run for run in runs if not run.disabled]


def _log(run: "Run", kind: str, name: str, path: Path, metadata: dict[str, Any]) -> None:
    """Log a file or folder of the run; it is read during the upload, and must not change."""
    run.log_artifact(_artifact(kind, name, path, metadata), aliases=["latest", run.id])


def _artifact(kind: str, name: str, path: Path, metadata: dict[str, Any]) -> "Artifact":
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    # immutable: uploaded from the run's folder, not from a copy in the home folder
    add = artifact.add_dir if path.is_dir() else artifact.add_file
    add(str(path.resolve()), skip_cache=True, policy="immutable")
    return artifact
