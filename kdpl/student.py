"""Stage 2: distil the teacher into a small CLIP image tower on unlabelled images (PromptKD, arXiv 2403.02781).

The paper's ablations are settings of the same module; see configs/student/.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from kdpl.callbacks.choice import BestOnBaseTest
from kdpl.callbacks.handover import SaveClassifier
from kdpl.callbacks.student_checks import EnoughImages, SameViews
from kdpl.callbacks.target_preparation import PrepareTargets
from kdpl.class_vectors import ClassVectors
from kdpl.classification import ClassifyingModule, room_callbacks
from kdpl.classifier import Classifier
from kdpl.clip import (
    ClipConfig,
    CosineHead,
    Frozen,
    TimmTower,
    load_clip,
    load_image_clip,
    store_frozen,
)
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import domain_of
from kdpl.data.decoding import Decoding
from kdpl.data.needs import Needs
from kdpl.errors import ConfigError
from kdpl.losses import feature_l1, feature_mse
from kdpl.metrics import TRAIN_AGREEMENT, TRAIN_LOSS
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.prompts import PromptConfig
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.messages import inform
from kdpl.targets import Target, build_target
from kdpl.targets.teachers import Teachers

_PREVIEW_IMAGES = 256

# the words before a class name for the student's own text tower
_OWN_CONTEXT = "a photo of a"

_FEATURE_LOSSES = {"l1": feature_l1, "mse": feature_mse}


class StudentDistillation(ClassifyingModule):
    """Visual prompts and a projector on a frozen CLIP image tower, trained to reproduce the teacher's predictions.

    Loss: λ · τ² · KL(teacher ‖ student) / (B·C) over the classes of the frozen class vectors, which both share. Teacher
    and student see the same augmented image.

    Args:
        clip: The student's CLIP, or a network of timm; a text tower is used only with ``text_features: student``.
        teacher: The run folder of stage 1.
        class_vectors: File of class vectors instead of those in ``teacher``; they must come from the same teacher.
        more_teachers: Run folders of further teachers, for the same classes in the same order; the student learns the
            mean of all predictions, and keeps the class vectors of ``teacher``.
        vision_prompts: Size of the student's visual prompts; depth 0 trains only the projector.
        prompt_init: ``normal`` draws them from N(0, 0.02²) as published; ``mean_token`` starts them at the mean patch
            token that enters their layer, over unlabelled images, plus that noise.
        fine_tune: Train the whole image tower as well; None: only a network of timm, which is no CLIP.
        text_features: ``teacher``: both share the teacher's class vectors, and the projector maps into their space;
            ``student``: the student uses text features of its own CLIP, and has no projector.
        target: The distribution that the student learns: ``teacher``; ``refined``, the teacher's predictions corrected
            by the shape of the pool (docs/targets.md); or your own ``kdpl.targets.Target``, with its ``class_path`` and
            ``init_args``.
        distill: ``kl`` of the predictions; or the ``l1`` or ``mse`` distance of the image features, without τ.
        kd_weight: λ; published are 1000, and 200 for FGVCAircraft, Flowers102 and DTD.
        temperature: τ.
        pool_filter: Leave out unlabelled images that the teacher finds less similar to all classes than all but this
            share of the labelled images, such as 0.05; None keeps all.
        choice: ``last`` takes the last epoch; ``best_on_base_test``, the published choice, takes the epoch that is best
            on the base classes' TEST images, and so looks at the test set.
        optim: Optimiser and schedule.
        compile: Compile the image towers.

    Raises:
        ConfigError: The settings do not fit each other or the CLIP.
        ArtifactError: The teacher's artifacts are missing, or do not fit each other.
        WeightsError: A CLIP model or its weights cannot be loaded.
    """

    def __init__(
        self,
        clip: ClipConfig,
        teacher: str,
        class_vectors: str | None = None,
        more_teachers: list[str] = [],  # noqa: B006 - never changed
        vision_prompts: PromptConfig = PromptConfig(),
        prompt_init: Literal["normal", "mean_token"] = "normal",
        fine_tune: bool | None = None,
        text_features: Literal["teacher", "student"] = "teacher",
        target: Target | str = "teacher",
        distill: Literal["kl", "l1", "mse"] = "kl",
        kd_weight: float = 1000.0,
        temperature: float = 1.0,
        pool_filter: float | None = None,
        choice: Literal["last", "best_on_base_test"] = "last",
        optim: OptimConfig = OptimConfig(),
        compile: bool = False,
    ) -> None:
        inform(f"loading {clip}")
        own = load_clip(clip) if text_features == "student" else None
        loaded = own if own is not None else load_image_clip(clip)
        super().__init__(loaded, compile)
        self.prompt_init = prompt_init
        self.distill = distill
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.pool_filter = pool_filter
        self.choice = choice
        self.optim = optim
        if fine_tune is None:
            fine_tune = isinstance(loaded.image_tower, TimmTower)
        self.target = build_target(target)
        self._require_consistent(text_features, more_teachers, bool(vision_prompts.depth) or fine_tune)
        self.teacher_folder = Path(teacher)
        self.shared_vectors = ClassVectors.of_teacher(teacher, class_vectors)
        if loaded.logit_scale is None:
            # no CLIP's own: logits as sharp as the teacher's
            self.logit_scale = self.shared_vectors.logit_scale
        self.vectors = self.shared_vectors if own is None else self.shared_vectors.of_untuned(own, _OWN_CONTEXT)
        out_dim = self.shared_vectors.vectors.shape[1] if own is None else None
        self.encoder = StudentEncoder(
            loaded.image_tower, vision_prompts.length, vision_prompts.depth, out_dim, fine_tune
        )
        # not part of the state: the class vectors are in the run's folder, and no process needs to broadcast them
        self.head = Frozen(CosineHead(self.vectors.vectors))
        self.teachers = Teachers(self.teacher_folder, self.shared_vectors, more_teachers)

    def training_step(self, batch: UnlabeledBatch, batch_idx: int) -> Tensor:
        """Compute the loss on unlabelled images."""
        if batch.teacher_features is None:
            teacher_features = self.teachers.features(*self._teacher_views(batch))
        else:
            teacher_features = batch.teacher_features.float()
        target_logits = self.target.logits(self.teachers.logits(teacher_features), batch.indices)
        features = self.encoder(batch.images)
        logits = self.head.module(features, self.logit_scale)
        if self.distill == "kl":
            distance = self.task.divergence(logits, target_logits, self.temperature)
        else:
            distance = _FEATURE_LOSSES[self.distill](features, teacher_features)
        loss = self.kd_weight * distance
        self.loss_terms = {self.distill: loss.detach()}
        agreement = self.task.same(logits, target_logits).float().mean()
        self.log_training({TRAIN_LOSS: loss.detach(), TRAIN_AGREEMENT: agreement}, len(batch.images))
        return loss

    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C], with the student CLIP's own scale."""
        logits: Tensor = self.head.module(self.encoder(images), self.logit_scale)
        return logits

    def configure_optimizers(self) -> Any:
        """SGD or AdamW over all that is trained, with the schedule of the settings."""
        steps = int(self.trainer.estimated_stepping_batches) if self.optim.warmup_steps is not None else None
        return build_optimizer(self.parameters(), self.optim, self.trainer.max_epochs, steps)

    def preparations(self) -> list[Callback]:
        """Choose images and prepare the target before the first step, if there is anything to do."""
        prepares = type(self.target).prepare is not Target.prepare or self.pool_filter is not None
        return [PrepareTargets(self.target, self.pool_filter)] if prepares else []

    def configure_callbacks(self) -> Sequence[Callback]:
        """Check and prepare, choose the epoch if asked to, then write the classifier."""
        asked: list[Callback] = [BestOnBaseTest()] if self.choice == "best_on_base_test" else []
        checks: list[Callback] = [SameViews()]
        checks += [] if self.encoder.projector is None else [EnoughImages()]
        return [*checks, *self.preparations(), *asked, *room_callbacks(self), SaveClassifier()]

    def on_fit_start(self) -> None:
        """Move the prompts to the mean patch tokens if asked to, unless the run is resumed."""
        has_prompts = self.encoder.prompts is not None
        if has_prompts and self.prompt_init == "mean_token" and self.trainer.ckpt_path is None:
            images = domain_of(self.trainer).preview(_PREVIEW_IMAGES, self.resizing)
            self.encoder.init_at_mean_tokens(images.to(self.device))

    def setup(self, stage: str) -> None:
        """Check the classes, and load the teachers for a fit unless their features are cached."""
        domain = domain_of(self.trainer)
        self.shared_vectors.require_names(domain.class_names, "the student's teacher")
        if stage == "fit" and domain.teacher_cache is None:
            self.load_teachers()
        super().setup(stage)

    def load_teachers(self) -> None:
        """Load image tower and prompts of each teacher, unless that was done."""
        self.teachers.load(self.compiles)

    @property
    def needs(self) -> Needs:
        """Unlabelled images, and their views for the teachers."""
        return Needs("unlabeled", self.resizing, self.teachers.describe)

    def _teacher_views(self, batch: UnlabeledBatch) -> list[Tensor]:
        """Choose the view for each teacher; a ConfigError if a batch lacks some."""
        views = {self.resizing: batch.images, **batch.teacher_views}
        needed = [teacher.resizing for teacher in self.teachers.describe()]
        if not views.keys() >= {*needed}:
            ways = len({self.resizing, *needed})
            raise ConfigError(
                f"a batch has {len(views)} views of each image, but student and teachers resize images in {ways} ways: "
                "let the datamodule make a view for each, as DomainDataModule does"
            )
        return [views[resizing] for resizing in needed]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the CLIP and the teachers, which are not part of the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        self.teachers.note_in(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise an ArtifactError for a checkpoint that is not a student's of this teacher."""
        self.teachers.require_in(checkpoint)
        super().on_load_checkpoint(checkpoint)

    def classifier(self, decoding: Decoding = Decoding()) -> Classifier:
        """Return what ships: the encoder, in float32, and the class vectors, for image files opened by ``decoding``."""
        store_frozen(self.encoder, torch.float32)
        return Classifier(self.encoder, self.vectors, self.logit_scale, self.clip, decoding)

    def _require_consistent(self, text_features: str, more: list[str], trains_tower: bool) -> None:
        """Raise a ConfigError for settings that are out of range or contradict each other."""
        if self.kd_weight <= 0 or self.temperature <= 0:
            raise ConfigError(f"kd_weight is {self.kd_weight} and temperature {self.temperature}: both must be above 0")
        if self.pool_filter is not None and not 0 < self.pool_filter < 1:
            raise ConfigError(
                f"pool_filter must be above 0 and below 1, not {self.pool_filter}: set 0.05, or null for none"
            )
        if text_features == "student" and self.distill != "kl":
            raise ConfigError(
                f"distill {self.distill} compares features in the teacher's embedding space, but text_features: "
                "student has no projector into it: set one of the two back to its default"
            )
        if type(self.target) is not Target and self.distill != "kl":
            raise ConfigError(
                f"distill {self.distill} compares features and ignores the target {type(self.target).__name__}: set "
                "distill: kl"
            )
        if more and (self.distill != "kl" or self.temperature != 1):
            raise ConfigError(
                f"several teachers have no features in common for distill {self.distill}, and their mean is defined "
                f"at temperature 1, not {self.temperature}: set distill: kl and temperature: 1, or more_teachers: []"
            )
        if text_features == "student" and not trains_tower:
            raise ConfigError(
                "with text_features: student there is no projector, and without visual prompts nothing to train: set "
                "vision_prompts.depth above 0, or fine_tune: true"
            )
