"""A distillation step of kdpl and the published one, with the same weights, images, class names and loss.

The published step, the baseline of all ratios, is built from ``examples/plain.py``. At every step
the teacher's text tower encodes all class names, 77 tokens each, and its image tower every image;
all blocks run on all tokens.
"""

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
from benchmarks.settings import Settings
from benchmarks.sizes import Sizes
from benchmarks.teacher import RandomTeacher, random_weights_are_meant
from examples.plain import Student, Teacher, cosine_logits, promptkd_loss
from kdpl import StudentDistillation
from kdpl.clip import RANDOM, ClipConfig, ImageClip, store_frozen
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.optim import OptimConfig
from kdpl.prompts import StudentPrompts


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
        self.published_teacher = _published_teacher(teacher, sizes).to(device)
        self.ids = self.published_teacher.tokenize(names).to(device)
        self.published_student = _published_student(self.student).to(device)
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
            teacher, student = self.published_teacher, self.published_student
            # once for both towers, as in the published data loader
            pixels = self.student.encoder.tower.module.pixels(self.images)
            with torch.no_grad():
                images, texts = teacher.encode_images(pixels), teacher.encode_texts(self.ids)
                teacher_logits = cosine_logits(images, texts, teacher.clip.logit_scale)
            loss = self.student.loss
            return promptkd_loss(
                student(pixels, texts), teacher_logits, loss.weight, loss.temperature
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


def _published_teacher(teacher: RandomTeacher, sizes: Sizes) -> Teacher:
    """Build the published teacher with the same prompts, over the same frozen CLIP."""
    saved = teacher.prompts.saved()
    published = Teacher(teacher.clip, sizes.prompt_depth, sizes.prompt_depth, sizes.prompt_length)
    text = torch.cat([saved["text_prompts.context"][None], saved["text_prompts.deep"]])
    published.load_state_dict(
        {"vision_prompts": saved["vision_prompts.tokens"], "text_prompts": text}
    )
    return published


def _published_student(student: StudentDistillation) -> Student:
    """Build the published student in the same state, over the same frozen tower."""
    encoder = student.encoder
    assert encoder.prompts is not None  # noqa: S101
    depth, length, _ = encoder.prompts.tokens.shape
    clip = ImageClip(encoder.tower.module, student.logit_scale, student.clip)
    published = Student(clip, student.vectors.vectors.shape[1], depth, length)
    published.prompts.data.copy_(encoder.prompts.tokens)
    published.projector.load_state_dict(encoder.projector.layers.state_dict())
    return published
