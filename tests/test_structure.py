"""The layers of the package: imports go down, never in a circle, and only clip/ knows open_clip."""

import ast
import importlib.metadata
import os
import re
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

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


@cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports_of(node):
    """The modules that a statement imports; of a module of kdpl whose names are imported, that module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module for name in inside]
    return []


@cache
def all_imports():
    """What each module imports, anywhere in it, but for kdpl itself, which loads its names when they are asked for."""
    return {
        module: {name for node in ast.walk(tree_of(module)) for name in imports_of(node)}
        - {module, "kdpl"}
        for module in MODULES
        if module != "kdpl"
    }


def imports_within():
    return {module: names & MODULES.keys() for module, names in all_imports().items()}


def part_of(module):
    return module.split(".")[1]


def test_every_folder_and_file_is_of_the_core_or_removable():
    assert {part_of(module) for module in all_imports()} == LAYER_OF.keys() | REMOVABLE.keys()


def test_the_core_imports_nothing_removable_and_a_removable_folder_what_it_names():
    for module, names in imports_within().items():
        part, inside = part_of(module), module.split(".")[2:3]
        # kdpl.confidence.report, say, is a section of the report, and loaded by it alone
        allowed = {part, *REMOVABLE.get(part, []), *inside}
        assert {part_of(name) for name in names} & REMOVABLE.keys() <= allowed, module


def test_no_import_of_the_core_goes_up_or_to_a_neighbour():
    for module, names in imports_within().items():
        if (part := part_of(module)) in LAYER_OF:
            layers = {LAYER_OF.get(other, -1) for other in map(part_of, names) if other != part}
            assert max(layers, default=-1) < LAYER_OF[part], module


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter(imports_within()).prepare()


def test_only_clip_imports_open_clip():
    users = {
        part_of(module)
        for module, names in all_imports().items()
        if any(name.split(".")[0] == "open_clip" for name in names)
    }
    assert users == {"clip"}


# its classes are those of an extra's; nothing imports it before its command is called
OF_AN_EXTRA = "kdpl.serve"


@pytest.mark.skipif(bool(os.environ.get("KDPL_WITHOUT")), reason="needs the packages of all extras")
def test_every_import_is_a_declared_dependency_and_those_of_extras_wait_until_they_are_needed():
    project = PYPROJECT["project"]
    core = {name_of(requirement) for requirement in project["dependencies"]}
    groups = [group for name, group in project["optional-dependencies"].items() if name != "dev"]
    extras = {name_of(requirement) for group in groups for requirement in group}
    assert core & extras == set()
    providers = importlib.metadata.packages_distributions()
    for module in MODULES:
        inside = module.startswith(OF_AN_EXTRA)
        for node in ast.walk(tree_of(module)):
            for name in imports_of(node):
                at_start = node in tree_of(module).body and not inside
                package = name.split(".")[0]
                if package not in sys.stdlib_module_names | {"kdpl"}:
                    needed = {name_of(provider) for provider in providers.get(package, [])}
                    assert needed & (core if at_start else core | extras), f"{module}: {name}"
                assert not (at_start and name.startswith(OF_AN_EXTRA)), module


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_-]+", requirement).group().lower().replace("_", "-")


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
