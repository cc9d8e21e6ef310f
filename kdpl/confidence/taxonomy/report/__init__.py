"""Report section on the tree of classes."""

from pathlib import Path
from typing import Any

from kdpl.confidence.taxonomy.scores import FILE
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.metrics import test_key
from kdpl.report.intervals import wilson
from kdpl.report.page import Section
from kdpl.report.run_folder import Run


def tree(run: Run) -> dict[str, Any] | None:
    """Collect accuracies by level; None without a tree."""
    file = run.main.folder / FILE
    if not file.is_file():
        return None
    taxonomy = Taxonomy.read(file, run.vectors.class_names)

    # accuracies at each level, and of whole paths
    levels = range(1, len(taxonomy.nodes) + 1)
    rows = {f"level {level}": f"level_{level}_acc" for level in levels} | {"path": "level_path"}
    accuracies = {title: dict[str, Any]() for title in rows}
    for title, name in rows.items():
        for model, stage in run.stages.items():
            if (value := stage.results.get(test_key(name))) is not None:
                images = len(stage.predictions)
                accuracies[title][model] = value, *wilson(round(value * images), images)
    return {"models": list(run.stages), "accuracies": accuracies}


SECTION = Section(
    "Tree of classes", tree, Path(__file__).parent / "templates" / "taxonomy.html.jinja", "classes"
)
