"""The notebook in examples/, as it is saved and as it runs: ``make notebook`` runs it and saves its outputs."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "folder_to_onnx.ipynb"
SAVE = os.environ.get("KDPL_SAVE_NOTEBOOK")
ACCURACY = re.compile(r"([\d.]+) % of 500 test images")


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts_of(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def pictures_of(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def accuracy_of(cells):
    return float(ACCURACY.search(texts_of(cells[-1]))[1])


def saved():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_runs_from_a_folder_to_an_onnx_file_and_shows_what_is_saved(tmp_path):
    nbclient, nbformat = (
        pytest.importorskip(name, reason="needs the extra dev") for name in ("nbclient", "nbformat")
    )
    pytest.importorskip("ipykernel", reason="needs the extra dev")
    folder = tmp_path / "examples"
    folder.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": 600, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(
        notebook, resources=resources, kernel_name="python3", **options
    ).execute()
    assert (folder / "runs/mine.onnx").is_file()
    if SAVE:
        notebook.metadata = saved()["metadata"]
        nbformat.write(notebook, tmp_path / "saved.ipynb")
        text = (tmp_path / "saved.ipynb").read_text(encoding="utf-8")
        NOTEBOOK.write_text(text.replace(str(folder), "…"), encoding="utf-8")
    before, now = code_cells(saved()), code_cells(notebook)
    shown, expected = (
        [(bool(texts_of(cell)), pictures_of(cell)) for cell in cells] for cells in (now, before)
    )
    assert shown == expected
    # processors round differently
    assert accuracy_of(now) == pytest.approx(accuracy_of(before), abs=2)
