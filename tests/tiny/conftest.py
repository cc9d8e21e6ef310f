import open_clip
import pytest

from kdpl.tiny.models import CONFIGS, load_weights


@pytest.fixture(scope="session")
def tiny_clips():
    """All miniature CLIPs as plain open_clip models, by name."""
    models = {}
    for name, config in CONFIGS.items():
        models[name] = open_clip.CLIP(**config).eval().requires_grad_(False)
        models[name].load_state_dict(load_weights(name))
    return models
