"""Suggestions by a run's teacher, written as a table and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import EvaluationImages
from kdpl.data.groups import group_numbers
from kdpl.data.inference import infer_labeled
from kdpl.data.loader import LazyLoader
from kdpl.data.names import ShardImage, unlisted
from kdpl.data.parallel import progress_bar
from kdpl.data.sampling import share_of
from kdpl.data.sources import OwnImages, content_of
from kdpl.data.splits import Record
from kdpl.errors import ConfigError, DataError
from kdpl.report.accuracy import thumbnail
from kdpl.report.cost import device
from kdpl.report.labeling.suggestions import cross_validated_scores, to_label, wrong_labels
from kdpl.report.page import fill
from kdpl.report.run_folder import Run
from kdpl.runtime.files import atomic_path, write_rows, write_text
from kdpl.runtime.messages import inform
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.tasks import MULTI_CLASS, build_task

TABLE, PAGE = "labels.csv", "suggestions.html"

_A_CLASS = 4  # images to label, by default
_EDGE = 224
_CHECKED = 8  # labels a class; with 4, most labels that look wrong are right: docs/labelling.md


class Suggestion(NamedTuple):
    """An image, its label if it has one, and the most probable other class with its probability."""

    source: str
    label: str
    likely: str
    probability: float


@dataclass(frozen=True)
class Suggestions:
    """Images to label, and labels to check.

    Attributes:
        data: The images.
        to_label: Images without a label; the first ones teach most.
        doubtful: Labels that are probably wrong; the most certain ones first. None: not checked.
        notes: A sentence for each thing that could not be done.
    """

    data: DomainDataModule
    to_label: Sequence[Suggestion]
    doubtful: Sequence[Suggestion] | None
    notes: Sequence[str]

    @classmethod
    def of(cls, run: Run, images: int | None, most: int) -> "Suggestions":
        """Make suggestions for a run's images with its teacher."""
        # which images to look at
        folder, data = run.require("teacher").folder, run.data
        vectors = ClassVectors.of_teacher(str(folder))
        vectors.require_names(data.class_names, str(folder))
        task, labeled = build_task(data.task), known_labels(data)
        if task.per_class:
            raise ConfigError(
                f"{run.folder} has several labels an image, for which suggested images are no "
                "better than others: label images drawn at random"
            )
        pool = unlisted(data.pool.images, (record.source for record in labeled))
        available = min(len(pool), most)
        number = min(_A_CLASS * len(data.class_names), available) if images is None else images
        if number > available:
            what = "images looked at by --pool" if len(pool) > most else "images without a label"
            raise ConfigError(
                f"--images {number} is more than the {available} {what}: ask for fewer"
            )
        if not labeled and not pool:
            raise DataError(
                f"{data.splits.origin} has no images to label and no labels to check: add some"
            )
        if len(pool) > most:
            pool = pool.take(share_of(len(pool), most / len(pool), data.seed))
        # labelled and unlabelled images as the teacher sees them
        teacher = FrozenTeacher(folder, vectors).to(device())
        inform(f"loading the teacher of {folder}")
        teacher.load()
        sources = [*(record.source for record in labeled), *pool]
        features = encode(teacher, data, sources)
        of_labeled, of_pool = torch.tensor_split(features, [len(labeled)])

        # images to label
        predictions = task.probabilities(teacher.logits(of_pool))
        chosen = [
            _suggestion(Record(pool[i], -1), predictions[i], data.class_names)
            for i in (to_label(of_pool, predictions, number, of_labeled) if pool else [])
        ]

        # labels to check
        groups = group_numbers((record.source for record in labeled), data.splits.groups)
        doubtful, notes = _doubtful(labeled, of_labeled, torch.from_numpy(groups), data.class_names)
        if not pool:
            notes.insert(0, "there are no images without a label to choose from")
        return cls(data, chosen, doubtful, notes)

    def save(self, out: Path) -> None:
        """Write the page, and then the table with copies of its images from shards."""
        rows, shown = list[tuple[str, ...]](), list[dict[str, Any]]()
        label_of = labels_by_name(self.data)
        # rows are numbered as in a spreadsheet, below the header
        for row, suggestion in enumerate(chain(self.to_label, self.doubtful or ()), start=2):
            image = suggestion.source
            small = thumbnail(self.data.splits.open_image(image), _EDGE)
            shown.append({"row": row, **suggestion._asdict(), **small})
            # a table can name files alone
            if isinstance(image, ShardImage):
                copy = out / "images" / f"{row - 1}_{Path(image).name}"
                with atomic_path(copy) as temporary:
                    temporary.write_bytes(content_of(image))
                image = str(copy)
            # a name in a dataset of the benchmark is not a path, and stays
            image = str(Path(image).absolute()) if Path(image).is_file() else image
            probability = f"{suggestion.probability:.3f}"
            label = label_of.get(suggestion.label, "")
            rows.append((image, label, label_of[suggestion.likely], probability))
        html = fill(
            "suggestions.html.jinja",
            to_label=shown[: len(self.to_label)],
            doubtful=shown[len(self.to_label) :],
            notes=self.notes,
            label_of=label_of,
            origin=self.data.splits.origin,
            table=TABLE,
        )
        write_text(out / PAGE, html)
        # last: its existence means that the rest is complete
        write_rows(out / TABLE, [("image", "label", "likely", "probability"), *rows])


