"""Reading and classification of labelled images that a classifier was not trained on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.data import sources
from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.datasets import OpenImage, label_tensor
from kdpl.data.groups import one_of_each
from kdpl.data.layout import class_folders, layout_of
from kdpl.data.readers.folder import images_by_class
from kdpl.data.readers.table import Table, separator_in
from kdpl.data.splits import Record
from kdpl.errors import DataError
from kdpl.tasks import SEPARATOR

_SEED = 0


def labeled_records(
    images: str,
    class_names: str | None,
    names: Sequence[str],
    several: bool = False,
) -> list[Record]:
    """Read labelled images from a folder of class folders, or from a table with one split.

    Of each group of a table, one image is taken, as bounds of errors require. With ``several``
    labels an image, a table is required, and all of its images are taken.
    """
    top, groups = Path(images).expanduser(), dict[str, str]()
    if not top.exists():
        raise DataError(f"{images} does not exist: check its path")
    if top.is_dir() and several:
        raise DataError(
            f"{images} is a folder with one class per image, expected several: give a .csv "
            f"table with all labels of each, separated by {SEPARATOR!r}"
        )
    if top.is_dir():
        has_splits = any(part.top != top for part in layout_of(top))
        files = images_by_class(top, class_folders(top), require_all=False)
        keys = [*files]
        records = [Record(path, i) for i, paths in enumerate(files.values()) for path in paths]
    else:
        # a table with one label in each row is accepted with a separator, too
        separator = SEPARATOR if several else None
        splits = Table(str(top), label_separator=separator, any_labels=several).read()
        keys, groups = [*splits.class_names], dict(splits.groups)
        parts = [part for part in (splits.train, splits.val, splits.test) if part]
        records, has_splits = [*parts[0]], len(parts) > 1
    if has_splits:
        raise DataError(
            f"{images} has several splits, and the classifier has seen one of them: give images "
            "of another"
        )
    if class_names is not None:
        mapping = read_class_mapping(Path(class_names), keys, complete=False)
        keys = [mapping[key].name for key in keys]
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({*keys} - numbers.keys()):
        if several and separator_in(unknown[0], numbers):
            raise DataError(
                f"{images} has the label {unknown[0]!r}, which is a list of classes: separate them "
                f"by {SEPARATOR!r}"
            )
        raise DataError(
            f"{images} has the class {unknown[0]!r}, which the classifier does not have: leave it "
            "out, or give its name by --class-names"
        )
    if several:
        return [
            Record(record.source, tuple(sorted(numbers[keys[label]] for label in record.labels)))
            for record in records
        ]
    drawn = one_of_each([record.source for record in records], groups, _SEED)
    return [Record(records[i].source, numbers[keys[records[i].single]]) for i in drawn]


def encode_records(
    classifier: Classifier, records: Sequence[Record], open_image: OpenImage | None = None
) -> tuple[Tensor, Tensor]:
    """Encode labelled images; returns features float32 [N, D] and labels, both on the CPU.

    Labels are in the form of ``label_tensor``. ``open_image`` opens an image, by default with the
    decoding of the classifier.
    """
    opened = open_image or partial(sources.open_source, decoding=classifier.decoding)
    features, classes = [], len(classifier.class_names)
    for _, predicted in classifier.predictions([record.source for record in records], opened):
        if isinstance(predicted, DataError):
            raise predicted
        features.append(predicted.embedding)
    labels = [label_tensor(record.label, classes) for record in records]
    return torch.stack(features), torch.stack(labels)
