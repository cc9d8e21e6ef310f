import shutil

import pytest


@pytest.fixture
def folder(classifier, tmp_path):
    """A copy of a student's classifier."""
    return shutil.copytree(classifier, tmp_path / "classifier")
