"""The method on one page: both stages in plain PyTorch, to read from top to bottom.

PromptSRC (arXiv 2307.06948) tunes prompts of a large frozen CLIP, the teacher, on a few labelled
images. PromptKD (arXiv 2403.02781) freezes the teacher's text features into class vectors and
distils its predictions on unlabelled images into a small image tower, the student.

kdpl computes the same losses, gradients and updates, as tests/test_plain_page.py shows. Here it
supplies only the images and the weights of two miniature CLIPs: ``python examples/plain.py``.

Shapes: B images, C classes, L tokens, n prompts per layer, J layers with prompts, W the width of a
tower, d the width of the student's features, D of the teacher's. Each tower has its own W.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from kdpl import DomainDataModule  # the images
from kdpl.clip import Clip, ClipConfig, ImageClip, load_clip  # the weights

# ---- Prompts in both towers: PromptSRC, section 3.1; CoOp and VPT have them in one tower ---------
# Shallow prompts (J = 1) enter layer 0 and flow on; deep ones (J > 1) are replaced in each layer up
# to J - 1. Without prompts (J = 0) a tower is the frozen CLIP's.


def insert(tokens: Tensor, position: int, prompts: Tensor) -> Tensor:
    """Replace n tokens of [B, L, W] from a position on by prompts [n, W]; past the end, append."""
    end = position + len(prompts)
    prompts = prompts.expand(len(tokens), -1, -1)  # [B, n, W]
    return torch.cat([tokens[:, :position], prompts, tokens[:, end:]], dim=1)


def image_features(visual: Any, pixels: Tensor, prompts: Tensor) -> Tensor:
    """Encode normalised pixels [B, 3, S, S] with visual prompts [J, n, W]; [B, D], unnormalised."""
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.expand(len(pixels), 1, -1)
    tokens = torch.cat([class_token, patches], dim=1) + visual.positional_embedding  # [B, L, W]
    end = tokens.shape[1]
    if len(prompts) > 0:
        tokens = insert(tokens, end, prompts[0])  # [B, L + n, W]
    tokens = visual.ln_pre(tokens)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            tokens = insert(tokens, end, prompts[layer])
        tokens = block(tokens)
    return visual.ln_post(tokens[:, 0]) @ visual.proj


def text_features(text: Any, ids: Tensor, prompts: Tensor) -> Tensor:
    """Encode token ids [C, L] with text prompts [J, n, W]; [C, D], unnormalised.

    A text is [start] [n words of context] [class name] [.] [end] [padding]. The prompts of layer 0
    replace the embeddings of the context. All classes share the prompts.
    """
    classes, length = ids.shape
    mask = torch.full((length, length), float("-inf"), device=ids.device).triu(1)  # causal
    tokens = text.token_embedding(ids)  # [C, L, W]
    if len(prompts) > 0:
        tokens = insert(tokens, 1, prompts[0])
    tokens = tokens + text.positional_embedding
    for layer, block in enumerate(text.transformer.resblocks):
        if 0 < layer < len(prompts):
            tokens = insert(tokens, 1, prompts[layer])
        tokens = block(tokens, attn_mask=mask)
    ends = ids.argmax(dim=1)  # the end token has the highest id
    tokens = text.ln_final(tokens)[torch.arange(classes, device=ids.device), ends]  # [C, W]
    return tokens @ text.text_projection


def cosine_logits(features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
    """Compare normalised features [B, D] with normalised class vectors [C, D]; logits [B, C]."""
    return logit_scale * features @ class_vectors.T


# ---- Stage 1, the teacher: PromptSRC, section 3.1 ------------------------------------------------

CONTEXT = "a photo of a"  # before the class name


class Teacher(nn.Module):
    """A frozen CLIP with prompts in both towers, its only parameters; published: n = 4, J = 9."""

    def __init__(
        self, clip: Clip, vision_depth: int = 9, text_depth: int = 9, length: int = 4
    ) -> None:
        super().__init__()
        self.clip = clip  # not a Module, so its weights are not parameters of this one
        # visual prompts start as noise
        noise = torch.randn(vision_depth, length, clip.image_tower.visual.proj.shape[0])
        self.vision_prompts = nn.Parameter(0.02 * noise)  # [J, n, W]
        # so do text prompts, but those of layer 0 start as the words of the context
        words = clip.text_tower.token_embedding(clip.tokenize([CONTEXT])[:, 1 : 1 + length])
        noise = torch.randn(text_depth - 1, *words.shape[1:])
        self.text_prompts = nn.Parameter(torch.cat([words.detach(), 0.02 * noise]))  # [J, n, W]

    def tokenize(self, class_names: Iterable[str]) -> Tensor:
        """Return the token ids of C class names, [C, L]."""
        names = [name.replace("_", " ") for name in class_names]
        return self.clip.tokenize([f"{CONTEXT} {name}." for name in names])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the normalised features of images [B, 3, S, S], [B, D]."""
        visual = self.clip.image_tower.visual
        return F.normalize(image_features(visual, pixels, self.vision_prompts), dim=1)

    def encode_texts(self, ids: Tensor) -> Tensor:
        """Return the normalised features of token ids [C, L], [C, D]."""
        return F.normalize(text_features(self.clip.text_tower, ids, self.text_prompts), dim=1)


