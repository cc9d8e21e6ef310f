"""The plan of stage 2: the images to distil on, and the target of each."""

from dataclasses import dataclass

from lightning.pytorch import Callback

from kdpl.data.pool import Selection
from kdpl.targets import PreparedTarget, Target
from kdpl.targets.cache.feature_cache import FeatureCache, teacher_features
from kdpl.targets.fidelity import Fidelity, hold_out
from kdpl.targets.inputs import Preparation, TargetInputs
from kdpl.targets.pool_filter import without_unlike


@dataclass(frozen=True, eq=False)
class Plan:
    """Images and teacher features of a student's fit, whose target is prepared.

    Attributes:
        selection: The images to distil on, held out and left out.
        features: The teacher's features of their views; None without a cache, or if the target
            needs no teacher from the start.
    """

    selection: Selection
    features: FeatureCache | None


def prepare(preparation: Preparation, target: Target, pool_filter: float | None) -> Plan:
    """Prepare a student's fit, on all processes together, after weights are restored.

    Args:
        preparation: The fit.
        target: The target to prepare.
        pool_filter: The quantile of ``without_unlike``; None keeps all images.
    """
    data = preparation.data
    target.require_task(preparation.teacher.vectors.task)

    # hold out some images, to compare student and target on them
    # Lightning sets the attribute without declaring it
    callbacks: list[Callback] = getattr(preparation.trainer, "callbacks", [])
    measured = any(isinstance(callback, Fidelity) for callback in callbacks)
    selection = data.pool.selection
    if measured:
        labeled = [*data.labels.tuning("labeled"), *data.labels.tuning("val")]
        selection = hold_out(data.pool, (record.source for record in labeled))

    # cached teacher features of views of all images
    features = teacher_features(preparation) if target.uses_teacher else None

    # leave out images that are unlike all classes
    if pool_filter is not None:
        selection = without_unlike(preparation, selection, pool_filter)

    # prepare the target of the remaining images
    if isinstance(target, PreparedTarget):
        target.prepare(TargetInputs(preparation, selection))
    return Plan(selection, features)
