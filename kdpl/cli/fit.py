"""fit, validate and test: LightningCLI over the two modules and the one datamodule, each run in a folder of its own."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from kdpl.callbacks.answers import TestAnswers
from kdpl.callbacks.checkpoint_files import CheckpointFiles, newest, require_whole, whole_last
from kdpl.callbacks.draw import DrawPictures
from kdpl.callbacks.faults import FiniteLoss, WhereItStopped
from kdpl.callbacks.progress import ProgressBar
from kdpl.callbacks.requeue import Requeue, may_requeue
from kdpl.callbacks.run_folder import CONFIG_FILE, RunCheckpoint, RunConfig
from kdpl.callbacks.same_steps import SameSteps
from kdpl.callbacks.throughput import Throughput
from kdpl.cli.run import ORDER_FILE
from kdpl.cli.same_settings import require_same_settings
from kdpl.data.parallel import cores
from kdpl.errors import ConfigError, reason
from kdpl.runtime.configs import config_files, require_configs
from kdpl.runtime.launch import matching_trainer, of_several, require_processes, require_srun
from kdpl.runtime.parse_errors import in_one_sentence
from kdpl.runtime.peers import end_with_starter, heed_signals, lost_in_one_sentence, part
from kdpl.runtime.run_folder import LAST, PREVIOUS, handed_over
from kdpl.runtime.run_lock import RunLock, await_first, tidy
from kdpl.runtime.slurm import in_job
from kdpl.runtime.terminal import tame_output
from kdpl.runtime.wandb_logger import finish, go_on, point_loggers

COMMANDS = ("fit", "validate", "test")


class KdplCLI(LightningCLI):
    """LightningCLI with a run's folder, a seed that reaches the data, and loggers that write into that folder.

    Args:
        args: The command and its arguments.
        check_only: Check the settings and do nothing.
    """

    finished = False

    def __init__(self, args: Sequence[str], check_only: bool = False) -> None:
        self.check_only = check_only
        self._args = list(args)
        self._lock: RunLock | None = None
        try:
            self._run()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _run(self) -> None:
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            trainer_defaults={
                "logger": {"class_path": "kdpl.runtime.loggers.MetricsCSV"},
                # the datamodule's samplers know the processes by themselves and count each test image once
                "use_distributed_sampler": False,
                # it cannot see the frozen towers, which are most of the model
                "enable_model_summary": False,
            },
            seed_everything_default=1,
            parser_kwargs={**strict, **{name: dict(strict) for name in COMMANDS}},
            args=self._args,
            auto_configure_optimizers=False,
            # checkpoints hold no settings that could override those of the command line
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--out`` and tie seed and folder to where they are used."""
        parser.add_argument(
            "--out", type=str | None, default=None, help="the run's folder: everything of the run goes there"
        )
        parser.add_argument(
            "--checkpoint_every",
            type=PositiveInt | None,
            default=None,
            help="steps between checkpoints within an epoch, besides the one at its end; for long epochs",
        )
        parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse, and refuse a seed with which a run could not be repeated."""
        for command in ("validate", "test"):
            # a line of our own takes the place of Lightning's table, see after_test
            self._parser(command).set_defaults({"verbose": False})
        super().parse_arguments(parser, args)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything is {seed}, expected a whole number from 0 to {2**32 - 1}: correct it")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out ``predict``, which is the classifier's."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in COMMANDS}

    def before_instantiate_classes(self) -> None:
        """Find out what is in the run's folder already, and point the loggers into it."""
        config = self.config[self.subcommand]
        if not config.out:
            raise ConfigError("the run has no folder to write to: give --out FOLDER")
        folder = Path(config.out)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder} is a file, expected a folder or a new name: choose another --out")
        _require_cores(config.trainer.devices)
        self._require_own_folder(folder)
        if self.subcommand == "fit":
            if config.trainer.max_time is not None:
                raise ConfigError(
                    "trainer.max_time would end an epoch in its middle, as if it was done: leave it out, and stop the "
                    "command where its time is over (Ctrl-C, SIGTERM, a job's limit); the same command goes on"
                )
            self._begin(folder)
        if self.check_only:
            return
        # before the checkpoint is looked up: kept in config.yaml, it would be that of every later test
        self._given = config.clone()
        if config.ckpt_path is not None and not self.finished:
            require_whole(Path(config.ckpt_path))
        elif not self.finished:
            # a fit may go on from the checkpoint before a damaged one, but a test is of the last one or of none
            checkpoint = newest(folder) if self.subcommand == "fit" else whole_last(folder)
            if checkpoint is not None:
                config.ckpt_path = str(checkpoint)
                rank_zero_info(f"{'going on from' if self.subcommand == 'fit' else 'using'} {checkpoint}")
        point_loggers(config.trainer.logger, folder, keep=self.subcommand == "fit")

    def _begin(self, folder: Path) -> None:
        """Find out whether the fit is finished, and hold its folder if not, before anything in it is believed."""
        first = getattr(rank_zero_only, "rank", 0) == 0
        if not self.check_only and not first and of_several():
            await_first(folder, partial(handed_over, folder))
        self.finished = handed_over(folder)
        if not self.check_only and first:
            if self.finished:
                tidy(folder)
            else:
                # while it was waited for, another may have come to its end there
                self._lock = RunLock(folder)
                self.finished = handed_over(folder)
        self._require_same_settings(folder)

    def instantiate_classes(self) -> None:
        """Build nothing for a run that is finished, or that is only looked at."""
        if not self.finished and not self.check_only:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Add the callbacks that every run has."""
        # saved is the config as given: where the loggers write is worked out anew each time
        self.config[self.subcommand] = self._given
        trainer = self._given.trainer
        callbacks: list[Callback] = [WhereItStopped(), SameSteps(), Throughput(), FiniteLoss()]
        callbacks += [TestAnswers(), DrawPictures()]
        if trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if trainer.enable_checkpointing is not False:
            callbacks.append(RunCheckpoint())
            if self._given.checkpoint_every is not None:
                callbacks.append(RunCheckpoint(self._given.checkpoint_every))
        self.trainer_defaults["callbacks"] = callbacks
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if in_job() and trainer.enable_checkpointing is not False and all(map(may_requeue, plugins)):
            # after those that save
            callbacks.append(Requeue())
        environments = [plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)]
        if environments:
            # whoever gives one knows who starts the processes
            built = super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)
        else:
            require_srun()
            with matching_trainer(trainer.devices, trainer.num_nodes):
                built = super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)
            require_processes(built.num_devices, built.num_nodes)
        heed_signals(built)
        # those of the config come before it otherwise, and may fail or take long
        built.callbacks.sort(key=lambda callback: not isinstance(callback, WhereItStopped))  # type: ignore[attr-defined]
        return built

    def _trains(self) -> bool:
        # a student's parameters are made once it knows its teacher's width
        student = getattr(self.model, "train_split", None) == "unlabeled"
        return student or any(p.requires_grad for p in self.model.parameters())

    def before_fit(self) -> None:
        """Refuse epochs in which nothing would be trained."""
        if not self._trains() and self.trainer.max_epochs != 0:
            raise ConfigError(
                "a model without prompts trains nothing: set trainer.max_epochs to 0, or a depth of prompts above 0"
            )

    def before_test(self) -> None:
        """Refuse to test prompts that were never trained."""
        if self._trains() and self.config_init[self.subcommand].ckpt_path is None:
            raise ConfigError(f"{self._given.out} has no {LAST} to test: run fit with this --out, or give --ckpt_path")

    before_validate = before_test

    def after_test(self) -> None:
        """Say the accuracies in one line; ``--verbose true`` shows Lightning's table as well."""
        metrics = self.trainer.callback_metrics
        rank_zero_info(", ".join(f"{name} {100 * float(value):.2f} %" for name, value in metrics.items()))

    after_validate = after_test

    def _run_subcommand(self, subcommand: str) -> None:
        if self.check_only:
            return
        if self.finished:
            folder = self.config[subcommand].out
            rank_zero_info(f"{folder} is finished: nothing to do; remove the folder to run it again")
            return
        go_on(self.trainer.loggers, Path(self._given.out), fitting=subcommand == "fit")
        super()._run_subcommand(subcommand)
        finish(self.trainer.loggers)

    def _require_own_folder(self, folder: Path) -> None:
        """Refuse to write where something else lies: beside the stages of a whole run, or where a copy came from."""
        if self.subcommand == "fit" and (folder / ORDER_FILE).is_file():
            raise ConfigError(
                f"{folder} holds a whole run, whose stages have folders of their own: choose another --out"
            )
        if any(arg.split("=")[0] == "--out" for arg in self._args):
            return
        for file in map(Path, config_files(self._args)):
            at = file.absolute().parent
            # a config of the user's own may have any name, but lies beside no checkpoints
            of_a_run = file.name == CONFIG_FILE and ((at / LAST).is_file() or handed_over(at))
            if of_a_run and at.resolve() != folder.resolve():
                raise ConfigError(
                    f"{file} is of a run in {folder} and lies in another folder, as if it was copied or moved: give "
                    f"--out {at} for this one, or --out {folder} for that one"
                )

    def _require_same_settings(self, folder: Path) -> None:
        file = folder / CONFIG_FILE
        # a run that was cut before its first checkpoint left nothing that other settings could spoil
        begun = any((folder / name).is_file() for name in (LAST, PREVIOUS)) or handed_over(folder)
        if begun and file.is_file():
            require_same_settings(file, self._parser("fit").dump(self.config["fit"], skip_none=False))


