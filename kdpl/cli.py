"""fit, validate and test: LightningCLI over the two modules and the one datamodule, each run in a folder of its own."""

import difflib
import importlib
import inspect
import logging
import re
import secrets
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from kdpl.callbacks.answers import TestAnswers
from kdpl.callbacks.draw import DrawPictures
from kdpl.callbacks.handover import handed_over
from kdpl.callbacks.run_folder import CONFIG_FILE, LAST_CHECKPOINT, RunCheckpoint, RunConfig
from kdpl.callbacks.throughput import Throughput
from kdpl.errors import ConfigError, KdplError
from kdpl.files import atomic_path

COMMANDS = ("fit", "validate", "test")

# a run may go on with other values of these: they say where and how it is computed or shown, not what
_MAY_CHANGE = (
    "out",
    "ckpt_path",
    "weights_only",
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.devices",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)

_WANDB_ID_FILE = "wandb_id"

# true, but nothing that a user of kdpl can or should act on
_QUIET = (
    ".*does not have many workers.*",
    ".*args parameter is intended to run from within Python.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*returned in `LightningModule.configure_callbacks` will override.*",
    ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*skip_none parameter was deprecated.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


_QUIET_INFO = (
    "💡 Tip",
    "TPU available",
    "`Trainer.fit` stopped",
    "Restoring states",
    "Restored all states",
    "Loaded model weights",
)


class KdplCLI(LightningCLI):
    """LightningCLI with a run's folder, a seed that reaches the data, and loggers that write into that folder."""

    finished = False

    def __init__(self, args: Sequence[str]) -> None:
        strict = {"exit_on_error": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            trainer_defaults={
                "logger": {"class_path": "kdpl.loggers.MetricsCSV"},
                # the datamodule's samplers know the processes by themselves and count each test image once
                "use_distributed_sampler": False,
                # it cannot see the frozen towers, which are most of the model
                "enable_model_summary": False,
            },
            seed_everything_default=1,
            parser_kwargs={**strict, **{name: dict(strict) for name in COMMANDS}},
            args=list(args),
            auto_configure_optimizers=False,
            # checkpoints hold no settings that could override those of the command line
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--out`` and tie seed and folder to where they are used."""
        parser.add_argument("--out", type=str, default=None, help="the run's folder: everything of the run goes there")
        parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")

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
        if self.subcommand == "fit":
            self._require_same_settings(folder)
            self.finished = handed_over(folder)
        if config.ckpt_path is None and (folder / LAST_CHECKPOINT).is_file() and not self.finished:
            config.ckpt_path = str(folder / LAST_CHECKPOINT)
            rank_zero_info(f"{'going on from' if self.subcommand == 'fit' else 'using'} {config.ckpt_path}")
        self._given = config.clone()
        _point_loggers(config.trainer.logger, folder, keep=self.subcommand == "fit")

    def instantiate_classes(self) -> None:
        """Build nothing for a run that is finished."""
        if not self.finished:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Add the callbacks that every run has."""
        # saved is the config as given: where the loggers write is worked out anew each time
        self.config[self.subcommand] = self._given
        trainer = self._given.trainer
        callbacks: list[Callback] = [Throughput(), TestAnswers(), DrawPictures()]
        if trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if trainer.enable_checkpointing is not False:
            callbacks.append(RunCheckpoint())
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def before_test(self) -> None:
        """Refuse to test prompts that were never trained."""
        trained = any(p.requires_grad for p in self.model.parameters())
        if trained and self.config_init[self.subcommand].ckpt_path is None:
            raise ConfigError(
                f"{self._given.out} has no {LAST_CHECKPOINT} to test: run fit with this --out, or give --ckpt_path"
            )

    before_validate = before_test

    def _run_subcommand(self, subcommand: str) -> None:
        if self.finished:
            folder = self.config[subcommand].out
            rank_zero_info(f"{folder} is finished: nothing to do; remove the folder to run it again")
            return
        super()._run_subcommand(subcommand)

    def _require_same_settings(self, folder: Path) -> None:
        file = folder / CONFIG_FILE
        if not file.is_file():
            return
        before = _flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
        now = _flatten(yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False)))
        for key in sorted(before.keys() | now.keys()):
            if not key.startswith(_MAY_CHANGE) and before.get(key) != now.get(key):
                raise ConfigError(
                    f"{folder} holds a run with other settings ({key} is {before.get(key)} there and {now.get(key)} "
                    "here): choose another --out, or remove that folder"
                )


def run_command(args: Sequence[str]) -> None:
    """Run ``fit``, ``validate`` or ``test``.

    Args:
        args: The command and its arguments.

    Raises:
        KdplError: Anything that the user can mend; of settings that do not parse, a ConfigError.
    """
    for pattern in _QUIET:
        warnings.filterwarnings("ignore", pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_worth_reading)
    try:
        KdplCLI(args)
    except ArgumentError as error:
        raise ConfigError(parse_error_sentence(str(error))) from error
    except Exception as error:
        # jsonargparse wraps what a class raises when it is built
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KdplError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from error


def _worth_reading(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_QUIET_INFO)


def parse_error_sentence(message: str) -> str:
    """Make one sentence of jsonargparse's report on settings that do not parse.

    Args:
        message: The report, many lines long when unions and nested classes are involved.
    """
    lines = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Given value"):
            break
        if not text.startswith(("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>")):
            lines.append(text.rstrip("."))
    sentence = " ".join(lines).replace('Parser key "', 'setting "')
    class_path = re.search(r"class_path '([\w.]+)'", sentence)
    unknown = re.search(r"Option '(\w+)[\w.]*' is not accepted", sentence)
    if class_path and unknown:
        known = _settings_of(class_path.group(1))
        close = difflib.get_close_matches(unknown.group(1), known, n=1)
        return f"{sentence}: {f'did you mean {close[0]!r}?' if close else 'use one of ' + ', '.join(known)}"
    return f"{sentence}: correct the config or the command line (--print_config shows all settings)"


def _settings_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{key}".lstrip(".")).items()}


def _point_loggers(loggers: Any, folder: Path, keep: bool) -> None:  # noqa: ANN401
    """Put the relative folders of loggers into the run's folder, and keep one W&B id and name per run."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        settings = logger.init_args
        if settings.get("save_dir") is not None:
            # an absolute save_dir stays as it is
            settings.save_dir = str(folder / settings.save_dir)
            Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
        if logger.class_path.endswith("WandbLogger"):
            settings.id = settings.id or _wandb_id(folder, keep)
            settings.name = settings.name or "/".join(folder.parts[-2:])


def _wandb_id(folder: Path, keep: bool) -> str:
    """The id that all of a run's fits, resumes and tests share in W&B."""
    file = folder / _WANDB_ID_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(4)
    if keep and getattr(rank_zero_only, "rank", 0) == 0:
        with atomic_path(file) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new
