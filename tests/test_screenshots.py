"""The pictures in docs/images, most of the quickstart's run: ``make screenshots`` makes them again."""

import os
import shutil
import string
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED, browser, demo
from PIL import Image

from benchmarks.worlds.letters import open_letter
from kdpl.data.readers.digits import open_digit, read_digits
from kdpl.report.pictures import choose_for_sheet, draw_sheet
from kdpl.runtime.predictions import read_predictions

RUN = os.environ.get("KDPL_SCREENSHOTS_OF")
IMAGES = Path(__file__).parents[1] / "docs" / "images"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=NEEDED),
    pytest.mark.skipif(not RUN, reason="make screenshots runs this, which writes into docs/images"),
]

SCHEMES = {"light": False, "dark": True}


@pytest.fixture(autouse=True)
def _drawn(draw, monkeypatch):
    monkeypatch.setattr("kdpl.report.pictures._save", draw)


def take(tab, name, scheme, height):
    """Take a picture, 1200 pixels wide, and see that the page is there in its colours."""
    tab.look(height=height, dark=SCHEMES[scheme])
    tab.run("new Promise(done => setTimeout(done, 1000))")  # colours change gently
    pixels = tab.screenshot(IMAGES / f"{name}_{scheme}.png")
    assert pixels.size == (1200, height)
    corner = pixels.getpixel((2, 2))
    assert max(corner) < 60 if scheme == "dark" else min(corner) > 240
    assert len(pixels.getcolors(maxcolors=1200 * height)) > 100


def test_the_figures():
    shutil.copy(Path(RUN) / "student/figures/confusion.png", IMAGES)
    tests = (read_predictions(Path(RUN) / stage) for stage in ("teacher", "student"))
    pairs = list(zip(*tests, strict=True))
    chosen = [pairs[i] for i in choose_for_sheet(pairs, 8)]
    images = [open_digit(student.source) for _, student in chosen]
    draw_sheet(images, chosen, "8 test images, half of them mistakes", IMAGES / "examples.png")


def test_the_letters():
    """Three writers of training images above two of test images."""
    sheet = Image.new("RGB", (26 * 32, 5 * 32))
    for row, writer in enumerate((0, 1, 2, 70, 71)):
        for column, letter in enumerate(string.ascii_lowercase):
            sheet.paste(open_letter(f"letters/{writer:03d}/{letter}"), (32 * column, 32 * row))
    sheet.quantize(64).save(IMAGES / "letters.png", optimize=True)


def test_the_report(tmp_path):
    with browser(tmp_path) as tab:
        for scheme, height in (("light", 2360), ("dark", 1440)):
            tab.look(height=height, dark=SCHEMES[scheme])
            tab.open((Path(RUN) / "report.html").absolute().as_uri())
            tab.wait("document.readyState === 'complete' && !!document.querySelector('#classes')")
            take(tab, "report", scheme, height)


def test_the_demo(tmp_path):
    of_class = {record.label: record.source for record in reversed(read_digits().test)}
    run = demo(tmp_path, f"{RUN}/student/classifier", f"{RUN}/teacher", of_class)
    with browser(tmp_path / "browser") as tab, run as (_, url):
        tab.look()
        tab.open(url)
        tab.upload("#image input[type=file]", tmp_path / "examples/5.png")
        tab.wait("document.querySelector('#predictions')?.innerText.includes('%')")
        tab.add_classes("letter B, letter K")
        tab.wait("document.querySelector('#predictions')?.innerText.includes('letter B')")
        tab.wait("!!document.querySelector('#heat-map img')")
        tab.run("document.activeElement.blur()")
        for scheme in SCHEMES:
            take(tab, "demo", scheme, 900)
