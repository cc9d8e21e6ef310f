"""The layers of the package: imports go down, never in a circle, and only clip/ knows open_clip."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "kdpl"

PYPROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
REMOVABLE = PYPROJECT["tool"]["kdpl"]["removable"]
"""Folders that can be removed, each with the folders of these that it imports."""

# from the bottom to the top, as in CONTRIBUTING.md; what is between two arrows may not import each other
LAYERS = (
    "errors → losses metrics optim runtime → tasks → clip data → prompts → class_vectors → classifier → "
    "module → targets → callbacks → teacher → student → cli → __main__"
)
LAYER_OF = {
    name: number for number, layer in enumerate(LAYERS.split("→")) for name in layer.split()
}


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module):
    """The modules that a module imports, anywhere in it; of a module of kdpl whose names are imported, that module."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inside)


# the package's own face loads its names when they are asked for
ALL_IMPORTS = {
    module: {*imports_of(module)} - {module, "kdpl"} for module in MODULES if module != "kdpl"
}
IMPORTS = {module: others & MODULES.keys() for module, others in ALL_IMPORTS.items()}


def part_of(module):
    return module.split(".")[1]


def test_every_folder_and_file_is_of_the_core_or_removable_and_they_are_few():
    assert {part_of(module) for module in IMPORTS} == LAYER_OF.keys() | REMOVABLE.keys()
    assert (
        len(
            [
                *(
                    path
                    for path in ROOT.iterdir()
                    if path.suffix in ("", ".py") and path.name != "__pycache__"
                )
            ]
        )
        <= 24
    )


def test_the_core_imports_nothing_removable_and_a_removable_folder_what_it_names():
    # kdpl.confidence.report, say, is a section of the report, and loaded by it alone
    removable_of = {
        module: {part_of(other) for other in others} & REMOVABLE.keys()
        for module, others in IMPORTS.items()
    }
    wrong = [
        f"{module} imports {folder}"
        for module, folders in removable_of.items()
        for folder in folders
        - {part_of(module), *REMOVABLE.get(part_of(module), []), *module.split(".")[2:3]}
    ]
    assert wrong == []


def test_the_picture_of_the_layout_shows_the_core_and_every_removable_folder():
    picture = (ROOT.parent / "docs" / "images" / "layout.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r">(\w+)</text>", picture))
    # the package's own entry
    assert REMOVABLE.keys() | LAYER_OF.keys() - {"__main__"} <= shown


def test_no_import_of_the_core_goes_up_or_to_a_neighbour():
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if part_of(module) in LAYER_OF
        and part_of(other) in LAYER_OF
        and part_of(other) != part_of(module)
        if LAYER_OF[part_of(other)] >= LAYER_OF[part_of(module)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter(IMPORTS).prepare()


def test_few_files_know_how_logits_become_a_class():
    # a second task is one more class in tasks.py, but for methods that are defined for one class an image
    known = re.compile(r"\b(log_softmax|softmax|argmax|cross_entropy)\(")
    knowing = {
        module for module, path in MODULES.items() if known.search(path.read_text(encoding="utf-8"))
    }
    # the end of a text, and the nearest neighbour
    others = {"kdpl.clip.towers.text", "kdpl.confidence.drift.two_samples"}
    own = {"kdpl.tasks", "kdpl.losses", "kdpl.metrics"}
    assert knowing - others == own | {
        "kdpl.targets.refinement.refine",
        "kdpl.report.labeling.choice",
        "kdpl.confidence.held_out",
    }


def test_only_clip_imports_open_clip():
    users = {
        part_of(m)
        for m, others in ALL_IMPORTS.items()
        if any(o.split(".")[0] == "open_clip" for o in others)
    }
    assert users == {"clip"}


def test_the_page_on_removable_folders_lists_them_with_what_goes_with_each():
    page = (ROOT.parent / "docs" / "template.md").read_text(encoding="utf-8")
    table = page.partition("## Add a package")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ((?:`\w+`,? ?)*)\|", table, re.MULTILINE)
    listed = {folder: set(re.findall(r"`(\w+)`", with_it)) for folder, with_it in rows}
    assert listed.keys() == REMOVABLE.keys()
    for folder in REMOVABLE:
        needing, gone = {folder}, set()
        while needing - gone:
            gone |= needing
            needing |= {other for other, needed in REMOVABLE.items() if gone & {*needed}}
        assert listed[folder] == gone - {folder}
