"""Classifier for deployment, independent of teacher, text tower and Lightning."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from kdpl.class_vectors import LINEAR_PROBE, ClassVectors
from kdpl.classifier.folder import Stored
from kdpl.clip.identity import ClipIdentity, Preprocessing
from kdpl.clip.modules import store_frozen
from kdpl.data.augmentation import GivenImage, open_given, resize_and_crop, to_tensor
from kdpl.data.decoding import Decoding, cores
from kdpl.errors import ArtifactError, ConfigError, DataError, reason
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.ahead import classify_ahead
from kdpl.runtime.run_folder import CARD_FILE, CLASSIFIER_FILES, CLASSIFIER_REMEDY
from kdpl.tasks import DecisionRule, Predicted, Prediction, Task, build_task, require_one_class

if TYPE_CHECKING:
    from kdpl.classifier.companion import Companion

T = TypeVar("T")

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Precision of predictions, by Lightning's names."""

_TYPES: dict[str, torch.dtype] = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction: arguments of ``Classifier.predict``, with the same errors.

    ``scores`` asks for the further scores of companions, which are computed for a rule with limits
    in any case.
    """

    top_k: int = 1
    batch_size: int = 64
    workers: int | None = None
    precision: Precision = "32-true"
    rule: DecisionRule = DecisionRule()
    scores: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "batch_size"):
            if (number := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {number}, expected 1 or more: give another number")
        if self.precision not in _TYPES:
            raise ConfigError(
                f"precision is {self.precision!r}, expected one of {', '.join(_TYPES)}: correct it"
            )


class Classifier(nn.Module):
    """Classifies images of one domain with a distilled student's encoder and frozen class vectors.

    ``logit_scale`` is the factor of ``clip``, the student's CLIP, on cosine similarities. Images
    are decoded by ``decoding``, as in training.
    """

    task: Task

    def __init__(
        self,
        encoder: StudentEncoder,
        vectors: ClassVectors,
        logit_scale: float,
        clip: ClipIdentity,
        decoding: Decoding = Decoding(),
        companions: "Mapping[str, Companion] | None" = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.vectors = vectors
        self.head = vectors.head()
        self.logit_scale = logit_scale
        self.clip = clip
        self.decoding = decoding
        if companions is not None:
            self.companions = dict(companions)
        self.folder: Path | None = None  # that it was read from
        self._digest = ""  # of the weights in it, which may be rounded later
        self.task = build_task(vectors.task) if task is None else task
        self.task.require_classes(vectors.class_names)
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # companions are not part of the state, but move with it
        for companion in vars(self).get("companions", {}).values():
            if isinstance(companion, nn.Module):
                companion._apply(fn, recurse)  # type: ignore[no-untyped-call]  # no types in torch
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # as above
        return self

    @cached_property
    @torch.inference_mode(False)
    def companions(self) -> "dict[str, Companion]":
        """The objects that are saved with it, by name; read on first use.

        An ArtifactError if a file is damaged, or of another classifier.
        """
        if not self._digest or self.folder is None:
            return {}
        from kdpl.classifier.companion import read_companions

        companions = read_companions(self.folder, self._digest, self.vectors.vectors.shape[1])
        for companion in companions.values():
            if isinstance(companion, nn.Module):
                companion.to(self.head.class_vectors.device)
        return companions

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.vectors.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of ``forward``'s input; ``predict`` takes any images."""
        return self.encoder.tower.module.preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C] of preprocessed images [B, 3, S, S], uint8 or float in [0, 1]."""
        return self.logits(self.encoder(images))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of normalised features [B, D], as in ``forward``."""
        logits: Tensor = self.head(features, self.logit_scale)
        return logits

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Return the companions' further scores by name, [B] each, of features [B, D]."""
        scores = dict[str, Tensor]()
        for companion in self.companions.values():
            scores |= companion.further_scores(features, self.head.class_vectors, self.logit_scale)
        return scores

    def card_facts(self) -> dict[str, Any]:
        """Return the facts of the model card: classes, images and models."""
        # only the name of a weights file, as its folder is private
        clips = {"student": self.clip, "teacher": self.vectors.clip}
        named = {
            who: {"model": clip.model, "weights": Path(clip.pretrained).name}
            for who, clip in clips.items()
        }
        return {
            "names": self.class_names,
            "num_base": self.vectors.num_base,
            "context": self.vectors.context,
            "probe": self.vectors.teacher == LINEAR_PROBE,
            "image_size": self.preprocessing.image_size,
            **named,
        }

    def add_classes(self, vectors: ClassVectors) -> "Classifier":
        """Return a classifier with novel classes after the existing ones, and the same encoder.

        It has no companions, as they are of the existing classes alone. An ArtifactError if the
        class vectors come from another teacher or have an existing class; a ConfigError for several
        labels per image.
        """
        # check teacher and names
        require_one_class(self.task.name, "adding classes")
        self.vectors.require_teacher(vectors)
        double = [name for name in vectors.class_names if name in self.class_names]
        if double:
            raise ArtifactError(
                f"the classifier has the class {double[0]!r} already: add other classes alone"
            )

        # append vectors, names and texts
        class_vectors = self.head.class_vectors
        extended = replace(
            self.vectors,
            vectors=torch.cat([class_vectors, vectors.vectors.to(class_vectors.device)]),
            class_names=self.class_names + vectors.class_names,
            class_texts=self.vectors.texts + vectors.texts
            if self.vectors.class_texts or vectors.class_texts
            else None,
        )
        if self.vectors.scales or vectors.scales:
            columns = zip(self.vectors.scaling(), vectors.scaling(), strict=True)
            scales, biases = (first + further for first, further in columns)
            extended = replace(extended, scales=scales, biases=biases)
        return Classifier(self.encoder, extended, self.logit_scale, self.clip, self.decoding)

    def predict(
        self,
        images: Iterable[GivenImage],
        top_k: int = 1,
        batch_size: int = 64,
        workers: int | None = None,
        precision: Precision = "32-true",
        rule: DecisionRule = DecisionRule(),
    ) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: Paths, PIL images, or uint8 tensors [3, H, W], of any size and in any mix.
            top_k: Predictions for each image, at most the number of classes.
            batch_size: Images per forward pass; does not change the result beyond rounding.
            workers: Threads that decode; None: one for each processor core.
            precision: ``bf16-mixed`` and ``16-mixed`` run the image tower in half precision,
                faster on most GPUs; probabilities then differ by rounding.
            rule: Thresholds of classes and of rejected images, such as from
                ``kdpl.confidence.decision_rule``.

        Returns:
            For each image, in order, its predictions, most probable first. With several labels per
            image, these are all classes at or above their thresholds, possibly none.

        Raises:
            ConfigError: ``images`` is one image, a number is below 1, or the precision is unknown.
            DataError: An image is missing or unreadable.
        """
        options = PredictOptions(top_k, batch_size, workers, precision, rule, scores=False)
        return [predicted.top for predicted in self.predicted(images, options)]

    def embed(
        self,
        images: Iterable[GivenImage],
        batch_size: int = 64,
        workers: int | None = None,
        precision: Precision = "32-true",
    ) -> Tensor:
        """Return the encoder's features of N images, float32 [N, D] of length 1.

        Arguments and errors are as in ``predict``. Products of two rows are cosine similarities,
        high for similar images of any classes.
        """
        options = PredictOptions(1, batch_size, workers, precision, scores=False)
        rows = [predicted.embedding for predicted in self.predicted(images, options)]
        return torch.stack(rows) if rows else torch.empty(0, self.head.class_vectors.shape[1])

    def predicted(
        self, images: Iterable[GivenImage], options: PredictOptions = PredictOptions()
    ) -> Iterator[Predicted]:
        """Yield classes, embedding and further scores; errors are as in ``predict``."""
        if isinstance(images, str | Path | Image.Image) or (
            isinstance(images, Tensor) and images.ndim == 3
        ):
            raise ConfigError(
                "the classifier takes any number of images, not one: put it into a list"
            )
        opened = partial(open_given, decoding=self.decoding)
        for _, predicted in self.predictions(images, opened, options):
            if isinstance(predicted, DataError):
                raise predicted
            yield predicted

    def predictions(
        self,
        items: Iterable[T],
        open_item: Callable[[T], Image.Image],
        options: PredictOptions = PredictOptions(),
    ) -> Iterator[tuple[T, Predicted | DataError]]:
        """Classify items lazily, like ``predict``; yields each with its result or DataError."""
        dtype, workers = _TYPES[options.precision], options.workers or cores()
        # companions are read here, not in a thread
        scored = bool((options.scores or options.rule.limits) and self.companions)
        classify = partial(self._classify, options=options, scored=scored)

        def prepare(item: T) -> Tensor:
            return self.prepare(open_item(item))

        # frozen weights in the chosen precision, until the last image
        store_frozen(self.encoder, dtype)
        try:
            yield from classify_ahead(items, prepare, classify, options.batch_size, workers)
        finally:
            store_frozen(self.encoder, torch.float32)

    @torch.inference_mode()
    def _classify(self, images: Tensor, options: PredictOptions, scored: bool) -> list[Predicted]:
        """Classify prepared images, uint8 [B, 3, S, S]."""
        device, dtype = self.head.class_vectors.device, _TYPES[options.precision]
        if device.type == "cuda":
            images = images.pin_memory()  # the copy need not wait for the previous batch
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = self.encoder(images.to(device, non_blocking=True))
            logits = self.logits(features)
        return self.decide(features, logits, options, scored)

    def decide(
        self,
        features: Tensor,
        logits: Tensor,
        options: PredictOptions = PredictOptions(),
        scored: bool = False,
    ) -> list[Predicted]:
        """Decide for images by features [B, D] and logits [B, C], with further scores or not."""
        scores = self.scores(features) if scored else {}

        # rank the classes at temperature 1, and show probabilities at the rule's temperature
        rule = options.rule
        probabilities = self.task.probabilities(logits)
        top_k = self.task.ranked(options.top_k, len(self.class_names), rule)
        deciding, labels = probabilities.topk(top_k, dim=1)
        shown = self.task.probabilities(logits / rule.temperature).gather(1, labels)

        # decide for each image, unless one of its further scores rejects it
        columns = {name: values.tolist() for name, values in scores.items()}
        ranks = zip(features.cpu(), labels.tolist(), deciding.tolist(), shown.tolist(), strict=True)
        predicted = []
        for row, (embedding, ranked, certain, probable) in enumerate(ranks):
            further = {name: values[row] for name, values in columns.items()}
            rejected = any(further[name] > limit for name, limit in rule.limits.items())
            named = [] if rejected else self.task.decide(ranked, certain, rule)
            probability = dict(zip(ranked, probable, strict=True))
            top = [Prediction(self.class_names[label], probability[label]) for label in named]
            predicted.append(Predicted(top or self.task.undecided(probable[0]), embedding, further))
        return predicted

    def prepare(self, image: Image.Image) -> Tensor:
        """Convert an image of any size and mode to the input of ``forward``, uint8 [3, S, S]."""
        return to_tensor(resize_and_crop(self.decoding.to_rgb(image), self.preprocessing.resizing))

    def save(
        self,
        folder: str | Path,
        companions: "Iterable[Companion]" = (),
        run: Path | None = None,
    ) -> None:
        """Write a folder of safetensors and JSON atomically, or replace a classifier's folder.

        Also writes the companions of the classifier, the further ``companions``, and README.md, a
        model card with the data of a student's ``run``, by its folder. Raises an ArtifactError if
        the folder is not a classifier's.
        """
        from kdpl.classifier.card import model_card  # imports jinja2

        card = model_card(self.card_facts(), run)
        self._stored.write(Path(folder), (*self.companions.values(), *companions), card)

    def fingerprint(self) -> str:
        """Return the digest of all weights and class vectors; companions check it."""
        return self._stored.fingerprint()

    @property
    def _stored(self) -> Stored:
        parts = (self.encoder, self.vectors, self.logit_scale, self.clip, self.decoding)
        return Stored(*parts, self.task.settings())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a classifier's folder, offline; an ArtifactError if missing, damaged or too new."""
        folder, stored = Path(folder), Stored.read(Path(folder))
        try:
            task = build_task(stored.vectors.task, **stored.task)
            classifier = cls(*stored[:-1], task=task)
        except (TypeError, ConfigError) as error:
            raise ArtifactError(
                f"the classifier {folder} cannot be read (task: {reason(error)}): "
                f"{CLASSIFIER_REMEDY}"
            ) from error

        # its companions are read when they are needed
        classifier.folder = folder
        if any(path.name not in (*CLASSIFIER_FILES, CARD_FILE) for path in folder.iterdir()):
            classifier._digest = stored.fingerprint()
        return classifier
