"""How a benchmark is run: shared by the command and the processes that it starts."""

import argparse
import os
from dataclasses import dataclass

import torch

from benchmarks.sizes import FULL, SMALL, Sizes, register_miniatures

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        small: Miniature models in place of the published sizes.
        device: ``cpu`` or ``cuda``.
        precision: ``32-true`` or ``bf16-mixed``, as the trainer has it; of both sides.
        batch_size: Images a step.
        repeats: Rounds that medians are taken over.
        threads: Threads of both sides.
    """

    small: bool
    device: str
    precision: str
    batch_size: int
    repeats: int
    threads: int

    @property
    def sizes(self) -> Sizes:
        """Models and amounts."""
        return SMALL if self.small else FULL

    @property
    def torch_device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.device)

    @property
    def autocast(self) -> torch.dtype | None:
        """What frozen arithmetic runs in under autocast; None for float32."""
        return _AUTOCAST[self.precision]

    def prepare(self) -> None:
        """Set up this process: threads, and the miniature models."""
        # both sides alike, whatever OMP_NUM_THREADS says
        torch.set_num_threads(self.threads)
        register_miniatures()

    def arguments(self) -> list[str]:
        """The options that give these settings."""
        named = {name: value for name, value in vars(self).items() if name != "small"}
        options = [text for name, value in named.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        return [*options, *(["--small"] if self.small else [])]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that settings are made of."""
    parser.add_argument("--small", action="store_true", help="miniature models, to try the benchmarks out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=list(_AUTOCAST), default="32-true", help="of both sides")
    parser.add_argument("--batch-size", type=_positive, default=8, help="images a step (default 8)")
    parser.add_argument("--repeats", type=_positive, default=3, help="rounds that medians are taken over (default 3)")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count(), help="threads of both sides")


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings from parsed options."""
    return Settings(
        options.small, options.device, options.precision, options.batch_size, options.repeats, options.threads
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
