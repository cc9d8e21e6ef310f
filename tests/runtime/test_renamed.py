import pytest
import world
from jsonargparse import ArgumentParser

from kdpl import DomainDataModule, StudentDistillation
from kdpl.data.domain import build_data
from kdpl.errors import ConfigError
from kdpl.runtime.renamed import SETTINGS


@pytest.mark.parametrize(("old", "new"), SETTINGS.items())
def test_a_setting_by_its_earlier_name_is_refused_with_the_new_one(old, new):
    parser = ArgumentParser()
    parser.add_class_arguments(DomainDataModule, "data.init_args")
    parser.add_class_arguments(StudentDistillation, "model.init_args")
    assert new in parser.get_defaults()
    with world.refused(ConfigError, rf"'{old}' is not accepted .did you mean {new}\?"):
        build_data([{"init_args": {"dataset": "digits", old: None}}])
