import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from kdpl.tiny.captions import PLAIN_SHARE, PLAIN_TEMPLATES, caption_bank, captions_of, wide_templates
from kdpl.tiny.glyphs import CLASSES

tokenizer = open_clip.SimpleTokenizer(context_length=32)


@pytest.fixture(scope="module")
def bank():
    return caption_bank()


def decoded(bank, class_index):
    """The captions of a class as text, without start, end and padding."""
    rows = bank.token_ids[bank.tokens[class_index]].tolist()
    return [tokenizer.decode([t for t in row if 0 < t < 49_406]).strip().replace(" .", ".") for row in rows]


def test_the_bank_holds_every_template_with_every_noun(bank):
    first = [template("seven") for template in OPENAI_IMAGENET_TEMPLATES[:60]]
    assert [template.format("seven") for template in wide_templates()] == first
    nouns = ["digit seven", "number seven", "seven", "numeral seven"]
    assert captions_of(CLASSES[7], ("the {}.", "{}")) == [*(f"the {noun}." for noun in nouns), *nouns]
    for index in (3, 20):
        expected = captions_of(CLASSES[index], PLAIN_TEMPLATES) + captions_of(CLASSES[index], wide_templates())
        assert set(decoded(bank, index)) == {caption.replace("close-up", "close - up") for caption in expected}


def test_compact_ids_index_the_standard_ones_and_the_end_of_text_is_the_highest(bank):
    caption = torch.tensor([tokenizer.sot_token_id, *tokenizer.encode("the digit zero."), tokenizer.eot_token_id])
    rows = bank.token_ids[bank.tokens[0]][:, : len(caption)]
    assert (rows == caption).all(dim=1).any()
    assert bank.token_ids.tolist() == sorted(set(bank.token_ids.tolist()))
    assert bank.token_ids[-1] == tokenizer.eot_token_id
    assert torch.equal(bank.tokens.argmax(dim=-1), bank.token_ids[bank.tokens].argmax(dim=-1))


@pytest.mark.parametrize("plain_share", [PLAIN_SHARE, 0.8, 1.0])
def test_plain_captions_are_drawn_with_their_share(plain_share):
    bank = caption_bank(plain_share)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([bank.sample(generator) for _ in range(200)])
    plain = 4 * len(PLAIN_TEMPLATES)
    assert (drawn < plain).float().mean().item() == pytest.approx(plain_share, abs=0.02)
    assert len(drawn.unique()) == bank.tokens.shape[1]
    assert (bank.tokens.shape[1] == plain) == (plain_share == 1)
