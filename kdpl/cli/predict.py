"""``python -m kdpl predict CLASSIFIER IMAGES…``: classify images with a finished classifier."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import Rule, output_file, require_file
from kdpl.data.paths import count_suffixes, walk
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import require_classifier


def predict(
    classifier: str,
    images: list[str] = [],  # noqa: B006
    *,
    list: str | None = None,
    out: str | None = None,
    embeddings: bool = False,
    add_classes: str | None = None,
    top_k: PositiveInt = 1,
    batch_size: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: PositiveInt | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    rule: Rule,
) -> int:
    """Classify images with a finished classifier and write one row for each, in the order given.

    The row of an unreadable image gives the reason. If interrupted, the same command with --out
    resumes.

    Args:
        classifier: classifier folder of a student's run
        images: image files, .tar and .parquet shards, folders (searched recursively), patterns
            like 'a/**/*.jpg', and .txt lists, whose paths are relative to the list's folder
        list: file with one path of an image or shard on each line, relative to the working
            directory, or a .csv table with the column image
        out: table to write, .csv, .jsonl or .parquet, instead of CSV on standard output
        embeddings: add the column embedding, the encoder's features, to a .jsonl or .parquet table
        add_classes: class vectors of further classes, written by the class-vectors command
        top_k: classes for each image, in columns
        batch_size: images per batch
        device: auto is a GPU if there is one
        workers: threads that decode, one for each processor core if not given
        rule: options that decide what is predicted, such as rejection
        precision: bf16-mixed and 16-mixed run the image tower in half precision, faster on most
            GPUs
    """
    # check the options before torch is imported, since the import takes seconds
    from kdpl.classifier.sources import find_sources

    require_classifier(Path(classifier))
    require_file("--add-classes", add_classes)
    _require_compatible(add_classes, rule)
    table = _table(out, embeddings)
    sources = find_sources(images, Path(list) if list is not None else None)
    passed_over = _passed_over(images, sources)

    # load the classifier, and predict image by image
    from kdpl.classifier import PredictOptions
    from kdpl.classifier.bulk import BulkPrediction, load_classifier

    loaded = load_classifier(classifier, add_classes, device)
    decision_rule = rule.of(loaded, top_k)
    options = PredictOptions(
        top_k, batch_size, workers, precision, decision_rule, scores=bool(decision_rule.scores)
    )
    bulk = BulkPrediction(loaded, sources, options, embeddings)
    if table is None:
        bulk.print()
    else:
        bulk.write(table)
    if passed_over:
        print(f"not images, and passed over: {passed_over}", file=sys.stderr)
    return 0


def _passed_over(images: Sequence[str], sources: Iterable[str]) -> str:
    """Count files in the folders that are not images, by their suffixes."""
    folders = filter(Path.is_dir, map(Path, images))
    files = {file for folder in folders for file in walk(folder, lambda _: True)}
    return count_suffixes(sorted(files.difference(sources)))


def _table(out: str | None, embeddings: bool) -> Path | None:
    from kdpl.classifier.tables import require_format

    if out is not None:
        require_format(table := output_file("--out", out), embeddings)
        return table
    if embeddings:
        raise ConfigError("--embeddings needs a table in a file: give --out")
    return None


def _require_compatible(add_classes: str | None, rule: Rule) -> None:
    """Raise a ConfigError for options that cannot be given together."""
    if add_classes is not None and rule.make is not None:
        raise ConfigError(
            "options that reject images, name sets or score them rest on images of the run, and "
            "these have none of the added classes: leave out --add-classes"
        )
