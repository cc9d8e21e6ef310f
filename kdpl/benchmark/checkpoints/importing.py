"""Importing is a fit of no epochs into which published tensors are put before it hands over what any fit hands over."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from kdpl.benchmark.checkpoints.fit_check import require_same_clip, require_same_sizes
from kdpl.benchmark.checkpoints.names import Kind, Published, read_published
from kdpl.cli.fit import KdplCLI, require_stage, run_command
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import LAST, handed_over
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning

RECORD_FILE = "import.json"
"""Name of the file in a run's folder that says what was imported into it."""

_MODULES: dict[Kind, type[TeacherPromptTuning | StudentDistillation]] = {
    "teacher": TeacherPromptTuning,
    "student": StudentDistillation,
}
# settings of what happens before, during and after epochs, of which there are none
_NOTHING_TRAINED: dict[Kind, dict[str, Any]] = {
    "teacher": {"averaging": None},
    "student": {"prompt_init": "normal", "choice": "last"},
}
_NAMES_SHOWN = 5


def import_published(kind: Kind, file: Path, settings: Sequence[str]) -> None:
    """Take a published checkpoint over into a run's folder.

    Args:
        kind: What the file holds.
        file: The file.
        settings: The arguments that ``fit`` would be given.

    Raises:
        KdplError: The file is missing, damaged or does not fit the settings.
    """
    if not file.is_file():
        raise ArtifactError(f"checkpoint {file} does not exist: check the path")
    if not settings:
        raise ConfigError("import needs the settings that fit would be given: give --config FILE (--help tells more)")
    run_command(["fit", *settings], make=partial(_ImportCLI, kind=kind, file=file))


class _ImportCLI(KdplCLI):
    """``fit`` with settings under which nothing is trained, drawn or averaged.

    Args:
        args: The command and its arguments.
        check_only: Check the settings and do nothing.
        kind: What the file holds.
        file: The file.
    """

    def __init__(self, args: Sequence[str], check_only: bool = False, *, kind: Kind, file: Path) -> None:
        self._kind: Kind = kind
        self._file = file
        super().__init__(args, check_only)

    def before_instantiate_classes(self) -> None:
        """Read the file, once it is known that the folder does not hold another run."""
        config = self.config.fit
        require_stage(config, _MODULES[self._kind], self._kind)
        trainer, model = config.trainer, config.model.init_args
        if model.get("method", "independent") != "independent":
            raise ConfigError(
                f"the published teachers have independent prompts, model.init_args.method is {model.method!r}: set it "
                "to independent"
            )
        trainer.max_epochs = trainer.limit_train_batches = trainer.num_sanity_val_steps = 0
        trainer.fast_dev_run = False
        for name, value in _NOTHING_TRAINED[self._kind].items():
            model[name] = value
        super().before_instantiate_classes()
        folder = Path(config.out)
        self._record = _record_of(self._file)
        if (handed_over(folder) or (folder / LAST).is_file()) and _read_record(folder) != self._record:
            raise ConfigError(
                f"{folder} holds something else than the import of {self._file}: choose another --out, or remove that "
                "folder"
            )
        if not self.finished:
            self._published = read_published(self._file, self._kind)

    def before_fit(self) -> None:
        """Compare the CLIPs while the model is as it was loaded, and have the tensors put in place."""
        super().before_fit()
        unknown = {
            *self._published.unknown,
            *_compare(self._published, cast(TeacherPromptTuning | StudentDistillation, self.model)),
        }
        if unknown:
            few = ", ".join(sorted(unknown)[:_NAMES_SHOWN])
            rank_zero_warn(
                f"left out of {self._file}, because they have no place here: {len(unknown)} tensors ({few}"
                f"{', …' if len(unknown) > _NAMES_SHOWN else ''})"
            )
        # before the callbacks that write the run's config and hand over
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, _TakeOver(self._published, self._record))


def _compare(published: Published, module: TeacherPromptTuning | StudentDistillation) -> set[str]:
    towers: dict[str, nn.Module]
    if isinstance(module, TeacherPromptTuning):
        towers = {"image": module.image_tower.module.visual, "text": module.text_tower.module}
    else:
        towers = {"image": module.image_clip.image_tower.visual}
    states = {name: tower.state_dict() for name, tower in towers.items()}
    return require_same_clip(published, states, math.log(module.logit_scale))


class _TakeOver(Callback):
    """Puts the published tensors into the module and writes the checkpoint that a fit would have left.

    Args:
        published: The checkpoint.
        record: What is kept to tell the file from others.
    """

    def __init__(self, published: Published, record: dict[str, str]) -> None:
        self._published = published
        self._record = record

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module is complete now, and nothing has been written yet."""
        published = self._published
        tensors = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
        own = {name.removeprefix("prompts."): tensor for name, tensor in tensors.items()}
        require_same_sizes(published, own)
        for name, tensor in published.learned.items():
            own[name].copy_(tensor)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            with atomic_path(folder / RECORD_FILE) as temporary:
                temporary.write_text(json.dumps(self._record, indent=2), encoding="utf-8")
        trainer.save_checkpoint(folder / LAST, weights_only=False)
        saved = f", saved after epoch {published.epoch}" if published.epoch is not None else ""
        rank_zero_info(
            f"{published.file} ({published.kind}{saved}): {len(published.learned)} trained tensors taken over, "
            f"{len(published.clip)} weights of its CLIP compared"
        )


def _record_of(file: Path) -> dict[str, str]:
    with file.open("rb") as opened:
        return {"file": file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _read_record(folder: Path) -> dict[str, str] | None:
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    record: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return record
