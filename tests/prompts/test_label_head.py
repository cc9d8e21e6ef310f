import numpy as np
import pytest
import torch
from plain import relative_error
from torch.nn.functional import normalize

from kdpl.callbacks.head_mix import MIXES, mix_losses
from kdpl.prompts.label_head import LabelHead, mix_heads

DRAW = torch.Generator().manual_seed(0)
LOGITS, LABEL_LOGITS = 5 * torch.randn(40, 4, generator=DRAW), 5 * torch.randn(40, 4, generator=DRAW)
LABELS = torch.randint(4, (40,), generator=DRAW)


def plain_mixture(logits, label_logits, alpha, beta):
    def softmax(scores):
        powers = np.exp(scores)
        return powers / powers.sum(axis=1, keepdims=True)

    return alpha * softmax(label_logits.double().numpy()) + (1 - alpha) * softmax(logits.double().numpy() / beta)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 2.0), (0.5, 1.0), (0.0, 0.5), (1.0, 1.0)])
def test_the_mixture_is_that_of_probabilities(alpha, beta):
    found = mix_heads(LOGITS, LABEL_LOGITS, alpha, beta)
    assert relative_error(found.exp(), torch.from_numpy(plain_mixture(LOGITS, LABEL_LOGITS, alpha, beta))) < 1e-6
    # where a probability is too small for its number
    assert mix_heads(1000 * LOGITS, 1000 * LABEL_LOGITS, alpha, beta).isfinite().all()


def test_a_head_starts_as_the_class_vectors_and_its_state_holds_how_it_is_mixed():
    vectors, features = normalize(torch.randn(5, 8), dim=1), normalize(torch.randn(3, 8), dim=1)
    head = LabelHead(vectors, 17.0)
    assert relative_error(head(features), 17 * features.double() @ vectors.double().T) < 1e-6
    assert (head.alpha, head.beta) == (0.5, 1.0)
    head.alpha, head.beta = 0.3, 4.0
    other = LabelHead(torch.zeros(5, 8))
    other.load_state_dict(head.state_dict())
    logits = torch.randn(3, 5)
    assert torch.equal(other.mix(logits, features), head.mix(logits, features))
    assert (other.alpha, other.beta) == (0.3, 4.0)


@pytest.mark.parametrize("trust", ["both", "labels", "class vectors"])
def test_the_choice_has_the_smallest_log_loss_in_any_batches(trust):
    good = 6 * torch.eye(4)[LABELS]
    logits = LOGITS + (good if trust == "class vectors" else good / 2 * (trust == "both"))
    label_logits = LABEL_LOGITS + (good if trust == "labels" else good / 2 * (trust == "both"))
    rows = torch.arange(40).numpy()
    losses = [-np.log(plain_mixture(logits, label_logits, *pair)[rows, LABELS.numpy()]).mean() for pair in MIXES]
    parts = torch.arange(40).split(17)
    found = sum(mix_losses(logits[part], label_logits[part], LABELS[part]) for part in parts)
    assert found.tolist() == pytest.approx([40 * loss for loss in losses])
    alpha, beta = MIXES[int(found.argmin())]
    assert (alpha, beta) == MIXES[int(np.argmin(losses))]
    assert {"both": 0 < alpha < 1, "labels": alpha > 0.5, "class vectors": alpha < 0.5}[trust]
