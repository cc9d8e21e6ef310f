"""A teacher with random weights and untuned prompts, and its run folder."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.sizes import CONTEXT, Sizes
from kdpl.class_vectors import ClassVectors
from kdpl.clip import RANDOM, Clip, ClipConfig, load_clip
from kdpl.prompts import IndependentPrompts, PromptConfig
from kdpl.prompts.method import method_name
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE


class RandomTeacher:
    """A CLIP with prompts in both towers.

    Args:
        sizes: CLIP and number of prompts.
    """

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.clip = load_random(sizes.teacher)
        size = PromptConfig(sizes.prompt_length, sizes.prompt_depth)
        self.prompts = IndependentPrompts(size, size, CONTEXT, self.clip)

    def write_run(self, folder: Path, names: Sequence[str]) -> None:
        """Write the files that stage 2 reads, with class vectors of these names."""
        clip, prompts = self.clip, self.prompts
        tuned = TunedPrompts(
            tensors=prompts.saved(),
            method=method_name(type(prompts)),
            method_settings=prompts.settings(),
            vision=prompts.vision_config,
            text=prompts.text_config,
            context=prompts.context,
            clip=clip.identity,
            text_fingerprint=clip.text_fingerprint,
            logit_scale=clip.logit_scale,
            preprocessing=clip.preprocessing,
        )
        vectors = self.prompts.encode_names(names, clip.text_tower, clip.tokenize)
        tuned.save(folder / PROMPTS_FILE)
        ClassVectors.of(tuned, vectors, names, None).save(folder / CLASS_VECTORS_FILE)


def load_random(name: str) -> Clip:
    """Load a CLIP with random weights."""
    with random_weights_are_meant():
        return load_clip(ClipConfig(name, RANDOM))


@contextmanager
def random_weights_are_meant() -> Iterator[None]:
    """Suppress the warning about random weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")
        yield
