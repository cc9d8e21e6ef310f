"""Several teachers of one student: their predictions are mixed, each from its stored features.

Teachers are runs of stage 1, or original CLIPs, for the same class names in the same order. Each
has its CLIP, prompts, image size, class vectors W_m and scale s_m, and a cache of features of the
same views, rendered at its own size. With p_m = softmax(s_m f_m W_mᵀ / τ) the target is
Σ_m w_m p_m.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jsonargparse.typing import PositiveFloat
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig, load_clip
from kdpl.errors import ConfigError, DataError
from kdpl.prompts import PromptConfig, PromptMethod
from kdpl.prompts.method import method_name
from kdpl.prompts.text import CONTEXT
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import digest
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.processes import Processes
from kdpl.targets.teacher_cache import TeacherCache, fill_cache, open_cache
from kdpl.tasks import require_one_class

ZERO_SHOT = "zero_shot:"
"""Prefix of a teacher that is an original CLIP, ``zero_shot:MODEL,WEIGHTS``."""

_FOLDER = "teachers"  # in the run's folder
_ROUNDS = 100  # of expectation and maximisation, which converges sooner


@dataclass(frozen=True)
class Mixture:
    """Weights of several teachers.

    Attributes:
        weights: ``mean``: all the same; ``confidence``: for each image w_m ∝ exp(−H_m / T), with
            the entropy H_m of p_m in nats (the idea of TheProfessor, arXiv 2606.23897);
            ``validation``: those of the least log loss on labelled validation images.
        temperature: T.
    """

    weights: Literal["mean", "confidence", "validation"] = "mean"
    temperature: PositiveFloat = 1.0


class Teachers(FrozenTeacher):
    """The first teacher, and further ones that it is mixed with.

    Args:
        folder: Run folder of the first teacher.
        vectors: Its class vectors, which the student shares.
        further: Run folders of the others, or CLIPs as ``zero_shot:MODEL,WEIGHTS``.
        mixture: Their weights.
        softness: Temperature τ of the loss.
    """

    fixed: Tensor

    def __init__(
        self,
        folder: Path,
        vectors: ClassVectors,
        further: Sequence[str],
        mixture: Mixture,
        softness: float,
    ) -> None:
        require_one_class(vectors.task, "several teachers")
        super().__init__(folder, vectors)
        self.named, self.mixture, self.softness = further, mixture, softness
        self.further = nn.ModuleList()
        count = 1 + len(further)
        self.register_buffer("fixed", torch.full((count,), 1 / count), persistent=False)

    def read_further(self, out: Path, processes: Processes) -> None:
        """Read the class vectors of the further teachers once; those of CLIPs are kept in ``out``.

        An ArtifactError if class vectors are missing, damaged, or for other class names.
        """
        for name in self.named[len(self.further) :]:
            folder = Path(name)
            if name.startswith(ZERO_SHOT):
                folder = out / _FOLDER / digest([name, *map(str, self.vectors.texts)])[:16]
                processes.on_first(partial(_freeze, name, self.vectors, folder))
            vectors = ClassVectors.of_teacher(str(folder))
            vectors.require_names(self.vectors.class_names, f"the further teacher {name}")
            vectors.require_task(self.vectors.task, f"the further teacher {name}")
            self.further.append(FrozenTeacher(folder, vectors))

    @property
    def all(self) -> list[FrozenTeacher]:
        """All teachers; this one stands for the first."""
        return [self, *cast(list[FrozenTeacher], list(self.further))]

    @property
    def identities(self) -> list[str]:
        """The fingerprints of all, and their weights."""
        further = (teacher.vectors.digest() for teacher in self.all[1:])
        return [self.vectors.teacher, *further, str(self.mixture)]

    @property
    def tuned(self) -> bool:
        """True if any was tuned on labels."""
        return super().tuned or any(teacher.tuned for teacher in self.all[1:])

    def load(self) -> None:
        """Load image towers and prompts of all."""
        super().load()
        for teacher in self.all[1:]:
            teacher.load()

    def unload(self) -> None:
        """Free the memory of all image towers and prompts."""
        super().unload()
        for teacher in self.all[1:]:
            teacher.unload()

    def logits(self, features: Tensor) -> Tensor:
        """Return τ · log p of the mixture, [B, C], of features side by side, [B, D_1 + … + D_M]."""
        widths = [teacher.vectors.vectors.shape[1] for teacher in self.all]
        parts = zip(self.all, torch.split(features, widths, dim=1), strict=True)
        log_probabilities = torch.stack(
            [self._log_probabilities(teacher, part) for teacher, part in parts]
        )
        weights = self.fixed.log()[:, None]
        if self.mixture.weights == "confidence":
            entropies = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
            weights = (-entropies / self.mixture.temperature).log_softmax(dim=0)
        # the loss divides by τ again
        return self.softness * torch.logsumexp(weights[..., None] + log_probabilities, dim=0)

    def _log_probabilities(self, teacher: FrozenTeacher, features: Tensor) -> Tensor:
        # of the first, its own prediction
        logits = FrozenTeacher.logits(teacher, features)
        return (logits / self.softness).log_softmax(dim=-1)

    def weigh(self, inputs: TargetInputs) -> None:
        """Set the weights that need validation images."""
        if self.mixture.weights != "validation":
            return
        sources = [record.source for record in inputs.val]
        if not sources:
            raise ConfigError(
                "mixture.weights is validation, and there are no validation images: set it to "
                "confidence or mean, or data.init_args.val_shots above 0"
            )
        labels = torch.tensor([record.single for record in inputs.val], device=inputs.device)
        predicted = [
            self._log_probabilities(
                teacher_inputs.teacher, teacher_inputs.features(sources, 1)[0].still
            )
            for teacher_inputs in _inputs_of_teachers(inputs)
        ]
        self.fixed = mixture_weights(torch.stack(predicted), labels)
        shares = ", ".join(f"{weight:.2f}" for weight in self.fixed.tolist())
        inform(f"weights of the teachers by {len(sources)} validation images: {shares}")


def mixture_weights(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the weights of M teachers, [M], whose mixture has the least log loss.

    Args:
        log_probabilities: Those of N labelled images, [M, N, C].
        labels: int64 [N].
    """
    right = log_probabilities.double()[:, torch.arange(len(labels)), labels].exp()
    # an image that no teacher knows says nothing of them
    right = right.clamp(min=1e-12)
    weights = right.new_full((len(right),), 1 / len(right))
    for _ in range(_ROUNDS):
        shares = weights[:, None] * right
        weights = (shares / shares.sum(dim=0)).mean(dim=1)
    return weights.float()


