import pytest
from campaigns import ROOT


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Campaigns name config files relative to it."""
    monkeypatch.chdir(ROOT)
