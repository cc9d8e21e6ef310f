"""Refinement of the teacher's predictions on the unlabelled images, before a student's first epoch."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.stats import binomtest
from torch import Tensor

from kdpl.callbacks.teacher_cache import mean_features
from kdpl.data.parallel import progress_bar
from kdpl.data.reading import digest_names
from kdpl.errors import ArtifactError
from kdpl.refinement.refine import RefinementConfig, affinity, nearest, refine
from kdpl.refinement.target import Moved, PoolTargets
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import POOL_TARGETS_FILE

_FEW = 1  # labels a class up to which it helped in all that was measured: docs/targets.md
_LEVEL = 0.05  # of the test on validation images: so often at most is it taken where it is no better
_SHOWN = 60  # images that moved


class RefinePool(Callback):
    """Assigns the unlabelled images to classes, and has the student learn that.

    The teacher's features are normalised means over some views. Labelled images take part with their labels; so do
    validation images without theirs, on which McNemar's exact test decides if the result is better. Written to
    ``pool_targets.safetensors`` in the run's folder, it is read from there when the run is resumed.
    """

    def __init__(self, config: RefinementConfig) -> None:
        self.config = config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refine, or read what was refined before; an ArtifactError if that is of other data or settings."""
        student: Any = pl_module
        file = Path(trainer.default_root_dir) / POOL_TARGETS_FILE
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = (record for split in ("labeled", "val") for record in data.tuning_records(split))
        needed = {
            "teacher": " mean ".join(teacher.vectors.teacher for teacher in student.teachers),
            "class_names": tuple(data.class_names),
            "class_vectors": _digest([teacher.vectors.vectors for teacher in student.teachers]),
            "pool": data.pool_digest,
            "labels": digest_names(f"{record.label} {record.source}" for record in known),
            "settings": asdict(self.config),
        }
        if not file.is_file():
            made = self._refine(trainer, student, needed)
            if made is not None:
                made.save(file)
            trainer.strategy.barrier("kdpl refinement")
        targets = PoolTargets.load(file)
        other = next((name for name, value in needed.items() if getattr(targets, name) != value), None)
        if other is not None or not np.array_equal(targets.images.numpy(), data.unlabeled_indices):
            what = (other or "images").replace("_", " ")
            raise ArtifactError(f"{file} was made for other {what}: remove it, or choose another --out")
        inform(f"refinement: {targets.reason}")
        if targets.share:
            inform(f"{targets.moved} of {len(targets.images)} unlabelled images are assigned to another class: {file}")
        student.target.module.use(targets, student.device)

    def _refine(self, trainer: Trainer, student: Any, needed: dict[str, Any]) -> PoolTargets | None:
        """Encode the images on all processes, and refine on the first; the others wait for its file."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        indices, sources = data.unlabeled_indices, data.pool
        labeled, held_out = data.tuning_records("labeled"), data.tuning_records("val")
        place = {record.source: -1 for record in labeled}
        place |= {sources[index]: i for i, index in enumerate(indices) if sources[index] in place}
        further = [record for record in labeled if place[record.source] < 0] + held_out
        each, views = [], self.config.views
        for number, teacher in enumerate(student.needs.teachers()):
            resizing = teacher.resizing
            cache = data.teacher_caches[number] if data.teacher_caches else None
            parts = [mean_features(trainer, student, data.unlabeled_images(resizing), indices, views, number, cache)]
            if further:
                images = data.images_of([record.source for record in further], resizing)
                parts.append(mean_features(trainer, student, images, np.arange(len(further)), views, number))
            each.append(torch.cat(parts))
        if not trainer.is_global_zero:
            return None
        features = torch.cat(each, dim=1)
        predicted = student.teacher.module.logits(features).softmax(dim=1)
        features /= len(each) ** 0.5
        n, first = len(indices), len(features) - len(held_out)
        labels = torch.full((len(features),), -1, device=features.device)
        for i, record in enumerate(further[: first - n], start=n):
            labels[i] = record.label
        for record in labeled:
            if place[record.source] >= 0:
                labels[place[record.source]] = record.label
        shots = len(labeled) / max(len({record.label for record in labeled}), 1)
        with progress_bar() as progress:
            inform(f"refining the predictions of {n} unlabelled images, {(labels >= 0).sum()} labels are seen")
            neighbors = affinity(*nearest(features, self.config.neighbors, self.config.search))
            task = progress.add_task("refinement", total=self.config.rounds)
            z = refine(
                *(features, predicted, neighbors, labels, self.config.for_shots(shots)),
                lambda done: progress.update(task, completed=done),
            ).assignments
        truth = torch.tensor([record.label for record in held_out], device=z.device, dtype=torch.long)
        right = [(each[first:].argmax(dim=1) == truth).float() for each in (predicted, z)]
        before, after = (each[:n].argmax(dim=1).cpu() for each in (predicted, z))
        classes = len(needed["class_names"])
        counts = [torch.bincount(each, minlength=classes) for each in (before, after)]
        taken, reason = self._decide(right[0], right[1], counts, shots)
        moved = torch.nonzero(before != after).flatten()
        shown = moved[torch.linspace(0, len(moved) - 1, min(_SHOWN, len(moved))).long()].tolist()
        return PoolTargets(
            **needed,
            share=self.config.share if taken else 0.0,
            reason=reason,
            accuracy=(right[0].mean().item(), right[1].mean().item()) if len(truth) else None,
            before=tuple(counts[0].tolist()),
            after=tuple(counts[1].tolist()),
            moved=len(moved),
            examples=tuple(Moved(int(indices[i]), int(before[i]), int(after[i])) for i in shown),
            images=torch.from_numpy(np.asarray(indices)).long(),
            assignments=z[:n].half().cpu(),
        )

    def _decide(self, teacher: Tensor, refined: Tensor, counts: list[Tensor], shots: float) -> tuple[bool, str]:
        """Whether to take the assignments: by both's correct ones among held-out images, and by counts of the classes.

        ``counts`` are those of the pool's images before and after, and ``shots`` the labelled images a class.
        """
        n = len(teacher)
        measured, p_value = "there are no held-out labels to measure it on", 1.0
        if n:
            gained, lost = (int((a > b).sum()) for a, b in ((refined, teacher), (teacher, refined)))
            if gained:
                # McNemar's exact test: were it no better, each of these images would be as probable on either side
                p_value = binomtest(gained, gained + lost, alternative="greater").pvalue
            after, before = (100 * each.mean() for each in (refined, teacher))
            shares = f"{after:.1f} % of {n} validation images, the predictions before it on {before:.1f} %"
            measured = f"it is right on {shares} ({gained} gained, {lost} lost, p = {p_value:.2g})"
        if self.config.mode == "always":
            return True, f"taken, as refinement.mode is always; {measured}"
        if n:
            return (True, f"taken: {measured}") if p_value <= _LEVEL else (False, f"not taken: {measured}")
        emptied = int(((counts[0] > 0) & (counts[1] == 0)).sum())
        if emptied:
            left = f"{emptied} class{'es' if emptied > 1 else ''}"
            return False, f"not taken: it leaves {left} without an image, and {measured}"
        if shots > _FEW:
            return False, f"not taken: {measured}, and with more than one label a class it may harm"
        return True, f"taken: {measured}, and there is at most one label a class"


def _digest(tensors: list[Tensor]) -> str:
    return hashlib.blake2b(b"".join(tensor.numpy().tobytes() for tensor in tensors), digest_size=16).hexdigest()
