"""Where a setting that does not exist was given, and the nearest one that does."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from kdpl.data.datamodule import DomainDataModule
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.origin import flatten
from kdpl.runtime.renamed import SETTINGS
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning

_SECTIONS = (
    (DomainDataModule, "data.init_args"),
    (TeacherPromptTuning, "model.init_args"),
    (StudentDistillation, "model.init_args"),
    (Trainer, "trainer"),
)
# names of settings before version 0.1, and an option that the survey recommends
_MEANT = SETTINGS | {"val-share": "init --val-share"}
# as jsonargparse names them
_NAMED = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option '|Option '|unrecognized arguments: --"
    r"|Parser key \")(?P<name>[\w.-]+)"
)


def hint_of(message: str, options: Sequence[str]) -> str:
    """Return in brackets where a wrong setting was given, and the nearest that exists.

    Args:
        message: A sentence of jsonargparse; for one that names no setting the hint is empty.
        options: Config files and settings, as text of the command line.
    """
    named = _NAMED.search(message)
    if named is None:
        return ""
    name = ".".join(filter(None, named.groups()))
    user_settings = [(arg[2:].partition("=")[0], "on the command line") for arg in options]
    for file in config_files(options):
        user_settings += [(key, f"in {file}") for key in flatten(read_config(file))]
    # the end of a setting's path, below which there may be more
    wrong = re.compile(rf"(.*\.)?{re.escape(name)}(?=\.|$)")
    matches = ((wrong.match(key), where) for key, where in user_settings)
    path, *hints = next(((match[0], where) for match, where in matches if match), (name,))
    near = _MEANT.get(name.rpartition(".")[2]) or _nearest(path)
    if near is not None and near.replace(".init_args", "") != path.replace(".init_args", ""):
        hints.append(f"did you mean {near}?")
    return f" ({', '.join(hints)})" if hints else ""


def _nearest(path: str) -> str | None:
    # by its last name
    settings = list[str]()
    for kind, section in _SECTIONS:
        parser = ArgumentParser()
        parser.add_class_arguments(kind, section)
        settings += parser.get_defaults().keys()
    names = {setting.rpartition(".")[2] for setting in settings}
    close = get_close_matches(path.rpartition(".")[2], names)
    settings = [setting for setting in settings if setting.rpartition(".")[2] in close]
    return next(iter(get_close_matches(path, settings, n=1, cutoff=0)), None)
