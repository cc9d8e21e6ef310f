"""What all commands ask of their arguments; imports neither torch nor Lightning."""

import argparse
from pathlib import Path
from typing import NoReturn

from kdpl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong as every other error of kdpl is said: in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError in place of printing the usage."""
        raise ConfigError(f"{message}: {self.prog} --help tells more")


def output_file(option: str, value: str) -> Path:
    """Give the file that an option names, which writing may replace.

    Raises:
        ConfigError: It is a folder, which would be replaced with all that is in it.
    """
    path = Path(value)
    if path.is_dir():
        raise ConfigError(f"{option} {value} is a folder, expected the name of a file: give one")
    return path
