from collections import Counter

import pytest
import torch

from kdpl.tiny import glyphs
from kdpl.tiny.glyphs import CLASSES, FONTS, augment, render_bank


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bank():
    return render_bank()


def test_the_bank_has_every_character_of_ten_digits_and_26_letters_in_every_font_with_a_margin(bank):
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


def test_samples_are_of_the_requested_classes_in_all_fonts(bank):
    classes = torch.arange(len(CLASSES)).repeat(3)
    for index, mask in zip(classes.tolist(), bank.sample(classes, generator()), strict=True):
        assert any(torch.equal(mask, each) for each in bank.masks[bank.classes == index])
    sampled = bank.sample(torch.full((500,), 4), generator())
    assert len(sampled.unique(dim=0)) == len(bank.masks[bank.classes == 4].unique(dim=0))


def test_augmented_images_are_rgb_and_differ_and_depend_only_on_the_generator(bank):
    images = augment(bank.masks[:1].repeat(64, 1, 1), generator())
    assert images.shape == (64, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert len(images.unique(dim=0)) == 64
    first = augment(bank.masks[:8], generator(3))
    torch.rand(5)
    assert torch.equal(first, augment(bank.masks[:8], generator(3)))


def test_ink_contrasts_with_the_background_and_is_mostly_light_on_dark():
    half = torch.zeros(400, 64, 64)
    half[:, 20:44, 20:44] = 1
    images = augment(half, generator()).mean(dim=1)
    contrast = images[:, 14:18, 14:18].mean(dim=(1, 2)) - images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(dim=1)
    assert (contrast.abs() > 0.15).float().mean() > 0.97
    assert 0.8 < (contrast > 0).float().mean() < 0.97
