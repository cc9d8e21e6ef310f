"""LightningCLI for stages: settings are parsed once, checked, and then built and run."""

import atexit
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from functools import cache
from inspect import Parameter, Signature, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, Self, get_args

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import distributed

from kdpl.callbacks.checkpoints import CheckpointFiles, RunCheckpoint, require_intact
from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.callbacks.preemption import Preemption
from kdpl.callbacks.results import LOGGED_IMAGES, SaveTestResults
from kdpl.callbacks.run_config import RunConfig, require_same_settings
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import build_data
from kdpl.errors import ConfigError
from kdpl.runtime.configs import as_list
from kdpl.runtime.faults import in_one_sentence
from kdpl.runtime.lock import locked
from kdpl.runtime.loggers import begin_logging, finish_logging, place_loggers
from kdpl.runtime.messages import inform, process_rank, start_lines
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CONFIG_FILE, LAST, METRICS_FILE, handed_over

Command = Literal["fit", "validate", "test"]


def _whole_number_first(parameter: Parameter) -> Parameter:
    hint = parameter.annotation
    both = {int, float} <= {*get_args(hint)}
    return parameter.replace(annotation=int | hint) if both else parameter


class StageTrainer(Trainer):
    """Lightning's Trainer; in its settings, 1 is one batch, and 1.0 is all batches."""

    # to typing, Union[float, int] equals Union[int, float], and it returns what was asked first
    # by any library: after rich's types, one batch (1) would be read as all of them (1.0)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    # jsonargparse reads both
    __init__.__doc__ = Trainer.__init__.__doc__
    __init__.__signature__ = Signature(  # type: ignore[attr-defined]
        [*map(_whole_number_first, signature(Trainer.__init__).parameters.values())]
    )


