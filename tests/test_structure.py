"""The layers of the package: imports go down, never in a circle, and only clip/ knows open_clip."""

import ast
import importlib.metadata
import os
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from test_project import PYPROJECT, name_of

ROOT = Path(__file__).parents[1] / "kdpl"

# folders above the layers, each with those of them that it imports; the layers name their parts by dotted paths
ABOVE = {
    "benchmark": (),
    "report": (),
    "confidence": ("report",),
    "multilabel": ("report", "confidence"),
    "serve": ("report",),
}

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


def part_of(module):
    return module.split(".")[1]


def test_imports_go_down_and_never_in_a_circle():
    # of each module, anywhere in it, but for kdpl itself, which loads its names when they are asked for
    imports = {
        module: {name for node in ast.walk(tree_of(module)) for name in imports_of(node)}
        - {module, "kdpl"}
        for module in MODULES.keys() - {"kdpl"}
    }
    within = {module: names & MODULES.keys() for module, names in imports.items()}
    TopologicalSorter(within).prepare()
    assert {part_of(module) for module in within} == LAYER_OF.keys() | ABOVE.keys()
    for module, names in within.items():
        part, parts = part_of(module), {part_of(name) for name in names}
        assert parts & ABOVE.keys() <= {part, *ABOVE.get(part, ())}, module
        if part in LAYER_OF:
            layers = {LAYER_OF.get(other, -1) for other in parts - {part}}
            assert max(layers, default=-1) < LAYER_OF[part], module
        packages = {name.split(".")[0] for name in imports[module]}
        assert part == "clip" or "open_clip" not in packages, module


HOOKS = {"meta_path", "path_hooks", "unraisablehook", "excepthook", "showwarning"}


def root_of(node):
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return getattr(node, "id", None)


def changed_by(node):
    """What a node assigns to, deletes or takes the annotations of, if it is part of something else."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) in (
        "setattr",
        "delattr",
        "vars",
    ):
        return node.args[0]
    is_part = isinstance(node, ast.Attribute | ast.Subscript)
    if is_part and (
        isinstance(node.ctx, ast.Store | ast.Del) or "__annotations__" in vars(node).values()
    ):
        return node
    return None


def test_no_module_changes_what_it_imports_or_hooks_into_the_interpreter():
    for module in MODULES:
        nodes = [*ast.walk(tree_of(module))]
        aliases = [alias for node in nodes for alias in getattr(node, "names", [])]
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for alias in aliases
            if isinstance(alias, ast.alias)
        }
        changes = {part for node in nodes if root_of(part := changed_by(node)) in imported}
        names = {ast.unparse(part) for part in changes}
        assert all(name.startswith("os.environ[") for name in names), (module, names)
        assert HOOKS.isdisjoint(getattr(node, "attr", None) for node in nodes), module


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
