import numpy as np
import pytest

from benchmarks.worlds import letters

# the first that ships all fonts
pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("source", "quarters"),
    [
        ("letters/000/a", [161.5, 154.7, 153.1, 163.5]),
        ("letters/065/m", [179.2, 178.6, 162.1, 161.3]),
        ("letters/119/z", [163.0, 156.6, 165.3, 154.7]),
    ],
)
def test_images_stay_those_that_figures_are_measured_on(source, quarters):
    pixels = np.asarray(letters.open_letter(source), dtype=float)
    # versions of FreeType and of the JPEG decoder may round differently
    assert pixels.reshape(2, 16, 2, 16, 3).mean((1, 3, 4)).ravel() == pytest.approx(quarters, abs=1)
