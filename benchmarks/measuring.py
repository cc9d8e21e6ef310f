"""Measurement of time, memory, operations and the machine's speed."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kdpl
from kdpl.report.cost import processor


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several functions in turn; a slowdown of the machine then affects all of them.

    Args:
        sides: The functions, by name.
        rounds: Number of runs of each.
        device: The device.
        clock: Seconds that have passed, or that this process has computed.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            _wait_for(device)
            start = clock()
            run()
            _wait_for(device)
            seconds[name].append(clock() - start)
    return seconds


def median(seconds: list[float]) -> float:
    """Return the median."""
    return statistics.median(seconds)


def flops(run: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions; a multiply-add counts as two.

    Nothing is computed, and gradients that remain are fake tensors. Attention is split into plain
    products, because some fused kernels are not counted and some recompute products.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops())


def matrix_product(
    edge: int, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], int]:
    """Return a product of two large square matrices and its number of operations, as a reference for the speed."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(edge, edge, generator=draw).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * edge**3


def peak_memory(
    prepare: Callable[[], Callable[[], object]], device: torch.device
) -> dict[str, int]:
    """Run a function once and measure its peak memory; call once per process.

    Args:
        prepare: Prepares and returns the function.
        device: The device.

    Returns:
        ``before`` and ``peak`` in bytes: resident memory of the process, or on a GPU memory of all
        tensors.
    """
    run = prepare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return {"before": before, "peak": torch.cuda.max_memory_allocated(device)}
    with suppress(AttributeError):  # what other comparisons have freed, where malloc is glibc's
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # reset the peak of loading, if the kernel supports it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    run()
    return {"before": before, "peak": _status("VmHWM")}


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, its packages and its load."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu and gpu.name,
        "gpu_memory_gb": gpu and round(gpu.total_memory / 1e9, 1),
        "system": platform.platform(),
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            **(
                {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()} if gpu else {}
            ),
            **{name: version(name) for name in ("lightning", "open_clip_torch", "timm")},
            "kdpl": kdpl.__version__,
        },
        "load_average": list(os.getloadavg()),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(key: str) -> int:
    # not resource.getrusage, in which a new process starts with its parent's peak
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no line {key}")
