"""Frozen features of a student's fit without steps, kept in a file."""

from pathlib import Path
from typing import cast

import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from kdpl.cli.choice import Choice, Options, print_choice
from kdpl.cli.fit import run_stage
from kdpl.cli.init import CONFIG
from kdpl.cli.prepare import parse_stages, untuned
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.clip.identity import RANDOM
from kdpl.errors import ConfigError
from kdpl.report.estimate.folds import Frozen
from kdpl.runtime.artifacts import write_tensors
from kdpl.runtime.run_folder import DATA_FOLDER, DECODED_FILE
from kdpl.student import StudentDistillation
from kdpl.targets.refinement.target import Refined, further_images
from kdpl.tasks import MULTI_CLASS

FEATURES = "features.safetensors"
"""File with the features, for ``benchmarks.estimate``."""

_VIEWS = 2  # of each image for the teacher; refined targets take eight, for four times the time


def gather(choice: Choice, folder: Path, given: Options) -> tuple[Frozen, tuple[str, ...]]:
    """Return the frozen features of a run's images, and the names of its classes.

    The features are also written to ``FEATURES``.
    """
    options, reasons = choice.completed(given, str(folder / DATA_FOLDER / CONFIG))
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
        on_fit_start=lambda _, module: gathered.append(
            _frozen(cast(StudentDistillation, module), clip)
        )
    )
    stage = stages["student"].without_steps(gathering, alone)
    # keep the features
    (frozen,) = gathered
    values = {**vars(frozen.evidence), **vars(frozen)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {
        "pool": frozen.pool,
        "trusted": frozen.evidence.trusted,
        "widths": list(frozen.evidence.widths),
    }
    write_tensors(folder / FEATURES, "features of an estimate", 3, tensors, numbers)
    return frozen, stage.datamodule.class_names


def _frozen(student: StudentDistillation, clip: ClipConfig) -> Frozen:
    """Compute the features, of the teacher as refined targets do."""
    inputs = student.target_inputs()
    further = [record.source for record in further_images(inputs)[0]]
    target, lists = Refined(views=_VIEWS), [None, further] if further else [None]
    evidence = target.evidence(inputs)
    features = [inputs.features(images, target.views, pooled=True) for images in lists]
    joint, teacher = (torch.cat([part[k].still for part in features]) for k in range(2))
    # stored with as many views, as an encoder of the targets
    network, views = load_image_clip(clip), target.views
    of_student = torch.cat([inputs.features_of(network, images, views).still for images in lists])
    still = MULTI_CLASS.log_probabilities(inputs.teacher.logits(joint))
    return Frozen(evidence, still, of_student, teacher, len(inputs.pool.targeted))
