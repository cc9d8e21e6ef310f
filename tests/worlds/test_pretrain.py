from dataclasses import replace

import pytest
import torch

from benchmarks.worlds import pretrain
from benchmarks.worlds.pretrain import RECIPES, contrastive_loss

# the first that ships all fonts
pytest.importorskip("matplotlib")

SHORT = replace(RECIPES["tiny-student"], steps=3, agreement_steps=2, batch_size=8)


def plain_loss(logits, classes):
    """InfoNCE with several images per text, image by image and text by text."""
    to_text = [
        -torch.log(row.softmax(dim=0)[index]) for row, index in zip(logits, classes, strict=True)
    ]
    texts = classes.unique().tolist()
    to_image = [-logits[:, text].log_softmax(dim=0)[classes == text].mean() for text in texts]
    return (sum(to_text) / len(to_text) + sum(to_image) / len(to_image)) / 2


def test_the_contrastive_loss_equals_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(12, 6, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 5, 5, 1, 0, 5])
    torch.testing.assert_close(contrastive_loss(logits, classes), plain_loss(logits, classes))


@pytest.mark.slow
def test_weights_depend_only_on_the_seed_and_the_global_generator_is_untouched():
    def weights(seed):
        torch.rand(1)
        before = torch.random.get_rng_state()
        state_dict = pretrain.pretrain("tiny-student", SHORT, seed)[0].state_dict()
        assert torch.equal(before, torch.random.get_rng_state())
        return state_dict

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])
