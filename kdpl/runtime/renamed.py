"""Names of earlier versions in configs: paths of classes still work, settings are refused."""

import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "kdpl.cache.callback": "kdpl.student",
    "kdpl.doubt": "kdpl.confidence",
    "kdpl.doubt.negatives": "kdpl.confidence.negatives",
    "kdpl.fidelity": "kdpl.targets.fidelity",
    "kdpl.fidelity.callback": "kdpl.targets.fidelity",
    "kdpl.logging.wandb_logger": "kdpl.callbacks.loggers.wandb_logger",
    "kdpl.methods.coupled": "kdpl.prompts.coupled",
    "kdpl.monitoring.finite_loss": "kdpl.callbacks.finite_loss",
    "kdpl.monitoring.throughput": "kdpl.callbacks.throughput",
    "kdpl.preparation": "kdpl.targets",
    "kdpl.progress.bar": "kdpl.callbacks.progress",
    "kdpl.refinement.target": "kdpl.targets.refinement.target",
    "kdpl.tables.reader": "kdpl.data.readers.table",
}
"""New modules by their names before version 0.1; to be removed with version 0.3."""

SETTINGS = {
    "background": "data.init_args.reading.background",
    "bad_images": "data.init_args.reading.bad_images",
    "class_names": "data.init_args.classes.names",
    "class_text": "data.init_args.classes.text",
    "fill_teacher_cache": "python -m kdpl cache",
    "held_out": "data.init_args.reading.test_share",
    "label_separator": "data.init_args.classes.label_separator",
    "scan": "data.init_args.reading.scan",
    "skip_list": "data.init_args.reading.skip_list",
    "taxonomy": "data.init_args.classes.taxonomy",
    "teacher_cache": "model.init_args.teacher_cache",
}
"""New settings, or commands, by names of settings below ``data.init_args`` before version 0.1."""


def moved_setting(message: str) -> str:
    """Return the new name of the setting that a message of jsonargparse refuses, as its hint."""
    named = re.search(r"ption '([\w.]+)'", message)
    new = SETTINGS.get(named[1].rpartition(".")[2]) if named else None
    return f" (did you mean {new}?)" if new else ""


class _Finder(MetaPathFinder, Loader):
    """Finder that imports a module by its earlier name, with the public names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        moved = fullname in MOVED or any(old.startswith(f"{fullname}.") for old in MOVED)
        return ModuleSpec(fullname, self, is_package=True) if moved else None

    def exec_module(self, module: ModuleType) -> None:
        # imported late: it needs Lightning
        from kdpl.runtime.messages import inform

        if (new := MOVED.get(module.__name__)) is not None:
            inform(f"{module.__name__} is {new} now: write that, as the next version needs it")
            # packages import some of their names when they are asked for
            vars(module)["__getattr__"] = partial(getattr, import_module(new))


def find_moved() -> None:
    """Let imports find modules by their earlier names."""
    # first, as an earlier folder may be left with nothing but its __pycache__
    sys.meta_path.insert(0, _Finder())
