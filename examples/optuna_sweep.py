"""Search settings of a student with Optuna, and stop trials that fall behind.

    pip install optuna
    python examples/optuna_sweep.py 20 runs/optuna --config student/quickstart \
        --config data/digits --config trainer/cpu --model.init_args.teacher runs/quickstart/teacher

Trials are compared on validation images, and kept in study.db: the same command continues there.
The best one's folder has its classifier and config.
"""

import sys
from pathlib import Path

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import TrialState

from kdpl.cli.fit import parse_stage, run_stage
from kdpl.cli.stage_cli import KdplCLI

METRIC = "val/acc"


class Prune(Callback):
    """Ends a trial that is worse than half of the earlier ones were at its epoch."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.accuracy = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the accuracy after each validation of the training."""
        if trainer.sanity_checking:
            return
        self.accuracy = trainer.callback_metrics[METRIC].item()
        self.trial.report(self.accuracy, trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def objective(trial: optuna.Trial, student: KdplCLI, out: Path) -> float:
    """Fit a student with the settings of a trial, and return its accuracy."""
    settings = {
        "loss": {"temperature": trial.suggest_categorical("temperature", [1, 2, 4])},
        "optim": {"lr": trial.suggest_float("lr", 3e-4, 1e-2, log=True)},
        "vision_prompts": {"depth": trial.suggest_int("depth", 1, 2)},
    }
    values = {"out": str(out / f"{trial.number:03}"), "model": {"init_args": settings}}
    stage, prune = student.derive(values), Prune(trial)
    stage.further_callbacks = [prune]
    run_stage(stage)
    return prune.accuracy


def main(trials: int, out: Path, settings: list[str]) -> optuna.Study:
    """Run so many trials of the student of these settings, fewer if some are finished."""
    out.mkdir(parents=True, exist_ok=True)
    student = parse_stage("fit", [*settings, "--trainer.check_val_every_n_epoch=1"])
    study = optuna.create_study(
        study_name="student",
        storage=f"sqlite:///{out}/study.db",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(),
    )
    finished = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    study.optimize(lambda trial: objective(trial, student, out), max(trials - len(finished), 0))
    for trial in study.trials:
        print(f"{trial.number:03} {trial.state.name:8} {trial.value} {trial.params}")
    best = study.best_trial
    print(f"{METRIC} {100 * study.best_value:.2f} % with {best.params}: {out}/{best.number:03}")
    return study


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
