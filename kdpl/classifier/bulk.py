"""Prediction in bulk: images in, a table of predictions out."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier, Precision
from kdpl.classifier.sources import Item, printable, read_items
from kdpl.classifier.tables import Journal, Row, encode_embedding, write_csv, write_embeddings
from kdpl.data.archives import is_archive, require_archives
from kdpl.data.parallel import cores, progress_bar
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.tasks import DecisionRule, Predicted, Task


def load_classifier(folder: str, add_classes: str | None, device: str = "cpu") -> Classifier:
    """Load a classifier onto ``cpu``, ``cuda`` or ``auto``, with further classes from a file."""
    device = choose_device(device)
    classifier = Classifier.load(folder)
    if add_classes is not None:
        classifier = classifier.add_classes(ClassVectors.load(Path(add_classes)))
    return classifier.to(device)


def choose_device(device: str) -> str:
    """Return the device that ``auto`` stands for; a ConfigError for ``cuda`` without a GPU."""
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda was asked for, and torch finds no GPU: give --device cpu")
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    return device


def columns(task: Task, top_k: int, rule: DecisionRule) -> list[str]:
    """Return the columns of a table with ``top_k`` predictions for each image."""
    return ["path", *task.columns(top_k, rule), "error"]


def to_row(task: Task, path: str, predicted: Predicted | DataError, names: Sequence[str]) -> Row:
    """Return the row of an image, or of one that cannot be read, with the given columns."""
    row: Row = {**dict.fromkeys(names), "path": path}
    if isinstance(predicted, DataError):
        return {**row, "error": str(predicted)}
    return row | task.cells(predicted, names)


class BulkPrediction:
    """Classification of image files and shards into a table, one row for each image, in order.

    An unreadable image gets a row with the reason. ``workers`` None is one thread for each
    processor core.
    """

    def __init__(
        self,
        classifier: Classifier,
        sources: Sequence[str],
        top_k: int,
        batch_size: int,
        workers: int | None,
        precision: Precision,
        rule: DecisionRule = DecisionRule(),
    ) -> None:
        self.classifier, self.sources, self.precision, self.rule = (
            classifier,
            sources,
            precision,
            rule,
        )
        self.top_k = min(top_k, len(classifier.class_names))
        self.batch_size, self.workers = batch_size, workers or cores()
        self.columns = columns(classifier.task, self.top_k, rule)

    def print(self) -> None:
        """Write CSV to standard output."""
        # rows on the terminal show the progress themselves
        write_csv(sys.stdout, self._rows(0, show_bar=not sys.stdout.isatty()), self.columns)
        sys.stdout.flush()

    def write(self, out: Path, files: Sequence[Path], embeddings: Path | None = None) -> None:
        """Write a table, or resume one of the same classifier (``files``) and the same images.

        The rows of ``embeddings`` are those of the table.
        """
        job = self._job(files)
        with ExitStack() as stack:
            beside = os.path.relpath(embeddings, out.parent) if embeddings is not None else None
            journal = stack.enter_context(Journal(out, {**job, "embeddings": beside}))
            reserved = None
            if embeddings is not None:
                table = os.path.relpath(out, embeddings.parent)
                reserved = stack.enter_context(Journal(embeddings, {**job, "table": table}))
            if journal.finished:
                if reserved is not None and not reserved.finished:
                    raise ConfigError(
                        f"{out} is finished and {embeddings} is missing: remove {out} to write both"
                    )
                print(
                    f"{out} is finished: remove it to classify these images again", file=sys.stderr
                )
                return
            if journal.done:
                print(f"resuming after {journal.done} images", file=sys.stderr)
            rows = self._rows(journal.done, embed=reserved is not None)
            while group := list(islice(rows, self.batch_size)):
                journal.write(group)
            if reserved is not None:
                shape = (journal.done, self.classifier.vectors.vectors.shape[1])
                with atomic_path(reserved.out) as temporary:
                    write_embeddings(temporary, journal.rows(), shape)
                reserved.finished = True
            journal.finish(self.columns)

    def _job(self, files: Sequence[Path]) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for path in files:
            with path.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
        # a shard that was written again may have other images at other positions
        names = []
        for source in self.sources:
            stamp = f" {require_archives(source).stamp(source)}" if is_archive(source) else ""
            names.append(printable(source) + stamp)
        images = hashlib.blake2b("\0".join(names).encode(), digest_size=16)
        return {
            "classifier": digest.hexdigest(),
            "images": images.hexdigest(),
            "top_k": self.top_k,
            "precision": self.precision,
            # as it is read back from JSON
            "rule": {**asdict(self.rule), "scores": [*self.rule.scores]}
            if self.rule != DecisionRule()
            else None,
        }

    def _rows(self, skip: int, show_bar: bool = True, embed: bool = False) -> Iterator[Row]:
        """Yield rows, with a bar on a terminal, and a line on standard error at the end."""
        items = islice(read_items(self.sources), skip, None)
        opened = partial(Item.open, decoding=self.classifier.decoding)
        settings = (self.top_k, self.batch_size, self.workers, self.precision, self.rule)
        predictions = self.classifier.predictions(items, opened, *settings)
        # the number of images in a shard is known only after reading it
        total = None if any(map(is_archive, self.sources)) else len(self.sources) - skip
        start = time.perf_counter()
        count = unreadable = 0
        with progress_bar(show_bar) as bar:
            for item, predicted in bar.track(predictions, total, description="classifying"):
                count += 1
                row = to_row(self.classifier.task, printable(item.name), predicted, self.columns)
                if isinstance(predicted, DataError):
                    unreadable += 1
                elif embed:
                    row["embedding"] = encode_embedding(predicted.embedding.numpy())
                yield row
        errors = f", {unreadable} of them unreadable" if unreadable else ""
        print(
            f"{count} images{errors}, {count / (time.perf_counter() - start):.0f} images/s",
            file=sys.stderr,
        )
