"""``python -m kdpl fit``, ``validate`` and ``test``: parsing; ``stage_cli.py`` does the rest."""

import gc
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from kdpl.errors import ConfigError, reason
from kdpl.runtime.configs import config_files, read_config, with_config_files

if TYPE_CHECKING:
    from kdpl.cli.stage_cli import Command, KdplCLI

_ABOUT = {
    "fit": "one stage: train what --config says into the folder --out",
    "validate": "accuracies of a run on the validation split",
    "test": "accuracies and predictions of a run on the test split",
}
_HELP = """\
usage: python -m kdpl {command} --config FILE … --out FOLDER [SETTINGS]

{about}; an interrupted command is resumed by
the same command

  --config FILE          settings, such as a run's config.yaml, or the name of a config \
that ships with kdpl, as in
                         trainer/gpu; may be repeated: later files and options win
  --out FOLDER           the run's folder
  --seed_everything N    seed of sampling, initialisation and order (default: 1)
  --ckpt_path FILE       a checkpoint other than the run's last one
  --checkpoint_every N   steps between checkpoints within an epoch, for long epochs
  --logged_images N      test images that W&B shows (default: 64)
  --data.init_args.X V   settings of the data:    --data.help kdpl.DomainDataModule
  --model.init_args.X V  settings of the stage:   --model.help kdpl.TeacherPromptTuning
                                                  --model.help kdpl.StudentDistillation
  --trainer.X V          settings of Lightning's Trainer, such as devices, precision, \
max_epochs, logger
  --print_config         print all settings and their values, and end
  --full_help            the options of all of them
"""


def run_command(args: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test`` with arguments of the command line; returns 0."""
    command: Any = args[0]
    if {"-h", "--help"} & {*args}:
        print(_HELP.format(command=command, about=_ABOUT[command]), end="")
        return 0
    if len(args) == 1:
        raise ConfigError(
            f"{command} needs to know what to do: give --config FILE (--help tells more)"
        )
    run_stage(parse_stage(command, args[1:]))
    return 0


def parse_stage(
    command: "Command", options: Sequence[str], values: Mapping[str, Any] | None = None
) -> "KdplCLI":
    """Parse the settings of a stage, of which the files exist; see ``KdplCLI``."""
    options = with_config_files("--help" if word == "--full_help" else word for word in options)
    for file in config_files(options):
        read_config(file)
    # imports torch and Lightning, so only after help and the checks of files
    from kdpl.cli.stage_cli import KdplCLI
    from kdpl.runtime.messages import quiet_libraries

    quiet_libraries()
    return KdplCLI(command, options, values)


def run_stage(
    stage: "KdplCLI", execute: "Callable[[KdplCLI], object]" = methodcaller("execute")
) -> None:
    """Build a stage and run its command; nothing that is built outlives this."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        execute(copy(stage))
    except MisconfigurationException as error:
        raise ConfigError(
            f"the trainer cannot be set up ({reason(error)}): correct the trainer's settings; "
            "without a GPU, give --config trainer/cpu"
        ) from error
    except SystemExit as error:
        # how Lightning ends a training that was interrupted
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    # a trainer and its model refer to each other; the next stage needs the GPU's memory
    gc.collect()
