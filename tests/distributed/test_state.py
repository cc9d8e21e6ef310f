"""State that DistributedDataParallel sends and reduces: what is trained, and nothing of the frozen towers."""

import fits
import pytest
from torch.nn.parallel import DistributedDataParallel

from kdpl.student import StudentDistillation

pytestmark = pytest.mark.slow


class Sent(fits.Notes):
    """Notes the parameters and buffers of the wrapped model at the end of a fit."""

    def more(self, trainer):
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        return {
            "parameters": {name: p.requires_grad for name, p in wrapper.named_parameters()},
            "buffers": list(wrapper.named_module_buffers),
            "checkpoint": list(trainer.lightning_module.state_dict()),
        }


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_no_frozen_tower_is_sent_reduced_or_saved(stage, teacher_folder, tmp_path):
    module = fits.teacher() if stage == "teacher" else fits.student(teacher_folder, StudentDistillation)
    seen, _ = fits.fit(module, fits.digits(12), tmp_path / "fit", processes=2, notes=Sent, epochs=1, steps=2)
    assert all(seen["parameters"].values())
    assert all("prompts" in name or "projector" in name for name in seen["parameters"])
    assert all("projector" in name for name in seen["buffers"]), "nor the class vectors"
    assert not any("tower" in name for name in seen["checkpoint"])
