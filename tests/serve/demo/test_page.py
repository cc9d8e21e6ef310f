import signal
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM, NEEDED, browser, demo
from runs import error_line

from kdpl.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)]

FILE = "#image input[type=file]"


@pytest.fixture(scope="module")
def page(tmp_path_factory, classifier, teacher_run):
    """The address of a page, the process that serves it and a tab that shows it."""
    folder = tmp_path_factory.mktemp("page")
    digits = {i: f"digits/{i}" for i in range(6)}
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    # all classes, so that added ones are shown
    served = demo(folder, classifier, teacher_run, digits, "--top-k=12")
    with served as (process, url), browser(folder / "browser", nowhere) as tab:
        tab.look()
        tab.open(url)
        yield url, process, tab, folder


def test_an_image_is_classified_and_an_added_class_is_among_the_predictions(page, tmp_path):
    url, _, tab, folder = page
    tab.upload(FILE, folder / "examples" / "5.png")
    tab.wait("document.querySelector('#predictions')?.innerText.includes('%')")
    tab.add_classes("letter B, <b>five</b>")
    tab.wait("document.querySelector('#predictions')?.innerText.includes('letter B')")
    assert tab.run("document.querySelectorAll('#predictions b').length") == 0
    for dark in (False, True):
        tab.look(dark=dark)
        corner = tab.screenshot(tmp_path / "page.png").getpixel((2, 2))
        assert max(corner) < 60 if dark else min(corner) > 240
    tab.look(width=390)
    assert tab.run("document.documentElement.scrollWidth") == 390
    tab.add_classes("x" * 10_000)
    tab.wait("document.body.innerText.includes('tokens')")
    assert len(tab.requested) > 20
    # no history of images
    assert not tab.run("/\\bRuns\\b/.test(document.body.innerText)")
    assert all(asked.startswith((url, "data:", "blob:")) for asked in tab.requested)
    assert tab.complaints == []


def test_a_file_that_is_not_an_image_is_a_sentence_in_the_page(page, tmp_path):
    tab = page[2]
    tab.open(page[0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    tab.upload(FILE, tmp_path / "broken.png")
    tab.wait("document.body.innerText.includes('image broken.png cannot be read')")


def test_a_port_in_use_is_a_sentence_and_ctrl_c_ends_it_and_leaves_no_file(
    page, classifier, capsys
):
    url, process, _, _ = page
    port = urlsplit(url).port
    assert main(["demo", str(classifier), "--no-browser", f"--port={port}"]) == 1
    error_line(capsys, "the demo cannot listen on 127.0.0.1 (", "--port")
    (uploads,) = [
        path for path in Path(gettempdir()).glob("kdpl-demo-*") if any(path.rglob("broken.png"))
    ]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert not uploads.exists()
