"""Visual prompts that are mapped from the text prompts; tests/test_teacher.py has their features and gradients."""

import torch
import world

from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig
from kdpl.prompts.coupled import CoupledPrompts


def coupled(clip, depth=3):
    size = PromptConfig(2, depth)
    return world.disturbed(CoupledPrompts(size, size, None, clip), 0.5)


def test_a_depth_that_only_one_tower_has_is_refused(clip_of):
    with world.refused(ConfigError, "length 2 and depth 4"):
        coupled(clip_of("test-teacher"), depth=4)


def test_visual_prompts_stay_in_float32_under_half_precision(clip_of):
    method = coupled(clip_of("test-teacher"))
    before = method.tokens
    method.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.tokens, before)
