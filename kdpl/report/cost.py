"""What encoding an image costs: parameters, floating-point operations, and images a second on this machine."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Encode = Callable[[Tensor], Tensor]

# few enough for a large teacher on two cores, enough to keep a GPU busy
_BATCH_SIZES = {"cpu": 8, "cuda": 64}
_SECONDS, _MIN_BATCHES, _PATIENCE = 2.0, 3, 20.0


@dataclass(frozen=True)
class Encoder:
    """An image encoder to be measured.

    Attributes:
        encode: From images uint8 [B, 3, S, S] to features.
        modules: What holds its parameters; a parameter that is in two of them counts once.
        image_size: Edge S in pixels.
    """

    encode: Encode
    modules: Sequence[nn.Module]
    image_size: int

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum({id(p): p.numel() for module in self.modules for p in module.parameters()}.values())


@dataclass(frozen=True)
class Cost:
    """What an image encoder costs.

    Attributes:
        parameters: Numbers in it, prompts and projector included.
        flops: Floating-point operations for one image; a multiplication and its addition are two.
        images_per_s: Of the fastest of some batches, which other programs disturbed least.
        batch_size: Images a batch.
        image_size: Edge of the images in pixels.
    """

    parameters: int
    flops: int
    images_per_s: float
    batch_size: int
    image_size: int


def device() -> torch.device:
    """Where there is the most to be had: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(where: torch.device) -> str:
    """Name a device, for people."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(encoders: Mapping[str, Encoder], where: torch.device) -> dict[str, Cost]:
    """Count and time encoders, in float32 and on images that are in memory already.

    They take turns, so that whatever else the machine does slows them all alike.

    Args:
        encoders: The encoders by name, on the device.
        where: The device.
    """
    if not encoders:
        return {}
    batch_size = _BATCH_SIZES[where.type]
    images = {
        name: torch.randint(0, 256, (batch_size, 3, e.image_size, e.image_size), dtype=torch.uint8, device=where)
        for name, e in encoders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for name, encoder in encoders.items():
        _seconds(encoder.encode, images[name])  # warms up
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS or (len(min(times.values(), key=len)) < _MIN_BATCHES):
        for name, encoder in encoders.items():
            times[name].append(_seconds(encoder.encode, images[name]))
        if spent > _PATIENCE:
            break
    return {
        name: Cost(
            encoder.parameters,
            count_flops(encoder.encode, images[name][:1]),
            batch_size / min(times[name]),
            batch_size,
            encoder.image_size,
        )
        for name, encoder in encoders.items()
    }


@torch.inference_mode()
def _seconds(encode: Encode, images: Tensor) -> float:
    start = time.perf_counter()
    encode(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


@torch.no_grad()
def count_flops(encode: Encode, images: Tensor) -> int:
    """Count the floating-point operations of encoding images: matrix products and convolutions."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # fused attention is one operation, which the counter does not know on every device
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
