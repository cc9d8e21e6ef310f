import pytest
import torch

from benchmarks.worlds.pretrain import contrastive_loss

# the first that ships all fonts
pytest.importorskip("matplotlib")


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
