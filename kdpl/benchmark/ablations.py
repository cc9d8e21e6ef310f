"""Students of PromptKD's ablations (arXiv 2403.02781) that need more than a setting."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdpl.clip import ClipConfig, CosineHead, Frozen, load_clip
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.errors import ConfigError
from kdpl.losses import DIFFERENCES
from kdpl.prompts import PromptConfig, PromptMethod
from kdpl.prompts.projector import Projector
from kdpl.prompts.text import CONTEXT
from kdpl.student import StudentDistillation
from kdpl.tasks import agreement_of, require_one_class


class FeatureDistillation(StudentDistillation):
    """Learns the teacher's image features: loss λ · the mean difference of the kind ``loss.kind``.

    Args:
        settings: Arguments of ``StudentDistillation``; ``loss.kind`` is ``l1`` or ``mse``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _require_difference(self.loss.kind)

    @classmethod
    def require_possible(cls, settings: Mapping[str, Any], data: DomainDataModule) -> None:
        """Refuse what a student refuses, the kind ``kl``, and several labels per image."""
        super().require_possible(settings, data)
        _require_difference(settings["loss"]["kind"])
        require_one_class(data.task, cls.__name__)

    def training_step(self, batch: UnlabeledBatch, batch_idx: int) -> Tensor:
        """Compute the loss on unlabelled images."""
        target, features = self._teacher_features(batch), self.encoder(batch.images)
        distance = DIFFERENCES[self.loss.kind](features, target)
        terms: dict[str, Tensor] = {self.loss.kind: self.loss.weight * distance}
        logits = self.logits(features), self.teacher.module.logits(target)
        agreement = agreement_of(self.task.agreements(*logits))
        return self.sum_and_log(terms, len(batch.images), agreement=agreement)


class OwnTextFeatures(StudentDistillation):
    """Uses the text features of the student's CLIP as class vectors, without a projector.

    Args:
        clip: The student's CLIP, of both towers.
        settings: Further arguments of ``StudentDistillation``.
    """

    def __init__(self, clip: ClipConfig, **settings: Any) -> None:
        super().__init__(clip=clip, **settings)
        whole, none = load_clip(clip), PromptConfig(depth=0)
        method = PromptMethod(none, none, CONTEXT, whole)
        rows = method.encode_names(self.vectors.texts, whole.text_tower, whole.tokenize)
        # with the teacher's preprocessing, which is that of its views
        self.vectors = replace(
            self.vectors,
            vectors=rows,
            clip=whole.identity,
            logit_scale=whole.logit_scale,
            context=CONTEXT,
        )
        self.encoder.projector = Projector(self.encoder.tower.module.embed_dim, rows.shape[1], 0)
        self.head = Frozen(CosineHead(rows))


def _require_difference(kind: str) -> None:
    if kind not in DIFFERENCES:
        raise ConfigError(
            f"features have no loss.kind {kind}: set it to {' or '.join(DIFFERENCES)}, as in "
            "configs/student/feature_l1.yaml"
        )
