"""Parsers of commands, from their signatures and docstrings; imports no torch or Lightning."""

import inspect
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from kdpl.errors import ConfigError
from kdpl.runtime import plugins
from kdpl.runtime.faults import in_one_line

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule

    MakeRule = Callable[[Classifier], DecisionRule]
else:
    # hints are read at run time, and the classifier would import torch
    MakeRule = Callable

Command = Callable[..., int]

_ALIKE = 0.75  # of two names, 1 for the same

_SETTINGS = "settings"
"""Parameter that takes the options that are not the command's own, to be handed on."""

_RULE = "rule"
"""Parameter that takes a ``Rule``; its options are those of the entry points ``kdpl.predict``."""


@dataclass(frozen=True)
class Rule:
    """Options that decide what is predicted for an image.

    Attributes:
        makers: Those of which options are given.
        given: These options, as text.
    """

    makers: tuple[MakeRule, ...] = ()
    given: str = ""

    def of(self, classifier: "Classifier", top_k: int = 1) -> "DecisionRule":
        """Return the rule for a classifier, or raise a ConfigError.

        That is if two packages would make it, or ``top_k`` would cut its sets.
        """
        from kdpl.tasks import DecisionRule

        if len(self.makers) > 1:
            raise ConfigError(
                "the options ask two packages for a rule: leave out those of one of them"
            )
        rule = self.makers[0](classifier) if self.makers else DecisionRule()
        if rule.set_threshold is not None and top_k > 1:
            raise ConfigError(
                f"{self.given} lists as many classes as an image needs: leave out --top-k"
            )
        return rule


def call(command: Command, argv: Sequence[str], prog: str) -> int:
    """Parse the arguments of a command, see ``parse``, and call it; returns its exit code."""
    return command(**parse(command, argv, prog))


def parse(command: Command, argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Parse the arguments of a command into values of its parameters, or raise a ConfigError.

    Args:
        command: A typed function with a Google docstring. Positional parameters become positional
            arguments, where a list takes any number; keyword-only ones become options, where a list
            may be repeated and a bool is a flag. A last parameter ``settings`` takes all options
            that are not the command's own, and one called ``rule`` those of rooms that decide what
            is predicted.
        argv: Its arguments; an option may be written with underscores instead of hyphens.
        prog: Name of the command, for help and errors.
    """
    parser = build_parser(command, prog)
    own, others = _split(command, argv)
    names = [name.replace("_", "-") for name in _parameters(command)]
    hands_on = _SETTINGS in inspect.signature(command).parameters
    # settings that are handed on have a section, but for those of the run itself, which are like
    # none of these
    hint = did_you_mean([arg for arg in others if not (hands_on and "." in arg)], names)
    if hint or (others and not hands_on):
        missing = next((arg for arg in others if arg.startswith("--")), others[0]).partition("=")[0]
        raise ConfigError(
            f"{prog} has no option {missing}: {hint or f'{prog} --help lists those there are'}"
        )
    try:
        options = vars(parser.parse_args(own))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{in_one_line(error)}: {prog} --help tells more") from error
    if _SETTINGS in inspect.signature(command).parameters:
        options[_SETTINGS] = others
    if _RULE in inspect.signature(command).parameters:
        options[_RULE] = _pop_rule(options)
    return options


def _pop_rule(options: dict[str, Any]) -> Rule:
    makers, given = list[MakeRule](), list[str]()
    for function in plugins.load_all("predict").values():
        defaults = {
            name: each.default for name, each in inspect.signature(function).parameters.items()
        }
        own = {name: options.pop(name) for name in defaults}
        changed = {name: value for name, value in own.items() if value != defaults[name]}
        if changed:
            makers.append(function(**own))
        for name, value in changed.items():
            given.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return Rule(tuple(makers), " ".join(given))


def did_you_mean(args: Sequence[str], known: Sequence[str]) -> str | None:
    """Return advice on the first unknown option that resembles a known one, or None.

    ``known`` are names without dashes. An option may lack the sections before its own name.
    """
    for name in (arg[2:].partition("=")[0] for arg in args if arg.startswith("--")):
        section, dot, own = name.rpartition(".")
        within = [each for each in known if each.startswith(section + dot)]
        # of the same name in several sections, the first
        by_own = {each.rpartition(".")[2]: each for each in reversed(within)}
        near = [] if name in known else get_close_matches(own, by_own, n=1, cutoff=_ALIKE)
        if near:
            return f"did you mean --{by_own[near[0]]}"
    return None


def build_parser(command: Command, prog: str) -> ArgumentParser:
    """Build the parser of a command; see ``parse``."""
    doc = parse_docstring(inspect.getdoc(command) or "")
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        description="\n\n".join(filter(None, (doc.short_description, doc.long_description))),
        formatter_class=RawDescriptionHelpFormatter,
    )
    described = [
        parse_docstring(inspect.getdoc(function) or "") for function in _functions(command)
    ]
    helps = {
        each.arg_name: " ".join((each.description or "").split())
        for doc in described
        for each in doc.params
    }
    for name, (parameter, kind) in _parameters(command).items():
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        required = parameter.default is inspect.Parameter.empty
        names = [name] if positional else [f"--{name.replace('_', '-')}"]
        default_text = (
            ""
            if parameter.default in (None, [], False) or required
            else f" (default: {parameter.default})"
        )
        # argparse formats a help with %
        text = (helps.get(name, "").rstrip(".") + default_text).replace("%", "%%")
        # as in argparse's own lines, but for a word such as YAML
        shown = text if text[1:2].isupper() else text[:1].lower() + text[1:]
        how: dict[str, Any] = {"help": shown}
        if not required and positional:
            how["nargs"] = "?"  # and None, for which jsonargparse knows no default
        elif not required:
            how["default"] = parameter.default
        elif not positional:
            how["required"] = True
        if kind is bool:
            how["action"] = "store_true"
        elif get_origin(kind) is list:
            how |= {"type": get_args(kind)[0], "nargs": "+" if required or not positional else "*"}
            how |= {} if positional else {"action": "extend"}
        else:
            how["type"] = kind
        parser.add_argument(*names, **how)
    return parser


def _functions(command: Command) -> list[Callable[..., Any]]:
    """The command, and the rooms' functions whose options it takes."""
    more = plugins.load_all("predict") if _RULE in inspect.signature(command).parameters else {}
    return [command, *more.values()]


def _parameters(command: Command) -> dict[str, tuple[inspect.Parameter, Any]]:
    """All parameters that are arguments, and their types."""
    parameters = {}
    for function in _functions(command):
        hints = get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in (_SETTINGS, _RULE):
                parameters[name] = parameter, hints[name]
    return parameters


def _split(command: Command, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command's own arguments from those that it hands on.

    The positional ones come first: argparse does not take a list of them once options stand
    between.
    """
    hints = {name: kind for name, (_, kind) in _parameters(command).items()}
    names = {*hints, "help", "print_shtab"}
    positional: list[str] = []
    options: list[str] = []
    others: list[str] = []
    target, values = positional, 0.0
    for arg in argv:
        if arg.startswith("--") and len(arg) > 2:
            name, equals, value = arg[2:].partition("=")
            key = name.replace("-", "_")
            target = options if key in names else others
            target.append(f"--{key.replace('_', '-')}{equals}{value}" if key in names else arg)
            several = key in names and get_origin(hints.get(key)) is list
            values = 0 if equals or hints.get(key) is bool else float("inf") if several else 1
        elif values:
            target.append(arg)
            values -= 1
        else:
            positional.append(arg)
    return positional + options, others


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
