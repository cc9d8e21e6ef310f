"""Refined targets: the teacher's predictions corrected by labels and the unlabelled images."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdpl.data.groups import group_numbers
from kdpl.data.parallel import progress_bar
from kdpl.data.sampling import spread
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, require_same
from kdpl.targets import PreparedTarget
from kdpl.targets.inputs import REMEDY, ImageFeatures, TargetInputs, rows_of
from kdpl.targets.refinement.experts import Assigned, Evidence, assign
from kdpl.targets.refinement.pool_targets import POOL_TARGETS_FILE, Moved, PoolTargets
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.tasks import MULTI_CLASS, require_one_class

_SHOWN = 60  # number of moved images in the file
_FLOOR = 1e-3  # probability spread over all classes, since assignments are nearly one-hot


@dataclass(eq=False)
class Refined(RefinementConfig, PreparedTarget):
    """Assignment of the unlabelled images to classes, as a student's target (docs/targets.md).

    The images are assigned before the first step: the predictions of the teacher and of a probe on
    an encoder's features, weighted by the labels, are refined on the pool. Teacher and probe
    predict from the mean feature of several views of an image; the refined feature adds twice the
    evaluation view to the mean. All are normalised. Labelled images take part with their labels;
    validation images take part without labels, and their labels help to choose. The result is
    written to ``pool_targets.safetensors`` in the run's folder; a resumed run reads it from there.

    Attributes:
        encoder: Source of the features for probe, neighbours and Gaussians: ``tower``, the
            teacher's image tower before its projection into the joint space, without prompts; or
            ``teacher``, the teacher's features. Other attributes are as in ``RefinementConfig``.
    """

    encoder: Literal["tower", "teacher"] = "tower"

    def __post_init__(self) -> None:
        self._taken: bool | None = None
        self._rows = self._log_assignments = torch.empty(0)

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError for several labels per image."""
        require_one_class(task, "target: refined")

    @property
    def uses_teacher(self) -> bool:
        """False once the assignments are in use."""
        return not self._taken

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return logits of the target [B, C]; a ConfigError before ``prepare``."""
        if self._taken is None:
            raise ConfigError(
                "the refined targets are not there: run a fit of the student, which prepares them "
                "before its first step"
            )
        if not self._taken:
            return predicted
        return self._log_assignments[self._rows[indices]].float()

    def prepare(self, inputs: TargetInputs) -> None:
        """Refine, or read earlier results; ArtifactError if of other data or settings."""

        def make(path: Path, origin: Origin) -> None:
            evidence = self.evidence(inputs)
            inputs.on_first_process(lambda: self._assign(inputs, evidence, origin).save(path))

        # use the file, made by this run or another, after a check of its origin
        settings = {"target": asdict(self), "features": "normalised and blended"}
        file, origin = inputs.kept(POOL_TARGETS_FILE, settings, make)
        targets = PoolTargets.load(file)
        require_same(str(file), targets.made_from, origin, REMEDY, kind=ArtifactError)
        self.use(targets, inputs.device)

    def use(self, targets: PoolTargets, device: torch.device) -> None:
        """Use the assignments on a device, if they are taken."""
        self._taken = targets.taken
        if self._taken:
            assignments = targets.assignments.to(device, torch.float32)
            # logarithms without infinities
            z = assignments + _FLOOR / assignments.shape[1]
            self._log_assignments = (z / z.sum(dim=1, keepdim=True)).log_().half()
            self._rows = rows_of(targets.images).to(device)

    def evidence(self, inputs: TargetInputs) -> Evidence:
        """Return features, predictions and labels of the pool and of ``further_images``."""
        further, labels, groups = further_images(inputs)

        # the teacher's features of both lists of images, and the pooled features
        sources, pooled = [record.source for record in further], self.encoder == "tower"
        lists = [None, sources] if sources else [None]
        parts = [inputs.features(images, self.views, pooled) for images in lists]
        teacher, tower = (
            ImageFeatures(*map(torch.cat, zip(*encoded, strict=True)))
            for encoded in zip(*parts, strict=True)
        )
        features = tower if pooled else teacher

        # the predictions, and the labels
        text = MULTI_CLASS.log_probabilities(inputs.predict(teacher.mean))
        val_labels = [-1] * (len(labels) - len(inputs.val)) + [r.single for r in inputs.val]
        return Evidence(
            features.blend,
            features.mean,
            text,
            torch.tensor(labels, device=text.device),
            torch.tensor(val_labels, device=text.device),
            torch.tensor(groups, device=text.device),
            trusted=not inputs.tuned,
        )

    def _assign(self, inputs: TargetInputs, evidence: Evidence, origin: Origin) -> PoolTargets:
        # assign them
        n, labels = len(inputs.targeted), int((evidence.labels >= 0).sum())
        with progress_bar() as progress:
            inform(f"refining the predictions of {n} unlabelled images, {labels} labels are seen")
            task = progress.add_task("refinement", total=None)
            assigned = assign(
                evidence, self, lambda _, total: progress.update(task, advance=1, total=total)
            )

        # count the images of the pool per class, and the moved images
        before = MULTI_CLASS.labels(evidence.log_probabilities[:n]).cpu()
        after = MULTI_CLASS.labels(assigned.assignments[:n]).cpu()
        num_classes = len(inputs.class_names)
        counts = [classes.bincount(minlength=num_classes) for classes in (before, after)]
        taken, reason = self._decide(assigned, counts)
        moved = torch.nonzero(before != after).flatten().tolist()
        # once, where several students share the result
        inform(f"refined targets are {reason}")
        if taken:
            inform(f"they give {len(moved)} of {n} images another class than the teacher does")
        return PoolTargets(
            made_from=dict(origin),
            class_names=tuple(inputs.class_names),
            taken=taken,
            reason=reason,
            accuracy=assigned.right,
            before=tuple(counts[0].tolist()),
            after=tuple(counts[1].tolist()),
            moved=len(moved),
            examples=tuple(
                Moved(int(inputs.targeted[i]), int(before[i]), int(after[i]))
                for i in spread(moved, _SHOWN)
            ),
            images=torch.from_numpy(np.asarray(inputs.targeted)).long(),
            assignments=assigned.assignments[:n].half().cpu(),
        )

    def _decide(self, assigned: Assigned, counts: list[Tensor]) -> tuple[bool, str]:
        """Decide whether to take the assignments; ``counts`` are images per class, [C] each."""
        what = assigned.describe()
        if self.mode == "always":
            return True, f"taken, as mode is always: {what}"
        if assigned.right is not None:
            before, after = assigned.right
            return after >= before, f"{'taken' if after >= before else 'not taken'}: {what}"
        # without labels to judge by, classes must not lose all their images
        emptied = int(((counts[0] > 0) & (counts[1] == 0)).sum())
        if emptied and assigned.strength is None:
            left = f"{emptied} class{'es' if emptied > 1 else ''}"
            return False, f"not taken: it leaves {left} without an image, {what}"
        return True, f"taken: {what}"


def further_images(inputs: TargetInputs) -> tuple[list[Record], list[int], list[int]]:
    """Return further images to refine; and label, −1 for none, and group of pool and these.

    The further images are the labelled images outside the pool, then the validation images.
    """
    # labels and groups by source
    label_of = {record.source: record.single for record in inputs.labeled}
    sources = [record.source for record in (*inputs.labeled, *inputs.val)]
    group_of = dict(zip(sources, group_numbers(sources, inputs.groups).tolist(), strict=True))

    # labelled images in the pool; each other image of the pool is a group
    labels, inside = [-1] * len(inputs.targeted), set[str]()
    groups = [*range(len(sources), len(sources) + len(labels))]
    # without labels, do not name the images: a pool may have millions
    for i, source in enumerate(inputs.pool.take(inputs.targeted) if label_of else ()):
        if source in label_of:
            labels[i], groups[i] = label_of[source], group_of[source]
            inside.add(source)

    # labelled images outside the pool, and validation images
    outside = [record for record in inputs.labeled if record.source not in inside]
    further = [*outside, *inputs.val]
    labels += [record.single for record in outside] + [-1] * len(inputs.val)
    return further, labels, groups + [group_of[record.source] for record in further]
