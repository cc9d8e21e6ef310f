import pytest
import torch
from runs import DATA

from kdpl.cli.fit import run_command


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_command_that_is_done_leaves_the_other_processes_before_python_shuts_down(group):
    run_command(["fit", *DATA], make=lambda *_: None)
    assert not torch.distributed.is_initialized()


def test_a_command_that_failed_waits_for_nobody(group):
    def fail(*_):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        run_command(["fit", *DATA], make=fail)
    assert torch.distributed.is_initialized()
