"""``python -m benchmarks.scales``: three ways to choose the scales of local views without labels.

On pages of small digits, rows of large digits, and pages of small letters, each way judges each of
the scales by 64 training pages; beside them stands the mAP of the targets of 200 training pages.
"""

import argparse
import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor

from benchmarks.several_labels import WORLDS, fit_and_test
from benchmarks.worlds import letters
from benchmarks.worlds.pages import SIZE, write_drawn, write_pages
from kdpl.class_vectors import ClassVectors
from kdpl.confidence.words import NEGATIVE_VECTORS_FILE
from kdpl.data.decoding import open_image
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.local_views import SCALES, Views, log_odds_of
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.targets.frozen_teacher import FrozenTeacher

PAGES, JUDGED = 200, 64
LETTER_PAGES = {"train": 500, "val": 50, "test": 100}
GROUND = (205, 205, 205)  # behind the letters' paper


def draw_letters(rng: np.random.Generator, split: str) -> tuple[Image.Image, list[str]]:
    """Draw a page of one to five small letters, each on its paper; returns it, and its classes."""
    splits = letters.read_letters()
    records, page = getattr(splits, split), Image.new("RGB", (SIZE, SIZE), GROUND)
    boxes, labels = list[tuple[int, int, int]](), set()
    for _ in range(rng.integers(1, 6)):
        record = records[rng.integers(len(records))]
        edge = int(rng.integers(13, 21))
        for _ in range(50):
            x, y = (int(place) for place in rng.integers(0, SIZE - edge + 1, 2))
            if all(
                x + edge <= left or left + other <= x or y + edge <= top or top + other <= y
                for left, top, other in boxes
            ):
                letter = splits.open_image(record.source)
                page.paste(letter.resize((edge, edge), Image.Resampling.BICUBIC), (x, y))
                boxes.append((x, y, edge))
                labels.add(int(record.label))
                break
    return page, [letters.CLASS_NAMES[label] for label in sorted(labels)]


def information(_features: Tensor, probabilities: Tensor) -> float:
    """Entropy of the mean prediction over crops minus the mean entropy, nats, as ``auto`` does."""
    mean, entropies = probabilities.mean(dim=0), torch.special.entr(probabilities).sum(dim=1)
    return float(torch.special.entr(mean).sum() - entropies.mean())


def confidence(_features: Tensor, probabilities: Tensor) -> float:
    """Mean of the largest probability of a crop."""
    return float(probabilities.amax(dim=1).mean())


def agreement(features: Tensor, probabilities: Tensor) -> float:
    """Share of crops predicted like the nearest crop of another page."""
    page = torch.arange(len(features)) // (len(features) // JUDGED)
    cosines = (features @ features.T).masked_fill(page[:, None] == page, -1)
    predicted = probabilities.argmax(dim=1)
    return float((predicted == predicted[cosines.argmax(dim=1)]).double().mean())


def measure(folder: Path, table: Path) -> None:
    """Print mAP and what each way finds, for each of the scales."""
    # the zero-shot teacher, and the first training pages with their labels
    fit_and_test(folder / "teacher", "teacher", 0, 1, world=WORLDS["pages"], table=table)
    vectors = ClassVectors.load(folder / "teacher" / CLASS_VECTORS_FILE)
    words = ClassVectors.load(folder / "teacher" / NEGATIVE_VECTORS_FILE)
    teacher = FrozenTeacher(folder / "teacher", vectors)
    teacher.load()
    views = Views(
        vectors.logit_scale * torch.cat([vectors.vectors, words.vectors]), len(vectors.vectors)
    )
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"][:PAGES]
    has = np.array(
        [[name in row["label"].split(",") for name in vectors.class_names] for row in rows]
    )

    for scales in SCALES:
        crops = Crops(scales, 8, vectors.preprocessing.resizing)
        with torch.inference_mode():
            features = torch.stack(
                [
                    crops.features(
                        teacher.features(crops(open_image(str(table.parent / row["image"]))))
                    )
                    for row in rows
                ]
            )
        log_odds = log_odds_of(torch.stack([*map(views.scores, features)])).numpy()
        precision = np.mean(
            [average_precision_score(has[:, c], log_odds[:, c]) for c in np.flatnonzero(has.any(0))]
        )
        boxes = features[:: max(1, PAGES // JUDGED)][:JUDGED, 1:].flatten(0, 1)
        probabilities = (boxes @ views.texts.T).softmax(dim=1)
        found = [way(boxes, probabilities) for way in (information, confidence, agreement)]
        values = " | ".join(f"{value:.2f}" for value in found)
        print(f"| {folder.name} | {list(scales)} | {100 * precision:.1f} | {values} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, and print the table; returns 0."""
    parser = argparse.ArgumentParser("python -m benchmarks.scales", description="Scales of crops.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the runs")
    out = parser.parse_args(argv).out
    torch.set_num_threads(1)
    worlds = {
        "rows": partial(write_pages, rows=True),
        "pages": write_pages,
        "letters": lambda folder: write_drawn(
            folder / "pages.csv", LETTER_PAGES, lambda split, rng: draw_letters(rng, split)
        ),
    }
    print("| pages | scales | mAP, % | information | confidence | agreement |")
    print("|---|---|--:|--:|--:|--:|")
    for name, write in worlds.items():
        measure(out / name, write(out / name / "pages"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
