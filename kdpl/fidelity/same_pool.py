"""A student's run is not resumed if it now holds images out of distillation, or no longer does."""

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.domain import domain_of
from kdpl.preparation.unchanged import Unchanged
from kdpl.student import StudentDistillation


def callbacks(module: LightningModule) -> list[Callback]:
    """Return what a student's fit needs; entry point of ``kdpl.callbacks``."""
    is_student = isinstance(module, StudentDistillation)
    return [Unchanged("kdpl_holds_out", _holds_out, _fault)] if is_student else []


def _holds_out(trainer: Trainer) -> bool:
    data = domain_of(trainer)
    # without reading the dataset for it: nothing is held out of a pool that was not asked for
    return "pool" in vars(data) and len(data.pool.unseen) > 0


def _fault(before: bool, now: bool) -> str:
    del now  # the other one
    did, remedy = ("", "in") if before else ("no ", "out of")
    return (
        f"the run has held {did}images out of distillation until now: leave "
        f"kdpl.fidelity.Fidelity {remedy} trainer.callbacks, or choose another --out"
    )
