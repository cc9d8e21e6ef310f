"""Batch norm over all processes, of which two threads are two."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local

import torch
from torch import nn

from kdpl.prompts import projector
from kdpl.prompts.projector import GlobalBatchNorm


class TwoProcesses:
    """What the projector uses of torch.distributed, between two threads."""

    def __init__(self):
        self.own, self.both, self.met = local(), [None, None], Barrier(2)

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def get_rank(self):
        return self.own.rank

    def all_gather(self, parts, rows):
        self.both[self.own.rank] = rows.clone()
        self.met.wait(60)
        for part, each in zip(parts, self.both, strict=True):
            part.copy_(each)
        self.met.wait(60)

    def all_reduce(self, tensor):
        parts = [torch.empty_like(tensor) for _ in range(2)]
        self.all_gather(parts, tensor)
        tensor.copy_(sum(parts))


def test_batch_norm_over_two_processes_is_one_over_the_rows_of_both(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(2, 8, 5, generator=draw) * torch.arange(1, 6)

    def passed(norm, rows, weights):
        rows = rows.clone().requires_grad_()
        out = norm(rows)
        (out * weights).sum().backward()
        statistics = torch.stack([norm.running_mean, norm.running_var])
        return out.detach(), rows.grad, statistics, torch.stack([p.grad for p in norm.parameters()])

    processes = TwoProcesses()
    monkeypatch.setattr(projector, "distributed", processes)

    def process(rank):
        processes.own.rank = rank
        part = slice(4 * rank, 4 * rank + 4)
        return passed(GlobalBatchNorm(5), rows[part], weights[part])

    expected = passed(nn.BatchNorm1d(5), rows, weights)
    with ThreadPoolExecutor(2) as pool:
        (out, gradients, statistics, learned), others = pool.map(process, range(2))
    torch.testing.assert_close(torch.cat([out, others[0]]), expected[0])
    torch.testing.assert_close(torch.cat([gradients, others[1]]), expected[1])
    torch.testing.assert_close(statistics, expected[2])
    torch.testing.assert_close(others[2], expected[2])
    torch.testing.assert_close(learned + others[3], expected[3])
