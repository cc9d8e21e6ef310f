import pytest
import torch
import world
from plain import backward, relative_error

from kdpl.errors import ConfigError
from kdpl.prompts import VisionPrompts


@pytest.mark.parametrize(
    ("name", "depth", "length"),
    [
        ("test-teacher", 1, 4),
        ("test-teacher-quickgelu", 2, 1),
        ("test-teacher", 3, 1),
        ("test-teacher-quickgelu", 3, 4),
    ],
)
def test_features_and_gradients_are_the_plain_ones(name, depth, length, clip_of, plain_of, images):
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
    pictures = world.images_of(torch.arange(35), seed=0)
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
    for tokens, layer_sum, layer_noise in zip(prompts.tokens, sums, noise, strict=True):
        assert relative_error(tokens, layer_sum / 35 + layer_noise) < 1e-5
    assert prompts.tokens.requires_grad


@pytest.mark.parametrize(("length", "depth"), [(0, 1), (1, 0), (1, 4)])
def test_sizes_that_do_not_fit_are_refused(length, depth, clip_of):
    with pytest.raises(ConfigError, match=f"length {length} and depth {depth}"):
        VisionPrompts(length, depth, clip_of("test-teacher").image_tower)
