"""Settings that may change on resume: where and how a run is computed or shown."""

from pathlib import Path
from typing import Any

import yaml

from kdpl.errors import ConfigError

_MAY_CHANGE = (
    "out",
    "checkpoint_every",
    "ckpt_path",
    "weights_only",
    # SameSteps compares the images of a step: on fewer devices each takes more of them
    "data.init_args.batch_size",
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    # the student compares the views with those of its checkpoint
    "data.init_args.teacher_cache",
    "data.init_args.fill_teacher_cache",
    "model.init_args.classes_at_once",
    "model.init_args.compile",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.devices",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_nodes",
    "trainer.profiler",
    "trainer.strategy",
)


def require_same_settings(config: Path, now: str) -> None:
    """Refuse to resume a run with settings that would change its result.

    Args:
        config: ``config.yaml`` in its folder, the settings that it was started with.
        now: The settings of this start, as YAML.

    Raises:
        ConfigError: They differ; the first difference is named.
    """
    before, after = (_flatten(yaml.safe_load(text)) for text in (config.read_text(encoding="utf-8"), now))
    for key in sorted(before.keys() | after.keys()):
        if not key.startswith(_MAY_CHANGE) and before.get(key) != after.get(key):
            raise ConfigError(
                f"{config.parent} holds a run with other settings ({key} is {before.get(key)} there and "
                f"{after.get(key)} here): choose another --out, or remove that folder"
            )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{key}".lstrip(".")).items()}
