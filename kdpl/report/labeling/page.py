"""Images to label next, and labels that look wrong, by a run's teacher: a table and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import EvaluationImages
from kdpl.data.groups import group_numbers
from kdpl.data.inference import infer
from kdpl.data.loader import LazyLoader
from kdpl.data.names import ShardImage, unlisted
from kdpl.data.parallel import progress_bar
from kdpl.data.sampling import share_of
from kdpl.data.sources import content_of
from kdpl.data.splits import Record
from kdpl.data.tasks import build_task
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.report.accuracy import thumbnail
from kdpl.report.cost import device
from kdpl.report.labeling.choice import scores_without_own_label, to_label, wrong_labels
from kdpl.report.page import fill
from kdpl.report.run_folder import Run
from kdpl.runtime.files import atomic_path, write_rows, write_text
from kdpl.runtime.messages import inform
from kdpl.tasks import MULTI_CLASS

TABLE, PAGE = "labels.csv", "suggestions.html"

_UNKNOWN = "?"  # in a table of several labels: nobody has labelled the image
_A_CLASS = 4  # images to label, by default
_EDGE = 224


class Suggestion(NamedTuple):
    """An image, its label if it has one, and the most probable other class with its probability.

    With several labels an image, ``likely`` are those predicted, and the probability is that of the
    least certain class.
    """

    source: str
    label: str
    likely: str
    probability: float


@dataclass(frozen=True)
class Suggestions:
    """Suggestions of what to label.

    Attributes:
        data: The images.
        to_label: Images without a label; the first ones teach most.
        doubtful: Labels that are probably wrong; the most certain ones first.
        notes: A sentence for each thing that could not be done.
        separator: Character between the labels of an image; None: each is of one class.
    """

    data: DomainDataModule
    to_label: Sequence[Suggestion]
    doubtful: Sequence[Suggestion]
    notes: Sequence[str]
    separator: str | None = None

    @classmethod
    def of(cls, run: Run, images: int | None, most: int) -> "Suggestions":
        """Look at a run's images with its teacher.

        Args:
            run: The run, whose teacher is finished.
            images: Number of images to label; None: 4 for each class, or all there are.
            most: Images without a label that are looked at; of more, so many drawn at random.

        Raises:
            ConfigError: There are fewer images without a label than ``images``.
            DataError: There is nothing to look at.
            ArtifactError: The teacher is not finished, or of other classes.
        """
        if run.teacher is None:
            raise ArtifactError(
                f"{run.folder} has no teacher, whose features are needed: run stage 1 to its end"
            )
        folder, data = run.teacher.folder, run.data
        vectors = ClassVectors.of_teacher(str(folder))
        vectors.require_names(data.class_names, str(folder))
        task, labeled = build_task(data.task), known_labels(data)
        pool = unlisted(data.pool.images, (record.source for record in labeled))
        there = min(len(pool), most)
        number = min(_A_CLASS * len(data.class_names), there) if images is None else images
        if number > there:
            what = "images looked at by --pool" if len(pool) > most else "images without a label"
            raise ConfigError(f"--images {number} is more than the {there} {what}: ask for fewer")
        if not labeled and not pool:
            raise DataError(
                f"{data.splits.origin} has no images to label and no labels to check: add some"
            )
        if len(pool) > most:
            pool = pool.take(share_of(len(pool), most / len(pool), data.seed))
        teacher = FrozenTeacher(folder, vectors).to(device())
        inform(f"loading the teacher of {folder}")
        teacher.load()
        sources = [*(record.source for record in labeled), *pool]
        known, others = torch.tensor_split(encode(teacher, data, sources), [len(labeled)])
        separator = None
        if task.per_class:
            separator = run.teacher.settings("data").get("label_separator") or ";"
        chosen, notes = list[Suggestion](), list[str]()
        if pool:
            predictions = task.probabilities(teacher.logits(others))
            answers = predictions
            if separator is not None:
                answers = torch.stack([1 - predictions, predictions], dim=2)
            for i in to_label(others, answers, number, known):
                unlabeled = Record(pool[i], -1)
                chosen.append(_suggestion(unlabeled, predictions[i], data.class_names, separator))
        else:
            notes.append("there are no images without a label to choose from")
        if separator is not None:
            notes.append("several labels an image are not checked")
            return cls(data, chosen, [], notes, separator)
        groups = group_numbers((record.source for record in labeled), data.splits.groups)
        doubtful, note = _doubtful(labeled, known, torch.from_numpy(groups), data.class_names)
        return cls(data, chosen, doubtful, notes + note)

    def save(self, out: Path) -> None:
        """Write the page and then the table.

        Images in shards are copied beside the table, so that it can name them.
        """
        rows, shown = list[tuple[str, ...]](), list[dict[str, Any]]()
        # as in a spreadsheet
        for row, each in enumerate(chain(self.to_label, self.doubtful), start=2):
            small = thumbnail(self.data.splits.open_image(each.source), _EDGE)
            shown.append({"row": row, **each._asdict(), **small})
            image = each.source
            if isinstance(image, ShardImage):
                copy = out / "images" / f"{row - 1}_{Path(image).name}"
                with atomic_path(copy) as temporary:
                    temporary.write_bytes(content_of(image))
                image = str(copy)
            # a name in a dataset of the benchmark stays
            image = str(Path(image).absolute()) if Path(image).is_file() else image
            label = each.label or ("" if self.separator is None else _UNKNOWN)
            rows.append((image, label, each.likely, f"{each.probability:.3f}"))
        html = fill(
            "suggestions.html.jinja",
            to_label=shown[: len(self.to_label)],
            doubtful=shown[len(self.to_label) :],
            notes=self.notes,
            separator=self.separator,
            class_names=self.data.class_names,
            origin=self.data.splits.origin,
            table=TABLE,
        )
        write_text(out / PAGE, html)
        # last, as it stands for all of them
        write_rows(out / TABLE, [("image", "label", "likely", "probability"), *rows])


def _doubtful(
    labeled: Sequence[Record], features: Tensor, groups: Tensor, class_names: Sequence[str]
) -> tuple[list[Suggestion], list[str]]:
    """Labels that are rather wrong than right; and what was not checked."""
    if not labeled:
        return [], ["there are no labels to check"]
    labels = torch.tensor([record.single for record in labeled], device=features.device)
    wrong, probabilities = wrong_labels(
        scores_without_own_label(features, labels, len(class_names), groups), labels
    )
    doubtful = torch.nonzero(wrong > 0.5).flatten()  # NaN is not
    doubtful = doubtful[wrong[doubtful].argsort(descending=True)]
    alone = int(wrong.isnan().sum())
    one = f"{alone} label{' is' if alone == 1 else 's are'} not checked"
    why = "because no other image has the same one, or none of another group"
    notes = [f"{one}, {why}"] if alone else []
    found = [_suggestion(labeled[i], probabilities[i], class_names) for i in doubtful.tolist()]
    return found, notes


def _suggestion(
    record: Record, probabilities: Tensor, class_names: Sequence[str], separator: str | None = None
) -> Suggestion:
    """The most probable class other than the label, or set of classes, of probabilities [C]."""
    if separator is not None:
        pairs = zip(class_names, probabilities.tolist(), strict=True)
        likely_set = separator.join(name for name, probability in pairs if probability >= 0.5)
        least = torch.maximum(probabilities, 1 - probabilities).min()
        return Suggestion(record.source, "", likely_set, least.item())
    others = probabilities.clone()
    if record.single >= 0:
        others[record.single] = -1
    likely = int(MULTI_CLASS.labels(others))
    label = class_names[record.single] if record.single >= 0 else ""
    return Suggestion(record.source, label, class_names[likely], others[likely].item())


def known_labels(data: DomainDataModule) -> Sequence[Record]:
    """Return labelled training images: all of a dataset of your own, else the k-shot sample."""
    return data.splits.train if data.reading.reader.own else data.labels.tuning("labeled")


def encode(teacher: FrozenTeacher, data: DomainDataModule, sources: Sequence[str]) -> Tensor:
    """Return the teacher's normalised features of images as in a test, float32 [N, D]."""
    records, resizing = [Record(s, -1) for s in sources], teacher.vectors.preprocessing.resizing
    images = EvaluationImages(records, data.splits.open_image, resizing)
    loader = LazyLoader(images, SequentialSampler(images), data.eval_batch_size, data.num_workers)
    with progress_bar() as progress:
        batches = progress.track(loader, description="teacher's features")
        return torch.cat([features for features, _ in infer(teacher.features, batches, device())])
