import pytest
import torch
from torch.utils.data import Dataset

from kdpl.data.loader import LazyLoader
from kdpl.data.sampler import EvaluationSampler


class Broken(Dataset):
    """Raises what the queue raises whose other end was killed."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise ConnectionResetError(104, "Connection reset by peer")
        return torch.tensor(index)


def test_a_worker_that_goes_while_it_hands_over_is_said_as_torch_says_it():
    batches = iter(LazyLoader(Broken(), EvaluationSampler(4, 0, 1), batch_size=2, num_workers=0))
    assert next(batches).tolist() == [0, 1]
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid\(s\) 0\) exited unexpectedly$") as error:
        next(batches)
    assert isinstance(error.value.__cause__, ConnectionResetError)
