"""Classify images on the machines of a Ray cluster, into the table that `predict` writes.

`pip install "ray[data]"`, then `python examples/bulk_ray.py CLASSIFIER TABLE.csv IMAGES…`. Images
are as for `predict`, at paths or URLs that all machines see. Ray starts again what a lost worker
had under way.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import ray

from kdpl import Classifier
from kdpl.classifier import PredictOptions
from kdpl.classifier.bulk import columns, to_row
from kdpl.classifier.sources import Item, find_sources, printable, read_items
from kdpl.classifier.tables import write_table

OPTIONS = PredictOptions(workers=1)
WORKERS = 2  # processes, each with a core; for a worker with a GPU: num_gpus=1 below


class Predict:
    """Classifies sources, such as a batch of image files; the weights are loaded once."""

    def __init__(self, folder: str) -> None:
        self.classifier = Classifier.load(folder)
        self.open = partial(Item.open, decoding=self.classifier.decoding)
        self.columns = columns(self.classifier.task, OPTIONS.top_k, OPTIONS.rule)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of the table for the sources of one row."""
        results = self.classifier.predictions(read_items(row["sources"]), self.open, OPTIONS)
        named = ((printable(item.name), result) for item, result in results)
        return [to_row(self.classifier.task, *each, self.columns) for each in named]


def main(folder: str, table: str, *images: str) -> None:
    """Write the table of images with a classifier's folder."""
    sources, size = find_sources(images), OPTIONS.batch_size
    parts = [{"sources": sources[i : i + size]} for i in range(0, len(sources), size)]
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = ray.data.from_items(parts, override_num_blocks=len(parts)).flat_map(
        Predict, fn_constructor_args=[folder], num_cpus=1, concurrency=WORKERS
    )
    classifier = Classifier.load(folder)
    names = columns(classifier.task, OPTIONS.top_k, OPTIONS.rule)
    write_table(Path(table), rows.iter_rows(), names)


if __name__ == "__main__":
    main(*sys.argv[1:])
