"""The frozen teacher, which encodes images into features."""

import pytest
import torch
import world

from kdpl.class_vectors import ClassVectors
from kdpl.targets.frozen_teacher import FrozenTeacher


@pytest.mark.parametrize(
    ("model", "depth", "width"), [("test-teacher", 2, 48), ("test-timm", 0, 64)]
)
def test_both_features_are_those_of_either_function(model, depth, width, tmp_path):
    world.write_teacher(tmp_path, model, depth=depth)
    teacher = FrozenTeacher(tmp_path, ClassVectors.of_teacher(str(tmp_path)))
    teacher.load()
    size = teacher.vectors.preprocessing.image_size
    images = world.images_of(torch.arange(5), seed=4, size=size)
    joint, pooled = teacher.both_features(images)
    assert torch.equal(joint, teacher.features(images))
    expected = teacher.tower.pooled(images)
    assert torch.equal(pooled, torch.nn.functional.normalize(expected, dim=1))
    assert pooled.shape == (5, width)
