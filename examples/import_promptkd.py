"""Turn a checkpoint that PromptKD's authors published into a run folder, as fit leaves it.

    python examples/import_promptkd.py teacher FILE --config teacher/promptsrc_vit_l14
        --config data/dtd --data.init_args.root ROOT --config data/base_to_novel --out OUT/teacher

The options are those of ``python -m kdpl fit``, whose sizes must be those of the file; nothing is
trained. A student (``import_promptkd.py student FILE``) needs ``--model.init_args.teacher
OUT/teacher`` as well. No code in a file is run: all but tensors, numbers, strings and containers
become an ``Inert``.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from kdpl import TeacherPromptTuning
from kdpl.cli.fit import parse_stage, run_stage
from kdpl.runtime.run_folder import LAST

PROJECTOR = "VPT_image_trans.conv1."
TOWERS = {"image": "image_encoder.", "text": "text_encoder."}


class Inert:
    """Stands in for any class or function that a file names, and for what it would make."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read(file: Path) -> dict[str, Tensor]:
    """Return the state dict of a published checkpoint."""
    stand_ins: dict[str, Callable[..., Any]] = {"collections.defaultdict": lambda *_: {}}
    names = get_unsafe_globals_in_checkpoint(file)
    with safe_globals([(stand_ins.get(name, Inert), name) for name in names]):
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    return dict(state)


def learned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what was trained, in float32 and under the names of kdpl's modules."""

    def prompts(first: str, tower: str) -> Tensor:
        name = f"{TOWERS[tower]}transformer.resblocks.{{}}.VPT_shallow"
        deep = takewhile(state.__contains__, map(name.format, count(1)))
        return torch.stack([state[name].float() for name in (first, *deep)])

    visual = prompts("image_encoder.VPT", "image")
    if "prompt_learner.ctx" in state:
        text = prompts("prompt_learner.ctx", "text")
        parts = {"text_prompts.context": text[0], "text_prompts.deep": text[1:]}
        parts["vision_prompts.tokens"] = visual
        return {f"prompts.{name}": tensor for name, tensor in parts.items()}
    # 1 x 1 convolutions [out, in, 1, 1] become linear layers
    projector = {
        name.replace(PROJECTOR, "encoder.projector.layers."): tensor.reshape(tensor.shape[:2])
        for name, tensor in state.items()
        if name.startswith(PROJECTOR)
    }
    return {"encoder.prompts.tokens": visual, **projector}


@dataclass(eq=False)
class TakeOver(Callback):
    """Copies published tensors into a module of the same CLIP, and saves it as trained."""

    state: Mapping[str, Tensor]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse another CLIP, before the module rounds its own to the trainer's precision."""
        module = cast(Any, pl_module)
        if isinstance(pl_module, TeacherPromptTuning):
            towers = {"image": module.image_tower.module.visual, "text": module.text_tower.module}
        else:
            towers = {"image": module.encoder.tower.module.visual}
        for tower, clip in towers.items():
            for name, ours in clip.state_dict().items():
                theirs = self.state.get(TOWERS[tower] + name, ours)
                # halves may have been rounded twice
                step = max(torch.finfo(theirs.dtype).eps, 1e-5) if theirs.is_floating_point() else 0
                ours = ours.cpu().to(theirs.dtype)
                torch.testing.assert_close(
                    theirs, ours, rtol=step, atol=step * 1e-2, msg=f"{name} is of another CLIP"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the tensors now that the module is complete; names and sizes must match."""
        pl_module.load_state_dict(learned(self.state))
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST, weights_only=False)


def main(kind: str, file: str, *settings: str) -> None:
    """Write the run folder of a published file."""
    stage = parse_stage("fit", list(settings))
    trainer = dict.fromkeys(("max_epochs", "limit_train_batches", "num_sanity_val_steps"), 0)
    model = {"averaging": None} if kind == "teacher" else {"vision_prompts": {"init": "normal"}}
    stage = stage.derive({"trainer": trainer, "model": {"init_args": model}})
    stage.further_callbacks = [TakeOver(read(Path(file)))]
    run_stage(stage)


if __name__ == "__main__":
    main(*sys.argv[1:])
