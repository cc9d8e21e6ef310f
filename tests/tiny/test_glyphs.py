import sys
from collections import Counter

import pytest
import torch

from kdpl.errors import KdplError
from kdpl.tiny import glyphs
from kdpl.tiny.glyphs import CLASSES, FONTS, augment, render_bank


@pytest.fixture(scope="module")
def bank():
    return render_bank()


def test_the_classes_are_ten_digits_and_twenty_six_letters():
    assert Counter(one.kind for one in CLASSES) == {"digit": 10, "letter": 26}
    assert len({one.name for one in CLASSES}) == 36


def test_the_bank_has_every_character_of_every_class_in_every_font(bank):
    found = Counter(zip(bank.fonts.tolist(), bank.classes.tolist(), strict=True))
    expected = {(font, index): len(one.characters) for font in range(len(FONTS)) for index, one in enumerate(CLASSES)}
    assert found == expected


def test_a_mask_is_a_centred_glyph_with_a_margin(bank):
    assert bank.masks.dtype == torch.float32
    assert bank.masks.shape[1:] == (64, 64)
    assert bank.masks.min() == 0
    assert bank.masks.max() == 1
    assert (bank.masks.flatten(1).sum(dim=1) > 20).all()
    edge = torch.ones(64, 64, dtype=torch.bool)
    edge[8:56, 8:56] = False
    assert (bank.masks[:, edge] == 0).all()


def test_a_character_that_a_font_lacks_is_left_out(monkeypatch):
    arabic = glyphs.GlyphClass("digit", "seven", ("7", "٧"))
    monkeypatch.setattr(glyphs, "CLASSES", (arabic,))
    assert len(render_bank(("DejaVuSans", "cmr10")).masks) == 3  # cmr10 has the Latin seven alone


def test_a_sampled_mask_is_of_the_class_asked_for(bank):
    classes = torch.arange(len(CLASSES)).repeat(3)
    sampled = bank.sample(classes, torch.Generator().manual_seed(0))
    for index, mask in zip(classes.tolist(), sampled, strict=True):
        assert any(torch.equal(mask, one) for one in bank.masks[bank.classes == index])


def test_sampling_reaches_every_font(bank):
    sampled = bank.sample(torch.full((500,), 4), torch.Generator().manual_seed(0))
    assert len(sampled.unique(dim=0)) == len(bank.masks[bank.classes == 4].unique(dim=0))


def test_augmented_images_are_rgb_in_range_and_all_different(bank):
    masks = bank.masks[:1].repeat(64, 1, 1)
    images = augment(masks, torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(images.unique(dim=0)) == 64


def test_augmentation_hangs_on_the_generator_alone(bank):
    first = augment(bank.masks[:8], torch.Generator().manual_seed(3))
    torch.rand(5)
    assert torch.equal(first, augment(bank.masks[:8], torch.Generator().manual_seed(3)))
    assert not torch.equal(first, augment(bank.masks[:8], torch.Generator().manual_seed(4)))


def test_ink_stands_out_from_the_paper_mostly_light_on_dark():
    half = torch.zeros(400, 64, 64)
    half[:, 20:44, 20:44] = 1
    images = augment(half, torch.Generator().manual_seed(0)).mean(dim=1)
    contrast = images[:, 14:18, 14:18].mean(dim=(1, 2)) - images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(dim=1)
    assert (contrast.abs() > 0.15).float().mean() > 0.97
    assert 0.8 < (contrast > 0).float().mean() < 0.97


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(KdplError, match=r"pip install 'kdpl\[quickstart\]'"):
        render_bank()


def test_a_font_that_matplotlib_does_not_ship_is_named():
    with pytest.raises(KdplError, match="NoSuchFont"):
        render_bank(("NoSuchFont",))
