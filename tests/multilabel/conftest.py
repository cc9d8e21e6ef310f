"""Pages of one to three digits as a table of several labels, and a run on them with the miniature CLIPs."""

import csv

import numpy as np
import pytest
from PIL import Image
from runs import CONFIGS, SHORT, STAGES
from sklearn.datasets import load_digits

from kdpl.__main__ import main

NAMES = ("four", "one", "three", "two", "zero")
_DIGITS = {"four": 4, "one": 1, "three": 3, "two": 2, "zero": 0}


def write_pages(folder, images=None, seed=0, names=NAMES):
    """Write pages of digits and a table of the digits on them; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = images or {"train": 40, "val": 20, "test": 24}
    draw = np.random.default_rng(seed)
    data = load_digits()
    rows = []
    for split, count in counts.items():
        for number in range(count):
            shown = sorted(draw.choice(names, size=draw.integers(0, 4), replace=False))
            # no two are the same
            page = Image.fromarray(draw.integers(230, 256, (48, 48), dtype=np.uint8))
            for place, name in zip(draw.permutation(4), shown, strict=False):
                digits = data.images[data.target == _DIGITS[name]]
                ink = 255 - digits[draw.integers(len(digits))] * 255 / 16
                glyph = Image.fromarray(ink.astype(np.uint8)).resize((22, 22))
                page.paste(glyph, (24 * int(place % 2) + 1, 24 * int(place // 2) + 1))
            page.convert("RGB").save(folder / f"{split}{number}.png")
            rows.append((f"{split}{number}.png", ";".join(shown), split))
    with (folder / "pages.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    return folder / "pages.csv"


def data_of(table, *more):
    """The options of a run on a table of several labels."""
    return [
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={table}",
        "--data.init_args.classes.label_separator=;",
        "--data.init_args.classes.empty_labels=no_class",
        "--data.init_args.shots=4",
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=8",
        *more,
    ]


@pytest.fixture(name="data_of", scope="session")
def _data_of():
    return data_of


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def run(tmp_path_factory, table):
    """A whole run, with classes of which the teacher has no label."""
    out = tmp_path_factory.mktemp("multilabel") / "run"
    options = data_of(table, "--data.init_args.protocol=base_to_novel")
    config = f"--config={CONFIGS}/trainer/cpu.yaml"
    assert main(["run", config, *STAGES, *SHORT, *options, f"--out={out}"]) == 0
    return out
