"""Refined targets: the teacher's predictions, corrected by the shape of the unlabelled images."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from kdpl.data.names import digest_of
from kdpl.data.parallel import progress_bar
from kdpl.data.reading import digest_names
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError, ConfigError
from kdpl.refinement.pool_targets import POOL_TARGETS_FILE, Moved, PoolTargets
from kdpl.refinement.refine import RefinementConfig, affinity, nearest, refine
from kdpl.runtime.messages import inform
from kdpl.targets import Target
from kdpl.targets.inputs import TargetInputs
from kdpl.tasks import MULTI_CLASS

_FEW = 1  # labels a class up to which it helped in all that was measured: docs/targets.md
_LEVEL = 0.05  # of the test: so often at most is it taken where it is no better
_SHOWN = 60  # images that moved
_FLOOR = 1e-3  # of probability, spread over all classes: assignments are nearly one-hot


@dataclass(eq=False)
class Refined(RefinementConfig, Target):
    """Mix of the teacher's prediction and assignment z, p ∝ teacher^(1−a) · z^a (docs/targets.md).

    The unlabelled images are assigned to classes before the first step. The teacher's features are
    normalised means over some views. Labelled images take part with their labels; so do validation
    images without theirs, on which McNemar's exact test decides if the result is better. Written to
    ``pool_targets.safetensors`` in the run's folder, it is read from there when the run is resumed.
    Settings are those of ``RefinementConfig``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._share_taken: float | None = None
        self._rows = self._log_assignments = torch.empty(0)

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return logits of the target [B, C]; a ConfigError before ``prepare``."""
        if self._share_taken is None:
            raise ConfigError(
                "the refined targets are not there: fit the student by its command, "
                "which makes them"
            )
        if not self._share_taken:
            return predicted
        assigned = self._log_assignments[self._rows[indices]].float()
        return self._share_taken * assigned + (
            1 - self._share_taken
        ) * MULTI_CLASS.log_probabilities(predicted)

    def prepare(self, inputs: TargetInputs) -> None:
        """Refine, or read earlier results; ArtifactError if of other data or settings."""
        file = inputs.folder / POOL_TARGETS_FILE
        known = (f"{record.label} {record.source}" for record in (*inputs.labeled, *inputs.val))
        needed = {
            "teacher": " mean ".join(vectors.teacher for vectors in inputs.teachers),
            "class_names": tuple(inputs.class_names),
            "class_vectors": _digest([vectors.vectors for vectors in inputs.teachers]),
            "pool": digest_of(inputs.pool),
            "labels": digest_names(known),
            "settings": asdict(self),
        }
        if not file.is_file():
            further, labels = _further_images(inputs)
            features = self._features(inputs, further)
            inputs.on_first_process(
                lambda: self._assign(inputs, features, labels, needed).save(file)
            )

        targets = PoolTargets.load(file)
        other = next(
            (name for name, value in needed.items() if getattr(targets, name) != value), None
        )
        if other is not None or not np.array_equal(targets.images.numpy(), inputs.indices):
            what = (other or "images").replace("_", " ")
            raise ArtifactError(
                f"{file} was made for other {what}: remove it, or choose another --out"
            )
        inform(f"refinement: {targets.reason}")
        if targets.share:
            inform(
                f"{targets.moved} of {len(targets.images)} unlabelled images are assigned to "
                f"another class: {file}"
            )
        self.use(targets, inputs.device)

    def use(self, targets: PoolTargets, device: torch.device) -> None:
        """Use these assignments, on a device."""
        self._share_taken = targets.share
        if targets.share:
            z = (
                targets.assignments.to(device, torch.float32)
                + _FLOOR / targets.assignments.shape[1]
            )
            self._log_assignments = (z / z.sum(dim=1, keepdim=True)).log_().half()
            rows = torch.full((int(targets.images.max()) + 1,), -1)
            rows[targets.images] = torch.arange(len(targets.images))
            self._rows = rows.to(device)

    def _features(self, inputs: TargetInputs, further: Sequence[Record]) -> Tensor:
        """The teachers' features side by side, of pool and further images, [N, D_1 + … + D_M]."""
        sources, each = [record.source for record in further], []
        for number in range(len(inputs.teachers)):
            parts = [inputs.features(None, self.views, number)]
            parts += [inputs.features(sources, self.views, number)] if sources else []
            each.append(torch.cat(parts))
        return torch.cat(each, dim=1)

    def _assign(
        self, inputs: TargetInputs, features: Tensor, known: list[int], needed: dict[str, Any]
    ) -> PoolTargets:
        """Refine, and decide if students learn the result; ``known`` are labels, −1 for none."""
        predicted = MULTI_CLASS.probabilities(inputs.predict(features))
        features /= len(inputs.teachers) ** 0.5
        n, first = len(inputs.indices), len(features) - len(inputs.val)
        labels = torch.tensor(known, device=features.device)
        shots = len(inputs.labeled) / max(len({record.label for record in inputs.labeled}), 1)
        with progress_bar() as progress:
            inform(
                f"refining the predictions of {n} unlabelled images, {(labels >= 0).sum()} "
                "labels are seen"
            )
            neighbors = affinity(*nearest(features, self.neighbors, self.search))
            task = progress.add_task("refinement", total=self.rounds)
            z = refine(
                *(features, predicted, neighbors, labels, self.for_shots(shots)),
                lambda done: progress.update(task, completed=done),
            )

        truth = torch.tensor(
            [record.label for record in inputs.val], device=z.device, dtype=torch.long
        )
        right = [(MULTI_CLASS.labels(each[first:]) == truth).float() for each in (predicted, z)]
        before, after = (MULTI_CLASS.labels(each[:n]).cpu() for each in (predicted, z))
        classes = len(inputs.class_names)
        counts = [torch.bincount(each, minlength=classes) for each in (before, after)]
        taken, reason = self._decide(right[0], right[1], counts, shots)

        moved = torch.nonzero(before != after).flatten()
        shown = moved[torch.linspace(0, len(moved) - 1, min(_SHOWN, len(moved))).long()].tolist()
        return PoolTargets(
            **needed,
            share=self.share if taken else 0.0,
            reason=reason,
            accuracy=(right[0].mean().item(), right[1].mean().item()) if len(truth) else None,
            before=tuple(counts[0].tolist()),
            after=tuple(counts[1].tolist()),
            moved=len(moved),
            examples=tuple(
                Moved(int(inputs.indices[i]), int(before[i]), int(after[i])) for i in shown
            ),
            images=torch.from_numpy(np.asarray(inputs.indices)).long(),
            assignments=z[:n].half().cpu(),
        )

    def _decide(
        self, teacher: Tensor, refined: Tensor, counts: list[Tensor], shots: float
    ) -> tuple[bool, str]:
        """Decide on taking the assignments, by their accuracy on held-out images and by counts.

        ``counts`` are those of the pool's images before and after, and ``shots`` the labelled
        images a class.
        """
        n = len(teacher)
        measured, p_value = "there are no held-out labels to measure it on", 1.0
        if n:
            gained, lost = (int((a > b).sum()) for a, b in ((refined, teacher), (teacher, refined)))
            if gained:
                # McNemar's exact test: were it no better, each image would be as probable on either
                # side
                p_value = binomtest(gained, gained + lost, alternative="greater").pvalue
            after, before = (100 * each.mean() for each in (refined, teacher))
            shares = (
                f"{after:.1f} % of {n} validation images, "
                f"the predictions before it on {before:.1f} %"
            )
            measured = f"it is right on {shares} ({gained} gained, {lost} lost, p = {p_value:.2g})"
        if self.mode == "always":
            return True, f"taken, as mode is always; {measured}"
        if n:
            return (
                (True, f"taken: {measured}")
                if p_value <= _LEVEL
                else (False, f"not taken: {measured}")
            )
        emptied = int(((counts[0] > 0) & (counts[1] == 0)).sum())
        if emptied:
            left = f"{emptied} class{'es' if emptied > 1 else ''}"
            return False, f"not taken: it leaves {left} without an image, and {measured}"
        if shots > _FEW:
            return False, f"not taken: {measured}, and with more than one label a class it may harm"
        return True, f"taken: {measured}, and there is at most one label a class"


def _further_images(inputs: TargetInputs) -> tuple[list[Record], list[int]]:
    """Images that are refined beside the pool, and a label for each image of both, −1 for none.

    They are the labelled images that are not in the pool, and then the validation images.
    """
    label_of = {record.source: record.label for record in inputs.labeled}
    pool = inputs.pool.take(inputs.indices) if label_of else ()
    in_pool = {source: i for i, source in enumerate(pool) if source in label_of}
    outside = [record for record in inputs.labeled if record.source not in in_pool]

    labels = [-1] * len(inputs.indices)
    for source, i in in_pool.items():
        labels[i] = label_of[source]
    labels += [record.label for record in outside] + [-1] * len(inputs.val)
    return [*outside, *inputs.val], labels


def _digest(tensors: list[Tensor]) -> str:
    return hashlib.blake2b(
        b"".join(tensor.numpy().tobytes() for tensor in tensors), digest_size=16
    ).hexdigest()
