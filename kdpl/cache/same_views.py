"""A student's run is not resumed with other views of its images, which a cache may have."""

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.domain import domain_of
from kdpl.preparation.unchanged import Unchanged
from kdpl.student import StudentDistillation

_Views = tuple[int, int | None]


def callbacks(module: LightningModule) -> list[Callback]:
    """Return what a student's fit needs; entry point of ``kdpl.callbacks``."""
    is_student = isinstance(module, StudentDistillation)
    return [Unchanged("kdpl_views", views_of, _fault)] if is_student else []


def views_of(trainer: Trainer) -> _Views:
    """Return the seed of the views of unlabelled images, and their number for each image.

    The number is None if each epoch has a new view.
    """
    data, epochs = domain_of(trainer), trainer.max_epochs
    cached = data.cached_features
    if cached is None:
        return data.seed, None
    in_one_pass = epochs is not None and 0 <= epochs <= cached.views
    return cached.view_seed, None if in_one_pass else cached.views


def _fault(before: _Views, now: _Views) -> str:
    return (
        f"the run started with different views of its images ({_words(*before)}) from "
        f"those the settings now give ({_words(*now)}): set data.init_args.teacher_cache "
        "to what it was, or choose another --out"
    )


def _words(seed: int, views: int | None) -> str:
    return f"{f'{views} of each' if views else 'one in each epoch'}, seed {seed}"
