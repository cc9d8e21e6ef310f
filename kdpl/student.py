"""Stage 2: distil the teacher into a small CLIP image tower on unlabelled images (PromptKD, arXiv 2403.02781)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from kdpl.callbacks import SaveClassifier
from kdpl.class_vectors import FILE as CLASS_VECTORS_FILE
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, load_clip
from kdpl.domain import domain_of
from kdpl.errors import ArtifactError, ConfigError, WeightsError
from kdpl.evaluation import EvaluatedModule
from kdpl.head import CosineHead
from kdpl.losses import distillation_kl
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.prompts import VisionPrompts
from kdpl.prompts.tuned import FILE as PROMPTS_FILE
from kdpl.prompts.tuned import TunedPrompts
from kdpl.prompts.vision import encode_images
from kdpl.student_encoder import StudentEncoder
from kdpl.teacher import PromptConfig
from kdpl.towers import Frozen, ImageTower

_CHECKPOINT_KEY = "kdpl_class_vectors"
_VECTORS_KEY = "head.class_vectors"
_PREVIEW_IMAGES = 256


class _Built(NamedTuple):
    encoder: StudentEncoder
    head: CosineHead
    vectors: ClassVectors


class StudentDistillation(EvaluatedModule):
    """Visual prompts and a projector on a frozen CLIP image tower, trained to predict as the teacher does.

    Loss: λ · τ² · KL(teacher ‖ student) / (B·C) over the classes of the frozen class vectors, which both share. Teacher
    and student see the same augmented image.

    Args:
        clip: The student's CLIP; its text tower is not used.
        teacher: The run folder of stage 1.
        class_vectors: Class vectors to use in place of those in ``teacher``; they must come from the same teacher.
        vision_prompts: Size of the student's visual prompts.
        prompt_init: ``normal`` draws them from N(0, 0.02²) as published; ``mean_token`` starts them at the mean patch
            token that enters their layer, over unlabelled images, plus that noise.
        kd_weight: λ; published are 1000, and 200 for FGVCAircraft, Flowers102 and DTD.
        temperature: τ.
        optim: Optimiser and schedule.

    Raises:
        ConfigError: The settings do not fit each other or the CLIP.
        ArtifactError: The teacher's artifacts are missing, or do not fit the data or each other.
        WeightsError: A CLIP cannot be had.
    """

    train_split: Literal["labeled", "unlabeled"] = "unlabeled"

    def __init__(
        self,
        clip: ClipConfig,
        teacher: str,
        class_vectors: str | None = None,
        vision_prompts: PromptConfig = PromptConfig(),
        prompt_init: Literal["normal", "mean_token"] = "normal",
        kd_weight: float = 1000.0,
        temperature: float = 1.0,
        optim: OptimConfig = OptimConfig(),
    ) -> None:
        loaded = load_clip(clip)
        super().__init__(loaded)
        if kd_weight <= 0 or temperature <= 0:
            raise ConfigError(f"kd_weight is {kd_weight} and temperature {temperature}: both must be above 0")
        self.teacher_folder = Path(teacher)
        self.class_vectors_path = Path(class_vectors) if class_vectors else self.teacher_folder / CLASS_VECTORS_FILE
        self.prompt_config = vision_prompts
        self.prompt_init = prompt_init
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.optim = optim
        self.tower = Frozen(loaded.image_tower)
        self.encoder: StudentEncoder | None = None
        self.head: CosineHead | None = None
        self.vectors: ClassVectors | None = None
        self.teacher_tower: Frozen[ImageTower] | None = None
        self.teacher_prompts: Frozen[VisionPrompts] | None = None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Write the classifier at the end."""
        return [SaveClassifier()]

    def setup(self, stage: str) -> None:
        """For fit: read the teacher. Otherwise all that is needed comes with the checkpoint."""
        super().setup(stage)
        if stage == "fit":
            self._build(ClassVectors.load(self.class_vectors_path), str(self.class_vectors_path))
            self._load_teacher()

    def _build(self, vectors: ClassVectors, source: str) -> None:
        """Make what depends on the class vectors: the buffer, and the projector's width."""
        vectors.require_names(domain_of(self).class_names, source)
        if self.encoder is None:
            config = self.prompt_config
            tower, out_dim = self.tower.module, vectors.vectors.shape[1]
            self.encoder = StudentEncoder(tower, config.length, config.depth, out_dim)
        self.vectors = vectors
        self.head = CosineHead(vectors.vectors)

    def _load_teacher(self) -> None:
        vectors = self._built().vectors
        prompts = TunedPrompts.load(self.teacher_folder / PROMPTS_FILE)
        if prompts.teacher != vectors.teacher:
            raise ArtifactError(
                f"the class vectors {self.class_vectors_path} were frozen by another teacher than the one in "
                f"{self.teacher_folder}: give the class vectors and the folder of one run"
            )
        source = vectors.clip
        teacher = load_clip(ClipConfig(source.model, source.pretrained, source.quick_gelu))
        if teacher.identity.fingerprint != source.fingerprint:
            raise WeightsError(
                f"the weights {source.pretrained!r} of {source.model} are not those that the teacher was tuned on: "
                "restore them, or run stage 1 again"
            )
        if vectors.vectors.shape[1] != teacher.image_tower.embed_dim:
            raise ArtifactError(
                f"the class vectors {self.class_vectors_path} have width {vectors.vectors.shape[1]}, the embedding of "
                f"their teacher {source.model} has {teacher.image_tower.embed_dim}: run stage 1 again"
            )
        if teacher.preprocessing.image_size != self.image_size:
            raise ConfigError(
                f"the teacher {source.model} takes images of {teacher.preprocessing.image_size} pixels and the student "
                f"{self.clip.model} of {self.image_size}: both see the same image, so choose CLIPs of one size"
            )
        self.teacher_tower = Frozen(teacher.image_tower)
        tuned = prompts.vision_prompts(teacher.image_tower)
        self.teacher_prompts = Frozen(tuned) if tuned is not None else None

    def _built(self) -> _Built:
        if self.encoder is None or self.head is None or self.vectors is None:
            raise ConfigError(
                "a student is validated and tested from a checkpoint: give --ckpt_path, or the --out of a finished run"
            )
        return _Built(self.encoder, self.head, self.vectors)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - lightning's own union of possibilities
        """SGD or AdamW over prompts and projector, one schedule step per epoch."""
        return build_optimizer(self.parameters(), self.optim, self.trainer.max_epochs)

    def on_fit_start(self) -> None:
        """Move the prompts to the mean tokens if asked to, in a run that does not go on from a checkpoint."""
        prompts = self._built().encoder.prompts
        if self.prompt_init == "mean_token" and prompts is not None and self.trainer.ckpt_path is None:
            images = domain_of(self).preview(_PREVIEW_IMAGES, self.image_size)
            prompts.init_at_mean_tokens(self.tower.module, images.to(self.device))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss on unlabelled images uint8 [B, 3, S, S]."""
        del batch_idx
        images = batch[0]
        student_logits = self.class_logits(images)
        teacher_logits = self.teacher_logits(images)
        kl = distillation_kl(student_logits, teacher_logits, self.temperature)
        agreement = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
        loss = self.kd_weight * kl
        self.log("train/loss", loss.detach(), prog_bar=True, on_epoch=True, on_step=False, batch_size=len(images))
        self.log("train/agreement", agreement, on_epoch=True, on_step=False, batch_size=len(images))
        return loss

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Give the tuned teacher's logits [B, C] on images uint8 [B, 3, S, S], with the teacher's own scale."""
        if self.teacher_tower is None:
            raise ConfigError("the teacher is there during fit alone: run the fit subcommand")
        prompts = self.teacher_prompts.module if self.teacher_prompts is not None else None
        features = encode_images(self.teacher_tower.module, images, prompts)
        built = self._built()
        logits: Tensor = built.head(features, built.vectors.logit_scale)
        return logits

    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C], with the student CLIP's own scale."""
        built = self._built()
        logits: Tensor = built.head(built.encoder(images), self.logit_scale)
        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what the class vectors are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_CHECKPOINT_KEY] = self._built().vectors.fields()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build from the checkpoint what it was saved with, and refuse one of another student or teacher."""
        saved = checkpoint.get(_CHECKPOINT_KEY)
        state = checkpoint.get("state_dict", {})
        if saved is None or _VECTORS_KEY not in state:
            raise ArtifactError(
                "the checkpoint is not one of a student: give a checkpoint of a StudentDistillation run"
            )
        super().on_load_checkpoint(checkpoint)
        vectors = ClassVectors.from_fields(state[_VECTORS_KEY], saved, "the checkpoint")
        if self.vectors is not None and self.vectors.teacher != vectors.teacher:
            raise ArtifactError(
                f"the checkpoint was distilled from another teacher than {self.teacher_folder}: "
                "use the teacher of its run, or start in a new folder"
            )
        self._build(vectors, "the checkpoint")

    def classifier(self) -> Classifier:
        """Give what ships: the encoder and the class vectors."""
        encoder, _, vectors = self._built()
        return Classifier(encoder, vectors, self.logit_scale, self.clip)
