"""Scale and bias of each class for several labels: their start and their learning."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kdpl.clip import Float32Module, cosine_logits
from kdpl.data.datasets import EvaluationImages
from kdpl.data.inference import infer_labeled
from kdpl.data.loader import LazyLoader
from kdpl.data.sampling import spread
from kdpl.module import ClassifyingModule, evaluating
from kdpl.tasks import ClassScaling
from kdpl.teacher import TeacherPromptTuning

# unlabelled images that stand for the pool, labelled images of the start, and their batch size
_POOL_IMAGES, _STARTING_LABELS, _AT_ONCE = 256, 1024, 64


class ScaleAndBias(Float32Module, ClassScaling):
    """Learned scale and bias of each class that turn logits l into log odds z = a·(l - m) + b.

    Args:
        num_classes: Number C of all classes.
        num_learned: Number of learned classes, the first ones; the other classes get their mean.
    """

    center: Tensor

    def __init__(self, num_classes: int, num_learned: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(num_learned))
        self.bias = nn.Parameter(torch.zeros(num_learned))
        self.register_buffer("center", torch.zeros(num_classes))

    def begin(self, module: nn.Module) -> None:
        """Set the start from unlabelled images and, in a teacher's fit, from labelled ones.

        All processes start at the values of the first one. Values that were set before, or come
        from a checkpoint, stay.
        """
        module = cast(ClassifyingModule, module)
        splits, trainer = module.domain.splits, module.trainer
        if self.center.any() or not (splits.train or splits.unlabeled):
            return
        self.start_at(logits_of_pool(module))
        if isinstance(module, TeacherPromptTuning) and trainer.training and trainer.max_epochs != 0:
            self.fit(*_labeled_logits(module))
        if distributed.is_available() and distributed.is_initialized():
            # hardware may round differently, and the processes would stay apart
            for value in self.state_dict().values():
                distributed.broadcast(value, src=0)

    @torch.no_grad()
    def start_at(self, logits: Tensor) -> None:
        """Set m to a standard deviation above the mean of each class's logits [N, C].

        Logits of a CLIP differ far less between images than between classes. Without labels, an
        image has a class if it is clearly more similar to it than most images.
        """
        self.center.copy_(logits.mean(dim=0) + logits.std(dim=0, correction=0))

    @torch.enable_grad()
    def fit(self, logits: Tensor, labels: Tensor) -> None:
        """Fit scale and bias of the K learned classes to logits and labels [N, K].

        The logistic regression has the priors N(0, 1) of log scales and N(0, 3²) of biases. Prompt
        tuning would take far longer to move them. Classes without images get the mean of the
        others.
        """
        present = labels.any(dim=0)
        if not present.any():
            return
        moved = self.centered(logits).detach()
        optimizer = torch.optim.LBFGS([self.log_scale, self.bias], max_iter=100)

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores = self.log_scale.exp() * moved + self.bias
            prior = (self.log_scale**2 + self.bias**2 / 9).sum() / 2
            pair = scores[:, present], labels[:, present]
            value = prior + F.binary_cross_entropy_with_logits(*pair, reduction="sum")
            torch.autograd.backward(value)
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.zero_grad()
        for learned in (self.log_scale.data, self.bias.data):
            learned[~present] = learned[present].mean()

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the scale a and the bias b - a·m of each class, both [C]."""
        scales = self._of_all(self.log_scale).exp()
        return scales, self._of_all(self.bias) - scales * self.center

    def forward(self, logits: Tensor) -> Tensor:
        """Return log odds for logits [B, K] of the first K classes."""
        scales, biases = self.values()
        return scales[: logits.shape[1]] * logits + biases[: logits.shape[1]]

    def centered(self, logits: Tensor) -> Tensor:
        """Return l - m for logits [B, K], the log odds before learning."""
        return logits - self.center[: logits.shape[1]]

    def _of_all(self, learned: Tensor) -> Tensor:
        missing = len(self.center) - len(learned)
        return torch.cat([learned, learned.mean().expand(missing)])


@torch.no_grad()
def logits_of_pool(module: ClassifyingModule) -> Tensor:
    """Return logits of the classes for up to 256 unlabelled images, evenly spread, [N, C]."""
    images = module.domain.preview(_POOL_IMAGES, module.resizing).to(module.device)
    with evaluating(module):
        return torch.cat([*map(module.evaluation_logits, torch.split(images, _AT_ONCE))])


def _labeled_logits(teacher: TeacherPromptTuning) -> tuple[Tensor, Tensor]:
    domain = teacher.domain
    # evenly spread, since the list may be sorted by class
    records = spread(domain.labels.training(), _STARTING_LABELS)
    count = len(domain.tuning_class_names)
    images = EvaluationImages(records, domain.splits.open_image, teacher.resizing, count)
    batches = LazyLoader(images, range(len(images)), _AT_ONCE, domain.num_workers)

    encode = partial(teacher.prompts.encode_images, teacher.image_tower.module)
    with evaluating(teacher), teacher.trainer.precision_plugin.forward_context():
        features, labels = infer_labeled(encode, batches, teacher.device)
        vectors = teacher.encode_names(domain.class_texts[:count])
        logits = cosine_logits(features, vectors, teacher.logit_scale)
    return logits, labels.to(teacher.device)
