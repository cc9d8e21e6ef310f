"""A look at images with a module that is in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within the context, without gradients."""
    modes = {each: each.training for each in module.modules()}
    module.eval()
    with torch.no_grad():
        yield
    for each, was_training in modes.items():
        each.training = was_training
