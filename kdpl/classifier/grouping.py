"""Predictions for groups of images, such as the frames of a video, by mean probabilities."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.classifier import Classifier, PredictOptions
from kdpl.classifier.sources import columns_of, printable
from kdpl.classifier.tables import Row, write_table
from kdpl.tasks import MULTI_CLASS

_AT_ONCE = 4096
_UNREADABLE = "none of its images can be read"


def read_groups(table: Path, column: str) -> dict[str, str]:
    """Read the group of each image of a CSV table; an image without one is its own group."""
    pairs = zip(*columns_of(table, "image", column), strict=True)
    return {printable(image): group or printable(image) for image, group in pairs}


@dataclass(frozen=True)
class Grouping:
    """Writes a table with one row for each group, of rows for its images with their embeddings.

    The row has the number of images that could be read. Groups are in the order of their first
    images.

    Attributes:
        classifier: The classifier of the rows.
        options: Classes in each row, and the rule that decides on the mean probabilities.
        groups: The group of each image; None: its folder.
    """

    classifier: Classifier
    options: PredictOptions
    groups: Mapping[str, str] | None = None

    def write(self, path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
        """Write the table in the format of the file's ending."""
        means = dict[str, _Mean]()
        rows = iter(rows)
        while chunk := list(islice(rows, _AT_ONCE)):
            groups = [means.setdefault(self._group(row["path"]), _Mean()) for row in chunk]
            readable = [
                (row, mean) for row, mean in zip(chunk, groups, strict=True) if not row["error"]
            ]
            if readable:
                features = torch.tensor([row["embedding"] for row, _ in readable])
                probabilities = MULTI_CLASS.probabilities(self._logits(features))
                for (_, mean), *values in zip(readable, features, probabilities, strict=True):
                    mean.add(*values)
        names = [name for name in columns if name not in ("path", "embedding")]
        names = ["group", "images", *names]
        write_table(path, (self._row(*item, names) for item in means.items()), names)

    def _group(self, image: str) -> str:
        return str(PurePath(image).parent) if self.groups is None else self.groups.get(image, image)

    @torch.no_grad()
    def _logits(self, features: Tensor) -> Tensor:
        device = self.classifier.head.class_vectors.device
        return self.classifier.logits(features.to(device)).cpu()

    def _row(self, group: str, mean: "_Mean", names: Sequence[str]) -> Row:
        row: Row = {**dict.fromkeys(names), "group": group, "images": mean.images}
        if not mean.images:
            return {**row, "error": _UNREADABLE}
        features = F.normalize(mean.features, dim=0)[None]
        logits = (mean.probabilities / mean.images).log()[None]
        (decided,) = self.classifier.decide(features, logits, self.options)
        return row | self.classifier.task.cells(decided, names)


@dataclass
class _Mean:
    """Sums over the images of a group that can be read."""

    images: int = 0
    features: Tensor = field(default_factory=lambda: torch.zeros(()))
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, features: Tensor, probabilities: Tensor) -> None:
        self.images += 1
        self.features = self.features + features
        self.probabilities = self.probabilities + probabilities
