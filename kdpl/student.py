"""Stage 2: distil the teacher into a small CLIP image tower on unlabelled images (PromptKD, arXiv 2403.02781).

The paper's ablations are settings of the same module; see configs/student/.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from kdpl.callbacks import BestOnBaseTest, SaveClassifier
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip.frozen import Frozen
from kdpl.clip.head import CosineHead
from kdpl.clip.image import promptable
from kdpl.clip.loading import ClipConfig, load_clip, load_image_clip
from kdpl.data.datasets import CachedView
from kdpl.data.teacher_cache import TeacherCache
from kdpl.domain import CachingDomain, domain_of
from kdpl.errors import ArtifactError, ConfigError
from kdpl.evaluation import EvaluatedModule
from kdpl.frozen_teacher import FrozenTeacher, load_teacher
from kdpl.losses import distillation_kl, feature_l1, feature_mse
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.prompts import PromptConfig, PromptMethod
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.peers import require_devices_for_batch_norm
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE

_CHECKPOINT_KEY = "kdpl_class_vectors"
_CHECKPOINT_REMEDY = "give another checkpoint, or remove it to start anew"
_VIEWS_KEY = "kdpl_views"
_VECTORS_KEY = "head.class_vectors"
_PREVIEW_IMAGES = 256

# the words before a class name where the student's own text tower speaks
_OWN_CONTEXT = "a photo of a"

_FEATURE_LOSSES = {"l1": feature_l1, "mse": feature_mse}


UnlabeledBatch = tuple[Tensor, Tensor] | CachedView
"""Images uint8 [B, 3, S, S] and indices [B]; or with the teacher's features, as far as they are cached."""


class _Built(NamedTuple):
    encoder: StudentEncoder
    head: CosineHead
    vectors: ClassVectors


