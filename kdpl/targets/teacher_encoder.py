"""A student's teacher as a function of images, in the precision of the training."""

from collections.abc import Callable
from functools import cache, partial

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kdpl.class_vectors import FrozenTeacher
from kdpl.student import StudentDistillation


def load_teacher(trainer: Trainer, student: StudentDistillation, number: int) -> FrozenTeacher:
    """Load a teacher in the precision of the training, unless that was done.

    Of several teachers it is the one of this ``number``.
    """
    student.load_teachers()
    teacher = student.teachers.read()[number]
    # outside the precision's context, in which weights would be rounded as they are read
    trainer.precision_plugin.convert_module(teacher)
    student.apply_precision()
    return teacher


def teacher_encoder(
    trainer: Trainer, student: StudentDistillation, number: int, pooled: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return the encoder of ``load_teacher``, of images on the CPU; it loads on its first call.

    With ``pooled``, its features are followed by the pooled ones of its image tower, see
    ``FrozenTeacher.both_features``.
    """
    load = cache(partial(load_teacher, trainer, student, number))

    def encode(images: Tensor) -> Tensor:
        teacher = load()
        with trainer.precision_plugin.forward_context():
            if not pooled:
                return teacher.features(images.to(student.device))
            return torch.cat(teacher.both_features(images.to(student.device)), dim=1)

    return encode
