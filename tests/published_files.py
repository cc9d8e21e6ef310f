"""Files as PromptKD's authors publish them, from the random CLIPs of ``world`` or the miniature ones."""

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import torch
import world
from torch import nn

from kdpl.clip.miniatures import models as tiny

TEACHER, STUDENT = "test-teacher-quickgelu", "test-student-quickgelu"
LENGTH, VISION_DEPTH, TEXT_DEPTH, STUDENT_DEPTH = 4, 3, 2, 4
CONFIGS = {**tiny.CONFIGS, **world.CONFIGS}


def _weights(name):
    return tiny.packaged_weights(name) if name in tiny.CONFIGS else world.weights(name)


def originals(teacher=TEACHER, student=STUDENT):
    """What was trained, in float64: prompts [J, n, W], and a projector whose batch norm is not that of a new one."""
    draw = torch.Generator().manual_seed(11)
    teacher, student = CONFIGS[teacher], CONFIGS[student]

    def noise(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    d, out = student["embed_dim"], teacher["embed_dim"]
    return SimpleNamespace(
        vision=0.5 * noise(VISION_DEPTH, LENGTH, teacher["vision_cfg"]["width"]),
        text=0.5 * noise(TEXT_DEPTH, LENGTH, teacher["text_cfg"]["width"]),
        student=0.5 * noise(STUDENT_DEPTH, LENGTH, student["vision_cfg"]["width"]),
        projector={
            "layers.0.weight": noise(out, d) / d**0.5,
            "layers.0.bias": noise(out),
            "layers.1.weight": 1 + 0.3 * noise(out),
            "layers.1.bias": noise(out),
            "layers.1.running_mean": noise(out),
            "layers.1.running_var": 0.5 + noise(out) ** 2,
            "layers.3.weight": noise(out, out) / out**0.5,
            "layers.3.bias": noise(out),
        },
    )


def _clip(name, prefix, tower):
    """CLIP's weights of a tower under the published names."""
    if tower == "image":
        return {f"{prefix}{k[7:]}": v for k, v in _weights(name).items() if k.startswith("visual.")}
    kept = ("transformer.", "positional_embedding", "ln_final.", "text_projection")
    return {f"{prefix}{k}": v for k, v in _weights(name).items() if k.startswith(kept)}


def _prompts(first, tower, prompts):
    deep = {
        f"{tower}.transformer.resblocks.{i}.VPT_shallow": p
        for i, p in enumerate(prompts[1:], start=1)
    }
    return {first: prompts[0], **deep}


def teacher_state(dtype=torch.float16, name=TEACHER):
    """A published teacher's state dict."""
    drawn = originals(name)
    state = {
        "logit_scale": _weights(name)["logit_scale"],
        **_prompts("prompt_learner.ctx", "text_encoder", drawn.text),
        **{f"prompt_learner.token_prefix{n}": torch.zeros(3, 1, 40) for n in ("", 2)},
        **{f"prompt_learner.token_suffix{n}": torch.zeros(3, 72, 40) for n in ("", 2)},
        **_clip(name, "prompt_learner.ZS_image_encoder.", "image"),
        **_clip(name, "image_encoder.", "image"),
        **_prompts("image_encoder.VPT", "image_encoder", drawn.vision),
        **_clip(name, "text_encoder.", "text"),
    }
    return OrderedDict((k, v.to(dtype)) for k, v in state.items())


def student_state(dtype=torch.float16, name=STUDENT):
    """A published student's state dict."""
    drawn = originals(student=name)
    projector = {
        f"VPT_image_trans.conv1.{k[7:]}": v[:, :, None, None] if v.ndim == 2 else v
        for k, v in drawn.projector.items()
    }
    state = {
        "logit_scale": _weights(name)["logit_scale"],
        **_clip(name, "image_encoder.", "image"),
        **_prompts("image_encoder.VPT", "image_encoder", drawn.student),
        **projector,
    }
    state = OrderedDict((k, v.to(dtype)) for k, v in state.items())
    state["VPT_image_trans.conv1.1.num_batches_tracked"] = torch.tensor(640)
    return state


def write(path, state, **changes):
    """Write a published file, with objects that only running code could build; returns its path."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.005, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20.0)
    # as a state dict of a module has it
    state = OrderedDict(state)
    state._metadata = OrderedDict({"": {"version": 1}})
    content = {
        "state_dict": state,
        "epoch": 20,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
    }
    torch.save({**content, "val_result": np.float64(85.84), **changes}, path)
    return path
