"""``python -m kdpl predict CLASSIFIER IMAGES…``: classify images with a finished classifier."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import Rule, output_file, require_file
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import require_classifier


def predict(
    classifier: str,
    images: list[str] = [],  # noqa: B006
    *,
    list: str | None = None,
    part: str | None = None,
    out: str | None = None,
    embeddings: str | None = None,
    add_classes: str | None = None,
    top_k: PositiveInt = 1,
    batch_size: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: PositiveInt | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    rule: Rule,
) -> int:
    """Classify images with a finished classifier and write one row for each, in the order given.

    An unreadable image gets a row with the reason. If interrupted, the same command with --out
    resumes.

    Args:
        classifier: classifier folder of a student's run
        images: image files, .tar shards, folders that are searched recursively, patterns such as
            'a/**/*.jpg', and .txt lists, whose paths are relative to the list's folder
        list: file with one path of an image or shard on each line, relative to the working
            directory
        part: classify only part I of N of the images, given as I/N, as one of an array of jobs
        out: table to write, .csv, .jsonl or .parquet, instead of CSV on standard output
        embeddings: file for the encoder's features of the images, .npy or .parquet, in the order of
            the table's rows; NaN, or null, for an unreadable image
        add_classes: class vectors of further classes, written by the class-vectors command
        top_k: classes for each image, in columns
        batch_size: images per batch
        device: auto is a GPU if there is one
        workers: threads that decode, one for each processor core if not given
        rule: what rooms add as options, such as rejection
        precision: bf16-mixed and 16-mixed run the image tower in half precision, which is faster on
            most GPUs
    """
    # what imports torch, which takes seconds, comes after all checks of paths
    from kdpl.classifier.sources import find_sources, part_of
    from kdpl.classifier.tables import EMBEDDING_FORMATS, require_format

    require_classifier(Path(classifier))
    require_file("--add-classes", add_classes)
    if add_classes is not None and rule.makers:
        raise ConfigError(
            "options that reject images, name sets or score them rest on images of the run, which "
            "have none of the added classes: leave out --add-classes"
        )
    table = output_file("--out", out) if out is not None else None
    if table is not None:
        require_format(table)
    features = output_file("--embeddings", embeddings) if embeddings is not None else None
    if features is not None:
        require_format(features, "--embeddings", EMBEDDING_FORMATS)
        if table is None or table.resolve() == features.resolve():
            raise ConfigError(
                "--embeddings needs a table that says whose they are, in a file of "
                "its own: give --out"
            )
    sources = part_of(find_sources(images, Path(list) if list is not None else None), part)

    from kdpl.classifier.bulk import BulkPrediction, load_classifier

    loaded = load_classifier(classifier, add_classes, device)
    bulk = BulkPrediction(
        loaded, sources, top_k, batch_size, workers, precision, rule.of(loaded, top_k)
    )
    if table is None:
        bulk.print()
    else:
        files = sorted(
            file for file in Path(classifier).iterdir() if file.suffix in (".json", ".safetensors")
        )
        bulk.write(
            table, [*files, *([Path(add_classes)] if add_classes is not None else [])], features
        )
    return 0