def _doubtful(
    labeled: Sequence[Record], features: Tensor, groups: Tensor, class_names: Sequence[str]
) -> tuple[list[Suggestion] | None, list[str]]:
    if not labeled:
        return None, ["there are no labels to check"]
    labels = torch.tensor([record.single for record in labeled], device=features.device)
    if (a_class := len({*groups.tolist()}) / len({*labels.tolist()})) < _CHECKED:
        why = f"{a_class:.2g} a class are too few to tell wrong ones from right ones"
        return None, [f"labels are not checked, as {why}: it takes {_CHECKED} or more"]
    wrong, probabilities = wrong_labels(
        cross_validated_scores(features, labels, len(class_names), groups), labels
    )
    # the most certain first; NaN, of a label that was not checked, is not above 0.5
    order = wrong.nan_to_num().argsort(descending=True)
    doubtful = order[wrong[order] > 0.5].tolist()
    unchecked = int(wrong.isnan().sum())
    labels_are = f"{unchecked} label{' is' if unchecked == 1 else 's are'} not checked"
    why = "because no other image has the same one, or none of another group"
    notes = [f"{labels_are}, {why}"] if unchecked else []
    return [_suggestion(labeled[i], probabilities[i], class_names) for i in doubtful], notes


def _suggestion(record: Record, probabilities: Tensor, class_names: Sequence[str]) -> Suggestion:
    rest, label = probabilities.clone(), ""
    # an image without a label has the label -1
    if record.single >= 0:
        rest[record.single], label = -1, class_names[record.single]
    likely = int(MULTI_CLASS.labels(rest))
    return Suggestion(record.source, label, class_names[likely], rest[likely].item())


def labels_by_name(data: DomainDataModule) -> dict[str, str]:
    """Return each class's label in the user's images; without a file of names, its name."""
    reader = data.reading.reader
    if not isinstance(reader, OwnImages) or reader.class_names is None:
        return {name: name for name in data.class_names}
    mapping = read_class_mapping(Path(reader.class_names), (), complete=False)
    return {named.name: label for label, named in mapping.items()}


def known_labels(data: DomainDataModule) -> Sequence[Record]:
    """Return labelled training images: all of your dataset, or the k-shot sample of a benchmark."""
    return data.splits.train if data.reading.reader.from_user else data.labels.tuning("labeled")


def encode(teacher: FrozenTeacher, data: DomainDataModule, sources: Sequence[str]) -> Tensor:
    """Return the teacher's normalised features of images, seen as in a test, float32 [N, D]."""
    records, resizing = [Record(s, -1) for s in sources], teacher.vectors.preprocessing.resizing
    images = EvaluationImages(records, data.splits.open_image, resizing)
    loader = LazyLoader(images, range(len(images)), data.eval_batch_size, data.num_workers)
    with progress_bar() as progress:
        batches = progress.track(loader, description="teacher's features")
        return infer_labeled(teacher.features, batches, device())[0]
