"""``python -m kdpl completion``: completion of commands and options in a shell."""

from typing import Literal

from kdpl.cli import STAGES, command_names, find_command
from kdpl.cli.arguments import Parser, build_parser
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
    parser = Parser(prog="kdpl")
    commands = parser.add_subparsers()
    for name in command_names():
        if name in STAGES:
            own = commands.add_parser(name, help=f"{name} a stage")
            for option in _OPTIONS:
                own.add_argument(f"--{option}")
        else:
            built = build_parser(find_command(name), f"kdpl {name}")
            about = (built.description or "").replace("%", "%%")
            commands.add_parser(name, help=about, parents=[built], add_help=False)
    print(shtab.complete(parser, shell))
    return 0
