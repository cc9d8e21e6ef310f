"""Images in, a table of answers out: what ``python -m kdpl predict`` does."""

import hashlib
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.cli.arguments import output_file
from kdpl.data.parallel import cores
from kdpl.data.storage import is_shard, stamp
from kdpl.deploy.journal import Journal, Row, columns
from kdpl.deploy.sources import Item, count_items, find_sources, part_of, printable, read_items
from kdpl.deploy.tables import require_format, write_csv, write_table
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.faults import reader_is_gone
from kdpl.runtime.files import atomic_path


def classify(options: Namespace) -> int:
    """Classify images and write one row for each, in the order given.

    An image that cannot be read gets a row with the reason, and is counted on standard error.

    Args:
        options: Those of ``python -m kdpl predict``.

    Returns:
        0, with unreadable images too.

    Raises:
        KdplError: The classifier is missing or damaged, an argument does not exist, or settings do not fit.
    """
    out = output_file("--out", options.out) if options.out is not None else None
    if out is not None:
        require_format(out)
    sources = find_sources(options.images, Path(options.list) if options.list is not None else None)
    sources = part_of(sources, options.part)
    classifier = Classifier.load(options.classifier)
    if options.add_classes is not None:
        classifier = classifier.add_classes(ClassVectors.load(Path(options.add_classes)))
    classifier.to(_device(options.device))
    names = columns(_top_k(classifier, options))
    if out is None:
        _print_csv(_rows(classifier, sources, 0, options), names)
        return 0
    with Journal(out, _job(classifier, sources, options)) as journal:
        if journal.finished:
            print(f"{out} is finished: remove it to classify these images again", file=sys.stderr)
            return 0
        if journal.done:
            print(f"going on after {journal.done} images", file=sys.stderr)
        rows = _rows(classifier, sources, journal.done, options)
        while group := list(islice(rows, options.batch_size)):
            journal.write(group)
        with atomic_path(out) as temporary:
            write_table(temporary, journal.rows(), names)
        journal.path.unlink()
    return 0


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, and torch finds no GPU: give --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _rows(classifier: Classifier, sources: Sequence[str], skip: int, options: Namespace) -> Iterator[Row]:
    """Classify the images of ``sources`` but the first ``skip``."""
    items = islice(read_items(sources), skip, None)
    total = count_items(sources)
    names = columns(_top_k(classifier, options))
    to_terminal = options.out is None and sys.stdout.isatty()
    with _progress(None if total is None else total - skip, to_terminal) as show:
        for item, guesses in classifier.answers(
            items, Item.open, top_k=options.top_k, batch_size=options.batch_size, workers=options.workers or cores()
        ):
            row: Row = {**dict.fromkeys(names), "path": printable(item.name)}
            if isinstance(guesses, DataError):
                row["error"] = str(guesses)
            else:
                values = [value for guess in guesses for value in (guess.class_name, round(guess.probability, 6))]
                row.update(zip(names[1:-1], values, strict=True))
            show(row)
            yield row


def _top_k(classifier: Classifier, options: Namespace) -> int:
    return min(int(options.top_k), len(classifier.class_names))


def _job(classifier: Classifier, sources: Sequence[str], options: Namespace) -> dict[str, Any]:
    """Say what determines the answers: the classifier with its added classes, the images, and the columns."""
    files = [file for file in sorted(Path(options.classifier).iterdir()) if file.suffix in (".json", ".safetensors")]
    digest = hashlib.blake2b(digest_size=16)
    for file in [*files, *([Path(options.add_classes)] if options.add_classes is not None else [])]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    # a shard that is written anew may have other images in other places
    names = [f"{printable(source)} {stamp(source)}" if is_shard(source) else printable(source) for source in sources]
    images = hashlib.blake2b("\0".join(names).encode(), digest_size=16)
    return {"classifier": digest.hexdigest(), "images": images.hexdigest(), "top_k": _top_k(classifier, options)}


@contextmanager
def _progress(total: int | None, to_terminal: bool) -> Iterator[Callable[[Row], None]]:
    """Count rows on standard error: in a bar where somebody looks at it, and in one line at the end."""
    console = Console(stderr=True)
    start = time.perf_counter()
    count = unreadable = 0
    bar = Progress(
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # where the rows go to the terminal themselves, they show how far it is
        disable=not console.is_terminal or to_terminal,
    )

    def rate() -> str:
        return f"{count / max(time.perf_counter() - start, 1e-9):.0f} images/s"

    def show(row: Row) -> None:
        nonlocal count, unreadable
        count, unreadable = count + 1, unreadable + (row["error"] is not None)
        bar.update(task, advance=1, rate=rate())

    with bar:
        task = bar.add_task("", total=total, rate="")
        yield show
    errors = f", {unreadable} of them unreadable" if unreadable else ""
    print(f"{count} images{errors}, {rate()}", file=sys.stderr)


def _print_csv(rows: Iterable[Row], names: Sequence[str]) -> None:
    try:
        write_csv(sys.stdout, rows, names)
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_is_gone():
            raise
