import pytest
from browser import CHROMIUM, NEEDED, browser
from report_pages import HOSTILE, make, put_together, rename_classes

from kdpl.data.readers.digits import CLASS_NAMES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory, teacher_run, student_run):
    """Addresses of an unchanged report, and of one with hostile class names."""
    folders = {name: tmp_path_factory.mktemp("browser") / name for name in ("plain", "hostile")}
    for name, folder in folders.items():
        put_together(folder, teacher_run, student_run)
        if name == "hostile":
            rename_classes(folder, CLASS_NAMES, HOSTILE)
        make(folder)
    return {name: (folder / "report.html").as_uri() for name, folder in folders.items()}


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


def show(tab, url, **look):
    tab.look(**look)
    tab.open(url)
    tab.wait(f"location.href === {url!r} && document.readyState === 'complete'")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_follows_the_colour_scheme_of_the_reader(dark, reports, tab, tmp_path):
    show(tab, reports["plain"], height=1600, dark=dark)
    pixels = tab.screenshot(tmp_path / "page.png")
    corners = {pixels.getpixel(corner) for corner in ((2, 2), (1180, 2), (2, 1597), (1180, 1597))}
    assert len(corners) == 1
    assert max(*corners.pop()) < 50 if dark else min(*corners.pop()) > 240
    # a chart in the colours of teacher and student
    light, night = {(36, 89, 184), (176, 74, 6)}, {(134, 180, 255), (255, 173, 107)}
    colours = {colour for _, colour in pixels.getcolors(maxcolors=1200 * 1600)}
    assert (night if dark else light) <= colours


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_nothing_overflows_the_width_and_hostile_names_run_nothing(name, reports, tab):
    for width in (1920, 1366, 1200, 520, 390):
        show(tab, reports[name], width=width)
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run("document.documentElement.scrollHeight") > 2000
    # the table of classes fits its column, in a window of 1200 pixels less a scrollbar
    show(tab, reports[name], width=1185)
    scroll = "document.querySelector('#classes').parentElement.querySelector('.scroll')"
    assert tab.run(f"{scroll}.scrollWidth <= {scroll}.clientWidth")
    # the page's own script runs
    assert tab.run("document.querySelectorAll('th button').length") > 0
    assert tab.run("document.documentElement.dataset.broken === undefined")
    assert ("document.documentElement.dataset.broken" in tab.text("body")) == (name == "hostile")


def test_a_click_on_a_header_sorts_the_table_by_it(reports, tab):
    show(tab, reports["plain"])
    table = "document.querySelector('#classes').parentElement.querySelector('table.sortable')"
    numbers = f"[...{table}.tBodies[0].rows].map((row) => row.cells[0].textContent).join(' ')"
    for expected in ("0 1 2 3 4 5 6 7 8 9", "9 8 7 6 5 4 3 2 1 0"):
        tab.run(f"{table}.tHead.querySelector('button').click()")
        assert tab.run(numbers) == expected