class KdplCLI(LightningCLI):
    """Parsed settings of a stage, with a run's folder and one seed for model and data.

    LightningCLI parses them when this is made. Nothing is built before ``execute``: until then the
    settings can be checked, and ``derive`` makes other stages from them.

    Args:
        command: The command to run.
        args: Config files and settings, as text of the command line.
        values: Further settings, as a tree like a config's, which win over ``args``.
    """

    further_callbacks: Sequence[Callback] = ()
    """Callbacks of a fit that does more than its settings say."""

    def __init__(
        self, command: Command, args: Sequence[str], values: Mapping[str, Any] | None = None
    ) -> None:
        self.command: Command = command
        if values is not None:
            # parsed together with the arguments, which may lack what is required
            args = [*args, f"--config={json.dumps(values)}"]
        with in_one_sentence():
            super().__init__(
                LightningModule,
                LightningDataModule,
                trainer_class=StageTrainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=RunConfig,
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
                    "prog": "python -m kdpl COMMAND",
                },
                args=list(args),
                run=False,
                auto_configure_optimizers=False,
                # checkpoints hold no settings that could override those of the command line
                load_from_checkpoint_support=False,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and link seed and folder to where they are used."""
        for name, kind, text in (
            ("out", str | None, "the run's folder"),
            ("ckpt_path", str | None, "checkpoint other than the run's last"),
            ("checkpoint_every", PositiveInt | None, "steps between checkpoints in an epoch"),
        ):
            parser.add_argument(f"--{name}", type=kind, default=None, help=text)
        parser.add_argument(
            "--logged_images",
            type=NonNegativeInt,
            default=LOGGED_IMAGES,
            help="test images that W&B shows",
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

    def instantiate_classes(self) -> None:
        """Build nothing yet; LightningCLI calls this once it has parsed."""

    def derive(self, values: Mapping[str, Any], command: Command | None = None) -> Self:
        """Return a stage of the same settings but for ``values``, a tree like a config's."""
        derived = copy(self)
        derived.command = command or self.command
        with in_one_sentence():
            derived.config = self.parser.parse_object(dict(values), self.config)
        return derived

    @property
    def folder(self) -> Path:
        """The run's folder; a ConfigError if there is none."""
        if not self.config.out:
            raise ConfigError("the run has no folder to write to: give --out FOLDER")
        return Path(self.config.out)

    def data(self) -> DomainDataModule:
        """Build the datamodule alone; a ConfigError if it is of another kind."""
        return build_data([self.config.data.as_dict()])

    def check(self) -> None:
        """Refuse settings that a fit does not take, or that differ from its earlier start."""
        folder = self.folder
        if self.command != "fit":
            return
        if self.config.trainer.max_time is not None:
            raise ConfigError(
                "trainer.max_time would end an epoch in its middle as if it were complete: leave "
                "it out, and interrupt the command instead (Ctrl-C, SIGTERM, a job's limit); the "
                "same command resumes"
            )
        file = folder / CONFIG_FILE
        if file.is_file() and (handed_over(folder) or (folder / LAST).is_file()):
            require_same_settings(file, self.parser.dump(self.config, skip_none=False))

    def check_all(self) -> None:
        """Run ``check``, and the checks of model and callbacks that need no earlier stage."""
        self.check()
        if handed_over(self.folder):
            return
        data = cache(self.data)  # read once for all checks
        for section in (self.config.model, *as_list(self.config.trainer.callbacks)):
            check = getattr(resolve_name(section.class_path), "require_possible", None)
            if check is not None:
                check(section.as_dict().get("init_args", {}), data())

    def _choose_checkpoint(self) -> str | None:
        folder, chosen = self.folder, self.config.ckpt_path
        last = folder / LAST
        if chosen is None and not last.is_file():
            if self.command == "fit" and process_rank() == 0:
                # these metrics are from an earlier start that is not resumed
                (folder / METRICS_FILE).unlink(missing_ok=True)
            return None
        require_intact(Path(chosen or last))
        if chosen is None:
            inform(f"{'resuming from' if self.command == 'fit' else 'using'} {last}")
        return str(chosen or last)

    def build(self, config: Namespace) -> None:
        """Build data, model and trainer from settings that the run's config does not keep."""
        seed_everything(config.seed_everything, workers=True)
        with in_one_sentence():
            self.config_init = self.parser.instantiate_classes(config)
            self.datamodule, self.model = self.config_init.data, self.config_init.model
            self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has."""
        trainer = self.config.trainer
        callbacks: list[Callback] = [SaveTestResults(self.config.logged_images)]
        callbacks += self.further_callbacks
        callbacks.append(FiniteLoss())
        if trainer.enable_checkpointing is not False:
            callbacks.append(RunCheckpoint())
            if self.config.checkpoint_every is not None:
                # both write one file: the newer checkpoint is the one to resume from
                callbacks.append(RunCheckpoint(self.config.checkpoint_every))
            callbacks.append(Preemption())  # after those that save
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        _require_srun()
        plugins = as_list(self.config_init.trainer.get("plugins"))
        started_by: TorchElasticEnvironment | SLURMEnvironment | None = None
        if TorchElasticEnvironment.detect():
            started_by = TorchElasticEnvironment()
        elif SLURMEnvironment.detect():
            started_by = SLURMEnvironment(auto_requeue=False)
            plugins = [*plugins, started_by]
        instance = super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)
        if started_by is not None:
            # Lightning asks this later, and of a single device never
            started_by.validate_settings(instance.num_devices, instance.num_nodes)
        return instance

    def execute(self) -> None:
        """Build the stage and run the command, unless its run is finished."""
        folder = self.folder
        with ExitStack() as at_end:
            if self.command == "fit":
                if process_rank() == 0 and not handed_over(folder):
                    at_end.enter_context(locked(folder))
                self.check()
                if handed_over(folder):
                    inform(
                        f"{folder} is finished: nothing to do; remove the folder to run it again"
                    )
                    return
            self._ckpt_path = self._choose_checkpoint()
            # the config as given is kept: this is worked out anew each time
            config = self.config.clone()
            settings = config.model.get("init_args", {})
            # of the stages, the student alone has this setting
            if self.command != "fit" and settings.get("class_vectors", "") is None:
                # its folder has a copy of the ones that it learned from
                vectors = folder / CLASS_VECTORS_FILE
                settings.class_vectors = str(vectors) if vectors.is_file() else None
            place_loggers(config.trainer.logger, folder)
            self.build(config)
            bar = self.trainer.progress_bar_callback
            at_end.callback(start_lines(lambda: getattr(bar, "progress", None)).set)
            self._start()

    def without_steps(self, callback: Callback, trainer: Mapping[str, Any], **values: Any) -> Self:
        """Run a callback in a fit without steps, and return the stage of that fit.

        The fit has the same settings but for the ``trainer``'s and ``values``, and no callbacks of
        theirs. It writes nothing but what its callback and data write.
        """
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        nothing = {**off, "limit_train_batches": 0, "callbacks": None}
        stage = self.derive({**values, "trainer": {**nothing, **trainer}})
        stage.save_config_callback = None
        stage.further_callbacks = [callback]
        stage.build(stage.config)
        stage.trainer.fit(stage.model, datamodule=stage.datamodule)
        return stage

    def _start(self) -> None:
        if self.trainer.world_size == 1 and distributed.is_initialized():
            if self.command == "fit":
                raise ConfigError(
                    "this stage is for one process, and the one before it ran on several: run the "
                    "same command again, or give both the same trainer.devices"
                )
            # of another step of a run; metrics would wait for its processes
            distributed.destroy_process_group()
        if self.trainer.world_size == 1 and process_rank() > 0:
            # started by Lightning for another step of a run; the first process does this one alone
            return
        if self.command != "fit":
            self._evaluate()
            return
        if not self._trains() and self.trainer.max_epochs != 0:
            raise ConfigError(
                "a model without prompts trains nothing: use it untuned, with "
                "configs/teacher/zero_shot.yaml after the "
                "teacher's config, or set a depth of prompts above 0"
            )
        self._run(self.trainer.fit)

    def _evaluate(self) -> None:
        if self._trains() and self._ckpt_path is None:
            raise ConfigError(
                f"{self.folder} has no {LAST} to test: run fit with this --out, or give --ckpt_path"
            )
        begin_logging(self.trainer.loggers)
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


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _require_srun() -> None:
    """Refuse a task of Slurm that would wait forever for tasks that nobody starts."""
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"the Slurm job has {tasks} tasks: give --ntasks-per-node instead of --ntasks"
        )
    if "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(
            f"the Slurm job has {tasks} tasks and this process is none of them: put srun before "
            "the command, which starts it once for each task"
        )
