"""Settings that do not parse, reported in one sentence."""

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
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"{in_one_line(error)}: correct the config or the command line (--print_config shows all settings)"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a package is missing ({reason(error)}): install it, or change the setting that asks for it"
        ) from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KdplError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from error


def in_one_line(error: Exception) -> str:
    """Return a parser's message in one line: of nested reports the innermost first one, and the settings it is within.

    Reports on settings within settings are nested by their indents, one for each type that a setting may have.
    """
    lines = [
        (len(line) - len(line.lstrip(" -")), line.strip(" -:.")) for line in str(error).splitlines() if line.strip()
    ]
    if not lines:
        return type(error).__name__
    deepest = max(indent for indent, _ in lines)
    at = next(i for i, (indent, _) in enumerate(lines) if indent == deepest)
    kept = [lines[at]]
    for indent, text in reversed(lines[:at]):
        # a single word is a heading
        if indent < kept[0][0] and " " in text:
            kept.insert(0, (indent, text))
    return ": ".join(dict.fromkeys(text[:_LONGEST] for _, text in kept))