class TeacherCaches:
    """Complete caches of several teachers over the same views, ``CachedFeatures`` side by side."""

    def __init__(self, caches: Sequence[TeacherCache]) -> None:
        self.caches = caches
        self.views, self.view_seed = caches[0].views, caches[0].view_seed
        for cache in caches:
            if (cache.views, cache.view_seed) != (self.views, self.view_seed):
                raise DataError(
                    f"the teacher cache {cache.folder} has {cache.views} views of seed "
                    f"{cache.view_seed}, and {caches[0].folder} {self.views} of seed "
                    f"{self.view_seed}: remove the former, and it is filled again"
                )

    def read(self, view: int, index: int) -> npt.NDArray[np.float16]:
        """Read the features of a view of an image, float16 [D_1 + … + D_M]."""
        return np.concatenate([cache.read(view, index) for cache in self.caches])


def frozen_teacher(
    folders: Sequence[str], vectors: ClassVectors, mixture: Mixture, softness: float
) -> FrozenTeacher:
    """Return the teacher of the first folder, mixed with the others if there are any."""
    first, *further = folders
    if not further:
        return FrozenTeacher(Path(first), vectors)
    return Teachers(Path(first), vectors, further, mixture, softness)


def teacher_folders(teacher: str | list[str]) -> list[str]:
    """Return the teachers that a setting names; a ConfigError if the first is not a run's folder.

    It gives the class vectors.
    """
    folders = [teacher] if isinstance(teacher, str) else teacher
    if not folders or folders[0].startswith(ZERO_SHOT):
        raise ConfigError(
            "the first teacher gives the class vectors: name the folder of a finished stage 1 "
            "first, such as one of configs/teacher/zero_shot.yaml"
        )
    return folders


