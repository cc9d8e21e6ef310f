"""Refined targets: the teacher's predictions corrected by labels and the unlabelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdpl.clip import RANDOM, ClipConfig, load_image_clip
from kdpl.data.groups import group_numbers
from kdpl.data.parallel import progress_bar
from kdpl.data.sampling import spread
from kdpl.data.splits import Record
from kdpl.runtime.files import write_rows
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin
from kdpl.targets import PreparedTarget, TargetValues
from kdpl.targets.inputs import ImageFeatures, TargetInputs
from kdpl.targets.refinement.experts import Assigned, Evidence, assign
from kdpl.targets.refinement.pool_targets import POOL_TABLE, POOL_TARGETS_FILE, Moved, PoolTargets
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.tasks import MULTI_CLASS, require_one_class

_SHOWN = 60  # number of moved images in the file
_FLOOR = 1e-3  # probability spread over all classes, since assignments are nearly one-hot


class Gathered(NamedTuple):
    """Evidence on the images of the pool and further ones, and what is reported with the result.

    Attributes:
        evidence: Features, predictions and labels.
        images: Indices of the pool's images, which come first in the evidence, int64 [N].
        class_names: The names of the classes, by label.
    """

    evidence: Evidence
    images: Tensor
    class_names: tuple[str, ...]


@dataclass(eq=False)
class Refined(RefinementConfig, PreparedTarget[Gathered]):
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
        encoders: The networks whose features are joined: ``teacher``, with the features of
            ``encoder``; ``student``, the student's image tower as it was before training; and
            models of ``kdpl.clip.ClipConfig``, such as ``timm:NAME``. None: ``teacher``, and with a
            teacher that has seen no label the ``student`` as well.
    """

    file = POOL_TARGETS_FILE
    encoder: Literal["tower", "teacher"] = "tower"
    encoders: list[str] | None = None

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError for several labels per image."""
        require_one_class(task, "target: refined")

    def settings(self, inputs: TargetInputs) -> Mapping[str, Any]:
        """Return the settings of the refinement."""
        encoders = self._encoders(inputs)
        of_student = {"student": inputs.student_identity.fingerprint}
        return {
            "target": {**asdict(self), "encoders": encoders},
            "features": "normalised and blended",
            **(of_student if "student" in encoders else {}),
        }

    def _encoders(self, inputs: TargetInputs) -> list[str]:
        if self.encoders:
            return self.encoders
        pretrained = inputs.student.pretrained != RANDOM
        both = pretrained and not inputs.teacher.tuned
        return ["teacher", "student"] if both else ["teacher"]

    def load(self, path: Path) -> tuple[TargetValues | None, Origin | None]:
        """Read the assignments, if they are taken, as logarithms without infinities."""
        targets = PoolTargets.load(path)
        if not targets.taken:
            return None, targets.made_from
        values = TargetValues(targets.images, log_assignments(targets.assignments).half())
        return values, targets.made_from

    def write_table(self, path: Path, images: Sequence[str]) -> None:
        """Write image, class, probability and second class of each image."""
        targets = PoolTargets.load(path)
        names, top = targets.class_names, targets.assignments.float().topk(2)
        rows = (
            (images[image], names[first], f"{probability:.4f}", names[second])
            for image, (probability, _), (first, second) in zip(
                targets.images.tolist(), top.values.tolist(), top.indices.tolist(), strict=True
            )
        )
        write_rows(
            path.with_name(POOL_TABLE), [("image", "class", "probability", "second_class"), *rows]
        )

    def gather(self, inputs: TargetInputs) -> Gathered:
        """Collect the evidence on the images, and what is reported beside their assignments."""
        images = torch.from_numpy(np.asarray(inputs.pool.targeted)).long()
        return Gathered(self.evidence(inputs), images, tuple(inputs.labels.splits.class_names))

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

        # those of other networks
        encoders = self._encoders(inputs)
        of_encoder = {"teacher": tower if pooled else teacher}
        for name in sorted({*encoders} - {"teacher"}):
            if name == "student":
                rows = [inputs.student_features_of(images, self.views) for images in lists]
            else:
                network = load_image_clip(ClipConfig(name))
                rows = [inputs.features_of(network, images, self.views) for images in lists]
            of_encoder[name] = ImageFeatures(*map(torch.cat, zip(*rows, strict=True)))
        features = [of_encoder[name] for name in encoders]

        # the predictions, and the labels
        predicted = [inputs.teacher.logits(features.mean) for features, _ in parts]
        text = MULTI_CLASS.log_probabilities(torch.cat(predicted))
        val_labels = [-1] * (len(labels) - len(inputs.val)) + [r.single for r in inputs.val]
        return Evidence(
            torch.cat([encoded.blend for encoded in features], dim=1),
            torch.cat([encoded.mean for encoded in features], dim=1),
            text,
            torch.tensor(labels, device=text.device),
            torch.tensor(val_labels, device=text.device),
            torch.tensor(groups, device=text.device),
            trusted=not inputs.teacher.tuned,
            widths=tuple(encoded.mean.shape[1] for encoded in features),
        )

    def compute(self, gathered: Gathered, made_from: Origin) -> PoolTargets:
        """Assign the images to classes."""
        evidence, images, class_names = gathered
        n, labels = len(images), int((evidence.labels >= 0).sum())
        with progress_bar() as progress:
            inform(f"refining the predictions of {n} unlabelled images, {labels} labels are seen")
            task = progress.add_task("refinement", total=None)
            assigned = assign(
                evidence, self, lambda total: progress.update(task, advance=1, total=total)
            )

        # count the images of the pool per class, and the moved images
        text = MULTI_CLASS.probabilities(evidence.log_probabilities[:n])
        before = MULTI_CLASS.labels(text).cpu()
        after = MULTI_CLASS.labels(assigned.assignments[:n]).cpu()
        num_classes = len(class_names)
        counts = [classes.bincount(minlength=num_classes) for classes in (before, after)]
        taken, reason = self._decide(assigned, counts)
        moved = torch.nonzero(before != after).flatten().tolist()
        if evidence.trusted:
            _doubt_words(counts[0], class_names)
        # once, where several students share the result
        inform(f"refined targets are {reason}")
        if taken:
            inform(f"they give {len(moved)} of {n} images another class than the teacher does")
        return PoolTargets(
            made_from=dict(made_from),
            class_names=class_names,
            taken=taken,
            reason=reason,
            accuracy=assigned.right,
            before=tuple(counts[0].tolist()),
            after=tuple(counts[1].tolist()),
            moved=len(moved),
            examples=tuple(
                Moved(int(images[i]), int(before[i]), int(after[i])) for i in spread(moved, _SHOWN)
            ),
            images=images,
            assignments=(assigned.assignments[:n] if taken else text).half().cpu(),
        )

    def _decide(self, assigned: Assigned, counts: list[Tensor]) -> tuple[bool, str]:
        """Decide whether to take the assignments; ``counts`` are images per class, [C] each."""
        what = _describe(assigned)
        if assigned.right is not None:
            before, after = assigned.right
            return after >= before, f"{'taken' if after >= before else 'not taken'}: {what}"
        # without labels to judge by, classes must not lose all their images
        emptied = int(((counts[0] > 0) & (counts[1] == 0)).sum())
        if emptied and assigned.strength is None:
            left = f"{emptied} class{'es' if emptied > 1 else ''}"
            return False, f"not taken: it leaves {left} without an image, {what}"
        return True, f"taken: {what}"


def _describe(assigned: Assigned) -> str:
    """Return a clause that says what was chosen, and how accurate it is."""
    if assigned.strength is None:
        return "there are no labels to measure it on"
    text, probe = assigned.weights
    chosen = (
        f"the teacher's predictions have the weight {text:.2f}, those of a linear probe of the "
        f"labels {probe:.2f}"
    )
    if assigned.right is None:
        return f"{chosen}; not measured, as teacher or probe have seen all labels: add labels"
    before, after = (100 * share for share in assigned.right)
    return (
        f"{chosen}; right on {after:.1f} % of the {assigned.judges} labelled images or groups that "
        f"chose the settings, each predicted without its labels, the teacher on {before:.1f} %"
    )


def log_assignments(assignments: Tensor) -> Tensor:
    """Return logarithms of assignments [N, C] without infinities, as the student learns them."""
    z = assignments.float() + _FLOOR / assignments.shape[1]
    return (z / z.sum(dim=1, keepdim=True)).log_()


def unlike_share(counts: Tensor) -> tuple[list[int], list[int]]:
    """Return the classes that have less than a quarter, and more than twice, the mean of counts."""
    mean = counts.float().mean()
    rare, frequent = (torch.nonzero(unlike) for unlike in (counts < mean / 4, counts > 2 * mean))
    return rare.flatten().tolist(), frequent.flatten().tolist()


def _doubt_words(counts: Tensor, class_names: Sequence[str]) -> None:
    rare, frequent = (
        ", ".join(class_names[c] for c in numbers) for numbers in unlike_share(counts)
    )
    parts = [f"hardly any image to {rare}"] * bool(rare)
    parts += [f"more than twice a class's share to {frequent}"] * bool(frequent)
    if parts:
        inform(
            f"by its words alone, the teacher gives {' and '.join(parts)}: unless your images are "
            "so, say what these classes look like, in several texts each (--class-names FILE, in "
            "its columns label,name,text,text)"
        )


def further_images(inputs: TargetInputs) -> tuple[list[Record], list[int], list[int]]:
    """Return further images to refine; and label, −1 for none, and group of pool and these.

    The further images are the labelled images outside the pool, then the validation images.
    """
    # labels and groups by source
    label_of = {record.source: record.single for record in inputs.labeled}
    sources = [record.source for record in (*inputs.labeled, *inputs.val)]
    group_of = dict(zip(sources, group_numbers(sources, inputs.groups).tolist(), strict=True))

    # labelled images in the pool; each other image of the pool is a group
    targeted, inside = inputs.pool.targeted, set[str]()
    labels = [-1] * len(targeted)
    groups = [*range(len(sources), len(sources) + len(labels))]
    # without labels, do not name the images: a pool may have millions
    for i, source in enumerate(inputs.pool.images.take(targeted) if label_of else ()):
        if source in label_of:
            labels[i], groups[i] = label_of[source], group_of[source]
            inside.add(source)

    # labelled images outside the pool, and validation images
    outside = [record for record in inputs.labeled if record.source not in inside]
    further = [*outside, *inputs.val]
    labels += [record.single for record in outside] + [-1] * len(inputs.val)
    return further, labels, groups + [group_of[record.source] for record in further]
