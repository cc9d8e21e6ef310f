r"""A student of several teachers: its own, further runs of stage 1, and original CLIPs.

    PYTHONPATH=examples python -m kdpl fit --config student/quickstart --config data/digits \
        --model.init_args.teacher runs/quickstart/teacher --out runs/two \
        --model.init_args.target several_teachers.SeveralTeachers \
        --model.init_args.target.others '["tiny-resnet,glyphs"]'

In a campaign such as configs/benchmark/beyond.yaml, with examples on PYTHONPATH, it is the row

    both:
      title: "**student of it and a zero-shot EVA-CLIP**"
      student: configs/student/promptkd_vit_b16.yaml
      of: teacher
      options:
        - --model.init_args.target=several_teachers.SeveralTeachers
        - --model.init_args.target.others=["EVA02-L-14,merged2b_s4b_b131k"]
        - --model.init_args.target.by_confidence=true
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl import ClassVectors
from kdpl.clip import ClipConfig, load_clip
from kdpl.clip.modules import cosine_logits, normalized
from kdpl.prompts import PromptConfig, PromptMethod
from kdpl.prompts.text import CONTEXT
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.targets import PreparedTarget, TargetValues
from kdpl.targets.encoding import Network
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.inputs import ImageFeatures, TargetInputs
from kdpl.tasks import require_one_class


@dataclass(frozen=True, eq=False)
class Mixed(TargetValues):
    """The mixture's logarithms, and what they were made from."""

    made_from: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the file."""
        tensors = {"images": self.images, "logits": self.logits}
        write_tensors(path, "mixed predictions", 1, tensors, {"made_from": self.made_from})


@dataclass(eq=False)
class SeveralTeachers(PreparedTarget[list[Tensor]]):
    """For each image Σ w_m p_m, where teacher m predicts p_m from the mean of several views.

    Attributes:
        others: Folders of finished runs of stage 1 for the same classes, or MODEL,WEIGHTS.
        by_confidence: w_m ∝ exp(−H_m) with the entropy H_m of p_m in nats, the idea of
            TheProfessor (arXiv 2606.23897); otherwise all w_m are the same.
        views: Number of views of an image.
    """

    file = "several_teachers.safetensors"
    others: list[str]
    by_confidence: bool = False
    views: int = 8

    def settings(self, inputs: TargetInputs) -> Mapping[str, Any]:
        """Return the settings, and the class vectors of the other runs."""
        require_one_class(inputs.vectors.task, "SeveralTeachers")
        runs = [ClassVectors.of_teacher(name) for name in self.others if Path(name).is_dir()]
        return {**super().settings(inputs), "runs": [vectors.digest() for vectors in runs]}

    def gather(self, inputs: TargetInputs) -> list[Tensor]:
        """Return the numbers of the pool's images, [N], and the logits of each teacher, [N, C]."""
        first = inputs.teacher.logits(inputs.features(None, self.views)[0].mean)
        others = [predict(name, inputs, self.views) for name in self.others]
        return [torch.as_tensor(inputs.pool.targeted).long(), first, *others]

    def compute(self, gathered: list[Tensor], made_from: Mapping[str, Any]) -> Mixed:
        """Mix the predictions."""
        predicted = torch.stack(gathered[1:]).log_softmax(dim=-1)
        entropies = -(predicted.exp() * predicted).sum(dim=-1, keepdim=True)
        weights = (-entropies * self.by_confidence).log_softmax(dim=0)
        return Mixed(gathered[0], torch.logsumexp(weights + predicted, dim=0), made_from)

    def load(self, path: Path) -> tuple[TargetValues, Mapping[str, Any]]:
        """Read the mixed predictions."""
        tensors, fields = read_tensors(path, "mixed predictions", 1, "remove it, and start again")
        return TargetValues(**tensors), fields["made_from"]


@torch.no_grad()
def predict(name: str, inputs: TargetInputs, views: int) -> Tensor:
    """Predict the pool's images by a run's teacher or an original CLIP, logits [N, C]."""
    if Path(name).is_dir():
        vectors = ClassVectors.of_teacher(name)
        vectors.require_names(inputs.vectors.class_names, f"the teacher {name}")
        teacher = FrozenTeacher(Path(name), vectors).to(inputs.device)
        inputs = replace(inputs, teacher=teacher, load_teacher=teacher.load)
        return teacher.logits(inputs.features(None, views)[0].mean)

    model, _, weights = name.partition(",")
    clip, none = load_clip(ClipConfig(model, weights or None)), PromptConfig(depth=0)
    method = PromptMethod(none, none, CONTEXT, clip)
    rows = method.encode_names(inputs.vectors.texts, clip.text_tower, clip.tokenize)
    tower = clip.image_tower.to(inputs.device).eval()

    def encode(images: Tensor) -> Tensor:
        with torch.no_grad(), inputs.autocast():
            return normalized(tower(images.to(inputs.device)))

    identity, targeted = {"several teachers": clip.identity.fingerprint}, inputs.pool.targeted
    network = Network(identity, clip.identity, tower.preprocessing, tower, encode)
    store = inputs.store(network, inputs.pool.images.take(targeted), views, True, targeted)
    features = ImageFeatures.of(torch.from_numpy(store.read_all()).to(inputs.device).float())
    return cosine_logits(features.mean, rows.to(inputs.device), clip.logit_scale)
