import multiprocessing
import signal

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


class Ears(Dataset):
    """Whether the process that loads hears Ctrl-C."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)


@pytest.fixture
def loader():
    return LazyLoader(Ears(), EvaluationSampler(4, 0, 1), batch_size=2, num_workers=2)


def test_workers_leave_ctrl_c_to_the_process_that_started_them(loader):
    for _ in range(2):  # a second epoch has the same workers
        assert [batch.tolist() for batch in loader] == [[False, False]] * 2
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_strikes_once_all_workers_have_started(loader, monkeypatch):
    started = []
    start = multiprocessing.Process.start

    def interrupted(self):
        start(self)
        started.append(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("torch.multiprocessing.Process.start", interrupted)
    monkeypatch.setattr("sys.unraisablehook", lambda what: pytest.fail(str(what)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 2
    # not by letting go of it: where Lightning failed before in this process, it goes on noting what loaders are given
    loader._iterator._shutdown_workers()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