# ---- Stage 1, the frozen text features: PromptSRC, section 3.2.3 (textual diversity) -------------


@torch.no_grad()
def template_features(clip: Clip, class_names: Sequence[str]) -> Tensor:
    """Average the frozen CLIP's features of 60 texts, such as "a photo of a cool crab."; [C, D]."""
    names = [name.replace("_", " ") for name in class_names]
    texts = [[template(name) for name in names] for template in OPENAI_IMAGENET_TEMPLATES[:60]]
    no_prompts = torch.empty(0)
    features = [text_features(clip.text_tower, clip.tokenize(text), no_prompts) for text in texts]
    return F.normalize(torch.stack(features).mean(dim=0), dim=1)


# ---- Stage 1, the loss: PromptSRC, section 3.2.1 (mutual agreement), equations 3 to 5 ------------


def kl_divergence(logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute τ² Σ p (log p − log q) / (B·C), divided by C too, as in the published code."""
    log_q = F.log_softmax(logits / temperature, dim=1)  # [B, C]
    log_p = F.log_softmax(target_logits / temperature, dim=1)
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * total / logits.numel()


def promptsrc_loss(
    teacher: Teacher,
    pixels: Tensor,  # [B, 3, S, S]
    labels: Tensor,  # [B]
    ids: Tensor,  # [C, L]
    frozen_texts: Tensor,  # [C, D]
    weights: tuple[float, float, float] = (25.0, 10.0, 1.0),
) -> Tensor:
    """Compute the cross entropy, plus three distances from the frozen CLIP by their weights."""
    clip, visual = teacher.clip, teacher.clip.image_tower.visual
    images, texts = teacher.encode_images(pixels), teacher.encode_texts(ids)  # [B, D], [C, D]
    logits = cosine_logits(images, texts, clip.logit_scale)  # [B, C]
    with torch.no_grad():  # the frozen CLIP on the same augmented images
        frozen_images = F.normalize(image_features(visual, pixels, torch.empty(0)), dim=1)
        frozen_logits = cosine_logits(frozen_images, frozen_texts, clip.logit_scale)
    loss = F.cross_entropy(logits, labels)
    loss = loss + weights[0] * F.l1_loss(texts, frozen_texts)
    loss = loss + weights[1] * F.l1_loss(images, frozen_images)
    return loss + weights[2] * kl_divergence(logits, frozen_logits)


# ---- Stage 1, weights of the averaged prompts: PromptSRC, section 3.2.2 (self-ensembling) --------


def gaussian_weights(epochs: int, mean: float, std: float) -> Tensor:
    """Return the weights of the prompts after epochs 1 to E, [E], which sum to 1."""
    numbers = torch.arange(1, epochs + 1)
    return F.softmax(-0.5 * ((numbers - mean) / std) ** 2, dim=0)


# ---- Between the stages, the class vectors: PromptKD, section 3.2 --------------------------------


@torch.no_grad()
def freeze_class_vectors(teacher: Teacher, class_names: Iterable[str]) -> Tensor:
    """Encode all class names with the tuned prompts, once; the text tower is not used again."""
    return teacher.encode_texts(teacher.tokenize(class_names))


# ---- Stage 2, the student and its loss: PromptKD, section 3.3 and equation 5 ---------------------


class Student(nn.Module):
    """A small frozen image tower; trained are its visual prompts, and a projector from d to D."""

    def __init__(self, clip: ImageClip, width: int, depth: int = 9, length: int = 4) -> None:
        super().__init__()
        self.clip = clip  # frozen, as in the teacher
        tower_width, student_width = clip.image_tower.visual.proj.shape  # W, d
        self.prompts = nn.Parameter(0.02 * torch.randn(depth, length, tower_width))  # [J, n, W]
        to_hidden, to_output = nn.Linear(student_width, width), nn.Linear(width, width)
        self.projector = nn.Sequential(to_hidden, nn.BatchNorm1d(width), nn.ReLU(), to_output)

    def forward(self, pixels: Tensor, class_vectors: Tensor) -> Tensor:
        """Compare images [B, 3, S, S] with the teacher's class vectors [C, D]; logits [B, C]."""
        features = image_features(self.clip.image_tower.visual, pixels, self.prompts)  # [B, d]
        features = F.normalize(self.projector(features), dim=1)  # [B, D]
        return cosine_logits(features, class_vectors, self.clip.logit_scale)


def promptkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, weight: float = 1000.0, temperature: float = 1.0
) -> Tensor:
    """Compute the weighted divergence of the student's predictions from the teacher's."""
    return weight * kl_divergence(student_logits, teacher_logits, temperature)


