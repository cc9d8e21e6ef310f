"""Frozen features of a student's fit without steps."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from kdpl.cli.fit import run_stage
from kdpl.cli.init import CONFIG
from kdpl.cli.prepare import parse_stages, untuned
from kdpl.cli.run_defaults import Choice, Options, print_choice
from kdpl.clip import ClipConfig
from kdpl.clip.identity import RANDOM
from kdpl.clip.modules import normalized
from kdpl.errors import ConfigError
from kdpl.report.estimate.folds import Frozen
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import DATA_FOLDER, DECODED_FILE
from kdpl.student import StudentDistillation
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.targets.refinement.target import Refined, further_images
from kdpl.tasks import MULTI_CLASS

VIEWS = 8
"""Views of each image, as a run stores them."""


def gather(choice: Choice, folder: Path, options: Options) -> tuple[Frozen, tuple[str, ...]]:
    """Return the frozen features of a run's images, and the names of its classes."""
    options, reasons = choice.completed(options, str(folder / DATA_FOLDER / CONFIG))
    print_choice(choice.path, reasons)
    stages = parse_stages(folder, options)
    clip = ClipConfig(**stages["student"].config.model.init_args.clip.as_dict())
    if clip.pretrained == RANDOM:
        raise ConfigError(
            f"{clip} has random weights, whose features say nothing before training: choose "
            "another --student"
        )

    # the original CLIP is the teacher, made anew, and its features of images are kept; the images
    # may have changed
    for file in (*(folder / "teacher").glob("*.*"), folder / "student" / DECODED_FILE):
        file.unlink(missing_ok=True)
    run_stage(untuned(stages["teacher"]))

    # a student's fit without steps computes features
    alone = {"max_epochs": 1, "devices": 1, "strategy": "auto"}
    gathered = list[Frozen]()
    gathering = LambdaCallback(
        on_fit_start=lambda _, module: gathered.append(_frozen(cast(StudentDistillation, module)))
    )
    stage = stages["student"].without_steps(gathering, alone)
    (frozen,) = gathered
    return frozen, stage.datamodule.class_names


def _frozen(student: StudentDistillation) -> Frozen:
    """Compute the features, as refined targets and a student of them store them."""
    inputs = replace(student.target_inputs(), stored_views=VIEWS)
    further = [record.source for record in further_images(inputs)[0]]
    lists = [None, further] if further else [None]
    target = student.target
    if not isinstance(target, Refined):
        inform("the estimate is of refined targets, and your student has another target")
        target = Refined()
    evidence = target.evidence(inputs)
    features = [inputs.features(images, target.views, pooled=True) for images in lists]
    joint, teacher = (torch.cat([part[k].still for part in features]) for k in range(2))
    still = MULTI_CLASS.log_probabilities(inputs.teacher.logits(joint))

    # the student's, of all views as a run stores them
    stores = [inputs.student_store(images, VIEWS) for images in lists]
    pooled = torch.from_numpy(np.concatenate([store.read_all()[:, 0] for store in stores]))
    # on the CPU, as folds are measured in processes of their own
    tensors: dict[str, Any] = {
        name: value.cpu() for name, value in vars(evidence).items() if isinstance(value, Tensor)
    }
    return Frozen(
        replace(evidence, **tensors),
        still.cpu(),
        normalized(pooled),
        teacher.cpu(),
        len(inputs.pool.targeted),
        not student.trains_in_tower,
        RefinementConfig(
            **{field.name: getattr(target, field.name) for field in fields(RefinementConfig)}
        ),
    )
