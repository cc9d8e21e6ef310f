"""``python -m kdpl completion``: completion of commands and options in a shell."""

from typing import Literal

from jsonargparse import ArgumentParser

from kdpl.cli import STAGES, command_names, find_command
from kdpl.cli.arguments import build_parser
from kdpl.errors import ConfigError

_OPTIONS = ("config", "out", "seed_everything", "ckpt_path", "checkpoint_every", "print_config")


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> int:
    """Print a script that completes commands and options in bash, zsh or tcsh.

    In bash, for example: source <(kdpl completion bash).

    Args:
        shell: The shell.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion needs shtab: pip install 'kdpl[completion]'") from error
    parser = ArgumentParser(prog="kdpl")
    commands = parser.add_subcommands()
    for name in command_names():
        own = (
            ArgumentParser() if name in STAGES else build_parser(find_command(name), f"kdpl {name}")
        )
        for option in _OPTIONS if name in STAGES else ():
            own.add_argument(f"--{option}")
        commands.add_subcommand(name, own, help=own.description or f"{name} a stage")
    print(shtab.complete(parser, shell))
    return 0