class StudentDistillation(EvaluatedModule):
    """Visual prompts and a projector on a frozen CLIP image tower, trained to predict as the teacher does.

    Loss: λ · τ² · KL(teacher ‖ student) / (B·C) over the classes of the frozen class vectors, which both share. Teacher
    and student see the same augmented image.

    Args:
        clip: The student's CLIP; its text tower is used with ``text_features: student`` alone.
        teacher: The run folder of stage 1.
        class_vectors: Class vectors to use in place of those in ``teacher``, or when testing in place of the
            checkpoint's; they must come from the same teacher.
        vision_prompts: Size of the student's visual prompts; depth 0 trains the projector alone.
        prompt_init: ``normal`` draws them from N(0, 0.02²) as published; ``mean_token`` starts them at the mean patch
            token that enters their layer, over unlabelled images, plus that noise.
        fine_tune: Train the whole image tower as well.
        text_features: ``teacher``: student and teacher share the teacher's class vectors, which the projector leads to;
            ``student``: the student's own CLIP gives text features for its side, and there is no projector.
        distill: ``kl`` of the predictions; or the ``l1`` or ``mse`` distance of the image features, without τ.
        kd_weight: λ; published are 1000, and 200 for FGVCAircraft, Flowers102 and DTD.
        temperature: τ.
        choice: ``last`` takes the last epoch; ``best_on_base_test``, the published choice, takes the epoch that is best
            on the base classes' TEST images, and so looks at the test set.
        optim: Optimiser and schedule.
        compile: Compile the image towers.

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
        fine_tune: bool = False,
        text_features: Literal["teacher", "student"] = "teacher",
        distill: Literal["kl", "l1", "mse"] = "kl",
        kd_weight: float = 1000.0,
        temperature: float = 1.0,
        choice: Literal["last", "best_on_base_test"] = "last",
        optim: OptimConfig = OptimConfig(),
        compile: bool = False,
    ) -> None:
        own = load_clip(clip) if text_features == "student" else None
        loaded = own if own is not None else load_image_clip(clip)
        super().__init__(loaded, compile)
        if kd_weight <= 0 or temperature <= 0:
            raise ConfigError(f"kd_weight is {kd_weight} and temperature {temperature}: both must be above 0")
        if own is not None and distill != "kl":
            raise ConfigError(
                f"distill {distill} compares features in the teacher's embedding, where text_features: student does "
                "not lead: set one of them to its default"
            )
        if own is not None and not vision_prompts.depth and not fine_tune:
            raise ConfigError(
                "with text_features: student there is no projector, and without visual prompts nothing to train: set "
                "vision_prompts.depth above 0, or fine_tune: true"
            )
        self.teacher_folder = Path(teacher)
        self.class_vectors_path = Path(class_vectors) if class_vectors else self.teacher_folder / CLASS_VECTORS_FILE
        self.given_class_vectors = class_vectors is not None
        self.prompt_config = vision_prompts
        self.prompt_init = prompt_init
        self.fine_tune = fine_tune
        self.distill = distill
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.choice = choice
        self.optim = optim
        # no module of this one: the encoder carries or owns the tower
        self.image_clip = loaded
        self.own_text = own
        self.encoder: StudentEncoder | None = None
        self.head: CosineHead | None = None
        self.vectors: ClassVectors | None = None
        self.teacher: Frozen[FrozenTeacher] | None = None
        self.cache: TeacherCache | None = None
        self.view_source: tuple[int, int | None] | None = None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Choose the epoch if asked to, then write the classifier."""
        return [*([BestOnBaseTest()] if self.choice == "best_on_base_test" else []), SaveClassifier()]

    def setup(self, stage: str) -> None:
        """For fit: read the teacher. Otherwise all that is needed comes with the checkpoint."""
        super().setup(stage)
        if stage == "fit":
            require_devices_for_batch_norm(self.trainer)
            vectors = self.read_vectors(self)
            self._build(self._own(vectors), str(self.class_vectors_path))
            domain = domain_of(self)
            if isinstance(domain, CachingDomain):
                self.cache = domain.open_teacher_cache(vectors.teacher, vectors.vectors.shape[1])
                self.view_source = domain.view_source
            with_tower = self.cache is None or self.cache.num_missing > 0
            teacher = load_teacher(self.teacher_folder, vectors, self.class_vectors_path, with_tower)
            if self.compiles and teacher.tower is not None:
                teacher.tower.compile_parts()
            self.teacher = Frozen(teacher)

    def read_vectors(self, attached: LightningModule) -> ClassVectors:
        """Read the teacher's class vectors, for the classes of the domain that a module is attached to."""
        vectors = ClassVectors.load(self.class_vectors_path)
        vectors.require_names(domain_of(attached).class_names, str(self.class_vectors_path))
        return vectors

    def _own(self, vectors: ClassVectors) -> ClassVectors:
        """The vectors of the same classes that the student's side uses: the shared ones, or its own."""
        if self.own_text is None:
            return vectors
        own, none = self.own_text, PromptConfig(depth=0)
        zero_shot = PromptMethod(none, none, _OWN_CONTEXT, own)
        return replace(
            vectors,
            vectors=zero_shot.encode_names(vectors.texts, own.text_tower, own.tokenize),
            clip=self.clip,
            logit_scale=self.logit_scale,
            context=_OWN_CONTEXT,
            preprocessing=self.preprocessing,
        )

    def _build(self, vectors: ClassVectors, source: str) -> None:
        """Make what depends on the class vectors: the buffer, and the projector's width."""
        vectors.require_names(domain_of(self).class_names, source)
        if self.encoder is None:
            tower, prompts = self.image_clip.image_tower, self.prompt_config
            out_dim = vectors.vectors.shape[1] if self.own_text is None else None
            self.encoder = StudentEncoder(tower, prompts.length, prompts.depth, out_dim, self.fine_tune)
        self.vectors = vectors
        self.head = CosineHead(vectors.vectors)
        # or DistributedDataParallel would send them in every step
        self._ddp_params_and_buffers_to_ignore = [_VECTORS_KEY]

    def _built(self) -> _Built:
        if self.encoder is None or self.head is None or self.vectors is None:
            raise ConfigError(
                "a student is validated and tested from a checkpoint: give --ckpt_path, or the --out of a finished run"
            )
        return _Built(self.encoder, self.head, self.vectors)

    def _teacher(self) -> FrozenTeacher:
        if self.teacher is None:
            raise ConfigError("the teacher is there during fit alone: run the fit subcommand")
        return self.teacher.module

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - lightning's own union of possibilities
        """SGD or AdamW over prompts and projector, one schedule step per epoch."""
        return build_optimizer(self.parameters(), self.optim, self.trainer.max_epochs)

    def on_fit_start(self) -> None:
        """Move the prompts to the mean tokens if asked to, in a run that does not go on from a checkpoint."""
        prompts = self._built().encoder.prompts
        if self.prompt_init == "mean_token" and prompts is not None and self.trainer.ckpt_path is None:
            images = domain_of(self).preview(_PREVIEW_IMAGES, self.image_size)
            prompts.init_at_mean_tokens(promptable(self.image_clip.image_tower), images.to(self.device))

    def _teacher_features(self, batch: UnlabeledBatch) -> Tensor:
        """Give the teacher's features [B, D] of a batch: the cached ones, and of the teacher what is not there yet."""
        if not isinstance(batch, CachedView):
            return self._teacher().features(batch[0])
        features = batch.feature.float()
        if self.cache is not None and self.cache.num_missing:
            missing = features.isnan().any(dim=1)
            if missing.any():
                computed = self._teacher().features(batch.image[missing])
                self.cache.write(batch.row[missing], computed)
                # rounded as in the cache, so that it does not matter who came first
                features[missing] = computed.half().float()
        return features

    def training_step(self, batch: UnlabeledBatch, batch_idx: int) -> Tensor:
        """Compute the loss on unlabelled images uint8 [B, 3, S, S]."""
        del batch_idx
        images, teacher, built = batch[0], self._teacher(), self._built()
        teacher_features = self._teacher_features(batch)
        teacher_logits = teacher.logits(teacher_features)
        features = built.encoder(images)
        logits = built.head(features, self.logit_scale)
        if self.distill == "kl":
            distance = distillation_kl(logits, teacher_logits, self.temperature)
        else:
            distance = _FEATURE_LOSSES[self.distill](features, teacher_features)
        loss = self.kd_weight * distance
        self.loss_terms = {self.distill: loss.detach()}
        agreement = (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
        self.log_training({"train/loss": loss.detach(), "train/agreement": agreement}, len(images))
        return loss

    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C], with the student CLIP's own scale."""
        built = self._built()
        logits: Tensor = built.head(built.encoder(images), self.logit_scale)
        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what the class vectors are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_CHECKPOINT_KEY] = self._built().vectors.fields()
        checkpoint[_VIEWS_KEY] = self.view_source

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build from the checkpoint what it was saved with, and refuse one of another student or teacher."""
        saved = checkpoint.get(_CHECKPOINT_KEY)
        state = checkpoint.get("state_dict", {})
        if saved is None or _VECTORS_KEY not in state:
            raise ArtifactError(
                "the checkpoint is not one of a student: give a checkpoint of a StudentDistillation run"
            )
        super().on_load_checkpoint(checkpoint)
        vectors = ClassVectors.from_fields(state[_VECTORS_KEY], saved, "the checkpoint", _CHECKPOINT_REMEDY)
        if self.vectors is not None and self.vectors.teacher != vectors.teacher:
            raise ArtifactError(
                f"the checkpoint was distilled from another teacher than {self.teacher_folder}: "
                "use the teacher of its run, or start in a new folder"
            )
        source = checkpoint.get(_VIEWS_KEY)
        if self.view_source is not None and source is not None and tuple(source) != self.view_source:
            raise ConfigError(
                f"the run began with other views of its images ({_words(*source)}) than the settings give now "
                f"({_words(*self.view_source)}): set data.init_args.teacher_cache to what it was, or choose another "
                "--out"
            )
        if self.given_class_vectors and self.vectors is None:
            vectors = self._replaced(vectors)
            state[_VECTORS_KEY] = vectors.vectors
        self._build(vectors, "the checkpoint")

    def _replaced(self, distilled: ClassVectors) -> ClassVectors:
        """The vectors of ``class_vectors`` in place of those that were distilled against."""
        vectors = self.read_vectors(self)
        if vectors.teacher != distilled.teacher:
            raise ArtifactError(
                f"the class vectors {self.class_vectors_path} were frozen by another teacher than the one that the "
                "checkpoint was distilled from: make them with that teacher"
            )
        return self._own(vectors)

    def classifier(self) -> Classifier:
        """Give what ships: the encoder and the class vectors."""
        encoder, _, vectors = self._built()
        return Classifier(encoder, vectors, self.logit_scale, self.clip)


def _words(seed: int, views: int | None) -> str:
    return f"{f'{views} of each' if views else 'one in each epoch'}, seed {seed}"
