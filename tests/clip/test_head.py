import torch
from plain import normalized, relative_error

from kdpl.clip.modules import CosineHead, cosine_logits

VECTORS = normalized(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))
FEATURES = normalized(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)))


def test_logits_are_scaled_cosines():
    logits = CosineHead(VECTORS)(FEATURES, 100.0)
    for i in range(3):
        for c in range(5):
            cosine = sum(a * b for a, b in zip(FEATURES[i].tolist(), VECTORS[c].tolist(), strict=True))
            assert abs(logits[i, c].item() - 100 * cosine) < 1e-3
    assert relative_error(logits, 100 * FEATURES.double() @ VECTORS.double().T) < 1e-6


def test_logits_are_exact_under_autocast_too():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = cosine_logits(FEATURES, VECTORS, 100.0)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, cosine_logits(FEATURES, VECTORS, 100.0))


def test_class_vectors_are_a_buffer_of_the_heads_own_that_stays_float32():
    head = CosineHead(VECTORS)
    assert set(head.state_dict()) == {"class_vectors"}
    assert not list(head.parameters())
    head.half()
    assert torch.equal(head.class_vectors, VECTORS)
    head.class_vectors.zero_()
    assert VECTORS.any()
