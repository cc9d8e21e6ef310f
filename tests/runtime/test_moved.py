from importlib import import_module

import pytest

from kdpl.runtime.moved import MOVED, find_moved

NAMES = {
    "kdpl.cache.callback": "FillTeacherCache",
    "kdpl.fidelity": "Fidelity",
    "kdpl.fidelity.callback": "Fidelity",
    "kdpl.logging.mlflow_logger": "RunMLFlowLogger",
    "kdpl.logging.wandb_logger": "RunWandbLogger",
    "kdpl.methods.atprompt": "AttributePrompts",
    "kdpl.methods.coupled": "CoupledPrompts",
    "kdpl.methods.mmrl": "RepresentationTokens",
    "kdpl.monitoring.finite_loss": "FiniteLoss",
    "kdpl.monitoring.throughput": "Throughput",
    "kdpl.preparation": "PreparedTarget",
    "kdpl.progress.bar": "ProgressBar",
    "kdpl.refinement.target": "Refined",
    "kdpl.tables.reader": "Table",
}


def test_every_earlier_path_is_tried():
    assert NAMES.keys() == MOVED.keys()


@pytest.mark.parametrize("old", MOVED)
def test_a_class_by_its_earlier_path_is_the_same_and_the_new_path_is_named(old, capsys):
    find_moved()
    found = getattr(import_module(old), NAMES[old])
    assert found is getattr(import_module(MOVED[old]), NAMES[old])
    assert f"{old} is {MOVED[old]} now" in capsys.readouterr().err


def test_other_names_stay_unknown():
    find_moved()
    with pytest.raises(ModuleNotFoundError):
        import_module("kdpl.no_such_folder")
