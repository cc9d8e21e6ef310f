"""``python -m kdpl fit``, ``validate`` and ``test``: LightningCLI over modules and datamodule."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from kdpl.cli import COMMANDS
from kdpl.cli.stage_cli import Command, KdplCLI
from kdpl.cli.wrong_option import hint_of
from kdpl.errors import ConfigError, reason
from kdpl.runtime.configs import config_files, read_config, with_config_files
from kdpl.runtime.faults import in_one_sentence
from kdpl.runtime.messages import quiet_libraries

MakeStage = Callable[[Command, Sequence[str], bool, ExitStack], KdplCLI]

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
  --data.init_args.X V   settings of the data:    --data.help kdpl.DomainDataModule
  --model.init_args.X V  settings of the stage:   --model.help kdpl.TeacherPromptTuning
                                                  --model.help kdpl.StudentDistillation
  --trainer.X V          settings of Lightning's Trainer, such as devices, precision, \
max_epochs, logger
  --print_config         print all settings and their values, and end
  --full_help            the options of all of them
"""


def run_command(args: Sequence[str], check_only: bool = False, make: MakeStage = KdplCLI) -> int:
    """Run ``fit``, ``validate`` or ``test`` with arguments of the command line; returns 0.

    Args:
        args: The command and its arguments.
        check_only: Check the settings and do nothing.
        make: Builds what runs it; another KdplCLI for another kind of fit.
    """
    command: Any = args[0]
    if {"-h", "--help"} & {*args}:
        print(_HELP.format(command=command, about=COMMANDS[command][1]), end="")
        return 0
    if len(args) == 1:
        raise ConfigError(
            f"{command} needs to know what to do: give --config FILE (--help tells more)"
        )
    options = with_config_files(["--help" if arg == "--full_help" else arg for arg in args[1:]])
    for file in config_files(options):
        read_config(file)
    run_stage(command, options, check_only=check_only, make=make)
    return 0


def run_stage(
    command: Command,
    options: Sequence[str],
    values: Mapping[str, Any] | None = None,
    check_only: bool = False,
    make: MakeStage = KdplCLI,
) -> None:
    """Run ``fit``, ``validate`` or ``test``, or check its settings only.

    Args:
        command: What to run.
        options: Config files and settings, as text of the command line.
        values: Further settings, as a tree like a config's, which win over the options.
        check_only: As of ``run_command``.
        make: As of ``run_command``.
    """
    quiet_libraries()
    hint = partial(hint_of, options=options)
    if values is not None:
        # parsed together with the options, which may lack what is required
        options = [*options, f"--config={json.dumps(values)}"]
    try:
        with ExitStack() as at_end:
            with in_one_sentence(hint):
                cli = make(command, options, check_only, at_end)
            cli.execute()
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
