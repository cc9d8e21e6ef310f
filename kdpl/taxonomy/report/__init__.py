"""The report's section on the tree of classes: an entry point of ``kdpl.report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpl.metrics import test_key
from kdpl.report.intervals import wilson
from kdpl.report.page import Section
from kdpl.report.run_folder import Run
from kdpl.taxonomy.callback import WANTED
from kdpl.taxonomy.scores import FILE
from kdpl.taxonomy.tree import Taxonomy

MOST_NODES = 150
"""Largest number of nodes of a level that is listed."""


def tree(run: Run) -> dict[str, Any] | None:
    """Collect the nodes of the tree and what tests measured of it; None without a tree."""
    file = run.main.folder / FILE
    if not file.is_file():
        return None
    taxonomy = Taxonomy.read(file, run.vectors.class_names)
    predictions, levels = run.main.predictions, range(1, len(taxonomy.nodes) + 1)
    rows = {f"level {level}": f"level_{level}_acc" for level in levels} | {"path": "level_path"}
    accuracies = {title: dict[str, Any]() for title in rows}
    for title, name in rows.items():
        for model, stage in run.stages.items():
            if (value := stage.results.get(test_key(name))) is not None:
                images = len(stage.predictions)
                accuracies[title][model] = value, *wilson(round(value * images), images)
    answered = [run.main.results.get(test_key(f"level_{level}_answered")) for level in levels]
    labels = [(each.label_number, each.prediction_number) for each in predictions]
    listed = [nodes for nodes in taxonomy.nodes if len(nodes) <= MOST_NODES]
    return {
        "models": list(run.stages),
        "accuracies": accuracies,
        "answered": None if None in answered else answered,
        "wanted": WANTED,
        "root": taxonomy.root,
        "nodes": nodes_of(taxonomy, len(listed), labels),
        "hidden": len(taxonomy.nodes) - len(listed),
    }


def nodes_of(
    taxonomy: Taxonomy, levels: int, predicted: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """List the nodes of the first levels, each below the one above it.

    The share of a node is that of its images whose predicted class is below it as well, from pairs
    of label and prediction; None without images.
    """
    paths = taxonomy.of_class[:levels].T.tolist()
    nodes = []
    for path in sorted({tuple(path[:level]) for path in paths for level in range(1, levels + 1)}):
        level, number = len(path), path[-1]
        name = taxonomy.nodes[level - 1][number]
        if level > 1 and name == taxonomy.nodes[level - 2][path[-2]]:
            continue  # a leaf that ended at a higher level
        own = [pair for pair in predicted if paths[pair[0]][level - 1] == number]
        hits = sum(paths[prediction][level - 1] == number for _, prediction in own)
        nodes.append({"name": name, "level": level, "share": hits / len(own) if own else None})
    return nodes


SECTION = Section(
    "Tree of classes", tree, Path(__file__).parent / "templates" / "taxonomy.html.jinja", "classes"
)
