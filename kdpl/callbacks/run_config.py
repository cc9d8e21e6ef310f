"""The complete config of a fit in the run's folder, and the settings that may change on resume."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from kdpl.runtime.files import write_text
from kdpl.runtime.origin import flatten, require_same
from kdpl.runtime.run_folder import CONFIG_FILE, RUN_FILE

# prefixes of settings of where and how a run is computed or shown
_MAY_CHANGE = (
    "out",
    "checkpoint_every",
    "ckpt_path",
    "logged_images",
    # SameRun compares the number of images in a step: with fewer devices, each takes more images
    "data.init_args.batch_size",
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    # SameRun compares the views with the checkpoint; cached features are float16, so a run that
    # changes this setting does not end bit-equal
    "model.init_args.teacher_cache",
    "model.init_args.features_folder",
    "model.init_args.classes_at_once",
    "model.init_args.compile",
    "trainer.accelerator",
    # SameRun compares what Fidelity holds out, and kdpl.benchmark.choice its state by itself;
    # others may end a fit at another epoch
    "trainer.callbacks",
    "trainer.devices",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)
_TEACHER = "model.init_args.teacher"


class RunConfig(SaveConfigCallback):
    """Writes the config of a fit into the run's folder and hands it to the loggers, once."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: data and model are checked first."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config; also at the end of a fit without epochs, as it starts no training."""
        if trainer.is_global_zero and not self.already_saved:
            self.already_saved = True
            self.save_config(trainer, pl_module, "fit")

    on_fit_end = on_train_start

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically; called on one process."""
        text = self.parser.dump(self.config, skip_none=False)
        write_text(Path(trainer.default_root_dir) / CONFIG_FILE, text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


def settings_of(config: str) -> dict[str, Any]:
    """Return the settings of a YAML config that determine the result of a run, by name."""
    settings = flatten(yaml.safe_load(config))
    return {key: value for key, value in settings.items() if not key.startswith(_MAY_CHANGE)}


def require_same_settings(config: Path, now: str) -> None:
    """Raise a ConfigError if YAML settings would change the result of the run of ``config``."""
    before, after = settings_of(config.read_text(encoding="utf-8")), settings_of(now)
    folders = [Path(str(settings.get(_TEACHER, ""))).parts for settings in (before, after)]
    short, long = sorted(folders, key=len)
    if short and long[len(long) - len(short) :] == short:
        # the same folder, named from another one
        before[_TEACHER] = after[_TEACHER]
    # the other stage would be refused as well
    above = config.parent.parent
    folder = above if (above / RUN_FILE).is_file() else config.parent
    remedy = f"choose another --out, or remove {folder}"
    require_same(f"the run in {config.parent}", before, after, remedy)
