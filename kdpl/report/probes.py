"""Linear probes of a run's networks with the same labels, the baseline of its student.

``kdpl.data.probe`` fits them. A run's folder keeps its probes as tests, beside the tests of its
stages.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdpl.class_vectors import LINEAR_PROBE, ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, ImageClip, load_image_clip
from kdpl.clip.identity import RANDOM
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.groups import group_numbers
from kdpl.data.identity import digest_of, files_of
from kdpl.data.inference import infer_labeled
from kdpl.data.labels import EvaluationSplit
from kdpl.data.parallel import progress_bar
from kdpl.data.probe import Probe, choose_strength, classes_of, fit_probe
from kdpl.errors import ConfigError, DataError
from kdpl.metrics import ACC, BASE_ACC, test_key
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.report.cost import device
from kdpl.report.intervals import Scores
from kdpl.report.run_folder import Run, Stage, attempt
from kdpl.runtime.files import read_json, write_json
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, as_json, difference, digest
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_predictions,
    write_predictions,
    write_results,
)
from kdpl.runtime.run_folder import (
    CLASSIFIER_FOLDER,
    PROBE_FEATURES,
    PROBE_FILE,
    PROBE_FOLDER,
    RUN_FILE,
)

# labelled images times classes: 16 of each of 1,000 classes, 16 million, take most of an hour
_MOST_TERMS = 50_000_000


ProbeTest = tuple[list[ImagePrediction], dict[str, Any]]
"""Predictions of a logistic regression for test images, and what it was made of."""


def clip_of(stage: Stage) -> ClipConfig:
    """Return the CLIP, or the network of timm, that a stage starts from."""
    settings: Any = stage.settings("model").get("clip")
    try:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings.items()
        }
        return ClipConfig(**values)
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            f"the config of {stage.folder} has no settings of a CLIP: restore it"
        ) from error


def linear_probe(run: Run, role: str) -> tuple[Scores, dict[str, Any]]:
    """Test the linear probe of a run's ``teacher`` or ``student``.

    It is read from the run's folder, or fitted on the labelled images that the run may see, tested
    on the run's test images, and kept in the folder.

    Returns:
        The scores of the test images, with ``base_to_novel`` only of the base classes, and what the
        probe was made of.
    """
    clip, num_base, labeled = clip_of(run.stages[role]), run.vectors.num_base, run.labeled
    data = labeled.main.config["data"]
    # without the dataset, its images and labels are not compared
    images, _ = attempt(lambda: _labeled_images(labeled.data))
    settings = {"features": PROBE_FEATURES, "data": data, "seed": labeled.seed}
    origin = as_json({"clip": asdict(clip), **settings, **(images or {})})
    key = ACC if num_base is None else BASE_ACC
    tested = [p for p in run.main.predictions if num_base is None or p.label_number < num_base]
    if not tested:
        raise DataError("no test image is of a base class")

    # in a campaign, students share the probe in their teacher's folder
    folders = [folder / PROBE_FOLDER / role for folder in (run.folder, run.stages[role].folder)]
    kept = next(filter(None, (_stored(folder, origin, tested) for folder in folders)), None)
    # a campaign has too many runs to keep the weights of each
    keeps = role == "student" and not run.read_only and (run.folder / RUN_FILE).is_file()
    predictions, fitted_from = kept or _fit(run, labeled.data, clip, tested, keeps)
    scores = np.array([p.correct for p in predictions], float)
    if kept is None and not run.read_only:
        # another person's folder may be read-only
        with suppress(OSError):
            write_predictions(folders[0], predictions)
            write_results(folders[0], len(scores), {test_key(key): scores.mean()})
            write_json(folders[0] / PROBE_FILE, {**fitted_from, **origin})
    return {key: scores}, fitted_from


def _labeled_images(data: DomainDataModule) -> Origin:
    records = data.labels.evaluation("labeled")
    images = [record.source for record in records]
    labels = digest(str(record.label) for record in records)
    return {"labelled images": digest_of(images), "their labels": labels, **files_of(images)}


def as_classifier(
    clip: ImageClip, probe: Probe, vectors: ClassVectors, decoding: Decoding
) -> Classifier:
    """Return a probe as a classifier of the classes of class vectors.

    Its class vectors are the weights, less their mean over the classes, which changes no
    probability; norms and biases are the scales and biases of the classes.
    """
    tower = clip.image_tower.cpu()
    tower.drop_projection()
    weight = probe.weight - probe.weight.mean(dim=1, keepdim=True)
    norms = weight.norm(dim=0)
    head = replace(
        vectors,
        vectors=(weight / norms).T.float().contiguous(),
        scales=tuple(norms.tolist()),
        biases=tuple(probe.bias.tolist()),
        teacher=LINEAR_PROBE,
    )
    encoder = StudentEncoder(tower, 0, 0, tower.embed_dim, projector_layers=0)
    return Classifier(encoder, head, 1.0, clip.identity, decoding)


def _fit(
    run: Run,
    data: DomainDataModule,
    config: ClipConfig,
    judged: Sequence[ImagePrediction],
    keeps: bool,
) -> ProbeTest:
    if data.class_names != run.vectors.class_names:
        raise DataError(f"the teacher of {run.folder} was tuned on other classes than were tested")
    require_probe(config, data)
    records = data.labels.evaluation("labeled")
    if len(records) * len(data.class_names) > _MOST_TERMS:
        raise DataError(f"{len(records)} labelled images of so many classes would take hours")

    # encode the labelled and the test images
    clip, tested = load_encoder(config), run.tested_data()
    (train, labels), (test, numbers) = encode(clip, data, "labeled"), encode(clip, tested, "test")
    test = test[numbers < (run.vectors.num_base or len(data.class_names))]
    if len(classes_of(labels)) < 2:
        raise DataError("all labelled images are of one class, but a linear probe needs two")
    groups = group_numbers((record.source for record in records), data.splits.groups)

    # fit the probe, and predict
    strength, how = choose_strength(train, labels, torch.from_numpy(groups))
    probe = fit_probe(train, labels, strength)
    if keeps and len(probe.classes) == len(data.class_names):
        folder = run.folder / PROBE_FOLDER / CLASSIFIER_FOLDER
        as_classifier(clip, probe, run.vectors, data.decoding).save(folder)
    sure, predicted = probe.log_probabilities(test).exp().max(dim=1)
    chosen = probe.classes[predicted].tolist()
    predictions = [
        replace(
            image,
            prediction=data.class_names[label],
            probability=probability,
            prediction_number=label,
            half_prediction_number=None,
        )
        for image, label, probability in zip(judged, chosen, sure.tolist(), strict=True)
    ]
    fitted_from = {"network": str(config), "labels": len(labels), "C": strength, "how": how}
    return predictions, fitted_from


def require_probe(config: ClipConfig, data: DomainDataModule) -> None:
    """Raise a DataError without labelled images, and for a network of random weights."""
    if data.shots == 0:
        raise DataError("shots is 0, and a probe learns from labelled images")
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


def _stored(folder: Path, origin: Origin, tested: Sequence[ImagePrediction]) -> ProbeTest | None:
    try:
        fitted_from = read_json(folder / PROBE_FILE)
        if differs := difference({name: fitted_from.get(name) for name in origin}, origin):
            inform(f"{folder} has a probe of something else ({differs[1]}): fitting it again")
            return None
        predictions = read_predictions(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    kept, images = ([(p.source, p.label_number) for p in part] for part in (predictions, tested))
    return (predictions, fitted_from) if kept == images else None
