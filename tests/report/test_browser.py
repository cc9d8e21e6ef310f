"""The report in a real browser. Needs chromium, as Debian's package of that name has it."""

import re
import subprocess

import pytest
from browser import CHROMIUM, NEEDED
from PIL import Image
from report_pages import HOSTILE, make, put_together, rename_classes

import kdpl.data.readers.digits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)]


def browse(page, folder, *options, width=1200, dark=False):
    """Open a page in a browser and return what it prints."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'browser'}",
        f"--window-size={width},1600",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=2000",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def reports(tmp_path_factory, teacher_run, student_run):
    """An unchanged report, and one with hostile class names."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.report.cost._SECONDS", 0)
        patch.setattr("kdpl.report.cost._MIN_ROUNDS", 1)
        for name in ("plain", "hostile"):
            folder = put_together(tmp_path_factory.mktemp("browser") / name, teacher_run, student_run)
            if name == "hostile":
                rename_classes(folder, kdpl.data.readers.digits.CLASS_NAMES, HOSTILE)
            make(folder)
            made[name] = folder / "report.html"
    return made


def with_script(report, script, tmp_path):
    """Copy a report without its policy, and with a script."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    page = tmp_path / "with_script.html"
    page.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_follows_the_colour_scheme_of_the_reader(dark, reports, tmp_path):
    picture = tmp_path / "page.png"
    browse(reports["plain"], tmp_path, f"--screenshot={picture}", dark=dark)
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    assert pixels.size == (1200, 1600)
    corners = [pixels.getpixel(place) for place in ((2, 2), (1197, 2), (2, 1597), (1197, 1597))]
    assert len(set(corners)) == 1
    assert max(corners[0]) < 50 if dark else min(corners[0]) > 240
    colours = pixels.getcolors(maxcolors=1200 * 1600)
    background = max(colours)[0] / (1200 * 1600)
    # mostly background; text, tiles, and a chart in the colours of teacher and student
    assert 0.5 < background < 0.97
    expected = {(0x86, 0xB4, 0xFF), (0xFF, 0xAD, 0x6B)} if dark else {(0x24, 0x59, 0xB8), (0xB0, 0x4A, 0x06)}
    assert expected <= {colour for _, colour in colours}


@pytest.mark.parametrize("width", [1200, 520])
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_nothing_overflows_the_width(name, width, reports, tmp_path):
    script = """
      const root = document.documentElement;
      root.dataset.width = root.clientWidth;
      root.dataset.overflow = root.scrollWidth - root.clientWidth;
      root.dataset.height = root.scrollHeight;
    """
    dom = browse(with_script(reports[name], script, tmp_path), tmp_path, "--dump-dom", width=width)
    measured = {key: int(value) for key, value in re.findall(r'data-(width|overflow|height)="(\d+)"', dom)}
    assert measured["overflow"] == 0
    assert measured["width"] == width
    assert measured["height"] > 3000


def test_hostile_names_run_nothing_while_the_pages_own_script_runs(reports, tmp_path):
    dom = browse(reports["hostile"], tmp_path, "--dump-dom")
    assert '<button type="button">' in dom
    assert "data-broken" not in dom.partition(">")[0] + dom.partition("<html")[2].partition(">")[0]
    assert "document.documentElement.dataset.broken" in dom


def test_a_click_on_a_header_sorts_the_table_by_it(reports, tmp_path):
    script = """
      const table = document.querySelector("#classes").parentElement.querySelector("table.sortable");
      const numbers = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
      const button = table.tHead.querySelector("button");
      button.click();
      document.documentElement.dataset.first = numbers();
      button.click();
      document.documentElement.dataset.second = numbers();
    """
    dom = browse(with_script(reports["plain"], script, tmp_path), tmp_path, "--dump-dom")
    assert 'data-first="0 1 2 3 4 5 6 7 8 9"' in dom
    assert 'data-second="9 8 7 6 5 4 3 2 1 0"' in dom


def test_it_prints_on_a_few_pages(reports, tmp_path):
    pdf = tmp_path / "page.pdf"
    browse(reports["plain"], tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", dark=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 3 <= pages <= 12
