"""Exported files of a classifier beside the classifier in torch: in every format, and on a GPU."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.distillation import begun_student
from benchmarks.settings import Settings
from benchmarks.teacher import RandomTeacher
from kdpl.classifier.export import INPUT
from kdpl.classifier.formats.registry import FORMATS
from kdpl.clip import Frozen, store_frozen

TORCH = "Classifier in torch"

_CALIBRATION_IMAGES = 8


def format_sides(settings: Settings, folder: Path) -> dict[str, Callable[[], object]]:
    """Write a classifier in all formats; returns for each, and for torch, what classifies one batch of random images.

    Weights are random. Images are in memory, at the size of the network. The runtimes choose their
    threads themselves, one for each core that the process may use.
    """
    sizes = settings.sizes
    classifier = begun_student(sizes, sizes.names(sizes.few), RandomTeacher(sizes)).classifier()
    size = classifier.preprocessing.image_size
    images = torch.randint(256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    sides: dict[str, Callable[[], object]] = {TORCH: lambda: classifier(images)}
    for name, kind in FORMATS.items():
        path = folder / f"{name}{kind.ending}"
        kind.write(
            classifier,
            "uint8",
            path,
            *([images[:_CALIBRATION_IMAGES]] if name == "onnx-int8" else []),
        )
        run = kind.load(path)
        sides[name] = lambda run=run: run(images)  # type: ignore[misc]
    return {name: torch.inference_mode()(side) for name, side in sides.items()}


def network_sides(
    settings: Settings, folder: Path
) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return what builds each network and exported file on the device, and then runs it on one batch.

    Images are in the device's memory, or for onnxruntime in main memory. Under bf16-mixed, ONNX is
    that in float16.
    """
    sizes, device = settings.sizes, settings.torch_device
    teacher = RandomTeacher(sizes)
    classifier = begun_student(sizes, sizes.names(sizes.few), teacher, cached=True).classifier()
    size = classifier.preprocessing.image_size
    images = torch.randint(256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    on_device = images.to(device)
    dtype = settings.autocast or torch.float32

    @torch.inference_mode()
    def run(network: Callable[[torch.Tensor], object]) -> None:
        with settings.precise():
            network(on_device)

    def in_torch() -> Callable[[], None]:
        own = classifier.to(device)
        store_frozen(own.encoder, dtype)
        return partial(run, own)

    def of_teacher() -> Callable[[], None]:
        tower = Frozen(teacher.clip.image_tower).to(device)
        tower.store_in(dtype)
        return partial(run, partial(teacher.prompts.to(device).encode_images, tower.module))

    def onnx() -> Callable[[], object]:
        import onnxruntime

        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device.type]
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(f"onnxruntime has no {provider}: pip install onnxruntime-gpu")
        path = folder / "classifier.onnx"
        FORMATS[onnx_name].write(classifier.cpu(), "uint8", path)
        session = onnxruntime.InferenceSession(path, providers=[provider])
        return lambda: session.run(["logits"], {INPUT: images.numpy()})

    onnx_name = "onnx" if settings.autocast is None else "onnx-fp16"
    # files are written before the weights are rounded
    sides = {f"file of --format {onnx_name}": onnx}
    return sides | {"student's Classifier": in_torch, "teacher's image tower": of_teacher}
