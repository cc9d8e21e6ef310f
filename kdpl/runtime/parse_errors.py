"""Settings that do not parse, reported in one sentence."""

import itertools
import re
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from kdpl.errors import ConfigError, KdplError, reason

_LONGEST = 200


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn errors that a user's settings raise while they are parsed or built into a KdplError; all others pass.

    Raises:
        ConfigError: Settings do not parse, or ask for a package that is missing.
        KdplError: A class raised it when it was built; jsonargparse wraps it.
    """
    try:
        yield
    except KdplError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KdplError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(
                f"a package is missing ({reason(error)}): install it, or change the setting that asks for it"
            ) from error
        if isinstance(error, ArgumentError | ValueError):
            raise ConfigError(
                f"{in_one_line(error)}: correct the config or the command line (--print_config shows all settings)"
            ) from error
        raise


def in_one_line(error: Exception) -> str:
    """Return a parser's message in one line: the setting, its value, and the innermost first report on it.

    Reports on settings within settings are nested by their indents, under headings of a single word, with one report
    for each type that a setting may have and the value at the end.
    """
    # the ways in which any class may be given are no report
    told = re.sub(r"\n *Subclass types expect one of:(\n *- a .*)*", "", str(error))
    # types by their names alone
    told = re.sub(r"<class '(?:\w+\.)*(\w+)'>|\btyping\.(\w+)", r"\1\2", told)
    lines = [(len(line) - len(line.lstrip(" -")), line.strip(" -:.")) for line in told.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    deepest = max(indent for indent, _ in lines)
    at = next(i for i, (indent, _) in enumerate(lines) if indent == deepest)
    kept, level, value = [lines[at][1]], deepest, ""
    for i in range(at - 1, -1, -1):
        indent, text = lines[i]
        if indent >= level:
            continue
        if setting := re.search(r'"([^"]+)"$', text):
            kept.insert(0, f"{setting[1]} is {value}" if value else setting[1])
            value = ""
        elif " " in text:
            kept.insert(0, text)
        elif level == deepest:
            # the last line beside the heading; of outer settings it would be all of a section
            block = itertools.takewhile(lambda line: line[0] >= indent, lines[at:])  # noqa: B023 - used at once
            value = ["", *(text for own, text in block if own == indent)][-1].partition(": ")[2]
        level = indent
    return ": ".join(text[:_LONGEST] for text in (*kept, value) if text)
