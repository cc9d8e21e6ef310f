import math
from contextlib import nullcontext
from pathlib import Path

import published_files as files
import pytest
import torch
import world

from kdpl.benchmark.checkpoints.importing import require_same_clip, require_same_sizes
from kdpl.benchmark.checkpoints.names import Published, read_published
from kdpl.errors import ConfigError, WeightsError

HALF, FLOAT = torch.float16, torch.float32


@pytest.fixture
def compare(clip_of, tmp_path):
    """Compares a published teacher, one tensor of which was changed, with its CLIP."""
    clip = clip_of(files.TEACHER)
    towers = {"image": clip.image_tower.visual.state_dict(), "text": clip.text_tower.state_dict()}

    def run(dtype=HALF, name="logit_scale", change=lambda tensor: tensor, scale=30.0):
        state = files.teacher_state(dtype)
        state[name] = change(state.get(name))
        published = read_published(files.write(tmp_path / "f", state), "teacher")
        return require_same_clip(published, towers, math.log(scale))

    return run


def step(up):
    """Moves one number by ``up`` steps of its format."""

    def move(tensor):
        bits = tensor.view(torch.int16).clone()
        bits.view(-1)[7] += up
        return bits.view(tensor.dtype)

    return move


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_clip_that_a_file_was_made_on_is_recognised(dtype, compare):
    assert compare(dtype) == set()
    assert compare(dtype, "text_encoder.more", lambda _: torch.zeros(2)) == {"text_encoder.more"}


@pytest.mark.parametrize(
    ("dtype", "name", "change"),
    [
        (HALF, "image_encoder.proj", step(1)),
        (HALF, "text_encoder.ln_final.bias", step(-1)),
        (FLOAT, "image_encoder.proj", lambda t: t * (1 + 1e-7)),
    ],
)
def test_weights_may_be_off_by_rounding(dtype, name, change, compare):
    compare(dtype, name, change)


@pytest.mark.parametrize(
    ("dtype", "name", "change"),
    [
        *((HALF, name, step(2)) for name in ("image_encoder.proj", "prompt_learner.ZS_image_encoder.proj")),
        (HALF, "text_encoder.ln_final.bias", step(-2)),
        (FLOAT, "image_encoder.proj", lambda t: t * (1 + 1e-3)),
        (FLOAT, "image_encoder.proj", lambda t: torch.full_like(t, torch.nan)),
        (HALF, "image_encoder.proj", lambda t: torch.full_like(t, torch.nan)),
        (HALF, "image_encoder.proj", lambda t: torch.full_like(t, torch.inf)),
    ],
)
def test_other_weights_are_another_clip(dtype, name, change, compare):
    with pytest.raises(WeightsError, match=f"another CLIP than the settings name .{name} has other values") as error:
        compare(dtype, name, change)
    assert world.one_sentence(error)


def test_a_step_over_zero_is_one_step():
    tiny = torch.tensor([-(2.0**-24), 0.0, -0.0, 2.0**-24]).half()
    for theirs, ours, same in ((0, 1, True), (1, 2, True), (2, 3, True), (0, 3, False)):
        published = Published(Path("f"), "teacher", None, {}, {"a": ("image", "a", tiny[theirs])}, None, ())
        with nullcontext() if same else pytest.raises(WeightsError):
            require_same_clip(published, {"image": {"a": tiny[ours].float()}}, 0.0)


def test_another_shape_or_scale_is_another_clip(compare):
    with pytest.raises(WeightsError, match=r"class_embedding has shape \[5\] there and \[48\] here") as error:
        compare(HALF, "image_encoder.class_embedding", lambda t: t[:5])
    assert world.one_sentence(error)
    with pytest.raises(WeightsError, match="logit_scale has other values"):
        compare(scale=31.0)


def test_prompts_and_widths_must_be_those_of_the_settings(tmp_path):
    published = read_published(files.write(tmp_path / "f", files.teacher_state()), "teacher")
    learned = dict(published.learned)
    require_same_sizes(published, learned)
    with pytest.raises(ConfigError, match=r"set model.init_args.text_prompts.depth to 2"):
        require_same_sizes(published, {**learned, "text_prompts.deep": torch.zeros(3, 4, 40)})
    with pytest.raises(
        ConfigError, match=r"tokens as \[3, 4, 48\], the settings need \[3, 4, 9\]: set .*clip"
    ) as error:
        require_same_sizes(published, {**learned, "vision_prompts.tokens": torch.zeros(3, 4, 9)})
    assert world.one_sentence(error)