def _require_cores(devices: object) -> None:
    """Refuse a number of processes that would bring a machine down; how many GPUs there are, Lightning knows."""
    number = int(devices) if isinstance(devices, int | str) and str(devices).isdecimal() else 0
    if number > max(8 * cores(), 64):
        raise ConfigError(
            f"trainer.devices is {number}, which starts as many processes, on a machine of {cores()} cores: lower it"
        )


def require_stage(config: Namespace, stage: type[LightningModule], name: str) -> None:
    """Refuse settings of a fit that are not those of a stage.

    Args:
        config: The settings.
        stage: The stage's LightningModule.
        name: ``teacher`` or ``student``, as the folders of configs are called.

    Raises:
        ConfigError: They are of another module.
    """
    if not issubclass(resolve_name(config.model.class_path), stage):
        raise ConfigError(
            f"the settings are those of {config.model.class_path}, expected those of a {name}: give a --config of "
            f"configs/{name}/"
        )


def run_command(
    args: Sequence[str], check_only: bool = False, make: Callable[[Sequence[str], bool], object] = KdplCLI
) -> None:
    """Run ``fit``, ``validate`` or ``test``.

    Args:
        args: The command and its arguments.
        check_only: Check the settings and do nothing.
        make: What runs it; another KdplCLI for what is a fit of another kind.

    Raises:
        KdplError: Anything that the user can mend; of settings that do not parse, a ConfigError.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    tame_output()
    if len(args) == 1:
        raise ConfigError(f"{args[0]} needs to know what to do: give --config FILE (--help tells more)")
    require_configs(config_files(args))
    end_with_starter()
    try:
        with in_one_sentence(), lost_in_one_sentence():
            make(args, check_only)
        part()
    except MisconfigurationException as error:
        raise ConfigError(f"the trainer cannot be set up ({reason(error)}): correct the trainer's settings") from error
    except SystemExit as error:
        # Lightning's answer
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
