"""Prediction in bulk: images in, a table of predictions out."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import filterfalse, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier, PredictOptions
from kdpl.classifier.sources import Item, printable, read_items
from kdpl.classifier.tables import Row, write_csv, write_table
from kdpl.data.identity import stamp
from kdpl.data.parallel import progress_bar
from kdpl.data.paths import is_shard
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.faults import mark
from kdpl.runtime.files import append, atomic_path, cut_to_whole_lines, write_text
from kdpl.runtime.origin import Origin, as_json, digest, require_same
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
    if "embedding" in row:
        # as many digits as float32 has
        row["embedding"] = [round(value, 7) for value in predicted.embedding.tolist()]
    return row | task.cells(predicted, names)


@dataclass(frozen=True)
class BulkPrediction:
    """Classification of image files and shards into a table, one row for each image, in order.

    An unreadable image gets a row with the reason.

    Attributes:
        embeddings: Adds the column ``embedding``, the encoder's features.
    """

    classifier: Classifier
    sources: Sequence[str]
    options: PredictOptions
    embeddings: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns of the table."""
        top_k = min(self.options.top_k, len(self.classifier.class_names))
        names = columns(self.classifier.task, top_k, self.options.rule)
        return [*names, "embedding"] if self.embeddings else names

    def print(self) -> None:
        """Write CSV to standard output."""
        # rows on the terminal show the progress themselves
        write_csv(sys.stdout, self._rows(0, show_bar=not sys.stdout.isatty()), self.columns)
        sys.stdout.flush()

    def write(self, out: Path) -> None:
        """Write a table, or resume one of the same classifier, images and options.

        The rows so far are JSON lines in ``OUT.partial``, below a line of what they are made from.
        From the first file on that has changed since, images are predicted again.
        """
        if out.exists():
            raise ConfigError(f"--out {out} exists already: choose another --out, or remove it")
        # resume after the rows that are there already
        so_far, origin, done = out.with_name(f"{out.name}.partial"), self._origin(), 0
        if so_far.exists():
            before = None
            with so_far.open(encoding="utf-8") as file, suppress(ValueError):
                before = json.loads(file.readline())
            require_same(str(so_far), before, origin, "remove it, or write another file")
            # shards are compared above, and their rows have no stamp
            files = filterfalse(is_shard, self.sources)

            def is_current(line: bytes) -> bool:
                before = json.loads(line).get("stamp")
                return before is None or before == stamp(next(files))

            # whole batches: in other batches, the same images have other last digits
            done = cut_to_whole_lines(so_far, 1, self.options.batch_size, is_current) - 1
        else:
            write_text(so_far, json.dumps(origin) + "\n")
        if done:
            print(f"resuming after {done} images", file=sys.stderr)
        rows = self._rows(done)
        try:
            while group := list(islice(rows, self.options.batch_size)):
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in group)
                append(so_far, text)
        except BaseException as error:
            mark(error, f"the predictions so far are kept in {so_far}")
            raise

        # the table of all rows
        with atomic_path(out) as temporary, so_far.open(encoding="utf-8") as lines:
            next(lines)  # what they are made from
            write_table(temporary, map(json.loads, lines), self.columns)
        so_far.unlink()

    def _origin(self) -> Origin:
        classifier, options = self.classifier, self.options
        # a shard that was written again may have other images at other positions
        stamps = [str(stamp(shard)) for shard in filter(is_shard, self.sources)]
        with TemporaryDirectory() as folder:
            for companion in classifier.companions.values() if options.rule.scores else ():
                companion.save(Path(folder), "")
            files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        return as_json(
            {
                "weights": classifier.fingerprint(),
                "class names": digest(classifier.class_names),
                "logit scale": classifier.logit_scale,
                "task": classifier.task.settings(),
                "files of scores": digest(files),
                "images": digest([*self.sources, *stamps]),
                "preprocessing": asdict(classifier.preprocessing),
                "decoding": asdict(classifier.decoding),
                "columns": self.columns,
                "precision": options.precision,
                "rule": vars(options.rule),
            }
        )

    def _rows(self, skip: int, show_bar: bool = True) -> Iterator[Row]:
        items = islice(read_items(self.sources), skip, None)
        # the number of images in a shard is known only after reading it
        total = None if any(map(is_shard, self.sources)) else len(self.sources) - skip
        opened, names = partial(Item.open, decoding=self.classifier.decoding), self.columns
        predictions = self.classifier.predictions(items, opened, self.options)
        start = time.perf_counter()
        count = unreadable = 0
        with progress_bar(show_bar) as bar:
            for item, predicted in bar.track(predictions, total, description="classifying"):
                count += 1
                if isinstance(predicted, DataError):
                    unreadable += 1
                row = to_row(self.classifier.task, printable(item.name), predicted, names)
                yield {**row, "stamp": item.stamp}
        errors = f", {unreadable} of them unreadable" if unreadable else ""
        print(
            f"{count} images{errors}, {count / (time.perf_counter() - start):.0f} images/s",
            file=sys.stderr,
        )
