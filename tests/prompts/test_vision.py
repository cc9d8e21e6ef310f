import pytest
import torch
import world
from plain import backward, relative_error

from kdpl.errors import ConfigError
from kdpl.prompts import VisionPrompts


@pytest.mark.parametrize("name", ["test-teacher", "test-teacher-quickgelu"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_prompted_features_and_gradients_are_the_plain_ones(
    name, depth, length, clip_of, plain_of, images
):
    tower, plain = clip_of(name).image_tower, plain_of(name)
    prompts = world.disturbed(VisionPrompts(length, depth, tower), 1)
    tokens = prompts.tokens.detach().double().requires_grad_()

    features, expected = prompts(tower, images), plain.image_features(images, tokens)
    assert relative_error(features, expected) < 1e-5
    assert relative_error(features, plain.image_features(images)) > 1e-3, "the prompts must matter"

    backward(features, expected)
    for layer in range(depth):
        assert relative_error(prompts.tokens.grad[layer], tokens.grad[layer]) < 1e-5


def test_mean_tokens_are_the_plain_means_of_the_patches_that_enter_each_layer(clip_of, plain_of):
    tower, plain = clip_of("test-teacher").image_tower, plain_of("test-teacher")
    # more images than are taken at once, so that the last batch is smaller
    pictures = torch.randint(
        0, 256, (35, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.manual_seed(0)
    prompts = VisionPrompts(2, 3, tower)
    noise = prompts.tokens.detach().clone()
    assert noise.dtype == torch.float32
    assert noise.std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(noise.mean().item()) < 0.003
    prompts.init_at_mean_tokens(tower, pictures)

    sums = torch.zeros(3, 48, dtype=torch.float64)
    for picture in pictures:
        x = plain.image_tokens(picture)
        sums[0] += x[1:].mean(dim=0)
        x = plain.image_norm(x)
        for layer in (1, 2):
            x = plain.image_block(x, layer - 1)
            sums[layer] += x[1:].mean(dim=0)
    for layer in range(3):
        for token in range(2):
            assert (
                relative_error(prompts.tokens[layer, token], sums[layer] / 35 + noise[layer, token])
                < 1e-5
            )
    assert prompts.tokens.requires_grad


@pytest.mark.parametrize(("length", "depth"), [(0, 1), (1, 0), (1, 4)])
def test_sizes_that_do_not_fit_are_refused(length, depth, clip_of):
    with pytest.raises(ConfigError, match=rf"length {length} and depth {depth} do not fit.*1 to 3"):
        VisionPrompts(length, depth, clip_of("test-teacher").image_tower)
