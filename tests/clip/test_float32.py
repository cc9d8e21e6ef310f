import pytest
import torch
from torch import nn

from kdpl.clip.modules import Float32Module


class Holder(Float32Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 / 3, 2 / 3]))
        self.inner = nn.BatchNorm1d(2)
        self.register_buffer("vectors", torch.tensor([1 / 7]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("within", [False, True])
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


def test_a_move_to_another_device_takes_everything_along():
    holder = Holder().to("meta", torch.bfloat16)
    assert {v.device.type for v in holder.state_dict().values()} == {"meta"}
    assert {v.dtype for v in holder.state_dict().values()} == {torch.float32, torch.long}
