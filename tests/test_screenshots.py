"""The pictures in docs/images, most of the quickstart's run: ``make screenshots`` makes them again."""

import os
import string
from pathlib import Path

import pytest
from browser import CHROMIUM, NEEDED, browser
from PIL import Image

from benchmarks.worlds.letters import open_letter
from kdpl.data.readers.digits import open_digit
from kdpl.data.sampling import spread
from kdpl.runtime.predictions import read_predictions

RUN = os.environ.get("KDPL_SCREENSHOTS_OF")
IMAGES = Path(__file__).parents[1] / "docs" / "images"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=NEEDED),
    pytest.mark.skipif(not RUN, reason="make screenshots runs this, which writes into docs/images"),
]

SCHEMES = {"light": False, "dark": True}


def take(tab, name, scheme, height):
    """Take a picture, 1200 pixels wide, and see that the page is there in its colours."""
    tab.look(height=height, dark=SCHEMES[scheme])
    tab.run("new Promise(done => setTimeout(done, 1000))")  # colours change gently
    pixels = tab.screenshot(IMAGES / f"{name}_{scheme}.png")
    assert pixels.size == (1200, height)
    corner = pixels.getpixel((2, 2))
    assert max(corner) < 60 if scheme == "dark" else min(corner) > 240
    assert len(pixels.getcolors(maxcolors=1200 * height)) > 100


def test_the_examples():
    """Eight test images, of which teacher or student misclassifies four."""
    from matplotlib.figure import Figure  # in the extra dev alone

    tests = (read_predictions(Path(RUN) / stage) for stage in ("teacher", "student"))
    pairs = list(zip(*tests, strict=True))
    wrong = [i for i, pair in enumerate(pairs) if not all(test.correct for test in pair)]
    right = [i for i in range(len(pairs)) if i not in wrong]
    chosen = [pairs[i] for i in sorted(spread(wrong, 4) + spread(right, 4))]
    figure = Figure(figsize=(11.6, 2.45))
    note = "above each its true class, below it the predictions of teacher (T) and student (S)"
    figure.suptitle(
        f"8 test images, half of them mistakes\n{note}", ha="left", x=0.125, fontsize=10
    )
    for axis, pair in zip(figure.subplots(1, 8), chosen, strict=True):
        axis.axis("off")
        axis.imshow(open_digit(pair[0].source))
        axis.set_title(pair[0].label, fontsize=8, pad=3)
        for line, (letter, test) in enumerate(zip("TS", pair, strict=True)):
            mark, colour = ("✓", "#1a7f37") if test.correct else ("✗", "#c62828")
            text = f"{letter} {mark} {test.prediction} {100 * test.probability:.0f} %"
            style = {"ha": "center", "va": "top", "fontsize": 7.5, "color": colour}
            axis.text(0.5, -0.03 - 0.17 * line, text, transform=axis.transAxes, **style)
    figure.savefig(IMAGES / "examples.png", dpi=130, bbox_inches="tight")


def test_the_letters():
    """Three writers of training images above two of test images."""
    sheet = Image.new("RGB", (26 * 32, 5 * 32))
    for row, writer in enumerate((0, 1, 2, 70, 71)):
        for column, letter in enumerate(string.ascii_lowercase):
            sheet.paste(open_letter(f"letters/{writer:03d}/{letter}"), (32 * column, 32 * row))
    sheet.quantize(64).save(IMAGES / "letters.png", optimize=True)


def test_the_report(tmp_path):
    with browser(tmp_path) as tab:
        for scheme, height in (("light", 2010), ("dark", 1440)):
            tab.look(height=height, dark=SCHEMES[scheme])
            tab.open((Path(RUN) / "report.html").absolute().as_uri())
            tab.wait("document.readyState === 'complete' && !!document.querySelector('#classes')")
            take(tab, "report", scheme, height)
