import pytest
import torch
from torch import nn
from world import CONFIGS

from kdpl.report.cost import Encoder, count_flops


def by_hand(config, tokens):
    """Operations of a CLIP vision transformer for one image: two for each multiplication and its addition."""
    vision = config["vision_cfg"]
    width, patches = vision["width"], (vision["image_size"] // vision["patch_size"]) ** 2
    embedding = patches * 3 * vision["patch_size"] ** 2 * width
    # queries, keys, values and output; the attention's two products; the MLP of four times the width
    block = tokens * 4 * width**2 + 2 * tokens**2 * width + tokens * 8 * width**2
    # in the last block nothing but the class token leaves, so that it alone asks
    last = (1 + 2 * tokens + 1) * width**2 + 2 * tokens * width + 8 * width**2
    projection = width * config["embed_dim"]
    return 2 * (embedding + (vision["layers"] - 1) * block + last + projection)


@pytest.mark.parametrize("images", [1, 3])
def test_operations_are_those_counted_by_hand(images, clip_of):
    tower = clip_of("test-student").image_tower
    pixels = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)
    assert count_flops(tower, pixels) == images * by_hand(CONFIGS["test-student"], tokens=5)


def test_a_parameter_in_two_modules_counts_once():
    inner = nn.Linear(3, 4)
    assert Encoder(inner, [nn.Sequential(inner, nn.ReLU()), inner], 8).parameters == 16
