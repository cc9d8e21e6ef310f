"""One sentence in place of jsonargparse's reports on settings that do not parse, which fill a screen."""

import dataclasses
import difflib
import importlib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import kdpl
from kdpl.errors import ConfigError, KdplError, reason

_TOP_LEVEL = ("seed_everything", "trainer", "model", "data", "out", "ckpt_path", "config", "verbose")
_TRAINER = "lightning.pytorch.Trainer"
_REMEDY = "correct the config or the command line (--print_config shows all settings)"
_FEW = 20


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn what parsing and building raise over a user's settings into a KdplError; all else passes.

    Raises:
        ConfigError: Settings do not parse, or ask for a package that is missing.
        KdplError: What a class raised when it was built, which jsonargparse wraps.
    """
    try:
        yield
    except ArgumentError as error:
        raise ConfigError(parse_error_sentence(str(error))) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a package is missing ({reason(error)}): install it, or change the setting that asks for it"
        ) from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KdplError):
            cause = cause.__cause__
        if cause is None and "Does not validate against" in str(error):
            raise ConfigError(parse_error_sentence(str(error))) from error
        if cause is None or cause is error:
            raise
        raise cause from error


def parse_error_sentence(message: str) -> str:
    """Make one sentence of a report.

    Args:
        message: The report; with unions and nested classes many lines, of which the first innermost error counts.
    """
    lines, value = _innermost(message)
    text = " ".join(lines)
    class_path = _find(r"class_path '([^']+)'", text)
    setting = ".init_args.".join(re.findall(r'Parser key "([\w.]+)"', text)[: 2 if class_path else 1])
    if setting == "data.init_args.seed":
        # it is linked to what a person sets
        setting = "seed_everything"
    if "`tensorboard`" in text and "available" in text:
        return "the logger TensorBoardLogger needs tensorboard: pip install 'kdpl[tensorboard]'"
    unknown = _find(r"[Oo]ption '([^']+)'", text)
    if unknown:
        return _unknown_setting(unknown, class_path, _find(r"Group '([^']+)'", text))
    if text.startswith("unrecognized arguments"):
        return f"{text}: settings have a prefix, such as --data.init_args.shots or --trainer.max_epochs"
    missing = _find(r"arguments are required: ([\w., ]+)", text)
    if missing:
        missing = re.sub(r"\b(fit|validate|test)\.", "", missing)
        where = f"--{setting}.init_args.{missing}" if class_path else f"a --config that has '{missing}:'"
        return f"{class_path or 'the command'} needs the setting {missing}: give {where}"
    if class_path and ("has no attribute" in text or "No module named" in text or "not a subclass" in text):
        close = difflib.get_close_matches(class_path, [f"kdpl.{name}" for name in kdpl.__all__], n=1)
        hint = f"did you mean {close[0]}?" if close else _REMEDY
        return f"setting {setting}: there is no class {class_path} that fits here: {hint}"
    kinds = [_find(r"Expected an? (.+?)(?:\. Got value.*)?$", line) for line in lines]
    expected = [_readable(kind) for kind in kinds if kind]
    if class_path and "Unable to load config" in text:
        # a dataclass was given a plain value
        expected = [f"a section of {', '.join(_settings_of(class_path, setting.rpartition('.init_args.')[2]))}"]
    if "argument after ** must be a mapping" in text:
        class_path = _find(r"Namespace\(class_path='([\w.]+)'", message)
        for name in _settings_of(class_path):
            plain, fields = _find(rf"\b{name}=([^,()]+)[,)]", message), _settings_of(class_path, name)
            if plain not in ("", "None") and fields and f" {name}=Namespace(" not in message:
                setting, value = f"{name} of {class_path}", plain
                expected = [f"a section of {', '.join(fields)}"]
                break
    if expected == ["str"] and value.startswith("{"):
        return (
            f"setting {setting} is {value}, as on the command line a text with ': ' in it is taken for a section: give "
            "it in a config, within quotes"
        )
    if setting and expected:
        return f"setting {setting} is {value}, expected {' or '.join(dict.fromkeys(expected))}: {_REMEDY}"
    return f"{text}: {_REMEDY}".replace('Parser key "', 'setting "').replace("::", ":")


def _innermost(message: str) -> tuple[list[str], str]:
    """The lines up to the first value that did not fit, without those that say nothing, and that value."""
    lines: list[str] = []
    value = _find(r"(?:Given value|Got value): (?:NestedArg\(key='\w+', val=)?(.*?)\)?$", message)
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Given value"):
            break
        if not text.startswith(("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>")):
            lines.append(text.rstrip("."))
    return lines, value


def _unknown_setting(name: str, class_path: str, group: str) -> str:
    owner = class_path
    if class_path:
        known = _settings_of(class_path, group)
        owner = f"{class_path}'s {group}" if group else class_path
    elif name.startswith("trainer."):
        owner, known = "trainer", _settings_of(_TRAINER)
        name = name.removeprefix("trainer.")
    else:
        owner, known = "the config", list(_TOP_LEVEL)
    name = name.split(".")[0]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        hint = f"did you mean {close[0]!r}?"
    else:
        hint = f"use one of {', '.join(known)}" if 0 < len(known) <= _FEW else _REMEDY
    return f"{owner} has no setting {name!r}: {hint}"


def _settings_of(class_path: str, group: str = "") -> list[str]:
    """Names of a class's arguments, or of the fields of one of them that is a dataclass."""
    module, _, name = class_path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
        for part in group.split(".") if group else ():
            hints = get_type_hints(found if dataclasses.is_dataclass(found) else found.__init__)
            found = hints[part]
            if not dataclasses.is_dataclass(found):
                return []
        return list(inspect.signature(found).parameters)
    except (ImportError, AttributeError, KeyError, NameError, ValueError, TypeError):
        return []


def _readable(kind: str) -> str:
    choices = _find(r"Literal\[(.+)\]", kind)
    if choices:
        return choices.replace(", ", " or ")
    return _find(r"<class '([\w.]+)'>", kind) or kind.replace("typing.", "")


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1) if found else ""
