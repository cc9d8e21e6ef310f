"""Parameters and images per second of image encoders."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.prompts.tuned import TunedPrompts
from kdpl.report.run_folder import Run, attempt
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, PROMPTS_FILE

Encode = Callable[[Tensor], Tensor]

# few enough for a large teacher on two cores, enough to keep a GPU busy
_BATCH_SIZES = {"cpu": 8, "cuda": 64}
_SECONDS, _MIN_ROUNDS = 2.0, 3


class Encoder(NamedTuple):
    """Encoder of images uint8 [B, 3, S, S], the modules with its parameters, and S."""

    encode: Encode
    modules: Sequence[nn.Module]
    image_size: int

    @property
    def parameters(self) -> int:
        """Number of parameters; a parameter that modules share counts once."""
        return sum(p.numel() for p in nn.ModuleList(self.modules).parameters())


def costs(run: Run) -> dict[str, Any]:
    """Measure the image encoders of teacher and student, and the files that a run leaves."""
    where = device()
    loads = {"teacher": _teacher_encoder, "student": _student_encoder}
    loaded = {name: attempt(partial(load, run)) for name, load in loads.items()}
    encoders = {name: encoder for name, (encoder, _) in loaded.items() if encoder is not None}
    threads = torch.get_num_threads()
    cpu = f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}"
    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu,
        "costs": measure(encoders, where),
        "gaps": {name: gap for name, (_, gap) in loaded.items() if gap is not None},
        "files": _files(run),
    }


def _teacher_encoder(run: Run) -> Encoder:
    stage = run.require("teacher")
    prompts = stage.folder / PROMPTS_FILE
    stage.require_trust(TunedPrompts.load(prompts).method, prompts)
    vectors = ClassVectors.load(stage.folder / CLASS_VECTORS_FILE)
    teacher = FrozenTeacher(stage.folder, vectors)
    teacher.load()
    teacher.to(device())
    return Encoder(teacher.features, [teacher], vectors.preprocessing.image_size)


def _student_encoder(run: Run) -> Encoder:
    encoder = run.classifier.encoder.to(device())
    # a frozen tower is not a submodule of the encoder
    modules = [encoder, encoder.tower.module]
    return Encoder(encoder, modules, run.classifier.preprocessing.image_size)


def _files(run: Run) -> dict[str, int]:
    wanted = (
        ("the classifier, which is all that ships", run.student, CLASSIFIER_FOLDER),
        ("the teacher's prompts", run.teacher, PROMPTS_FILE),
        ("the class vectors", run.teacher, CLASS_VECTORS_FILE),
    )
    sizes = {}
    for title, stage, name in wanted:
        if stage is not None and (path := stage.folder / name).exists():
            files = [path, *path.rglob("*")]
            sizes[title] = sum(file.stat().st_size for file in files if file.is_file())
    return sizes


def device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(encoders: Mapping[str, Encoder], where: torch.device) -> dict[str, dict[str, float]]:
    """Count the parameters of encoders, and time them in float32 on images in memory.

    Encoders take turns, so that other programs slow all of them alike; the fastest batch counts.
    """
    # random images on the device, so that loading costs no time
    batch_size = _BATCH_SIZES[where.type]
    images = {
        name: torch.randint(
            0, 256, (batch_size, 3, e.image_size, e.image_size), dtype=torch.uint8, device=where
        )
        for name, e in encoders.items()
    }
    # time them in turns
    fastest = dict.fromkeys(encoders, float("inf"))
    rounds, start = 0, time.perf_counter()
    while encoders and (rounds < _MIN_ROUNDS or time.perf_counter() - start < _SECONDS):
        for name, encoder in encoders.items():
            fastest[name] = min(fastest[name], _seconds(encoder.encode, images[name]))
        rounds += 1
    return {
        name: {
            "parameters": encoder.parameters,
            "images_per_s": batch_size / fastest[name],
            "batch_size": batch_size,
            "image_size": encoder.image_size,
        }
        for name, encoder in encoders.items()
    }


@torch.inference_mode()
def _seconds(encode: Encode, images: Tensor) -> float:
    start = time.perf_counter()
    encode(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
