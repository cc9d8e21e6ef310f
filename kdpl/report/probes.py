"""Linear probes of a run's networks with the same labels, the baseline of its student.

``kdpl.data.probe`` fits them. A run's folder keeps its probes as tests, beside the tests of its
stages.
"""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdpl.clip import ClipConfig, ImageClip, load_image_clip
from kdpl.clip.identity import RANDOM
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.groups import group_numbers
from kdpl.data.inference import infer_labeled
from kdpl.data.labels import EvaluationSplit
from kdpl.data.parallel import progress_bar
from kdpl.data.probe import choose_strength, classes_of, fit_probe
from kdpl.errors import ArtifactError, ConfigError, DataError, reason
from kdpl.metrics import test_key
from kdpl.report.cost import device
from kdpl.report.intervals import Scores
from kdpl.report.run_folder import Run, Stage
from kdpl.runtime.files import read_json, write_json
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, as_json, difference
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_predictions,
    read_results,
    write_predictions,
    write_results,
)
from kdpl.runtime.run_folder import PROBE_FEATURES, PROBE_FILE, PROBE_FOLDER

# labelled images times classes: 16 of each of 1,000 classes, 16 million, take most of an hour
_MOST_TERMS = 50_000_000


class ProbeTest(NamedTuple):
    """Test of a logistic regression; with ``base_to_novel`` only on images of base classes."""

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
    fields = ClipConfig.__annotations__.keys()
    if not isinstance(settings, dict) or not {"model"} <= settings.keys() <= fields:
        raise ConfigError(f"the config of {stage.folder} has no settings of a CLIP: restore it")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return ClipConfig(**values)


def linear_probe(run: Run, role: str) -> ProbeTest:
    """Return the linear probe of a run's ``teacher`` or ``student``.

    It is read from the run's folder, or fitted on the labelled images that the run may see, tested
    on the run's test images, and kept in the folder.
    """
    if role not in run.stages:
        raise ArtifactError(f"not part of {run.folder}")
    clip, num_base = clip_of(run.stages[role]), run.vectors.num_base
    # use the labels that the teacher saw
    labeled = replace(run, student=None) if "teacher" in run.stages else run
    data = labeled.main.config["data"]
    origin = as_json(
        {"clip": asdict(clip), "features": PROBE_FEATURES, "data": data, "seed": labeled.seed}
    )
    tested = [(s, label) for s, label in run.tested if num_base is None or label < num_base]
    if not tested:
        raise DataError("no test image is of a base class")

    # in a campaign, students share the probe in their teacher's folder
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
            folder = run.folder / PROBE_FOLDER / role
            write_predictions(folder, probe.predictions)
            write_results(folder, len(probe.predictions), probe.results)
            write_json(folder / PROBE_FILE, probe.about)
    return probe


def _fit(run: Run, data: DomainDataModule, config: ClipConfig) -> ProbeTest:
    if data.class_names != run.vectors.class_names:
        raise DataError(f"the teacher of {run.folder} was tuned on other classes than were tested")
    require_probe(config, data)
    images = len(data.labels.evaluation("labeled"))
    if images * len(data.class_names) > _MOST_TERMS:
        raise DataError(f"{images} labelled images of so many classes would take hours")

    # encode the labelled and the test images
    clip, num_base, tested = load_encoder(config), run.vectors.num_base, run.tested_data()
    classes = len(data.class_names) if num_base is None else num_base
    (train, labels), (test, numbers) = encode(clip, data, "labeled"), encode(clip, tested, "test")
    test = test[numbers < classes]
    if len(classes_of(labels)) < 2:
        raise DataError("all labelled images are of one class, but a linear probe needs two")
    sources = [record.source for record in data.labels.evaluation("labeled")]
    groups = torch.from_numpy(group_numbers(sources, data.splits.groups))

    # fit the probe, and predict
    strength, how = choose_strength(train, labels, groups)
    probe = fit_probe(train, labels, strength)
    names, records = data.class_names, enumerate(tested.splits.test)
    judged = [(i, record.source, record.single) for i, record in records if record.single < classes]
    sure, predicted = probe.log_probabilities(test).exp().max(dim=1)
    chosen = probe.classes[predicted].tolist()
    predictions = [
        ImagePrediction(i, source, names[y], names[p], q, y, p)
        for (i, source, y), p, q in zip(judged, chosen, sure.tolist(), strict=True)
    ]
    accuracy = sum(p.correct for p in predictions) / len(predictions)
    return ProbeTest(
        {test_key("acc" if num_base is None else "base_acc"): accuracy},
        predictions,
        {"network": str(config), "labels": len(labels), "C": strength, "how": how},
    )


def require_probe(config: ClipConfig, data: DomainDataModule) -> None:
    """Raise a DataError without labelled images, and for a network of random weights."""
    if data.shots == 0:
        raise DataError("shots is 0, so that there are no labelled images to fit it on")
    if config.pretrained == RANDOM:
        raise DataError(f"{config} is not pretrained, so that its features say nothing")


def load_encoder(config: ClipConfig) -> ImageClip:
    """Load a CLIP's image tower onto the device, and say so."""
    inform(f"loading {config} for a linear probe")
    clip = load_image_clip(config)
    clip.image_tower.to(device()).eval()
    return clip


def encode(
    clip: ImageClip, data: DomainDataModule, split: EvaluationSplit
) -> tuple[Tensor, Tensor]:
    """Return normalised pooled features of a split's images, float32 [N, W], and their labels."""
    loader = data.evaluation_dataloader_for(split, clip.preprocessing.resizing)

    def features(images: Tensor) -> Tensor:
        return normalize(clip.image_tower.pooled(images).float(), dim=1).cpu()

    with progress_bar() as progress:
        batches = progress.track(loader, description=f"{split} images, {clip.identity.model}")
        return infer_labeled(features, batches, device())


def _stored(folder: Path, origin: Origin) -> ProbeTest | None:
    try:
        about = read_json(folder / PROBE_FILE)
        if differs := difference({name: about.get(name) for name in origin}, origin):
            inform(f"{folder} has a probe of something else ({differs[1]}): fitting it again")
            return None
        return ProbeTest(read_results(folder), read_predictions(folder), about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
