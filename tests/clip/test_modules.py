import pytest
import torch
from plain import normalized, relative_error
from torch import nn

from kdpl.clip import CosineHead, Float32Module, Frozen, cosine_logits

VECTORS = normalized(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))
FEATURES = normalized(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)))


class Holder(Float32Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 / 3, 2 / 3]))
        self.inner = nn.BatchNorm1d(2)
        self.register_buffer("vectors", torch.tensor([1 / 7]))


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, False), (torch.float64, True)])
def test_values_survive_a_change_of_type_to_the_last_bit(dtype, within):
    holder = Holder()
    before = {k: v.clone() for k, v in holder.state_dict().items()}
    owner = nn.Sequential(holder, nn.Linear(2, 2)) if within else holder
    weight = holder.weight
    owner.to(dtype)
    owner.half()
    assert holder.weight is weight, "an optimiser may already hold it"
    for name, value in holder.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    if within:
        assert owner[1].weight.dtype == torch.float16
    owner.to("meta", torch.bfloat16)
    moved = {(v.device.type, v.dtype) for v in holder.state_dict().values()}
    assert moved == {("meta", torch.float32), ("meta", torch.long)}


def test_what_is_frozen_moves_with_its_owner_in_evaluation_mode_and_is_no_part_of_its_state():
    owner = nn.Sequential(nn.Linear(2, 2), Frozen(nn.Linear(3, 3)))
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2
    assert not [p for p in owner[1].module.parameters() if p.requires_grad]
    owner.to(torch.float64)
    owner.train()
    assert owner[1].module.weight.dtype == torch.float64
    assert not owner[1].module.training
    assert owner.to("meta")[1].module.weight.device.type == "meta"


def test_logits_are_scaled_cosines():
    logits = CosineHead(VECTORS)(FEATURES, 100.0)
    assert relative_error(logits, 100 * FEATURES.double() @ VECTORS.double().T) < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_logits(FEATURES, VECTORS, 100.0), logits)
