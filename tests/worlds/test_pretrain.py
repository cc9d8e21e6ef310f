from collections import Counter
from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors import safe_open

from benchmarks.worlds import glyphs, pretrain
from benchmarks.worlds.glyphs import CLASSES, FONTS, augment, render_bank
from benchmarks.worlds.pretrain import (
    PLAIN_TEMPLATES,
    RECIPES,
    CaptionBank,
    caption_bank,
    contrastive_loss,
    main,
)
from kdpl.clip.miniatures.models import CONFIGS, CONTEXT_LENGTH, load_weights

# the first that ships all fonts
pytest.importorskip("matplotlib", minversion="3.11")

SHORT = replace(RECIPES["tiny-student"], steps=3, agreement_steps=2, batch_size=8)
PLAIN = 4 * len(PLAIN_TEMPLATES)
tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


@pytest.fixture(scope="module")
def captions():
    return caption_bank()


@pytest.fixture(scope="module")
def world(captions):
    """The glyphs, and the plain captions, with which models are pretrained here."""
    bank, plain = (
        render_bank(),
        CaptionBank(captions.tokens[:, :PLAIN], captions.shares[:PLAIN], captions.token_ids),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "render_bank", lambda: bank)
        patch.setattr(pretrain, "caption_bank", lambda: plain)
        yield bank, plain


def test_captions_are_every_template_with_every_noun_and_half_of_those_drawn_are_plain(captions):
    wide = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:60]]
    for index in (3, 20):
        texts = [t.format(noun) for t in (*PLAIN_TEMPLATES, *wide) for noun in CLASSES[index].nouns]
        rows = captions.token_ids[captions.tokens[index]]
        assert torch.equal(rows.unique(dim=0), tokenizer(texts).unique(dim=0))
    assert CLASSES[7].nouns == ("digit seven", "number seven", "seven", "numeral seven")
    assert captions.token_ids.tolist() == sorted(set(captions.token_ids.tolist()))
    assert captions.token_ids[-1] == tokenizer.eot_token_id
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([captions.sample(generator) for _ in range(200)])
    assert (drawn < PLAIN).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(drawn.unique()) == captions.tokens.shape[1]


def test_the_bank_has_every_character_of_ten_digits_and_26_letters_in_every_font_with_a_margin(
    world,
):
    bank = world[0]
    assert len(CLASSES) == 36
    expected = {index: len(FONTS) * len(each.characters) for index, each in enumerate(CLASSES)}
    assert Counter(bank.classes.tolist()) == expected
    assert bank.masks.shape[1:] == (64, 64)
    assert (bank.masks.min(), bank.masks.max()) == (0, 1)
    assert (bank.masks.flatten(1).sum(dim=1) > 20).all()
    edge = torch.ones(64, 64, dtype=torch.bool)
    edge[8:56, 8:56] = False
    assert (bank.masks[:, edge] == 0).all()


def test_a_character_that_a_font_lacks_is_left_out(monkeypatch):
    monkeypatch.setattr(glyphs, "CLASSES", (glyphs.GlyphClass(("seven",), ("7", "٧")),))
    assert len(render_bank(("DejaVuSans", "cmr10")).masks) == 3  # cmr10 has only the Latin seven


def test_ink_contrasts_with_the_background_and_is_mostly_light_on_dark():
    half = torch.zeros(400, 64, 64)
    half[:, 20:44, 20:44] = 1
    images = augment(half, torch.Generator().manual_seed(0)).mean(dim=1)
    contrast = images[:, 14:18, 14:18].mean(dim=(1, 2)) - images[
        :, [0, 0, -1, -1], [0, -1, 0, -1]
    ].mean(dim=1)
    assert (contrast.abs() > 0.15).float().mean() > 0.97
    assert 0.8 < (contrast > 0).float().mean() < 0.97


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
    bank, captions = world
    model = pretrain.build_model("tiny-student", len(captions.token_ids), seed=0)
    recipe = replace(SHORT, steps=4, locked_share=0.5)
    before = model.text_projection.detach().clone()
    steps = pretrain.train_contrastively(
        model, captions, bank, recipe, torch.Generator().manual_seed(0)
    )
    assert [not torch.equal(before, model.text_projection) for _ in steps] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.slow
def test_the_losses_of_both_phases_fall(world):
    model = pretrain.build_model("tiny-student", len(world[1].token_ids), seed=0)
    losses = pretrain.learn_agreement(model, world[1], 40, torch.Generator().manual_seed(0))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    recipe = replace(RECIPES["tiny-student"], steps=60, batch_size=64)
    steps = pretrain.train_contrastively(
        model, world[1], world[0], recipe, torch.Generator().manual_seed(1)
    )
    losses = [loss for loss, _ in steps]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.3


@pytest.mark.usefixtures("world")
def test_the_command_writes_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny-student", SHORT)
    out = tmp_path / "student.safetensors"
    main(["tiny-student", "--steps", "2", "--seed", "5", "--out", str(out)])
    with safe_open(out, framework="pt") as file:
        assert (file.metadata()["steps"], file.metadata()["seed"]) == ("2", "5")
    open_clip.CLIP(**CONFIGS["tiny-student"]).load_state_dict(load_weights(out))
