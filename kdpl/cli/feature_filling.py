"""Filling a teacher cache is a prediction with the teacher over the views that are missing."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from kdpl.cli.fit import KdplCLI, require_stage, run_command
from kdpl.clip.frozen import Frozen
from kdpl.data.datasets import CachedView
from kdpl.data.teacher_cache import TeacherCache
from kdpl.domain import CachingDomain, domain_of
from kdpl.errors import ConfigError, DataError
from kdpl.frozen_teacher import FrozenTeacher, load_teacher
from kdpl.student import StudentDistillation

# relative distance of a feature that is computed again: float16 rounds by 0.0003, and kernels may differ a little
_TOLERANCE = 2e-3
# towers in 16 bits round all the way through
_TOLERANCE_16_BIT = 5e-2

_VERIFY_SEED = 0


def fill(settings: Sequence[str], views: int | None, verify: int) -> None:
    """Fill a teacher cache.

    Args:
        settings: The arguments that a student's ``fit`` would be given.
        views: Views of each image; None: what the cache has, or as many as there are epochs.
        verify: How many random entries to compute again once all are there.

    Raises:
        KdplError: Settings or cache are not as they should be, or an entry differs.
    """
    if not settings:
        raise ConfigError("cache needs the settings that fit would be given: give --config FILE (--help tells more)")
    run_command(["fit", *settings], make=partial(_CacheCLI, views=views, verify=verify))


class _CacheCLI(KdplCLI):
    """The settings of a student's ``fit``, with which its teacher is run alone.

    Args:
        args: The command and its arguments.
        check_only: Check the settings and do nothing.
        views: Views of each image, or None.
        verify: How many entries to compute again.
    """

    def __init__(self, args: Sequence[str], check_only: bool = False, *, views: int | None, verify: int) -> None:
        self._views = views
        self._verify = verify
        super().__init__(args, check_only)

    def before_instantiate_classes(self) -> None:
        """Take the settings for a run that writes nothing but the cache."""
        config = self.config.fit
        require_stage(config, StudentDistillation, "student")
        data = config.data.get("init_args", {})
        if not data.get("teacher_cache"):
            raise ConfigError("the settings name no cache to fill: give --data.init_args.teacher_cache FOLDER")
        data.fill_teacher_cache = True
        trainer = config.trainer
        self._shows_progress = trainer.enable_progress_bar is not False
        trainer.logger = trainer.enable_checkpointing = trainer.enable_progress_bar = False
        self._given = config.clone()

    def _run_subcommand(self, subcommand: str) -> None:
        del subcommand
        student = cast(StudentDistillation, self.model)
        module = FeatureFilling(student, self._views)
        self._predict(module)
        module.report()
        if self._verify:
            module.verify = self._verify
            self._predict(module)
            rank_zero_info(f"{len(module.views)} entries computed again: all as they are in the cache")

    def _predict(self, module: "FeatureFilling") -> None:
        trainer: Trainer = self.trainer
        module.progress = _progress(self._shows_progress and trainer.is_global_zero)
        try:
            trainer.predict(module, datamodule=self.datamodule, return_predictions=False)
        finally:
            # stopping what was never shown would leave an empty line
            if module.progress.live.is_started:
                module.progress.stop()


class FeatureFilling(LightningModule):
    """Runs a student's teacher over views of the unlabelled images and writes its features, or compares them.

    Args:
        student: Knows teacher, class vectors and image size; its own tower is left alone.
        num_views: Views of each image, or None.
    """

    def __init__(self, student: StudentDistillation, num_views: int | None) -> None:
        super().__init__()
        self.train_split = student.train_split
        self.image_size = student.image_size
        self.progress = _progress(shown=False)
        self.verify = 0
        self.views: npt.NDArray[np.int64] = np.empty((0, 2), dtype=np.int64)
        # not a module of this one
        self._student = [student]
        self._num_views = num_views
        self.cache: TeacherCache | None = None
        self.teacher: Frozen[FrozenTeacher] | None = None
        self._different: list[tuple[int, float]] = []
        self._task = TaskID(0)

    def setup(self, stage: str) -> None:
        """Open the cache, choose the views, and load the teacher if there are any."""
        del stage
        (student,) = self._student
        vectors = student.read_vectors(self)
        domain = domain_of(self)
        if not isinstance(domain, CachingDomain):
            raise ConfigError(f"{type(domain).__name__} keeps no teacher cache: use a DomainDataModule")
        width = vectors.vectors.shape[1]
        cache = domain.open_teacher_cache(vectors.teacher, width, self._num_views, all_views=True)
        self.cache = cast(TeacherCache, cache)
        self.views = self.cache.sample(self.verify, _VERIFY_SEED) if self.verify else self.cache.missing()
        if len(self.views) and self.teacher is None:
            self.teacher = Frozen(load_teacher(student.teacher_folder, vectors, student.class_vectors_path))

    def on_predict_start(self) -> None:
        """Show what there is to do."""
        title = "comparing" if self.verify else "teacher's features"
        self._task = self.progress.add_task(title, total=len(self.views))
        self.progress.start()

    def predict_step(self, batch: CachedView, batch_idx: int) -> Tensor:
        """Encode a batch of views, and write or compare; gives their rows."""
        del batch_idx
        teacher, cache = cast(Frozen[FrozenTeacher], self.teacher), cast(TeacherCache, self.cache)
        features = teacher.module.features(batch.image)
        if self.trainer.global_rank >= len(self.views):
            # it was given a view of another's, see ViewSampler
            return batch.row
        if self.verify:
            self._compare(batch, features)
        else:
            cache.write(batch.row, features)
        # this process's images, for all of them
        self.progress.update(self._task, advance=len(batch.image) * self.trainer.world_size)
        return batch.row

    def _compare(self, batch: CachedView, features: Tensor) -> None:
        distances = (features - batch.feature.float()).norm(dim=1) / features.norm(dim=1)
        tolerance = _TOLERANCE if str(self.trainer.precision).startswith("32") else _TOLERANCE_16_BIT
        for row, distance in zip(batch.row.tolist(), distances.tolist(), strict=True):
            if not distance <= tolerance:
                self._different.append((row, distance))

    def on_predict_end(self) -> None:
        """Say on all processes whether entries differ.

        Raises:
            DataError: There are some.
        """
        count = torch.tensor(len(self._different), device=self.device)
        total = int(self.trainer.strategy.reduce(count, reduce_op="sum"))
        if not total:
            return
        features, example = cast(TeacherCache, self.cache).features, ""
        if self._different:
            row, distance = self._different[0]
            view, index = divmod(row, features.manifest.images)
            example = f" (such as view {view} of image {index}, by {distance:.1%})"
        raise DataError(
            f"{total} of {len(self.views)} entries of the teacher cache {features.folder} differ from what the teacher "
            f"gives now{example}: restore the images and libraries that it was made with, or remove the folder and "
            "fill it again"
        )

    def report(self) -> None:
        """Say what there is now."""
        features = cast(TeacherCache, self.cache).features
        manifest, done = features.manifest, len(self.views)
        rank_zero_info(
            f"teacher cache {features.folder}: complete, {manifest.images} images, {manifest.views} views of each"
            f"{f', {done} features computed' if done else ': nothing to do'}"
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images a second."""
        return Text(f"{task.speed or 0:.0f} images/s")


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
