import sys
from importlib import import_module

import pytest
import world
from jsonargparse import ArgumentParser

import kdpl
from kdpl import DomainDataModule, StudentDistillation
from kdpl.data.domain import build_data
from kdpl.errors import ConfigError
from kdpl.runtime.renamed import MOVED, SETTINGS

NAMES = {
    "kdpl.cache.callback": "FillTeacherCache",
    "kdpl.doubt": "NegativeVectors",
    "kdpl.doubt.negatives": "NegativeVectors",
    "kdpl.fidelity": "Fidelity",
    "kdpl.fidelity.callback": "Fidelity",
    "kdpl.logging.wandb_logger": "RunWandbLogger",
    "kdpl.methods.coupled": "CoupledPrompts",
    "kdpl.monitoring.finite_loss": "FiniteLoss",
    "kdpl.monitoring.throughput": "Throughput",
    "kdpl.preparation": "PreparedTarget",
    "kdpl.progress.bar": "ProgressBar",
    "kdpl.refinement.target": "Refined",
    "kdpl.tables.reader": "Table",
}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_class_by_its_earlier_path_is_the_same_and_the_new_path_is_named(old, new, capsys):
    name = NAMES[old]
    pytest.importorskip(".".join(new.split(".")[:2]))  # a folder may have been removed
    assert getattr(import_module(old), name) is getattr(import_module(new), name)
    assert f"{old} is {new} now" in capsys.readouterr().err


def test_a_folder_that_an_update_left_empty_does_not_hide_the_new_place(tmp_path, monkeypatch):
    (tmp_path / "fidelity" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(kdpl, "__path__", [*kdpl.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "kdpl.fidelity", raising=False)
    assert import_module("kdpl.fidelity").Fidelity is import_module(MOVED["kdpl.fidelity"]).Fidelity


@pytest.mark.parametrize(("old", "new"), SETTINGS.items())
def test_a_setting_by_its_earlier_name_is_refused_with_the_new_one(old, new):
    parser = ArgumentParser()
    parser.add_class_arguments(DomainDataModule, "data.init_args")
    parser.add_class_arguments(StudentDistillation, "model.init_args")
    assert new in parser.get_defaults() or new.startswith("python -m kdpl ")
    with world.refused(ConfigError, rf"'{old}' is not accepted .did you mean {new}\?"):
        build_data([{"init_args": {"dataset": "digits", old: None}}])
