"""Labelled images that a classifier was not trained on: read, and classified."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.data import parallel, sources
from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.datasets import EvaluationImages, OpenImage
from kdpl.data.groups import one_of_each
from kdpl.data.inference import infer
from kdpl.data.loader import EvaluationSampler, LazyLoader
from kdpl.data.readers.folder import class_folders, split_folders
from kdpl.data.readers.registry import build_reader
from kdpl.data.splits import Record, labels_of
from kdpl.data.storage import find_images
from kdpl.errors import DataError
from kdpl.runtime.class_names import composed

_BATCH_SIZE = 64
_SEPARATORS = ",;|"
_SEED = 0


def labeled_records(
    images: str,
    class_names: str | None,
    names: Sequence[str],
    label_separator: str | None = None,
    empty_labels: str | None = None,
    one_of_a_group: bool = False,
) -> list[Record]:
    """Read labelled images of a folder of class folders or of a table, of one split.

    A folder says one class of each image, and so is none for images with several labels.

    Args:
        images: The folder or table.
        class_names: File with the names of the classes, where folders or labels are others.
        names: The classifier's classes, which the records' labels are numbers of.
        label_separator: Between the labels of an image; None: each has one.
        empty_labels: What an empty label means with a ``label_separator``, as of ``Table``.
        one_of_a_group: Take one image of each group of a table, as bounds of errors need it.
    """
    top, groups = Path(images).expanduser(), dict[str, str]()
    if not top.exists():
        raise DataError(f"{images} does not exist: check its path")
    if top.is_dir() and label_separator is not None:
        raise DataError(
            f"{images} is a folder, which says one class of each image: give a .csv or .parquet "
            "table with all labels of each"
        )
    if top.is_dir():
        several = bool(split_folders(top))
        found: dict[str, list[str]] = {}
        for folder in class_folders(top):
            found.setdefault(composed(folder.name), []).extend(find_images(folder))
        keys = [key for key in found if found[key]]
        records = [Record(path, i) for i, key in enumerate(keys) for path in found[key]]
        if not records:
            raise DataError(
                f"folder {images} has no images in folders of classes: put them into "
                f"{images}/<class>/"
            )
    else:
        options: dict[str, str | bool | None] = {"root": str(top), "empty_labels": empty_labels}
        if label_separator is not None:
            # a table that has one label in each row is taken as well
            options |= {"label_separator": label_separator, "any_labels": True}
        splits = build_reader("table", **options).read()
        keys, groups = [*splits.class_names], dict(splits.groups)
        parts = [part for part in (splits.train, splits.val, splits.test) if part]
        records, several = [*parts[0]], len(parts) > 1
    if several:
        raise DataError(
            f"{images} has several splits, of which the classifier has seen one: give the images "
            "of another"
        )
    if class_names is not None:
        given = read_class_mapping(Path(class_names), keys, complete=False)
        keys = [given[key].name for key in keys]
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted({*keys} - numbers.keys()):
        if label_separator is not None:
            _require_separator(images, unknown[0], numbers)
        raise DataError(
            f"{images} has the class {unknown[0]!r}, which the classifier does not have: leave it "
            "out, or give its name by --class-names"
        )
    if one_of_a_group:
        drawn = one_of_each([record.source for record in records], groups, _SEED)
        records = [records[i] for i in drawn]
    relabeled = []
    for record in records:
        labels = [numbers[keys[label]] for label in labels_of(record)]
        relabeled.append(
            Record(record.source, labels[0] if label_separator is None else tuple(sorted(labels)))
        )
    return relabeled


def _require_separator(images: str, label: str, names: Mapping[str, int]) -> None:
    """Raise a DataError for a label that is a list of classes with another separator."""
    for mark in {*label} & {*_SEPARATORS}:
        if {part.strip() for part in label.split(mark)} <= names.keys():
            raise DataError(
                f"{images} has the label {label!r}, which is a list of classes: give "
                f"--label-separator {mark!r}"
            )


def classify_records(
    classifier: Classifier,
    records: Sequence[Record],
    open_image: OpenImage | None = None,
    num_workers: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Classify labelled images, which are opened as the classifier opens them or as is given.

    Without ``num_workers``, as many processes read them as there are cores.

    Returns logits float32 [N, C], and labels, as ``label_tensor`` makes them, in their order.
    """
    opened = open_image or partial(sources.open_source, decoding=classifier.decoding)
    resizing, classes = classifier.preprocessing.resizing, len(classifier.class_names)
    images = EvaluationImages(records, opened, resizing, classes)
    if num_workers is None:
        num_workers = min(parallel.cores(), math.ceil(len(records) / _BATCH_SIZE))
    batches = LazyLoader(images, EvaluationSampler(len(records)), _BATCH_SIZE, num_workers)
    device = classifier.head.class_vectors.device
    outputs = [
        (logits.float(), batch.labels) for logits, batch in infer(classifier, batches, device)
    ]
    logits, labels = (torch.cat(column).to(device) for column in zip(*outputs, strict=True))
    return logits, labels
