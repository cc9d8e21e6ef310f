"""Parsers of commands, from their signatures and docstrings; imports no torch or Lightning."""

# jsonargparse's auto_parser does not do: it hands no unknown options on (parse_known_args is not
# implemented), takes no words for a list, and has neither flags nor dashes in the names of options

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from docstring_parser import parse as parse_docstring

from kdpl.errors import ConfigError

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule

    MakeRule = Callable[[Classifier], DecisionRule]
else:
    # hints are read at run time, and the classifier would import torch
    MakeRule = Callable

Command = Callable[..., int]

_SETTINGS = "settings"
"""Parameter that takes the options that are not the command's own, to be handed on."""

_RULE = "rule"
"""Parameter that takes the ``Rule`` that ``_MAKERS`` make of their options."""

_MAKERS = ("kdpl.confidence.command:options", "kdpl.multilabel.command:options")
"""Functions whose keyword arguments are options that decide what is predicted."""


@dataclass(frozen=True)
class Rule:
    """Options that decide what is predicted for an image.

    Attributes:
        make: Makes the rule; None if none of these options is given.
        text: The options as they were given.
    """

    make: MakeRule | None = None
    text: str = ""

    def of(self, classifier: "Classifier", top_k: int = 1) -> "DecisionRule":
        """Return the rule for a classifier; a ConfigError if ``top_k`` would cut its sets."""
        from kdpl.tasks import DecisionRule

        rule = self.make(classifier) if self.make is not None else DecisionRule()
        if rule.set_threshold is not None and top_k > 1:
            raise ConfigError(f"{self.text} decides what an image's row names: leave out --top-k")
        return rule


class Parser(argparse.ArgumentParser):
    """A parser that raises a ConfigError, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise the error of wrong arguments."""
        raise ConfigError(f"{message}: {self.prog} --help tells more")


def call(command: Command, argv: Sequence[str], prog: str) -> int:
    """Parse the arguments of a command, see ``parse``, and call it; returns its exit code."""
    return command(**parse(command, argv, prog))


def parse(command: Command, argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Parse the arguments of a command into values of its parameters, or raise a ConfigError.

    Args:
        command: A typed function with a Google docstring. Positional parameters become positional
            arguments, where a list takes any number; keyword-only ones become options, where a list
            may be repeated, a list or None may have no values, and a bool is a flag. A parameter
            ``settings`` takes all options that are not the command's own, with what follows them;
            ``rule`` takes those that decide what is predicted.
        argv: Its arguments.
        prog: Name of the command, for help and errors.
    """
    parser = build_parser(command, prog)
    parameters = inspect.signature(command).parameters
    if _SETTINGS in parameters:
        absent = list[str]()
        if not argv or argv[0].startswith("-"):
            # an optional argument has to come first: values of options to hand on look like one
            absent = [
                name
                for name, parameter in parameters.items()
                if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
                and parameter.default is None
            ]
        values, unknown = parser.parse_known_args([*[""] * len(absent), *argv])
        options = {**vars(values), **dict.fromkeys(absent), _SETTINGS: unknown}
    else:
        options = vars(parser.parse_intermixed_args(argv))
    if _RULE in parameters:
        rule, *more_rules = [Rule(*pair) for pair in _made_of_options(options)] or [Rule()]
        if more_rules:
            raise ConfigError(
                f"{rule.text} and {more_rules[0].text} each decide what is predicted: give one"
            )
        options[_RULE] = rule
    return options


def build_parser(command: Command, prog: str) -> Parser:
    """Build the parser of a command; see ``parse``."""
    docs = parse_docstring(inspect.getdoc(command) or "")
    descriptions = filter(None, (docs.short_description, docs.long_description))
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="\n\n".join(descriptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser, command)
    if _RULE in inspect.signature(command).parameters:
        for path in _MAKERS:
            _add_arguments(parser, resolve_name(path))
    return parser


def _add_arguments(parser: Parser, function: Callable[..., Any]) -> None:
    docs = parse_docstring(inspect.getdoc(function) or "")
    helps = {param.arg_name: param.description or "" for param in docs.params}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in (_SETTINGS, _RULE):
            continue
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        required = parameter.default is inspect.Parameter.empty
        how = _how(parameter.annotation, positional, required)
        if not required:
            how["default"] = parameter.default
        elif not positional:
            how["required"] = True
        text = " ".join(helps.get(name, "").split()).rstrip(".")
        if not required and parameter.default not in (None, [], False):
            text += f" (default: {parameter.default})"
        # argparse formats a help with %
        help_text = text.replace("%", "%%")
        parser.add_argument(name if positional else _option(name), help=help_text, **how)


def _how(kind: Any, positional: bool, required: bool) -> dict[str, Any]:
    if kind is bool:
        return {"action": "store_true"}
    for list_or_none in get_args(kind):
        if get_origin(list_or_none) is list:
            return {"type": get_args(list_or_none)[0], "nargs": "*", "action": "extend"}
    if get_origin(kind) is list:
        some = "+" if required or not positional else "*"
        action = {} if positional else {"action": "extend"}
        return {"type": get_args(kind)[0], "nargs": some, **action}
    optional = {"nargs": "?"} if positional and not required else {}
    if get_origin(kind) is not Literal:
        # of a type or None, the type
        kind = next(iter(get_args(kind)), kind)
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), **optional}
    return {"type": kind, **optional}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _made_of_options(options: dict[str, Any]) -> list[tuple[Any, str]]:
    """Take these options out; return what is made of those that are given, and their text."""
    results = []
    for function in map(resolve_name, _MAKERS):
        parameters = inspect.signature(function).parameters
        values = {name: options.pop(name) for name in parameters}
        texts = [
            _option(name) + ("" if value is True else f" {value}")
            for name, value in values.items()
            if value != parameters[name].default
        ]
        if texts:
            results.append((function(**values), " ".join(texts)))
    return results


def require_file(option: str, value: str | None) -> None:
    """Raise a ConfigError if an option that is given names a file that does not exist."""
    if value is not None and not Path(value).is_file():
        raise ConfigError(f"{option} {value} does not exist: check its path")


def output_file(option: str, value: str) -> Path:
    """Return an option's file, which writing may replace; a ConfigError for a folder."""
    path = Path(value)
    if path.is_dir():
        raise ConfigError(f"{option} {value} is a folder, expected the name of a file: give one")
    return path


def share(option: str, value: str | None) -> float | None:
    """Read a share such as ``2%`` or ``0.02``; a ConfigError unless it is between 0 and 1."""
    if value is None:
        return None
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise ConfigError(
            f"{option} is {value!r}, expected a share between 0% and 100%: give for example 5%"
        )
    return number
