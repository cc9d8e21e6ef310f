"""Stage 2: distil the teacher into a small image tower on unlabelled images (arXiv 2403.02781).

The paper's ablations are settings of the same module; see configs/student/.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, OpenUnitInterval
from lightning.pytorch import Callback
from torch import Tensor

from kdpl.callbacks import SaveClassifier
from kdpl.callbacks.checkpoints import SameRun
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier, Decoding
from kdpl.clip import ClipConfig, CosineHead, Frozen, load_image_clip, store_frozen
from kdpl.data.batches import Batch, UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.names import Indices
from kdpl.data.needs import Needs
from kdpl.errors import ConfigError
from kdpl.losses import DIFFERENCES, DistillationLoss
from kdpl.metrics import POOL_KEPT
from kdpl.module import ClassifyingModule, Prepare, further_callbacks
from kdpl.optim import OptimConfig
from kdpl.prompts import StudentEncoder, StudentPrompts
from kdpl.runtime.messages import inform, warn
from kdpl.targets import PreparedTarget, Target, build_target, target_class
from kdpl.targets.encoding import PREPARED_FOLDER, encoding_of
from kdpl.targets.engine import Engine
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.plan import Plan, prepare_student
from kdpl.targets.stored_features import STORED_VIEWS
from kdpl.tasks import agreement_of

# number of unlabelled images for vision_prompts.init: mean_token
_PREVIEW_IMAGES = 256
_PUBLISHED_BATCH = 8


class StudentDistillation(ClassifyingModule):
    """Visual prompts and a projector on a frozen CLIP image tower, trained to match a teacher.

    Loss: λ · τ² · KL(target ‖ student) / (B·C) over the classes of the frozen class vectors that
    teacher and student share. Both see the same augmented image.

    Args:
        clip: The student's CLIP, of which only the image tower is used, or a network of timm.
        teacher: The run folder of stage 1.
        class_vectors: File of class vectors to use instead of the file in ``teacher``; it must
            come from the same teacher.
        vision_prompts: Size and start of the student's visual prompts; depth 0 trains
            only the projector unless ``fine_tune`` is set.
        fine_tune: Train the whole image tower as well; None: only if it is not of a
            CLIP, such as a network of timm.
        projector_input: Input of the projector: ``projected``, the tower's features in its CLIP's
            joint space, as published; ``pooled``, its features before that projection, often wider
            and richer (docs/targets.md). A network that is not a CLIP has no such projection.
        projector_layers: Linear layers of the projector; 0 for none.
        target: The distribution that the student learns: ``teacher``; ``refined``, the teacher's
            predictions corrected by labels and the shape of the pool (docs/targets.md);
            ``labeled``, the teacher's predictions mixed with few-shot labels;
            ``local_views``, for several labels per image (docs/several_labels.md); or a custom
            ``kdpl.targets.Target`` with its ``class_path`` and ``init_args``.
        loss: Kind, weight and temperature of the distance between the student and its target.
        pool_filter: Leave out unlabelled images whose similarity to their nearest class is below
            this quantile of the labelled images', such as 0.05; None keeps all.
        stored_views: Number of views of each unlabelled image that a frozen tower encodes once,
            before the first step, instead of a new view in each epoch; ``auto``: 8, for a target
            that is prepared before the first step; others need a teacher's prediction of each view.
            0: the tower encodes the images of each epoch.
        features_folder: Folder of the stored features, for any number of runs; None: in the
            teacher's folder.
        engine: What runs the frozen towers whose features are stored: ``torch``; ``openvino``, on a
            CPU in float32, with features equal to about 1e-5; ``auto``: ``openvino`` where it is
            installed and the images are many.
        teacher_cache: Folder for the teacher's features of V views of each unlabelled image; epoch
            e then sees view e mod V of each image. The first fit fills it, with a view for each of
            its epochs, drawn by its seed. None: the teacher runs on each image of each epoch.
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
        vision_prompts: StudentPrompts = StudentPrompts(),
        fine_tune: bool | None = None,
        projector_input: Literal["projected", "pooled"] = "projected",
        projector_layers: Literal[0, 1, 2, 3] = 2,
        target: Target | str = "teacher",
        loss: DistillationLoss = DistillationLoss(),
        pool_filter: OpenUnitInterval | None = None,
        stored_views: NonNegativeInt | Literal["auto"] = "auto",
        features_folder: str | None = None,
        engine: Engine = "torch",
        teacher_cache: str | None = None,
        optim: OptimConfig = OptimConfig(),
        compile: bool = False,
    ) -> None:
        # the image half of the student's CLIP
        inform(f"loading {clip}")
        loaded = load_image_clip(clip)
        if projector_input == "pooled":
            loaded.image_tower.drop_projection()
        super().__init__(loaded, compile)
        if fine_tune is None:
            fine_tune = loaded.logit_scale is None

        self.vision_prompts = vision_prompts
        # text names a target; jsonargparse has made an object of a class path
        self.target = build_target(target)
        _require_logits(loss, type(self.target))
        self.loss = loss
        self.pool_filter = pool_filter
        self.teacher_cache = teacher_cache
        self.stored_views = STORED_VIEWS if stored_views == "auto" else stored_views
        self.features_folder = features_folder
        self.engine = engine
        self.optim = optim
        self.plan: Plan | None = None
        self._network = clip
        self.trains_in_tower = vision_prompts.depth > 0 or fine_tune

        # the teacher, of which only the class vectors are read here
        self.teacher_folder = Path(teacher)
        self.vectors = ClassVectors.of_teacher(teacher, class_vectors)
        self.teacher = Frozen(FrozenTeacher(self.teacher_folder, self.vectors))
        if loaded.logit_scale is None:
            # a network that is not a CLIP has no scale: use the teacher's
            self.logit_scale = self.vectors.logit_scale

        # the encoder to train, and the class vectors
        self.encoder = StudentEncoder(
            loaded.image_tower,
            vision_prompts.length,
            vision_prompts.depth,
            self.vectors.vectors.shape[1],
            fine_tune,
            projector_layers,
        )
        # without the teacher's scales and biases: the student learns new ones, as ``scores``
        # not part of the state: the class vectors are in the run's folder, and
        # DistributedDataParallel need not broadcast them
        self.head = Frozen(CosineHead(self.vectors.vectors))

    def setup(self, stage: str) -> None:
        """Check the classes."""
        self.vectors.require_names(self.domain.class_names, "the student's teacher")
        self.vectors.require_task(self.domain.task, "the student's teacher")
        is_first, self.plan = self.scores is None, None
        super().setup(stage)
        if is_first and self.scores is not None:
            # undo the loss weight for them: with the published one they diverge under SGD
            learned: Iterable[Any] = self.scores.parameters()
            for parameter in learned:
                parameter.register_hook(lambda gradient: gradient / self.loss.weight)

    @classmethod
    def require_possible(cls, settings: Mapping[str, Any], data: DomainDataModule) -> None:
        """Refuse settings that a fit would refuse, as far as this can be checked without a teacher.

        Args:
            settings: The arguments of this class, as a config has them.
            data: The data of the fit.
        """
        if not settings.keys() >= inspect.signature(StudentDistillation).parameters.keys():
            return  # a subclass with other arguments
        target, pool_filter = settings["target"], settings["pool_filter"]
        prompts, fine_tune = settings["vision_prompts"], settings["fine_tune"]
        kind = target_class(target if isinstance(target, str) else target["class_path"])
        _require_logits(DistillationLoss(**settings["loss"]), kind)
        kind.require_task(data.task)
        if pool_filter is not None:
            data.labels.require_shots()
        tower = load_image_clip(ClipConfig(**settings["clip"])).image_tower
        StudentEncoder(tower, prompts["length"], prompts["depth"], 1, bool(fine_tune))

    def load_teacher(self) -> None:
        """Load the teacher's image tower and prompts once."""
        teacher = self.teacher.module
        if teacher.tower is None:
            inform(f"loading the teacher of {teacher.folder}")
            teacher.load()
            if self.compiles and teacher.tower is not None:
                teacher.tower.compile_parts()

    def load_for_training(self) -> None:
        """Load the teacher once, in the precision of the training."""
        self.load_teacher()
        # outside the precision's context, where weights would be rounded as they are read
        self.trainer.precision_plugin.convert_module(self.teacher.module)
        self.apply_precision()

    def target_inputs(self) -> TargetInputs:
        """Return the inputs of this fit's plan."""
        trainer, data, cache = self.trainer, self.domain, self.teacher_cache
        folder = Path(self.features_folder or self.teacher_folder / PREPARED_FOLDER)
        return TargetInputs(
            **vars(encoding_of(trainer, folder, self.engine)),
            folder=Path(trainer.default_root_dir),
            resumes=trainer.ckpt_path is not None,
            epochs=trainer.max_epochs or 0,
            dataset=data.dataset,
            pool=data.pool,
            labels=data.labels,
            student=self._network,
            student_identity=self.clip,
            student_tower=self.encoder.tower.module,
            stored_views=0 if self.trains_in_tower else self.stored_views,
            teacher=self.teacher.module,
            load_teacher=self.load_for_training,
            teacher_cache=None if cache is None else Path(cache).expanduser(),
        )

    def prepare_fit(self) -> None:
        """Plan the fit, unless Fidelity has planned it with images held out."""
        if self.plan is None:
            self.plan_fit()

    def plan_fit(self, holds_out: bool = False) -> None:
        """Plan the fit, with images held out or without, and load a teacher that runs."""
        if self.trainer.max_epochs == 0:
            return
        self.plan = prepare_student(self.target_inputs(), self.target, self.pool_filter, holds_out)
        if self.plan.runs_teacher and self.plan.teacher_features is None:
            self.load_for_training()
        else:
            self.teacher.module.unload()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the callbacks that prepare and check the fit, and write the classifier.

        None for a fit without steps and checkpoints, whose callback does something else.
        """
        if self.trainer.limit_train_batches == 0 and self.trainer.checkpoint_callback is None:
            return []
        # SameRun compares what Prepare has chosen
        return [Prepare(), SameRun(), *further_callbacks(self), SaveClassifier()]

    def on_train_batch_start(self, batch: UnlabeledBatch, batch_idx: int) -> None:
        """Refuse one image at a time, and warn of few, which the projector's batch norm needs."""
        images = len(batch.images) * self.trainer.world_size
        remedy = (
            "set data.init_args.batch_size so that all processes together take "
            f"{_PUBLISHED_BATCH} or more"
        )
        if images == 1:
            raise ConfigError(f"the projector's batch norm cannot take one image: {remedy}")
        if self.trainer.global_step == 0 and batch_idx == 0 and images < _PUBLISHED_BATCH:
            warn(
                f"the projector's batch norm has {images} images at a time, which costs accuracy: "
                f"{remedy}"
            )

    def on_train_epoch_end(self) -> None:
        """Log the share of images that a pool filter keeps."""
        if self.pool_filter is not None:
            kept, whole = self.domain.training_pool, self.domain.pool
            self.log(POOL_KEPT, len(kept.targeted) / len(whole.targeted))

    def on_fit_start(self) -> None:
        """Initialise scores and, with ``mean_token``, prompts, unless the fit is resumed."""
        at_mean = self.vision_prompts.init == "mean_token" and self.encoder.prompts is not None
        if at_mean and self.trainer.ckpt_path is None:
            images = self.domain.preview(_PREVIEW_IMAGES, self.resizing)
            self.encoder.init_at_mean_tokens(images.to(self.device))
        super().on_fit_start()

    def distance(self, logits: Tensor, target_logits: Tensor) -> Tensor:
        """Compute what the loss weighs, a scalar, of logits [B, C] of student and target."""
        if self.loss.kind in DIFFERENCES:
            return DIFFERENCES[self.loss.kind](logits, target_logits)
        return self.task.divergence(logits, target_logits, self.loss.temperature)

    def training_step(self, batch: UnlabeledBatch, batch_idx: int) -> Tensor:
        """Compute the loss on unlabelled images."""
        # the target, from the teacher's features of these views or prepared before
        target_logits = self.target_logits(batch)

        # the student on the same views
        logits = self.batch_logits(batch)

        # the distance between student and target
        terms: dict[str, Tensor] = {
            self.loss.kind: self.loss.weight * self.distance(logits, target_logits)
        }
        agreement = agreement_of(self.task.agreements(logits, target_logits))
        return self.sum_and_log(terms, len(batch.images), agreement=agreement)

    def target_logits(self, batch: UnlabeledBatch) -> Tensor:
        """Return logits of the target distributions of a batch, [B, C].

        A ConfigError if they are prepared in a fit, and this is none.
        """
        plan = self.plan
        if plan is None and isinstance(self.target, PreparedTarget):
            raise ConfigError(
                "the targets are not there: run a fit of the student, which prepares them before "
                "its first step"
            )
        if plan is not None and plan.values is not None:
            return plan.values.of(batch.indices)
        predicted = batch.images.new_empty(0)
        if self.target.uses_teacher:
            predicted = self.teacher.module.logits(self._teacher_features(batch))
        return self.target.logits(predicted, batch.indices)

    def _teacher_features(self, batch: UnlabeledBatch) -> Tensor:
        if batch.teacher_features is not None:
            return batch.teacher_features.float()
        teacher = self.teacher.module
        same = teacher.vectors.preprocessing.resizing == self.resizing
        images = batch.images if same else batch.teacher_images
        if images is None:
            raise ConfigError(
                "the teacher resizes images otherwise than the student, but a batch has no view "
                "for it: let the datamodule make one, as DomainDataModule does"
            )
        return teacher.features(images)

    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C], with ``logit_scale``."""
        return self.logits(self.encoder(images))

    def batch_logits(self, batch: Batch) -> Tensor:
        """Classify the views of a batch as ``class_logits`` does, by stored features if it can."""
        stored = self.plan.student_features if self.plan else None
        if stored is None or batch.images.dim() == 4:
            return self.class_logits(batch.images)
        return self.logits(self.encoder.of_pooled(stored.of(batch)))

    @torch.no_grad()
    def stored_features(self, indices: Indices) -> Tensor | None:
        """Return the features of unlabelled images in evaluation; None if some are not stored."""
        stored = self.plan.student_features if self.plan else None
        if stored is None or not np.isin(indices, stored.images).all():
            return None
        return self.encoder.of_pooled(stored.whole(indices).to(self.device))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D], with ``logit_scale``."""
        return self.scored(self.head.module(features, self.logit_scale))

    @property
    def needs(self) -> Needs:
        """Unlabelled images, and views or features for a teacher that runs in training steps.

        Complete once the fit is planned: a target may no longer need the teacher then.
        """
        plan = self.plan
        pool, features = (plan.pool, plan.teacher_features) if plan else (None, None)
        stored = plan.student_features.views if plan and plan.student_features else 0
        if plan.runs_teacher if plan else self.target.uses_teacher:
            of_teacher = self.vectors.preprocessing.resizing
            return Needs("unlabeled", self.resizing, of_teacher, pool=pool, features=features)
        # a crop may not show what the target names, but training a tower needs the variety
        half_whole = not self.trains_in_tower
        return Needs(
            "unlabeled", self.resizing, half_whole=half_whole, pool=pool, stored_views=stored
        )

    def origin(self, fits: bool) -> dict[str, Any]:
        """Return CLIP and teacher; for a fit also the class vectors."""
        origin = {**super().origin(fits), "teacher": self.vectors.teacher}
        if fits:
            origin["class vectors"] = self.vectors.digest()
        return origin

    def classifier(self, decoding: Decoding = Decoding()) -> Classifier:
        """Return the classifier: encoder and class vectors; ``decoding`` opens image files.

        Puts the frozen weights of the encoder back into float32, in place.
        """
        store_frozen(self.encoder, torch.float32)
        vectors = self.vectors.of_task(self.task.name, self.scores)
        return Classifier(
            self.encoder, vectors, self.logit_scale, self.clip, decoding, task=self.task
        )


def _require_logits(loss: DistillationLoss, target: type[Target]) -> None:
    """Refuse a difference of logits for a target that has probabilities alone."""
    if loss.kind in DIFFERENCES and target is not Target:
        raise ConfigError(
            f"loss.kind {loss.kind} compares logits with the teacher's, but the target "
            f"{target.__name__} has probabilities: set loss.kind to kl, or target to teacher"
        )
