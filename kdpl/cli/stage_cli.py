"""LightningCLI for stages: a run has a folder, a seed, and its own callbacks and loggers."""

import atexit
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import distributed

from kdpl.callbacks.checkpoints import (
    CheckpointFiles,
    RunCheckpoint,
    require_intact,
)
from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.callbacks.preemption import InterruptionHandler, Requeue
from kdpl.callbacks.progress import ProgressBar
from kdpl.callbacks.results import SaveTestResults
from kdpl.callbacks.run_config import RunConfig, require_same_settings
from kdpl.callbacks.throughput import Throughput
from kdpl.data.domain import build_data
from kdpl.errors import ConfigError
from kdpl.runtime import slurm
from kdpl.runtime.lock import RunLock
from kdpl.runtime.loggers import finish_logging, place_loggers
from kdpl.runtime.messages import inform, process_rank
from kdpl.runtime.run_folder import (
    CLASS_VECTORS_FILE,
    CONFIG_FILE,
    LAST,
    METRICS_FILE,
    handed_over,
)

Command = Literal["fit", "validate", "test"]


class KdplCLI(LightningCLI):
    """LightningCLI with a run's folder, a seed for the data too, and loggers in that folder."""

    def __init__(
        self, command: Command, args: Sequence[str], check_only: bool, at_end: ExitStack
    ) -> None:
        self.command: Command = command
        self.check_only = check_only
        self.finished = False
        self._at_end = at_end
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig if self.command == "fit" else None,
            trainer_defaults={
                "logger": {"class_path": "kdpl.runtime.loggers.MetricsCSV"},
                # the datamodule's samplers shard by themselves and count each test image once
                "use_distributed_sampler": False,
                # it does not see the frozen towers, which are most of the model
                "enable_model_summary": False,
            },
            seed_everything_default=1,
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": f"python -m kdpl {self.command}",
            },
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            # checkpoints hold no settings that could override those of the command line
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and link seed and folder to where they are used."""
        parser.add_argument("--out", type=str | None, default=None, help="the run's folder")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint other than the run's last",
        )
        parser.add_argument(
            "--checkpoint_every",
            type=PositiveInt | None,
            default=None,
            help="steps between checkpoints in an epoch",
        )
        parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse a seed that cannot be repeated."""
        super().parse_arguments(parser, args)
        seed = self.config.seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ConfigError(
                f"seed_everything is {seed}, expected a whole number from 0 to "
                f"{2**32 - 1}: correct it"
            )

    def before_instantiate_classes(self) -> None:
        """Find out what is in the run's folder already, and point the loggers into it."""
        if not self.config.out:
            raise ConfigError("the run has no folder to write to: give --out FOLDER")
        folder = Path(self.config.out)
        if self.command == "fit":
            self._begin(folder)
        # the config as given: the rest is worked out anew each time, and config.yaml must not keep
        # it
        self._given = self.config.clone()
        if self.check_only or self.finished:
            return
        self._choose_checkpoint(folder)
        settings = self.config.model.get("init_args", {})
        # of the stages, the student alone has this setting
        if self.command != "fit" and settings.get("class_vectors", "") is None:
            # its folder has a copy of those that it learned from
            copy = folder / CLASS_VECTORS_FILE
            settings.class_vectors = str(copy) if copy.is_file() else None
        place_loggers(self.config.trainer.logger, folder)

    def _begin(self, folder: Path) -> None:
        """Find out whether a fit is finished, and lock its folder if it is not."""
        if self.config.trainer.max_time is not None:
            raise ConfigError(
                "trainer.max_time would end an epoch in its middle as if it were complete: leave "
                "it out, and interrupt "
                "the command instead (Ctrl-C, SIGTERM, a job's limit); the same command resumes"
            )
        first = process_rank() == 0 and not self.check_only
        if first and not handed_over(folder):
            self._at_end.callback(RunLock(folder).release)
        self.finished = handed_over(folder)
        begun = self.finished or (folder / LAST).is_file()
        file = folder / CONFIG_FILE
        if begun and file.is_file():
            require_same_settings(file, self.parser.dump(self.config, skip_none=False))

    def _choose_checkpoint(self, folder: Path) -> None:
        given, last = self.config.ckpt_path, folder / LAST
        if given is None and not last.is_file():
            if self.command == "fit" and process_rank() == 0:
                # of a start that is not resumed, perhaps with other settings
                (folder / METRICS_FILE).unlink(missing_ok=True)
            return
        require_intact(Path(given or last))
        if given is None:
            self.config.ckpt_path = str(last)
            inform(f"{'resuming from' if self.command == 'fit' else 'using'} {last}")

    def require_stage(self, stage: type[LightningModule], name: str) -> None:
        """Refuse settings that are not those of a stage, whose folder of configs has this name."""
        if not issubclass(resolve_name(self.config.model.class_path), stage):
            raise ConfigError(
                f"the settings are those of {self.config.model.class_path}, expected those of a "
                f"{name}: give a --config of that stage, such as {name}/quickstart"
            )

    def instantiate_classes(self) -> None:
        """Build nothing for a run that is finished, or of which only the settings are checked."""
        if self.finished or self.check_only:
            return
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has."""
        self._ckpt_path, self.config = self.config.ckpt_path, self._given
        trainer = self._given.trainer
        callbacks: list[Callback] = [InterruptionHandler(), SaveTestResults()]
        callbacks += self.own_callbacks()
        callbacks.append(FiniteLoss())
        if trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        callbacks.append(Throughput())
        if trainer.enable_checkpointing is not False:
            callbacks.append(RunCheckpoint())
            if self._given.checkpoint_every is not None:
                # both write one file: the newer checkpoint is the one to resume from
                callbacks.append(RunCheckpoint(self._given.checkpoint_every))
            if slurm.in_job():
                # after those that save
                callbacks.append(Requeue())
        self.trainer_defaults["callbacks"] = callbacks
        slurm.require_srun()
        plugins = self.config_init.trainer.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        started_by: TorchElasticEnvironment | SLURMEnvironment | None = None
        if TorchElasticEnvironment.detect():
            started_by = TorchElasticEnvironment()
        elif SLURMEnvironment.detect():
            started_by = SLURMEnvironment(auto_requeue=False)
            plugins = [*plugins, started_by]
        made = super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)
        if started_by is not None:
            # Lightning asks this later, and of a single device never
            started_by.validate_settings(made.num_devices, made.num_nodes)
        return made

    def own_callbacks(self) -> list[Callback]:
        """Return the callbacks that this kind of fit has beside those of all runs."""
        return []

    def execute(self) -> None:
        """Run the command, unless its run is finished or only the settings are checked."""
        if self.check_only:
            return
        if self.finished:
            inform(
                f"{self.config.out} is finished: nothing to do; remove the folder to run it again"
            )
            return
        if self.trainer.world_size == 1 and distributed.is_initialized():
            if self.command == "fit":
                raise ConfigError(
                    "this stage is for one process, and the one before it ran on several: run the "
                    "same command again, or give both the same trainer.devices"
                )
            # of another step of a run; metrics would wait for its processes
            distributed.destroy_process_group()
        if self.trainer.world_size == 1 and process_rank() > 0:
            # started by Lightning for another step of a run, on several processes; the first does
            # this one alone
            return
        if self.command == "fit":
            self.fit()
        else:
            self._evaluate()

    def fit(self) -> None:
        """Train."""
        if not self._trains() and self.trainer.max_epochs != 0:
            raise ConfigError(
                "a model without prompts trains nothing: use it untuned, with "
                "configs/teacher/zero_shot.yaml after the "
                "teacher's config, or set a depth of prompts above 0"
            )
        self._run(self.trainer.fit)

    def _evaluate(self) -> None:
        """Measure the accuracies on validation or test images, and print them in one line."""
        if self._trains() and self._ckpt_path is None:
            raise ConfigError(
                f"{self._given.out} has no {LAST} to test: run fit with this --out, "
                "or give --ckpt_path"
            )
        # the module is that of config and checkpoint; prompts.safetensors is for stage 2
        self._run(getattr(self.trainer, self.command), verbose=False)
        metrics = self.trainer.callback_metrics
        inform(", ".join(f"{name} {100 * float(value):.2f} %" for name, value in metrics.items()))

    def _run(self, function: Callable[..., Any], **options: Any) -> None:
        # a thread of gloo that outlives the interpreter aborts the process; Lightning sees to NCCL
        # alone
        atexit.register(_leave_group)
        function(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=self._ckpt_path,
            # of torch.load: no code in the file runs; optimiser and progress are restored as well
            weights_only=True,
            **options,
        )
        finish_logging(self.trainer.loggers)

    def _trains(self) -> bool:
        return any(p.requires_grad for p in self.model.parameters())


class StageCheck(KdplCLI):
    """Checks the settings of a stage, and what can be told of it before the stages it rests on."""

    def instantiate_classes(self) -> None:
        """Refuse what the model or a callback says that it cannot do."""
        if self.finished:
            return
        callbacks = self.config.trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        checks = [
            (check, section.as_dict().get("init_args", {}))
            for section in (self.config.model, *callbacks)
            if (check := getattr(resolve_name(section.class_path), "require_possible", None))
        ]
        if checks:
            data = build_data([self.config.data.as_dict()])
            for check, settings in checks:
                check(settings, data)


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
