from importlib.util import find_spec

import pytest


@pytest.fixture(scope="module")
def without_companions():
    """Make nothing that is kept beside a classifier, as its images take a quarter of a short fit."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("kdpl.confidence") is not None:
            patch.setattr("kdpl.confidence.handover.make_companions", lambda *_: [])
        yield
