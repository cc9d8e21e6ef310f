"""Report section on the tree of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpl.confidence.taxonomy.callback import WANTED
from kdpl.confidence.taxonomy.scores import FILE
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.metrics import test_key
from kdpl.report.intervals import wilson
from kdpl.report.page import Section
from kdpl.report.run_folder import Run

MOST_NODES = 150
"""Largest number of nodes of a drawn level."""


def tree(run: Run) -> dict[str, Any] | None:
    """Collect accuracies by level and the picture of the tree; None without a tree."""
    file = run.main.folder / FILE
    if not file.is_file():
        return None
    taxonomy = Taxonomy.read(file, run.vectors.class_names)

    # accuracies at each level, and of whole paths
    predictions, levels = run.main.predictions, range(1, len(taxonomy.nodes) + 1)
    rows = {f"level {level}": f"level_{level}_acc" for level in levels} | {"path": "level_path"}
    accuracies = {title: dict[str, Any]() for title in rows}
    for title, name in rows.items():
        for model, stage in run.stages.items():
            if (value := stage.results.get(test_key(name))) is not None:
                images = len(stage.predictions)
                accuracies[title][model] = value, *wilson(round(value * images), images)

    # shares of images that the classifier answers at each level
    answered = [run.main.results.get(test_key(f"level_{level}_answered")) for level in levels]
    labels = [(p.label_number, p.prediction_number) for p in predictions]
    return {
        "models": list(run.stages),
        "accuracies": accuracies,
        "answered": None if None in answered else answered,
        "wanted": WANTED,
        "root": taxonomy.root,
        **picture(taxonomy, labels),
    }


def picture(taxonomy: Taxonomy, predicted: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Lay out the nodes of the drawn levels, each with its row and the row of its parent.

    The share of a node is the share of its images with a predicted class below it, from pairs of
    label and prediction; None without images.
    """
    # a row for each path; a node is in the middle of its rows
    drawn = [nodes for nodes in taxonomy.nodes if len(nodes) <= MOST_NODES]
    numbers = taxonomy.of_class[: len(drawn)].T.tolist()
    paths = sorted(set(map(tuple, numbers)))
    rows = dict[tuple[int, ...], list[int]]()
    for row, path in enumerate(paths):
        for level in range(len(drawn) + 1):
            rows.setdefault(path[:level], []).append(row)
    middle = {path: sum(leaves) / len(leaves) for path, leaves in rows.items()}

    # the share of each node, from the images of its classes
    nodes = []
    for path in filter(None, rows):
        level, name = len(path), drawn[len(path) - 1][path[-1]]
        if level > 1 and name == drawn[level - 2][path[-2]]:
            continue  # a leaf that ended at a higher level
        hits = [
            numbers[prediction][level - 1] == path[-1]
            for label, prediction in predicted
            if numbers[label][level - 1] == path[-1]
        ]
        share = sum(hits) / len(hits) if hits else None
        position = {"level": level, "row": middle[path], "above": middle[path[:-1]]}
        nodes.append({"name": name, "share": share, **position})
    return {
        "nodes": nodes,
        "rows": len(paths),
        "drawn": len(drawn),
        "hidden": len(taxonomy.nodes) - len(drawn),
    }


SECTION = Section(
    "Tree of classes", tree, Path(__file__).parent / "templates" / "taxonomy.html.jinja", "classes"
)
