"""Stage 1: tune prompts of a large frozen CLIP on a few labels (PromptSRC, arXiv 2307.06948).

IVLP, CoOp, VPT, MaPLe and the zero-shot CLIP are settings of the same module; see configs/teacher/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import Callback
from torch import Tensor

from kdpl.callbacks import FreezeClassVectors, GaussianPromptAveraging
from kdpl.callbacks.checkpoints import SameRun
from kdpl.class_vectors import ClassVectors
from kdpl.clip import (
    CLASSES_AT_ONCE,
    PROMPTSRC_TEMPLATES,
    ArrangedTexts,
    ClipConfig,
    Frozen,
    cosine_logits,
    load_clip,
)
from kdpl.clip.modules import normalized
from kdpl.data.batches import Batch, LabeledBatch
from kdpl.data.needs import Needs
from kdpl.errors import ConfigError
from kdpl.losses import feature_l1
from kdpl.module import ClassifyingModule, Prepare, evaluating, further_callbacks
from kdpl.optim import OptimConfig
from kdpl.prompts import MethodFactory, PromptConfig, PromptMethod, prompt_method
from kdpl.prompts.method import method_name
from kdpl.prompts.text import CONTEXT, averaged, ensemble_features, flat_texts
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.class_names import ClassText
from kdpl.runtime.messages import inform
from kdpl.targets.encoding import PREPARED_FOLDER, Network, encoding_of
from kdpl.targets.engine import Engine
from kdpl.targets.store import FeatureStore
from kdpl.targets.stored_features import STORED_VIEWS, StoredFeatures


@dataclass(frozen=True)
class RegularizerWeights:
    """Weights of PromptSRC's three regularisers; 0 disables one.

    Attributes:
        text: Weight of the L1 distance between the text features and the frozen template ensemble;
            a constant without learnt text prompts, so 0 saves time.
        image: Weight of the L1 distance between tuned and frozen image features.
        logits: Weight of the KL divergence between zero-shot and tuned predictions.
    """

    text: float = 25.0
    image: float = 10.0
    logits: float = 1.0


@dataclass(frozen=True)
class AveragingConfig:
    """Gaussian weights for averaging the prompts over epochs 1..E.

    Attributes:
        mean: μ, in epochs.
        std: σ, in epochs.
    """

    mean: float = 15.0
    std: PositiveFloat = 1.0


class TeacherPromptTuning(ClassifyingModule):
    """Prompts in a frozen CLIP, by default deep visual and text ones, tuned on few-shot images.

    Loss: cross entropy + 25·L1(text) + 10·L1(image) + KL(zero-shot ‖ tuned), PromptSRC, section
    3.2. At the end all class names are frozen into class vectors, with the Gaussian average of the
    prompts if ``averaging`` is set.

    Args:
        clip: The CLIP to tune.
        context: Words before the class name. The text prompts are initialised from the embeddings
            of its first tokens, one prompt per token; further words stay fixed. None: initialise
            from noise.
        vision_prompts: Size of the visual prompts.
        text_prompts: Size of the context and deep text prompts. With depth 0 the text features of
            ``"{context} {name}."`` are fixed.
        method: How the towers are prompted: ``independent`` (PromptSRC with ``regularizers`` and
            ``averaging``, IVLP without them); ``coupled`` (MaPLe, arXiv 2210.03117: learns linear
            maps from the text prompts to the visual prompts); or a custom
            ``kdpl.prompts.PromptMethod`` with its ``class_path`` and ``init_args``. A short name
            uses the default settings of the method.
        regularizers: Weights of the regularisers.
        averaging: Gaussian prompt averaging; None keeps the last epoch's prompts.
        optim: Optimiser and schedule.
        classes_at_once: Maximum number of class texts, mostly one for each class, whose text-tower
            activations are kept for the backward pass; beyond that they are recomputed in chunks.
            Limits memory and does not change the result.
        stored_views: Number of views of each labelled image that an image tower without prompts
            encodes once, before the first step, as in ``StudentDistillation``; 0: a new view in
            each epoch, as published; ``auto``: 8. Methods with a loss of their own see images.
        features_folder: Folder of stored features, shared by runs of the same images; None: a
            folder in the run's.
        engine: What encodes these features, as in ``StudentDistillation``.
        compile: Compile the image tower.

    Raises:
        ConfigError: The settings do not fit each other or the CLIP.
        WeightsError: The CLIP model or its weights cannot be loaded.
    """

    arranged_texts: ArrangedTexts
    texts_a_class: Sequence[int] = ()  # one text each
    fixed_text_features: Tensor
    ensemble_text_features: Tensor

    def __init__(
        self,
        clip: ClipConfig,
        context: str | None = CONTEXT,
        vision_prompts: PromptConfig = PromptConfig(),
        text_prompts: PromptConfig = PromptConfig(),
        method: str | MethodFactory = "independent",
        regularizers: RegularizerWeights = RegularizerWeights(),
        averaging: AveragingConfig | None = None,
        optim: OptimConfig = OptimConfig(),
        classes_at_once: PositiveInt = CLASSES_AT_ONCE,
        stored_views: NonNegativeInt | Literal["auto"] = 0,
        features_folder: str | None = None,
        engine: Engine = "torch",
        compile: bool = False,
    ) -> None:
        # the whole CLIP; it stays frozen
        inform(f"loading {clip}")
        loaded = load_clip(clip)
        super().__init__(loaded, compile)
        self.tokenize = loaded.tokenize
        self.image_tower = Frozen(loaded.image_tower)
        self.text_tower = Frozen(loaded.text_tower, keep=True)
        self.text_fingerprint = loaded.text_fingerprint

        # the settings
        self.regularizers = regularizers
        self.averaging = averaging
        self.optim = optim
        self.classes_at_once = classes_at_once

        # what is trained
        make_prompts = prompt_method(method) if isinstance(method, str) else method
        # a PromptMethod; its checkpoint keys begin with "prompts". config.yaml holds its class and
        # settings
        self.prompts = make_prompts(vision_prompts, text_prompts, context, loaded)
        if context is None and self.prompts.text_is_fixed:
            raise ConfigError(
                "no text prompt is learnt that could stand before the class names "
                "(text_prompts.depth 0, or a method without any): give context"
            )
        self.has_custom_loss = type(self.prompts).custom_loss is not PromptMethod.custom_loss
        if self.has_custom_loss and regularizers != RegularizerWeights(0, 0, 0):
            raise ConfigError(
                f"{type(self.prompts).__name__} has a loss of its own, without PromptSRC's "
                "regularisers: set regularizers.text, image and logits to 0"
            )
        self.prompts.settings()  # refuses settings that cannot be saved, before any training
        self.stored_views = STORED_VIEWS if stored_views == "auto" else stored_views
        if self.has_custom_loss or not self.prompts.images_are_plain:
            self.stored_views = 0
        self.features_folder = features_folder
        self.engine = engine
        self.stored: StoredFeatures | None = None
        self._class_vectors: Tensor | None = None

    @property
    def needs(self) -> Needs:
        """Labelled images, or the names of their stored views."""
        stored = self.stored.views if self.stored else 0
        return Needs("labeled", self.resizing, stored_views=stored)

    def setup(self, stage: str) -> None:
        """Discard stored features; a fit stores those of its images."""
        self.stored = None
        super().setup(stage)

    def prepare_fit(self) -> None:
        """Store the features of labelled and validation images, if views are stored."""
        if not self.stored_views or self.trainer.max_epochs == 0:
            return
        run = Path(self.trainer.default_root_dir)
        encoding = encoding_of(
            self.trainer, Path(self.features_folder or run / PREPARED_FOLDER), self.engine
        )
        tower = self.image_tower.module

        @torch.no_grad()
        def encode(images: Tensor) -> Tensor:
            with encoding.autocast():
                encoded: Tensor = tower(images.to(encoding.device))
                return encoded

        identity = {"clip": self.clip.fingerprint, "projected": True}
        network = Network(identity, self.clip, tower.preprocessing, tower, encode)

        labels = self.domain.labels
        labeled = [record.source for record in labels.training()]

        def store(images: Sequence[str] | None, views: int) -> FeatureStore:
            return encoding.store(network, labeled if images is None else images, views)

        self.stored = StoredFeatures.compute(
            store, self.stored_views, np.arange(len(labeled)), labels
        )

    def origin(self, fits: bool) -> dict[str, Any]:
        """Return the CLIP by the digests of both towers."""
        return {"clip": f"{self.clip.fingerprint} {self.text_fingerprint}"}

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the callbacks: averaging if set, further ones, and the handover."""
        averaging = (
            [GaussianPromptAveraging(self.averaging.mean, self.averaging.std)]
            if self.averaging
            else []
        )
        return [*averaging, Prepare(), SameRun(), *further_callbacks(self), FreezeClassVectors()]

    def on_fit_start(self) -> None:
        """Precompute token ids and frozen text features, unless there are no steps to train."""
        super().on_fit_start()
        if self.trainer.max_epochs == 0:
            return
        domain = self.domain
        names = domain.class_texts[: len(domain.tuning_class_names)]

        # token ids of the class names, or their features if no prompt changes them
        if self.prompts.text_is_fixed:
            self.register_buffer("fixed_text_features", self.encode_names(names), persistent=False)
        else:
            flat, self.texts_a_class = flat_texts(names)
            self.arranged_texts = self.prompts.arrange(flat, self.text_tower.module, self.tokenize)

        # the reference of the regularisers: features of the frozen CLIP, averaged over templates
        if self.regularizers.text or self.regularizers.logits:
            inform(f"encoding {len(names)} classes in {len(PROMPTSRC_TEMPLATES)} templates")
            with self.text_tower.exact() as tower:
                ensemble = ensemble_features(tower, self.tokenize, names, PROMPTSRC_TEMPLATES)
            self.register_buffer("ensemble_text_features", ensemble, persistent=False)

    def training_step(self, batch: LabeledBatch, batch_idx: int) -> Tensor:
        """Compute PromptSRC's loss on labelled images, or that of the prompt method."""
        if self.has_custom_loss:

            def label_loss(features: Tensor, texts: Tensor) -> Tensor:
                text = averaged(texts, self.texts_a_class)
                logits = cosine_logits(features, text, self.logit_scale)
                return self.task.loss(self.scored(logits), batch.labels)

            terms = self.prompts.custom_loss(
                (self.image_tower.module, batch.images),
                (self.text_tower.module, self.arranged_texts),
                self.classes_at_once,
                label_loss,
            )
            return self.sum_and_log(terms, len(batch.images))
        tower, weights = self.image_tower.module, self.regularizers

        # encode images and class names with the prompts
        features = self.image_features(batch)
        if self.prompts.text_is_fixed:
            text = self.fixed_text_features
        else:
            texts = self.prompts.encode_texts(
                self.text_tower.module, self.arranged_texts, self.classes_at_once
            )
            text = averaged(texts, self.texts_a_class)
        logits = self.scored(cosine_logits(features, text, self.logit_scale))

        # the loss on the labels, and the distances from the frozen CLIP
        terms = {"ce": self.task.loss(logits, batch.labels)}
        if weights.text:
            terms["text"] = weights.text * feature_l1(text, self.ensemble_text_features)
        if weights.image or weights.logits:
            frozen = features.detach()
            if not self.prompts.images_are_plain:
                with torch.no_grad():
                    frozen = normalized(tower(batch.images))
            if weights.image:
                terms["image"] = weights.image * feature_l1(features, frozen)
            if weights.logits:
                zero_shot = cosine_logits(frozen, self.ensemble_text_features, self.logit_scale)
                if self.scores is not None:
                    zero_shot = self.scores.centered(zero_shot)
                terms["logits"] = weights.logits * self.task.divergence(logits, zero_shot)
        return self.sum_and_log(terms, len(batch.images))

    def require_texts(self, texts: Sequence[str]) -> None:
        """Raise a ConfigError if a text is too long for the text tower."""
        self.prompts.arrange(texts, self.text_tower.module, self.tokenize)

    def encode_names(self, names: Sequence[ClassText]) -> Tensor:
        """Encode class names with the current prompts; normalised float32 [C, D]."""
        with self.text_tower.exact() as tower:
            return self.prompts.encode_names(names, tower, self.tokenize)

    def on_validation_epoch_start(self) -> None:
        """Discard the class vectors; the first batch encodes them with the current prompts."""
        self._class_vectors = None

    on_test_epoch_start = on_validation_epoch_start

    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C] over all classes of the domain."""
        return self.batch_logits(Batch(images))

    def batch_logits(self, batch: Batch) -> Tensor:
        """Classify the images of a batch as ``class_logits`` does, by stored features if it can."""
        if self._class_vectors is None:
            self._class_vectors = self.encode_names(self.domain.class_texts)
        features = self.image_features(batch)
        return self.scored(cosine_logits(features, self._class_vectors, self.logit_scale))

    def image_features(self, batch: Batch) -> Tensor:
        """Encode images with the prompts, or read stored features; normalised, float32 [B, D]."""
        if self.stored is None or batch.images.dim() == 4:
            return self.prompts.encode_images(self.image_tower.module, batch.images)
        return normalized(self.stored.of(batch))

    def tuned_prompts(self) -> TunedPrompts:
        """Return a copy of the prompts as stage 2 reads them."""
        return TunedPrompts(
            tensors=self.prompts.saved(),
            method=method_name(type(self.prompts)),
            method_settings=self.prompts.settings(),
            vision=self.prompts.vision_config,
            text=self.prompts.text_config,
            context=self.prompts.context,
            clip=self.clip,
            text_fingerprint=self.text_fingerprint,
            logit_scale=self.logit_scale,
            preprocessing=self.preprocessing,
        )

    def class_vectors(self) -> ClassVectors:
        """Encode all class names of the domain into class vectors with the current prompts."""
        domain = self.domain
        names, texts = domain.class_names, domain.class_texts
        with evaluating(self):
            encoded = self.encode_names(texts).cpu()
        vectors = ClassVectors.of(self.tuned_prompts(), encoded, names, domain.num_base, texts)
        return vectors.of_task(self.task.name, self.scores)
