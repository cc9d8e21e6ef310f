"""Inputs of the preparation of a student's fit: the data, the teacher, and the device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kdpl.class_vectors import FrozenTeacher
from kdpl.data.datamodule import DomainDataModule

Encoder = Callable[[Tensor], Tensor]
"""Encodes images uint8 [B, 3, S, S] into features [B, D]."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """Inputs of the preparation of a student's fit.

    Attributes:
        teacher: The teacher, possibly not loaded yet.
        load_teacher: Loads the teacher once, in the precision of the training.
        teacher_cache: Folder of the teacher's cache; None: no cache.
    """

    trainer: Trainer
    data: DomainDataModule
    teacher: FrozenTeacher
    load_teacher: Callable[[], object]
    device: torch.device
    teacher_cache: str | None = None

    def encoder(self, pooled: bool = False) -> Encoder:
        """Return the teacher as a function of images; it is loaded on the first call.

        With ``pooled``, the pooled features of its image tower follow its features, see
        ``FrozenTeacher.both_features``.
        """
        load, teacher = cache(self.load_teacher), self.teacher

        def encode(images: Tensor) -> Tensor:
            load()
            with self.trainer.precision_plugin.forward_context():
                if not pooled:
                    return teacher.features(images.to(self.device))
                return torch.cat(teacher.both_features(images.to(self.device)), dim=1)

        return encode
