"""Baselines of a comparison: the original CLIPs.

They are tested zero-shot and with linear probes on their frozen features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.nn.functional import normalize

from kdpl.clip import ClipConfig, ImageClip, load_image_clip
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.inference import infer
from kdpl.data.labels import EvaluationSplit
from kdpl.data.parallel import progress_bar
from kdpl.errors import ArtifactError, ConfigError, DataError, KdplError
from kdpl.report.compare import ComparisonRow, scores_of
from kdpl.report.cost import device
from kdpl.report.run_folder import Run, Stage
from kdpl.runtime.messages import inform

STRENGTHS = tuple(10.0**power for power in range(-2, 5))
"""Values of C, the inverse of the regularisation, that are tried."""

_MOST_FOLDS = 5


class Features(NamedTuple):
    """Normalised image features float32 [N, D], and labels [N]."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def baselines(
    groups: Mapping[str, Sequence[Run]], with_probes: bool
) -> tuple[list[ComparisonRow], list[str]]:
    """Make rows of the original CLIPs of teachers and students, each once.

    Returns the rows, and notes about them.
    """
    rows: dict[tuple[str, bytes], ComparisonRow] = {}
    probes, notes = LinearProbes(), []
    makers = {"zero-shot accuracy": _zero_shot, "linear probe": probes.row}
    if with_probes and find_spec("sklearn") is None:
        notes.append(
            "no linear probe, because scikit-learn is not installed: pip install 'kdpl[quickstart]'"
        )
        with_probes = False
    for what, role, (name, runs) in product(makers, ("teacher", "student"), groups.items()):
        if role not in runs[0].stages or (what == "linear probe" and not with_probes):
            continue
        try:
            row = makers[what](runs, role, _clip_of(runs[0].stages[role]))
            rows.setdefault(
                (row.name, b"".join(each.tobytes() for each in row.scores.values())), row
            )
        except (KdplError, OSError) as error:
            notes.append(f"no {what} of the {role}'s CLIP for {name}: {error}")
    return list(rows.values()), list(dict.fromkeys([*probes.notes, *notes]))


def _clip_of(stage: Stage) -> ClipConfig:
    settings = stage.settings("model").get("clip")
    if not isinstance(settings, dict) or not settings.keys() <= ClipConfig.__annotations__.keys():
        raise ConfigError(f"the config of {stage.folder} has no settings of a CLIP: restore it")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return ClipConfig(**values)


def _zero_shot(runs: Sequence[Run], role: str, clip: ClipConfig) -> ComparisonRow:
    # a teacher without labels is the original CLIP itself
    untuned = role == "teacher" and runs[0].untuned
    stage: Stage | None = runs[0].teacher if untuned else getattr(runs[0], f"{role}_clip")
    if stage is None or not stage.folder.is_dir():
        raise ArtifactError(f"{runs[0].folder} has no test of {clip}, which run makes of a CLIP")
    return ComparisonRow.of(f"zero-shot: {clip}", [], [scores_of(runs[0], stage)])


class LinearProbes:
    """Logistic regressions on frozen image features.

    The method is that of Radford et al., arXiv 2103.00020, appendix A.3.

    Towers and features are kept from run to run; ``notes`` say how C was chosen.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._clips: dict[ClipConfig, ImageClip] = {}
        self._features: dict[Any, Features] = {}

    def row(self, runs: Sequence[Run], role: str, clip: ClipConfig) -> ComparisonRow:
        """Probe a CLIP with the labelled images of each run, and score the test images."""
        scored, strengths = [], []
        num_base = runs[0].vectors.num_base
        for run in runs:
            # the labels are those that the teacher saw
            data = (replace(run, student=None) if "teacher" in run.stages else run).data
            if data.class_names != run.vectors.class_names:
                raise DataError(
                    f"the teacher of {run.folder} was tuned on other classes than were tested"
                )
            if data.shots == 0:
                raise DataError("shots is 0, so that there are no labelled images to fit it on")
            labeled = self._encode(clip, data, "labeled", num_base)
            val = self._encode(clip, data, "val", num_base) if data.splits.val else None
            test = self._encode(clip, run.tested_data(), "test", num_base)
            model, how = fit_probe(labeled, val)
            correct = (model.predict(test.values) == test.labels).astype(float)
            scored.append({"acc" if num_base is None else "base_acc": correct})
            strengths.append(f"{model.C:g}")
        name = f"linear probe: {clip}, {len(labeled.labels)} labels"
        self.notes.append(f"{name}: C = {', '.join(strengths)}, {how}")
        return ComparisonRow.of(name, [run.seed for run in runs], scored)

    def _encode(
        self, clip: ClipConfig, data: DomainDataModule, split: EvaluationSplit, classes: int | None
    ) -> Features:
        """Encode the images of a split that are of the first classes; None: of all."""
        if clip not in self._clips:
            inform(f"loading {clip} for linear probes")
            self._clips[clip] = load_image_clip(clip)
        tower = self._clips[clip].image_tower.to(device()).eval()
        loader = data.evaluation_dataloader_for(split, self._clips[clip].preprocessing.resizing)
        dataset: Any = loader.dataset
        key = clip, data.decoding, tuple(dataset.records)
        if key not in self._features:
            values, labels = [], []
            with progress_bar() as progress:
                batches = progress.track(loader, description=f"{split} images, {clip.model}")
                for features, batch in infer(tower, batches, device()):
                    values.append(normalize(features.float(), dim=1).cpu().numpy())
                    labels.append(batch.labels.numpy())
            self._features[key] = Features(np.concatenate(values), np.concatenate(labels))
        features = self._features[key]
        kept = features.labels < (np.inf if classes is None else classes)
        return Features(features.values[kept], features.labels[kept])


def fit_probe(labeled: Features, val: Features | None) -> tuple[Any, str]:
    """Fit a logistic regression on labelled images; returns it, and how its C was chosen.

    C is the smallest of ``STRENGTHS`` with the best accuracy on validation images, or without any
    in cross-validation over the labelled ones, or 1 where a class has only one of them. A DataError
    where all are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    (x, y), model = labeled, LogisticRegression(max_iter=1000)
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2:
        raise DataError("all labelled images are of one class, but a linear probe needs two")
    images, folds = [labeled], min(_MOST_FOLDS, int(counts.min()))
    how = f"chosen by {folds}-fold cross-validation on the labelled images"
    cv: Any = folds
    if val is not None and len(val.labels):
        images, how = [labeled, val], f"chosen on {len(val.labels)} validation images"
        cv = PredefinedSplit([-1] * len(y) + [0] * len(val.labels))
    with warnings.catch_warnings():
        # classes that a plane separates have no largest weights
        warnings.simplefilter("ignore", ConvergenceWarning)
        if cv == 1:
            how = "not chosen, without validation images and two labelled ones of each class"
            return model.fit(x, y), how
        search = GridSearchCV(model, {"C": STRENGTHS}, cv=cv, refit=False)
        search.fit(*(np.concatenate(column) for column in zip(*images, strict=True)))
        return model.set_params(**search.best_params_).fit(x, y), how
