import math
from pathlib import Path

import published_files as files
import pytest
import torch
import world

from kdpl.benchmark.checkpoints.importing import require_same_clip, require_same_sizes
from kdpl.benchmark.checkpoints.names import Published, read_published
from kdpl.errors import ConfigError, WeightsError


@pytest.fixture
def towers(clip_of):
    clip = clip_of(files.TEACHER)
    return {"image": clip.image_tower.visual.state_dict(), "text": clip.text_tower.state_dict()}


def teacher_file(tmp_path, dtype, change=None):
    state = files.teacher_state(dtype)
    if change:
        name, value = change
        state[name] = value(state[name])
    return read_published(files.write(tmp_path / "f", state), "teacher")


def compare(published, towers, scale=30.0):
    return require_same_clip(published, towers, math.log(scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_clip_that_a_file_was_made_on_is_recognised(dtype, towers, tmp_path):
    published = teacher_file(tmp_path, dtype)
    names = {name.partition(".")[0] for name in published.clip}
    assert names == {"prompt_learner", "image_encoder", "text_encoder"}
    assert compare(published, towers) == set()


def step(up):
    """Moves one number by ``up`` steps of its format."""

    def move(tensor):
        bits = tensor.view(torch.int16).clone()
        bits.view(-1)[7] += up
        return bits.view(tensor.dtype)

    return move


@pytest.mark.parametrize(
    "name", ["image_encoder.proj", "text_encoder.ln_final.bias", "prompt_learner.ZS_image_encoder.proj"]
)
def test_half_precision_may_be_off_by_one_step_of_rounding(name, towers, tmp_path):
    for up in (-1, 1):
        compare(teacher_file(tmp_path, torch.float16, (name, step(up))), towers)
    for up in (-2, 2):
        with pytest.raises(
            WeightsError, match=f"another CLIP than the settings name .{name} has other values"
        ) as error:
            compare(teacher_file(tmp_path, torch.float16, (name, step(up))), towers)
        assert world.one_sentence(error)


def test_a_step_over_zero_is_one_step(towers):
    tiny = torch.tensor([-(2.0**-24), 0.0, -0.0, 2.0**-24]).half()
    for theirs, ours, same in ((0, 1, True), (1, 2, True), (2, 3, True), (0, 3, False)):
        published = Published(Path("f"), "teacher", None, {}, {"a": ("image", "a", tiny[theirs])}, None, ())
        try:
            require_same_clip(published, {"image": {"a": tiny[ours].float()}}, 0.0)
        except WeightsError:
            assert not same
        else:
            assert same


def test_float32_must_be_the_same(towers, tmp_path):
    compare(teacher_file(tmp_path, torch.float32, ("image_encoder.proj", lambda t: t * (1 + 1e-7))), towers)
    with pytest.raises(WeightsError, match=r"image_encoder\.proj"):
        compare(teacher_file(tmp_path, torch.float32, ("image_encoder.proj", lambda t: t * (1 + 1e-3))), towers)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_numbers_that_are_not_finite_are_no_weights_of_clip(dtype, value, towers, tmp_path):
    with pytest.raises(WeightsError, match=r"image_encoder\.proj has other values"):
        compare(teacher_file(tmp_path, dtype, ("image_encoder.proj", lambda t: torch.full_like(t, value))), towers)


def test_another_shape_is_named(towers, tmp_path):
    published = teacher_file(tmp_path, torch.float16, ("image_encoder.class_embedding", lambda t: t[:5]))
    with pytest.raises(WeightsError, match=r"class_embedding has shape \[5\] there and \[48\] here") as error:
        compare(published, towers)
    assert world.one_sentence(error)


def test_another_scale_is_another_clip(towers, tmp_path):
    with pytest.raises(WeightsError, match=r"logit_scale has shape \[2\] there and \[1\] here"):
        compare(teacher_file(tmp_path, torch.float16, ("logit_scale", lambda t: t.repeat(2))), towers)
    with pytest.raises(WeightsError, match="logit_scale has other values"):
        compare(teacher_file(tmp_path, torch.float16), towers, scale=31.0)


def test_weights_that_the_clip_does_not_have_are_given_back(towers, tmp_path):
    state = {**files.teacher_state(), "text_encoder.more": torch.zeros(2)}
    assert compare(read_published(files.write(tmp_path / "f", state), "teacher"), towers) == {"text_encoder.more"}


def test_prompts_of_another_width_without_clips_own_weights(tmp_path):
    published = read_published(files.write(tmp_path / "f", files.teacher_state()), "teacher")
    own = {k: torch.zeros(*v.shape[:-1], 9) for k, v in published.learned.items()}
    with pytest.raises(WeightsError, match=r"visual prompts of width 48, the tower .* has width 9") as error:
        require_same_sizes(published, own)
    assert world.one_sentence(error)


def test_a_depth_that_both_lack_nothing_is_fine_and_one_that_differs_is_named(tmp_path):
    published = read_published(files.write(tmp_path / "f", files.teacher_state()), "teacher")
    require_same_sizes(published, dict(published.learned))
    own = {**published.learned, "text_prompts.deep": torch.zeros(3, 4, 40)}
    with pytest.raises(ConfigError, match=r"ask for 4 tokens in 4 layers: set model.init_args.text_prompts.depth to 2"):
        require_same_sizes(published, own)
