from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors import safe_open

from kdpl.tiny import pretrain
from kdpl.tiny.models import CONFIGS, load_weights
from kdpl.tiny.pretrain import RECIPES, contrastive_loss, main

SHORT = replace(RECIPES["tiny-student"], steps=3, agreement_steps=2, batch_size=8)


@pytest.fixture(scope="module")
def world():
    """The glyphs, and a sixth of the captions, with which models are pretrained here."""
    glyphs, captions = pretrain.render_bank(), pretrain.caption_bank(plain_share=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "render_bank", lambda: glyphs)
        patch.setattr(pretrain, "caption_bank", lambda: captions)
        yield glyphs, captions


def plain_loss(logits, classes):
    """InfoNCE with several images per text, image by image and text by text."""
    to_text = [-torch.log(row.softmax(dim=0)[index]) for row, index in zip(logits, classes, strict=True)]
    texts = classes.unique().tolist()
    to_image = [-logits[:, text].log_softmax(dim=0)[classes == text].mean() for text in texts]
    return (sum(to_text) / len(to_text) + sum(to_image) / len(to_image)) / 2


def test_the_contrastive_loss_equals_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(12, 6, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 5, 5, 1, 0, 5])
    torch.testing.assert_close(contrastive_loss(logits, classes), plain_loss(logits, classes))


def test_weights_depend_only_on_the_seed_and_the_global_generator_is_untouched(world):
    def weights(seed):
        torch.rand(1)
        before = torch.random.get_rng_state()
        state_dict = pretrain.pretrain("tiny-student", SHORT, seed)[0].state_dict()
        assert torch.equal(before, torch.random.get_rng_state())
        return state_dict

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def test_the_text_tower_is_frozen_during_its_locked_share(world):
    glyphs, captions = world
    model = pretrain.build_model("tiny-student", len(captions.token_ids), seed=0)
    recipe = replace(SHORT, steps=4, locked_share=0.5)
    before = model.text_projection.detach().clone()
    steps = pretrain.train_contrastively(model, captions, glyphs, recipe, torch.Generator().manual_seed(0))
    assert [not torch.equal(before, model.text_projection) for _ in steps] == [False, False, True, True]


@pytest.mark.slow
def test_the_losses_of_both_phases_fall(world):
    model = pretrain.build_model("tiny-student", len(world[1].token_ids), seed=0)
    losses = pretrain.learn_agreement(model, world[1], 40, torch.Generator().manual_seed(0))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    recipe = replace(RECIPES["tiny-student"], steps=60, batch_size=64)
    steps = pretrain.train_contrastively(model, world[1], world[0], recipe, torch.Generator().manual_seed(1))
    losses = [loss for loss, _ in steps]
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.3


def test_the_command_writes_weights_that_load(tmp_path, monkeypatch, capsys, world):
    monkeypatch.setitem(RECIPES, "tiny-student", SHORT)
    out = tmp_path / "student.safetensors"
    assert main(["student", "--steps", "2", "--seed", "5", "--out", str(out)]) == 0
    with safe_open(out, framework="pt") as file:
        assert (file.metadata()["steps"], file.metadata()["seed"]) == ("2", "5")
    open_clip.CLIP(**CONFIGS["tiny-student"]).load_state_dict(load_weights("tiny-student", out))
    assert str(out) in capsys.readouterr().out


def test_the_command_rejects_a_number_of_steps_below_1(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["student", "--steps=0"])
    assert "--steps is 0, expected 1 or more" in capsys.readouterr().err
