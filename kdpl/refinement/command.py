"""``python -m kdpl refine``: refined targets, to be looked at before a student learns from them."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from kdpl.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from kdpl.refinement.pool_targets import PoolTargets

_MOST_ROWS = 20


def refine(*, settings: list[str]) -> int:
    """Refine the teacher's predictions for a student, and print what is taken and what changes.

    All options are those of the student's fit: --config FILE, --model.init_args.teacher RUN, and
    --out FOLDER, into which pool_targets.safetensors is written. Prints if the targets are taken
    and why, and the classes that change most. A fit with the same settings,
    --model.init_args.target refined and the same --out then learns them.

    Args:
        settings: Options of the student's fit.
    """
    from pathlib import Path

    from lightning.pytorch import Trainer
    from rich.console import Console

    from kdpl.cli.fit import run_command
    from kdpl.cli.stage_cli import KdplCLI
    from kdpl.refinement.pool_targets import POOL_TARGETS_FILE, PoolTargets
    from kdpl.runtime.messages import inform, process_rank
    from kdpl.student import StudentDistillation

    class Refining(KdplCLI):
        """A student's fit that ends before its first step."""

        def before_instantiate_classes(self) -> None:
            self.require_stage(StudentDistillation, "student")
            settings = self.config.model.init_args
            if not _is_refined(settings.target):
                settings.target = "refined"
            trainer = self.config.trainer
            trainer.logger = trainer.enable_checkpointing = trainer.enable_progress_bar = False
            super().before_instantiate_classes()
            self.save_config_callback = None

        def _choose_checkpoint(self, folder: Path) -> None:
            """Do not resume."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            return super().instantiate_trainer(
                limit_train_batches=0, num_sanity_val_steps=0, **kwargs
            )

        def execute(self) -> None:
            file = Path(self.config.out) / POOL_TARGETS_FILE
            existed = file.is_file()
            if not self.finished:
                self.model.configure_callbacks = self.model.preparations
                self.trainer.fit(self.model, datamodule=self.datamodule)
            if process_rank() == 0:
                _show(PoolTargets.load(file), Console())
                inform(f"{file} {'was there already: nothing to do' if existed else 'is written'}")

    if not settings:
        raise ConfigError(
            "refine needs the settings of a student's fit: give --config FILE (--help tells more)"
        )
    return run_command(["fit", *settings], make=Refining)


def _is_refined(target: Any) -> bool:
    """Return whether a config's target is refined already, with settings of its own."""
    from kdpl.refinement.target import Refined

    path = getattr(target, "class_path", None)
    return path is not None and issubclass(resolve_name(path), Refined)


def _show(targets: "PoolTargets", console: "Console") -> None:
    """Print the classes whose number of images changes most."""
    from rich.markup import escape
    from rich.table import Column, Table

    rows = sorted(targets.changes, key=lambda row: -abs(row.after - row.before))[:_MOST_ROWS]
    which = (
        f"the {len(rows)} classes that change most"
        if len(rows) < len(targets.class_names)
        else "each class"
    )
    console.print(
        "unlabelled images of "
        f"{which}{'' if targets.share else '; not taken, a student learns the first'}:"
    )
    table = Table("", *(Column(name, justify="right") for name in ("teacher", "refined", "change")))
    for row in rows:
        table.add_row(
            escape(row.name), str(row.before), str(row.after), f"{row.after - row.before:+d}"
        )
    console.print(table)
