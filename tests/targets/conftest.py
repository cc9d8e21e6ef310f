"""What tests of stored features share."""

import pytest

from kdpl.clip.towers.clip_vit import ClassTokenTower


@pytest.fixture
def counted(monkeypatch):
    """The width of the features of each image that a tower has encoded."""
    encoded = []
    pool = ClassTokenTower._pool

    def counting(tower, x, prompts):
        encoded.extend([tower.embed_dim] * len(x))
        return pool(tower, x, prompts)

    monkeypatch.setattr(ClassTokenTower, "_pool", counting)
    return encoded