# ---- Training both stages ------------------------------------------------------------------------


def set_learning_rate(optimizer: Optimizer, peak: float, epoch: int, epochs: int) -> None:
    """Set the learning rate of an epoch: 1e-5 in the first, then along a cosine from the peak."""
    cosine = peak / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    for group in optimizer.param_groups:
        group["lr"] = 1e-5 if epoch == 0 else cosine


def tune_teacher(
    teacher: Teacher,
    optimizer: Optimizer,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],  # of an epoch: pixels, labels
    epochs: int,
    class_names: Sequence[str],
    weights: tuple[float, float, float] = (25.0, 10.0, 1.0),
    averaging: tuple[float, float] = (15.0, 1.0),  # mean and standard deviation, in epochs
) -> None:
    """Tune the prompts on labelled images; they end as their average over the epochs."""
    ids = teacher.tokenize(class_names)  # [C, L]
    frozen_texts = template_features(teacher.clip, class_names)  # [C, D]
    averages = [torch.zeros_like(prompts) for prompts in teacher.parameters()]
    peak = optimizer.param_groups[0]["lr"]
    for epoch, share in enumerate(gaussian_weights(epochs, *averaging)):
        set_learning_rate(optimizer, peak, epoch, epochs)
        for pixels, labels in batches(epoch):
            loss = promptsrc_loss(teacher, pixels, labels, ids, frozen_texts, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for average, prompts in zip(averages, teacher.parameters(), strict=True):
            average += share * prompts.detach()
    for average, prompts in zip(averages, teacher.parameters(), strict=True):
        prompts.data.copy_(average)


def distil_student(
    student: Student,
    teacher: Teacher,
    class_vectors: Tensor,  # [C, D]
    optimizer: Optimizer,
    batches: Callable[[int], Iterable[Tensor]],  # of an epoch: pixels, no labels
    epochs: int,
    weight: float = 1000.0,  # λ
) -> None:
    """Train prompts and projector to predict what the teacher predicts for the same view."""
    student.train()  # the batch norm
    peak = optimizer.param_groups[0]["lr"]
    for epoch in range(epochs):
        set_learning_rate(optimizer, peak, epoch, epochs)
        for pixels in batches(epoch):
            with torch.no_grad():
                features = teacher.encode_images(pixels)  # [B, D]
                target = cosine_logits(features, class_vectors, teacher.clip.logit_scale)
            loss = promptkd_loss(student(pixels, class_vectors), target, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    student.eval()


# ---- The quickstart: two miniature CLIPs and handwritten digits ----------------------------------


def main(teacher_epochs: int = 30, student_epochs: int = 20) -> None:
    """Train both stages and print the accuracies on the test images."""
    torch.manual_seed(1)
    large = load_clip(ClipConfig("tiny-teacher", "glyphs"))
    small = load_clip(ClipConfig("tiny-student", "glyphs"))
    inputs = large.preprocessing  # that of both
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (inputs.mean, inputs.std))
    data = DomainDataModule("digits", shots=16, augmentation="light_affine", num_workers=0)

    def batches(split: str, size: int, epoch: int) -> Iterable[Any]:
        data.batch_size = size
        loader = data.train_dataloader_for(split, inputs.resizing)
        loader.sampler.set_epoch(epoch)
        return loader

    def pixels_of(batch: Any) -> Tensor:
        return (batch.images / 255 - mean) / std

    def labeled(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return ((pixels_of(batch), batch.labels) for batch in batches("labeled", 16, epoch))

    def unlabeled(epoch: int) -> Iterable[Tensor]:
        return (pixels_of(batch) for batch in batches("unlabeled", 64, epoch))

    @torch.no_grad()
    def accuracy(logits_of: Callable[[Tensor], Tensor]) -> float:
        test = data.evaluation_dataloader_for("test", inputs.resizing)
        right = [logits_of(pixels_of(batch)).argmax(dim=1) == batch.labels for batch in test]
        return 100 * torch.cat(right).float().mean().item()

    teacher = Teacher(large, vision_depth=4, text_depth=2)
    optimizer = AdamW(teacher.parameters(), lr=0.002, weight_decay=0)
    names, averaging = data.class_names, (0.75 * teacher_epochs, 1.0)
    tune_teacher(teacher, optimizer, labeled, teacher_epochs, names, (5, 2, 1), averaging)
    vectors = freeze_class_vectors(teacher, names)
    right = accuracy(lambda x: cosine_logits(teacher.encode_images(x), vectors, large.logit_scale))
    print(f"teacher: {right:.1f} % of the test images")

    student = Student(small, width=vectors.shape[1], depth=2)
    optimizer = AdamW(student.parameters(), lr=0.003, weight_decay=1e-4)
    distil_student(student, teacher, vectors, optimizer, unlabeled, student_epochs)
    print(f"student: {accuracy(lambda x: student(x, vectors)):.1f} % of the test images")


if __name__ == "__main__":
    main()
