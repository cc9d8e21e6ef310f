"""Parameters and images per second of image encoders."""

import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import set_torch_threads

from kdpl.class_vectors import ClassVectors
from kdpl.report.run_folder import Run, attempt
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, PROMPTS_FILE
from kdpl.targets.frozen_teacher import FrozenTeacher

Encode = Callable[[Tensor], Tensor]

# few enough for a large teacher on one core, enough to keep a GPU busy
_BATCH_SIZES = {"cpu": 4, "cuda": 64}
# seconds of a turn, and turns, at least; so many turns if they are that short: a machine is often
# slow for longer than a turn
_SECONDS, _TURNS, _SHORT_TURNS = 0.03, 4, 40


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
    cpu = f"one thread of {processor()}, in processor time"
    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu,
        "costs": measure(encoders, where),
        "gaps": {name: gap for name, (_, gap) in loaded.items() if gap is not None},
        "files": _files(run),
    }


def _teacher_encoder(run: Run) -> Encoder:
    stage = run.require("teacher")
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


def processor() -> str:
    """Return the name of the CPU."""
    file = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", file.read_text("utf-8") if file.exists() else "")
    return next(iter(names), platform.processor() or platform.machine())


def measure(encoders: Mapping[str, Encoder], where: torch.device) -> dict[str, dict[str, float]]:
    """Count the parameters of encoders, and time them in float32 on images in memory.

    Encoders take turns of equal length, so that other programs slow all of them alike, and the
    fastest turn counts; ``spread`` is the share by which the second fastest was slower. On a CPU,
    they have one thread, as in ``predict``, and time is that of the processor.
    """
    # images on the device, so that loading costs no time
    batch_size = _BATCH_SIZES[where.type]
    images = {
        name: torch.zeros(batch_size, 3, e.image_size, e.image_size, dtype=torch.uint8).to(where)
        for name, e in encoders.items()
    }
    clock = time.perf_counter if where.type == "cuda" else time.thread_time

    @torch.inference_mode()
    def turn(name: str, length: float = 0.0) -> float:
        start, batches = clock(), 0
        while not batches or clock() - start < length:
            # a copy waits for the device
            encoders[name].encode(images[name]).cpu()
            batches += 1
        return (clock() - start) / batches

    with set_torch_threads(1):
        # about as long as the slowest batch, whose first is slower
        length = 0.8 * max([_SECONDS, *map(turn, encoders)])
        count = max(_TURNS, round(_SHORT_TURNS * _SECONDS / length))
        turns = [{name: turn(name, length) for name in encoders} for _ in range(count)]
    seconds = {name: sorted(values[name] for values in turns) for name in encoders}
    return {
        name: {
            "parameters": encoder.parameters,
            "images_per_s": batch_size / seconds[name][0],
            "spread": seconds[name][1] / seconds[name][0] - 1,
            "batch_size": batch_size,
            "image_size": encoder.image_size,
        }
        for name, encoder in encoders.items()
    }
