import torch
from torch import nn

from kdpl.clip.modules import Frozen, Trained


class TestFrozen:
    def test_what_is_frozen_is_no_part_of_the_owners_state(self):
        owner = nn.Sequential(nn.Linear(2, 2), Frozen(nn.Linear(3, 3)))
        assert set(owner.state_dict()) == {"0.weight", "0.bias"}
        assert len(list(owner.parameters())) == 2
        assert not [p for p in owner[1].module.parameters() if p.requires_grad]

    def test_what_is_frozen_moves_with_its_owner_and_stays_in_evaluation_mode(self):
        owner = nn.Sequential(Frozen(nn.Linear(3, 3)))
        owner.to(torch.float64)
        owner.train()
        assert owner[0].module.weight.dtype == torch.float64
        assert not owner[0].module.training
        assert owner.to("meta")[0].module.weight.device.type == "meta"


class TestTrained:
    def test_what_is_trained_is_part_of_the_owners_state_in_float32(self):
        owner = nn.Sequential(Trained(nn.Linear(3, 3).requires_grad_(False)))
        assert set(owner.state_dict()) == {"0.module.weight", "0.module.bias"}
        assert all(p.requires_grad for p in owner.parameters())
        before = owner[0].module.weight.clone()
        owner.to(torch.bfloat16)
        assert torch.equal(owner[0].module.weight, before)
