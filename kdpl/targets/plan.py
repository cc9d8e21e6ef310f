"""The plan of stage 2: the images to distil on, and the target of each."""

from dataclasses import dataclass, replace
from typing import Any

from kdpl.data.pool import UnlabeledPool
from kdpl.errors import ArtifactError
from kdpl.runtime.files import copy
from kdpl.runtime.origin import as_json, require_same
from kdpl.targets import PreparedTarget, Target, TargetValues
from kdpl.targets.held_out_pool import hold_out
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.pool_filter import without_unlike
from kdpl.targets.stored_features import StoredFeatures
from kdpl.targets.teacher_cache import TeacherCache, filled_cache

REMEDY = "remove it, or choose another --out"
"""Remedy for a file of targets of another origin."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Plan of a student's fit, complete before its first step.

    Attributes:
        pool: The images to distil on, held out and left out.
        values: The target's values of these images; None if each step computes them.
        runs_teacher: Whether steps compute the target from the teacher's predictions.
        teacher_features: The teacher's features of the views that steps see; None without a cache,
            or if no step needs them.
        student_features: The student's, by a frozen tower; None if it sees images.
    """

    pool: UnlabeledPool
    values: TargetValues | None
    runs_teacher: bool
    teacher_features: TeacherCache | None
    student_features: StoredFeatures | None


def prepare_student(
    inputs: TargetInputs, target: Target, pool_filter: float | None, holds_out: bool
) -> Plan:
    """Prepare a student's fit, on all processes together, after weights are restored.

    Args:
        inputs: Images, labels and teacher.
        target: What the student learns.
        pool_filter: The quantile of ``without_unlike``; None keeps all images.
        holds_out: Whether to hold images out of distillation, to compare student and target.
    """
    target.require_task(inputs.vectors.task)

    # hold out images, none of them labelled
    if holds_out:
        labeled = [record.source for record in (*inputs.labeled, *inputs.val)]
        inputs = replace(inputs, pool=hold_out(inputs.pool, labeled))

    # leave out images that are unlike all classes
    if pool_filter is not None:
        inputs = replace(inputs, pool=without_unlike(inputs, pool_filter))

    # the target's values of the images that are left
    values = _values_of(target, inputs) if isinstance(target, PreparedTarget) else None

    # a prepared target may need no teacher from here on; otherwise its features may be cached
    runs_teacher = values is None and target.uses_teacher
    teacher_features = filled_cache(inputs) if runs_teacher else None

    # the student's features, of views that need no teacher's predictions
    student_features = None
    if inputs.stored_views and values is not None:
        views, images = inputs.stored_views, inputs.pool.targeted
        student_features = StoredFeatures.compute(
            inputs.student_store, views, images, inputs.labels
        )
    return Plan(inputs.pool, values, runs_teacher, teacher_features, student_features)


def _values_of(target: PreparedTarget[Any], inputs: TargetInputs) -> TargetValues | None:
    """Read the target's values in the run's folder, or compute them.

    They are copied from the teacher's folder, where other students share them. An ArtifactError if
    they are of other data or settings.
    """
    origin = as_json({**inputs.origin, **target.settings(inputs)})
    file, shared = inputs.folder / target.file, inputs.shared(origin) / target.file
    is_kept, is_shared = inputs.processes.agree(lambda: (file.is_file(), shared.is_file()))
    if not is_kept and not is_shared:
        gathered = target.gather(inputs)
        inputs.processes.on_first(lambda: target.compute(gathered, origin).save(shared))
    if not is_kept:
        inputs.processes.on_first(lambda: copy(shared, file))
        inputs.processes.on_first(lambda: target.write_table(file, inputs.pool.images))
    values, made_from = target.load(file)
    require_same(str(file), made_from, origin, REMEDY, kind=ArtifactError)
    return values if values is None else values.to(inputs.device)
