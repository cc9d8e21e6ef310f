"""A distillation step of kdpl and the published one, with the same weights, images, class names and loss."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import flops
from benchmarks.published import PublishedStudent, PublishedTeacher, distillation_loss
from benchmarks.settings import Settings
from benchmarks.sizes import CONTEXT, Sizes
from benchmarks.teacher import RandomTeacher, random_weights_are_meant
from kdpl import StudentDistillation
from kdpl.clip import RANDOM, ClipConfig, store_frozen
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.optim import OptimConfig
from kdpl.prompts import StudentPrompts
from kdpl.prompts.text import prompt_texts


class _Domain(DomainDataModule):
    """Class names without images, for a student's setup."""

    class_names: tuple[str, ...] = ()

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__("digits")
        self.class_names = class_names


PUBLISHED, KDPL, CACHED = "published", "kdpl", "kdpl, cached teacher"

Loss = Callable[[], Tensor]


class Distillation:
    """All sides of a distillation step.

    Args:
        sizes: Models and prompts.
        classes: Number of class names.
        batch_size: Images per step.
        device: The device.
        autocast: Dtype of frozen arithmetic under autocast; None for float32.

    Attributes:
        losses: Function of each side that computes its loss, all on the same batch.
    """

    def __init__(
        self,
        sizes: Sizes,
        classes: int,
        batch_size: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.autocast = autocast
        teacher = RandomTeacher(sizes)
        clip, names = teacher.clip, sizes.names(classes)
        self.student = begun_student(sizes, names, teacher).to(device)
        store_frozen(self.student, autocast or torch.float32)
        for tower in (clip.image_tower, clip.text_tower):
            tower.to(device)
        ids = clip.tokenize(prompt_texts(CONTEXT, sizes.prompt_length, names)).to(device)
        saved = teacher.prompts.saved()
        prompts = [
            saved[name]
            for name in ("vision_prompts.tokens", "text_prompts.context", "text_prompts.deep")
        ]
        self.published_teacher = PublishedTeacher(
            clip.image_tower.visual,
            clip.text_tower,
            clip.logit_scale,
            ids,
            *(prompt.to(device) for prompt in prompts),
        )
        self.published_student = _as_published(self.student)
        size = clip.preprocessing.image_size
        # noise would give nearly equal features, which lose precision in the batch norm
        patterns = F.interpolate(torch.rand(batch_size, 3, 4, 4), size=(size, size))
        self.images = patterns.mul(255).to(torch.uint8).to(device)
        indices = torch.arange(batch_size, device=device)
        self.batch = UnlabeledBatch(self.images, indices)
        features = self.student.teacher.module.features(self.images).half()
        self.cached_batch = UnlabeledBatch(self.images, indices, teacher_features=features)
        self.losses: dict[str, Loss] = {
            PUBLISHED: self._published,
            KDPL: self._kdpl,
            CACHED: self._cached,
        }

    def parameters(self, side: str) -> dict[str, nn.Parameter]:
        """Return the trained parameters of a side, with names common to all sides."""
        if side == PUBLISHED:
            module: nn.Module = self.published_student
            return dict(module.named_parameters())
        encoder = self.student.encoder
        assert encoder.prompts is not None  # noqa: S101
        projector = {
            f"projector.{name}": p for name, p in encoder.projector.layers.named_parameters()
        }
        return {"prompts": encoder.prompts.tokens, **projector}

    def step(self, side: str) -> Callable[[], None]:
        """Return a function that runs one training step of a side: forward, backward and update."""
        optim = OptimConfig()
        trained = self.parameters(side).values()
        optimizer = torch.optim.SGD(
            trained, optim.lr, optim.momentum, weight_decay=optim.weight_decay
        )
        loss = self.losses[side]

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    def gradients(self, side: str) -> dict[str, Tensor]:
        """Compute the loss of a side and its gradients, by name, without an update.

        Excludes the bias before the batch norm, whose gradient is zero up to rounding.
        """
        parameters = {
            name: p for name, p in self.parameters(side).items() if name != "projector.0.bias"
        }
        loss = self.losses[side]()
        return {"loss": loss.detach(), **gradients(loss, parameters)}

    def flops(self, side: str) -> int:
        """Count the floating-point operations of a side's step."""
        return flops(lambda: self.gradients(side))

    def _kdpl(self) -> Tensor:
        with self._precision():
            return self.student.training_step(self.batch, 0)

    def _cached(self) -> Tensor:
        with self._precision():
            return self.student.training_step(self.cached_batch, 0)

    def _published(self) -> Tensor:
        with self._precision():
            student, teacher = self.student.encoder.tower.module, self.published_teacher
            # once for both towers, as in its data loader
            pixels = student.pixels(self.images)
            teacher_logits, texts = teacher(pixels)
            logits = self.published_student(pixels, texts)
            return distillation_loss(
                logits, teacher_logits, self.student.loss.weight, self.student.loss.temperature
            )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def student_step(settings: Settings, classes: int, with_teacher: bool) -> Callable[[], None]:
    """Return a step of kdpl's student, forward and backward, without the published side.

    The teacher encodes the images as well, or its cached features are given.
    """
    sizes, device = settings.sizes, settings.torch_device
    teacher = RandomTeacher(sizes)
    student = begun_student(sizes, sizes.names(classes), teacher, cached=not with_teacher)
    student.to(device)
    size, width = teacher.clip.preprocessing.image_size, teacher.clip.image_tower.embed_dim
    del teacher
    images = torch.randint(256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    features = torch.randn(settings.batch_size, width).half().to(device)
    store_frozen(student, settings.autocast or torch.float32)
    batch = UnlabeledBatch(
        images.to(device),
        torch.arange(settings.batch_size, device=device),
        teacher_features=None if with_teacher else features,
    )

    def step() -> None:
        with settings.precise():
            loss = student.training_step(batch, 0)
        loss.backward()

    return step


def gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Compute the gradients of a loss, by name, and remove them from the parameters."""
    # PyTorch cannot count the operations of torch.autograd.grad
    loss.backward()
    taken = {name: cast(Tensor, p.grad) for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    return taken


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Compute the largest deviation of a tensor, relative to its largest expected value."""
    return max(
        ((actual[name] - tensor).abs().max() / tensor.abs().max()).item()
        for name, tensor in expected.items()
    )


def begun_student(
    sizes: Sizes, names: tuple[str, ...], teacher: RandomTeacher, cached: bool = False
) -> StudentDistillation:
    """Build the LightningModule in its state after the setup of a fit, with a teacher's cache or without."""
    with tempfile.TemporaryDirectory() as folder, random_weights_are_meant():
        teacher.write_run(Path(folder), names)
        prompts = StudentPrompts(sizes.prompt_length, sizes.prompt_depth)
        student = StudentDistillation(
            ClipConfig(sizes.student, RANDOM),
            folder,
            vision_prompts=prompts,
            teacher_cache=folder if cached else None,
        )
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        trainer = SimpleNamespace(
            datamodule=_Domain(names), world_size=1, strategy=strategy, precision_plugin=Precision()
        )
        student.trainer = cast(Trainer, trainer)
        student.setup("fit")
        if not cached:
            student.load_teacher()
    student.trainer = None
    # there is no trainer to log to
    student.log = lambda *_, **__: None  # type: ignore[method-assign]
    return student.train()


def _as_published(student: StudentDistillation) -> PublishedStudent:
    """Build the published student in the same state, over the same frozen tower."""
    encoder = student.encoder
    assert encoder.prompts is not None  # noqa: S101
    tower, out_dim = encoder.tower.module, student.vectors.vectors.shape[1]
    published = PublishedStudent(
        tower.visual, student.logit_scale, encoder.prompts.tokens, tower.embed_dim, out_dim
    )
    published.projector.load_state_dict(encoder.projector.layers.state_dict())
    return published
