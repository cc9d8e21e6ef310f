"""Pages of one to three digits as a table of several labels, and what learns from them."""

import csv

import numpy as np
import torch
import world
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.clip import ClipConfig
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.options import ClassOptions
from kdpl.prompts import PromptConfig
from kdpl.teacher import TeacherPromptTuning

NAMES = ("four", "one", "three", "two", "zero")
OF_PAGES = {
    "class_names": NAMES,
    "num_base": None,
    "task": "multilabel",
    "scales": (1.0,) * 5,
    "biases": (0.0,) * 5,
}
"""Fields of class vectors for the pages."""


def write_pages(folder):
    """Write pages of digits and a table of the digits on them; returns the table."""
    draw, data = np.random.default_rng(0), load_digits()
    rows = []
    for split, count in {"train": 40, "val": 20, "test": 24}.items():
        for number in range(count):
            shown = sorted(draw.choice(NAMES, size=draw.integers(0, 4), replace=False))
            # no two are the same
            page = Image.fromarray(draw.integers(230, 256, (48, 48), dtype=np.uint8))
            for corner, name in zip(draw.permutation(4), shown, strict=False):
                digits = data.images[data.target == world.DIGITS.index(name)]
                ink = 255 - digits[draw.integers(len(digits))] * 255 / 16
                glyph = Image.fromarray(ink.astype(np.uint8)).resize((22, 22))
                page.paste(glyph, (24 * int(corner % 2) + 1, 24 * int(corner // 2) + 1))
            page.convert("RGB").save(folder / f"{split}{number}.png")
            rows.append((f"{split}{number}.png", ";".join(shown) or ";", split))
    return write_table(folder / "pages.csv", ("image", "label", "split"), *rows)


def write_table(file, *rows):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file


def data_of(table, *more, separator=";"):
    """The options of a run on a table of several labels."""
    return [
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={table}",
        f"--data.init_args.classes.label_separator={separator}",
        "--data.init_args.shots=4",
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=8",
        *more,
    ]


def pages(table, **settings):
    """The datamodule of a table of several labels."""
    settings = {"shots": 4, "val_shots": 4, "batch_size": 8, "num_workers": 0, **settings}
    classes = ClassOptions(label_separator=";")
    return DomainDataModule("table", str(table), classes=classes, **settings)


def make_teacher(depth=2):
    torch.manual_seed(0)
    clip, size = ClipConfig("test-teacher-quickgelu", world.TAG), PromptConfig(2, depth)
    return TeacherPromptTuning(clip, vision_prompts=size, text_prompts=size)
