"""Frozen networks on a processor by OpenVINO, for features that need not be equal bit by bit."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdpl.classifier.export import quiet
from kdpl.clip.towers.image import ImageTower
from kdpl.errors import ConfigError
from kdpl.runtime.optional import optional

Engine = Literal["torch", "openvino", "auto"]
"""What runs frozen networks; ``auto``: OpenVINO where it is installed and worth its start."""

# openvino.convert_model reports usage to its developers, so the network goes through ONNX
_PACKAGES = "openvino", "onnx", "onnxscript"
_WORTH_IT = 1000 * 224**2  # pixels that take PyTorch longer than OpenVINO takes to start


def chosen_engine(engine: Engine, pixels: int, device: torch.device, precision: str) -> Engine:
    """Return ``torch`` or ``openvino`` for a number of pixels to encode.

    A ConfigError if OpenVINO is asked for and cannot compute the same here, or is not installed.
    """
    fits = device.type == "cpu" and precision == "32-true"
    if engine == "auto":
        worth_it = fits and pixels >= _WORTH_IT
        return "openvino" if worth_it and all(map(find_spec, _PACKAGES)) else "torch"
    if engine == "openvino":
        if not fits:
            raise ConfigError(
                "engine: openvino computes in float32 on the CPU: set trainer.accelerator to cpu "
                "and trainer.precision to 32-true, or engine to torch"
            )
        for package in _PACKAGES:
            optional(package, "engine: openvino", "openvino")
    return engine


class _Graph(nn.Module):
    def __init__(self, module: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module  # so that its weights are found
        self.encode = encode

    def forward(self, images: Tensor) -> Tensor:
        return self.encode(images)


def on_openvino(
    module: nn.Module, encode: Callable[[Tensor], Tensor], batch_size: int, image_size: int
) -> Callable[[Tensor], Tensor]:
    """Compile an encoder in float32: images uint8 [B, 3, S, S] to features [B, D].

    Args:
        module: Holds the weights of ``encode``.
        encode: The encoder in PyTorch, on the CPU.
        batch_size: Maximum of B, to which fewer images are padded: for a fixed number, the export
            takes half as long.
        image_size: Side S of images in pixels.
    """
    import openvino

    # a teacher loads its tower on the first batch
    example = torch.zeros(batch_size, 3, image_size, image_size, dtype=torch.uint8)
    encode(example[:1])
    towers = [part for part in module.modules() if isinstance(part, ImageTower)]
    formats = [tower.memory_format for tower in towers]
    for tower in towers:
        tower.use_memory_format(torch.contiguous_format)

    file = io.BytesIO()
    try:
        with quiet():
            graph = _Graph(module, encode).eval()
            program = torch.export.export(graph, (example,))
            # OpenVINO optimises the graph by itself
            exported: Any = torch.onnx.export(program, optimize=False, verbose=False)
            exported.save(file)
    finally:
        for tower, memory_format in zip(towers, formats, strict=True):
            tower.use_memory_format(memory_format)

    # without the hint, processors with bfloat16 use it
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = openvino.Core()
    run = core.compile_model(core.read_model(file.getvalue(), b""), "CPU", hints)

    def run_padded(images: Tensor) -> Tensor:
        padded = torch.cat([images, example[len(images) :]])
        return torch.from_numpy(run(padded.numpy())[0][: len(images)].copy())

    return run_padded
