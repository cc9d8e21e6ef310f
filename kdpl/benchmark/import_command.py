"""``python -m kdpl import``: turn the authors' published checkpoints into run folders."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdpl.cli.arguments import require_settings
from kdpl.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from kdpl.cli.stage_cli import KdplCLI

_NAMES_SHOWN = 5


def import_(kind: Literal["teacher", "student"], file: str, *, settings: list[str]) -> int:
    """Turn a checkpoint published by PromptKD's authors into a run's folder, as fit leaves it.

    Takes the options of the fit: --config FILE, --out FOLDER, and for a student
    --model.init_args.teacher RUN. Nothing is trained, even if they set a number of epochs.

    Args:
        kind: Contents of the file: teacher or student.
        file: The checkpoint.
        settings: Options of the fit.
    """
    if not Path(file).is_file():
        raise ArtifactError(f"checkpoint {file} does not exist: check the path")
    require_settings("import", "a fit", settings)
    from kdpl.cli.fit import parse_stage, run_stage

    run_stage(parse_stage("fit", settings, make=_make_importer(kind, file)))
    return 0


def _make_importer(kind: Literal["teacher", "student"], file: str) -> "type[KdplCLI]":
    """Return the command that imports a file; a function, since the imports take seconds."""
    from jsonargparse import Namespace
    from lightning.pytorch import Callback

    from kdpl.benchmark.checkpoints import (
        TakeOver,
        read_published,
        record_of,
        require_own_folder,
        require_same_clip,
    )
    from kdpl.cli.stage_cli import KdplCLI
    from kdpl.runtime.messages import warn
    from kdpl.student import StudentDistillation
    from kdpl.teacher import TeacherPromptTuning

    path = Path(file)

    class Importing(KdplCLI):
        """Fit of no epochs that starts from the published tensors, and hands over as any fit."""

        def before_instantiate_classes(self) -> None:
            self.require_stage(
                TeacherPromptTuning if kind == "teacher" else StudentDistillation, kind
            )
            # the settings must fit the published checkpoints
            trainer, model = self.config.trainer, self.config.model.init_args
            if model.get("method", "independent") != "independent":
                raise ConfigError(
                    "the published teachers have independent prompts, model.init_args.method is "
                    f"{model.method!r}: set it to independent"
                )

            # train nothing
            trainer.max_epochs = trainer.limit_train_batches = trainer.num_sanity_val_steps = 0
            trainer.fast_dev_run = False
            # nor change the weights before or after the epochs
            if kind == "teacher":
                model.averaging = None
            else:
                model.vision_prompts.init = "normal"

        def check(self) -> None:
            super().check()
            self.record = record_of(path)
            require_own_folder(self.folder, self.record)

        def build(self, config: Namespace) -> None:
            self.published = read_published(path, kind)
            super().build(config)

        def further_callbacks(self) -> list[Callback]:
            return [TakeOver(self.published, self.record)]

        def fit(self) -> None:
            # compare the CLIPs before a tensor is copied
            model = self.model
            if isinstance(model, TeacherPromptTuning):
                towers = {"image": model.image_tower.module.visual, "text": model.text_tower.module}
            else:
                towers = {"image": model.encoder.tower.module.visual}
            states = {name: tower.state_dict() for name, tower in towers.items()}
            not_in_clip = require_same_clip(self.published, states, math.log(model.logit_scale))
            unknown = sorted({*self.published.unknown, *not_in_clip})
            if unknown:
                few = ", ".join(unknown[:_NAMES_SHOWN])
                warn(
                    f"left out of {file}, because they have no place here: {len(unknown)} tensors "
                    f"({few}{', …' if len(unknown) > _NAMES_SHOWN else ''})"
                )
            super().fit()

    return Importing
