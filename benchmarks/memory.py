"""``python -m benchmarks.memory``: peak memory of one case, in a separate process."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.distillation import KDPL, PUBLISHED
from benchmarks.measuring import peak_memory
from benchmarks.settings import Settings, add_options, settings_of
from benchmarks.sizes import CONTEXT
from benchmarks.teacher import random_weights_are_meant
from benchmarks.texts import Texts
from kdpl import TeacherPromptTuning
from kdpl.clip import RANDOM, ClipConfig, store_frozen
from kdpl.data.batches import LabeledBatch
from kdpl.prompts import PromptConfig

PUBLISHED_TEXTS, KDPL_TEXTS, STAGE_1 = "published-texts", "kdpl-texts", "stage-1"


def peak_in_own_process(case: str, classes: int, settings: Settings) -> dict[str, int]:
    """Measure a case in a new process; returns ``before`` and ``peak`` in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory", case, str(classes), *settings.arguments()]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, int] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def _texts(side: str) -> Callable[[Settings, int], Callable[[], object]]:
    return lambda settings, classes: Texts(
        settings.sizes, classes, settings.torch_device, settings.autocast
    ).runner(side)


def _stage_1(settings: Settings, classes: int) -> Callable[[], object]:
    """Return a step of stage 1, forward and backward."""
    torch.manual_seed(0)
    sizes, device = settings.sizes, settings.torch_device
    prompts = PromptConfig(sizes.prompt_length, sizes.prompt_depth)
    with random_weights_are_meant():
        teacher = TeacherPromptTuning(
            ClipConfig(sizes.teacher, RANDOM), CONTEXT, vision_prompts=prompts, text_prompts=prompts
        )
    teacher.to(device)
    store_frozen(teacher, settings.autocast or torch.float32)
    tower, names = teacher.text_tower.module, sizes.names(classes)
    teacher.tuning_texts = teacher.prompts.arrange(names, tower, teacher.tokenize)
    # instead of the features of 60 templates, which a fit computes once before its first step
    width = tower.text_projection.shape[1]
    teacher.register_buffer(
        "zero_shot_text", F.normalize(torch.randn(classes, width), dim=-1).to(device)
    )
    # there is no trainer to log to
    teacher.log = teacher.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    edge = teacher.resizing.image_size
    images = torch.randint(
        256, (settings.batch_size, 3, edge, edge), dtype=torch.uint8, device=device
    )
    batch = LabeledBatch(images, torch.arange(settings.batch_size, device=device) % classes)

    def run() -> None:
        with torch.autocast(
            settings.device, settings.autocast, enabled=settings.autocast is not None
        ):
            loss = teacher.training_step(batch, 0)
        loss.backward()

    return run


_CASES: dict[str, Callable[[Settings, int], Callable[[], object]]] = {
    PUBLISHED_TEXTS: _texts(PUBLISHED),
    KDPL_TEXTS: _texts(KDPL),
    STAGE_1: _stage_1,
}


def main() -> None:
    """Print the peak memory of a case as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description="Print the peak memory of one case as JSON."
    )
    parser.add_argument("case", choices=list(_CASES))
    parser.add_argument("classes", type=int)
    add_options(parser)
    options = parser.parse_args()
    settings = settings_of(options)
    settings.prepare()
    measured = peak_memory(
        lambda: _CASES[options.case](settings, options.classes), settings.torch_device
    )
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