def fill_caches(inputs: TargetInputs, views: int | None = None) -> None:
    """Compute what the caches of all teachers lack, as ``fill_cache`` does.

    Further teachers see the views of the first one's cache.
    """
    first, *further = _inputs_of_teachers(inputs)
    fill_cache(first, views)
    for teacher_inputs in further:
        cache = cast(TeacherCache, open_cache(first))
        origin = {**teacher_inputs.views_origin, "seed": cache.view_seed}
        fill_cache(replace(teacher_inputs, views_origin=origin), cache.views)


def open_caches(inputs: TargetInputs) -> TeacherCache | TeacherCaches | None:
    """Open the complete cache of the teacher, None without one; those of several are filled."""
    if not isinstance(inputs.teacher, Teachers):
        return open_cache(inputs)
    fill_caches(inputs)
    inputs.teacher.unload()
    opened = (open_cache(teacher_inputs) for teacher_inputs in _inputs_of_teachers(inputs))
    return TeacherCaches([cast(TeacherCache, cache) for cache in opened])


def teacher_logits(
    inputs: TargetInputs, images: Sequence[str] | None, views: int, pooled: bool = False
) -> Tensor:
    """Return logits [N, C] of the mean features of several views of images, of all teachers.

    Arguments as in ``TargetInputs.features``; the first teacher's are stored with ``pooled`` ones.
    """
    features = list[Tensor]()
    for teacher_inputs in _inputs_of_teachers(inputs):
        is_first = teacher_inputs.teacher is inputs.teacher
        features.append(teacher_inputs.features(images, views, pooled and is_first)[0].mean)
    return inputs.teacher.logits(torch.cat(features, dim=1))


def _inputs_of_teachers(inputs: TargetInputs) -> list[TargetInputs]:
    """Return the inputs of each teacher, with a cache of its own if there are several."""
    teacher = inputs.teacher
    if not isinstance(teacher, Teachers):
        return [inputs]
    # that of the first serves its students alone as well
    cache = inputs.teacher_cache or inputs.folder / "teacher_cache"
    first = replace(inputs, teacher_cache=cache)
    return [
        first,
        *(
            replace(inputs, teacher=other, teacher_cache=cache.with_name(f"{cache.name}.{number}"))
            for number, other in enumerate(teacher.all[1:], start=2)
        ),
    ]


def _freeze(name: str, first: ClassVectors, folder: Path) -> None:
    """Write what stage 1 leaves of an original CLIP, for the class names of a teacher."""
    if (folder / CLASS_VECTORS_FILE).is_file():
        return
    model, _, weights = name.removeprefix(ZERO_SHOT).partition(",")
    inform(f"class vectors of the original {model}")
    clip, none = load_clip(ClipConfig(model, weights or None)), PromptConfig(depth=0)
    method = PromptMethod(none, none, CONTEXT, clip)
    rows = method.encode_names(first.texts, clip.text_tower, clip.tokenize)
    prompts = TunedPrompts(
        tensors={},
        method=method_name(PromptMethod),
        vision=none,
        text=none,
        context=CONTEXT,
        clip=clip.identity,
        text_fingerprint=clip.text_fingerprint,
        logit_scale=clip.logit_scale,
        preprocessing=clip.preprocessing,
    )
    prompts.save(folder / PROMPTS_FILE)
    names, texts = first.class_names, first.texts
    ClassVectors.of(prompts, rows.cpu(), names, first.num_base, texts).save(
        folder / CLASS_VECTORS_FILE
    )
