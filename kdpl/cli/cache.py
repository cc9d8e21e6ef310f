"""``python -m kdpl cache``: compute the teacher's features of all views once for all students."""

from pathlib import Path

from jsonargparse.typing import PositiveInt


def cache(*, views: PositiveInt | None = None, settings: list[str]) -> int:
    """Compute the teacher's features of views of unlabelled images, for a student's fit to read.

    Takes the options of the student's fit: --config FILE, --model.init_args.teacher RUN, and
    --model.init_args.teacher_cache FOLDER for the folder to write. If interrupted, the same
    command resumes.

    Args:
        views: Views of each image; by default as many as trainer.max_epochs.
        settings: Options of the student's fit.
    """
    from kdpl.cli.fit import run_command
    from kdpl.cli.stage_cli import KdplCLI
    from kdpl.errors import ConfigError
    from kdpl.student import FillTeacherCache, StudentDistillation

    class Filling(KdplCLI):
        """A student's fit without steps that fills the cache and writes nothing else."""

        def before_instantiate_classes(self) -> None:
            self.require_stage(StudentDistillation, "student")
            model, trainer = self.config.model.init_args, self.config.trainer
            if not model.get("teacher_cache"):
                raise ConfigError(
                    "the settings name no cache to fill: give --model.init_args.teacher_cache "
                    "FOLDER"
                )
            # no training step, no logger, no checkpoint
            trainer.max_epochs = views or trainer.max_epochs or 0
            trainer.limit_train_batches = 0
            # the datamodule records here which images it has decoded
            trainer.default_root_dir = str(Path(model.teacher_cache).expanduser())
            trainer.logger = trainer.enable_checkpointing = trainer.enable_progress_bar = False
            self.save_config_callback = None

        def execute(self) -> None:
            self.build(self.config)
            fill = FillTeacherCache(views or self.trainer.max_epochs)
            self.model.configure_callbacks = lambda: [fill]
            self.trainer.fit(self.model, datamodule=self.datamodule)

    if not settings:
        raise ConfigError(
            "cache needs the settings of a student's fit: give --config FILE (--help tells more)"
        )
    return run_command(["fit", *settings], make=Filling)
