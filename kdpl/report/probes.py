"""Linear probes of a frozen network with the same labels (arXiv 2103.00020, appendix A.3).

A run's probes are kept in its folder as tests, beside those of its stages.
"""

import json
import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from kdpl.clip import ClipConfig, ImageClip, load_image_clip
from kdpl.clip.identity import RANDOM
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.groups import folds, group_numbers
from kdpl.data.inference import infer
from kdpl.data.labels import EvaluationSplit
from kdpl.data.parallel import progress_bar
from kdpl.errors import ArtifactError, ConfigError, DataError, reason
from kdpl.metrics import test_key
from kdpl.report.cost import device
from kdpl.report.intervals import Scores
from kdpl.report.run_folder import Run, Stage
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, as_json, difference
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_predictions,
    read_results,
    write_predictions,
    write_results,
)
from kdpl.runtime.run_folder import PROBE_FILE, PROBE_FOLDER

STRENGTHS = tuple(10.0**power for power in range(-2, 5))
"""Values of C, the inverse of the regularisation, that are tried."""

# labelled images times classes that take minutes: 16 of each of 1,000 classes are 16 million
_MOST_TERMS = 50_000_000


class Features(NamedTuple):
    """Normalised image features float32 [N, D], labels [N], and numbers of groups [N]."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]


class Probe(NamedTuple):
    """Test of a logistic regression, of base images alone under ``base_to_novel``."""

    results: dict[str, float]
    predictions: list[ImagePrediction]
    about: dict[str, Any]

    @property
    def scores(self) -> Scores:
        """What each image contributes to the accuracy."""
        key = "base_acc" if test_key("base_acc") in self.results else "acc"
        return {key: np.array([p.correct for p in self.predictions], float)}


def clip_of(stage: Stage) -> ClipConfig:
    """Return the CLIP, or the network of timm, that a stage starts from."""
    settings = stage.settings("model").get("clip")
    known = ClipConfig.__annotations__.keys()
    if not isinstance(settings, dict) or not {"model"} <= settings.keys() <= known:
        raise ConfigError(f"the config of {stage.folder} has no settings of a CLIP: restore it")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return ClipConfig(**values)


def linear_probe(run: Run, role: str) -> Probe:
    """Return the linear probe of a run's ``teacher`` or ``student``.

    It is read from the run's folder, or fitted on the labelled images that the run may see, tested
    on those of its test, and kept in the folder.

    Raises:
        KdplError: There is no such stage, test or labelled image, or the images are gone.
    """
    if role not in run.stages:
        raise ArtifactError(f"not part of {run.folder}")
    clip, num_base = clip_of(run.stages[role]), run.vectors.num_base
    # the labels are those that the teacher saw
    labeled = replace(run, student=None) if "teacher" in run.stages else run
    data = labeled.main.config["data"]
    origin = as_json({"clip": asdict(clip), "data": data, "seed": labeled.seed})
    tested = [each for each in run.tested if num_base is None or each[1] < num_base]
    if not tested:
        raise DataError("no test image is of a base class")

    # a teacher has its own in a campaign, where students share it
    for folder in (run.folder, run.stages[role].folder):
        kept = _stored(folder / PROBE_FOLDER / role, origin)
        if kept and [(p.source, p.label_number) for p in kept.predictions] == tested:
            return kept

    try:
        probe = _fit(run, labeled.data, clip)
    except (OSError, torch.OutOfMemoryError) as error:
        raise ArtifactError(reason(error)) from error
    probe.about.update(origin)
    if not run.read_only:
        # another person's folder may be read-only
        with suppress(OSError):
            place = run.folder / PROBE_FOLDER / role
            write_predictions(place, probe.predictions)
            write_results(place, len(probe.predictions), probe.results)
            write_text(place / PROBE_FILE, json.dumps(probe.about, indent=2))
    return probe


def _fit(run: Run, data: DomainDataModule, config: ClipConfig) -> Probe:
    if data.class_names != run.vectors.class_names:
        raise DataError(f"the teacher of {run.folder} was tuned on other classes than were tested")
    if data.shots == 0:
        raise DataError("shots is 0, so that there are no labelled images to fit it on")
    if config.pretrained == RANDOM:
        raise DataError(f"{config} is not pretrained, so that its features say nothing")
    images = len(data.labels.evaluation("labeled"))
    if images * len(data.class_names) > _MOST_TERMS:
        raise DataError(f"{images} labelled images of so many classes would take hours")

    inform(f"loading {config} for a linear probe")
    clip, num_base, tested = load_image_clip(config), run.vectors.num_base, run.tested_data()
    clip.image_tower.to(device()).eval()
    classes = len(data.class_names) if num_base is None else num_base
    train = _encode(clip, data, "labeled", classes)
    val = _encode(clip, data, "val", classes) if data.splits.val else None
    test = _encode(clip, tested, "test", classes)
    model, how = fit_probe(train, val)

    names, predictions = data.class_names, []
    records = [each for each in enumerate(tested.splits.test) if each[1].single < classes]
    predicted = model.predict(test.values).tolist()
    sure = model.predict_proba(test.values).max(axis=1).tolist()
    for (i, record), p, q in zip(records, predicted, sure, strict=True):
        y = record.single
        predictions.append(ImagePrediction(i, record.source, names[y], names[p], q, y, p))
    accuracy = sum(p.correct for p in predictions) / len(predictions)
    return Probe(
        {test_key("acc" if num_base is None else "base_acc"): accuracy},
        predictions,
        {"network": str(config), "labels": len(train.labels), "C": model.C, "how": how},
    )


def _encode(
    clip: ImageClip, data: DomainDataModule, split: EvaluationSplit, classes: int
) -> Features:
    """Encode the images of a split that are of the first classes."""
    loader = data.evaluation_dataloader_for(split, clip.preprocessing.resizing)
    values, labels = [], []
    with progress_bar() as progress:
        batches = progress.track(loader, description=f"{split} images, {clip.identity.model}")
        for features, batch in infer(clip.image_tower, batches, device()):
            values.append(normalize(features.float(), dim=1).cpu().numpy())
            labels.append(batch.labels.numpy())
    numbers = np.concatenate(labels)
    sources = [record.source for record in data.labels.evaluation(split)]
    groups = group_numbers(sources, data.splits.groups)
    kept = numbers < classes
    return Features(np.concatenate(values)[kept], numbers[kept], groups[kept])


def _stored(folder: Path, origin: Origin) -> Probe | None:
    """Read a probe of the same network and labels; None if there is none or it is damaged."""
    try:
        about = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
        if differs := difference({name: about.get(name) for name in origin}, origin):
            inform(f"{folder} has a probe of something else ({differs[1]}): fitting it again")
            return None
        return Probe(read_results(folder), read_predictions(folder), about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fit_probe(labeled: Features, val: Features | None) -> tuple[Any, str]:
    """Fit a logistic regression on labelled images; returns it, and how its C was chosen.

    C is the smallest of ``STRENGTHS`` with the best accuracy on validation images, or without any
    in ``kdpl.data.groups.folds`` of the labelled ones, or 1 where no class has images of two
    groups. A DataError where all are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    (x, y, groups), model = labeled, LogisticRegression(max_iter=1000)
    if len(np.unique(y)) < 2:
        raise DataError("all labelled images are of one class, but a linear probe needs two")
    images, fold_of = [labeled], folds(y, groups)
    how = f"chosen by {fold_of.max() + 1}-fold cross-validation on the labelled images"
    if val is not None and len(val.labels):
        images, how = [labeled, val], f"chosen on {len(val.labels)} validation images"
        fold_of = np.repeat([-1, 0], [len(y), len(val.labels)])
    with warnings.catch_warnings():
        # classes that a plane separates have no largest weights
        warnings.simplefilter("ignore", ConvergenceWarning)
        if fold_of.max() < 0:
            how = "not chosen, without validation images and labelled ones of two groups of a class"
            return model.fit(x, y), how
        search = GridSearchCV(model, {"C": STRENGTHS}, cv=PredefinedSplit(fold_of), refit=False)
        search.fit(*(np.concatenate([each[i] for each in images]) for i in range(2)))
        return model.set_params(**search.best_params_).fit(x, y), how
