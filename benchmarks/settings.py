"""Settings of the benchmarks, shared by the command and the processes that it starts."""

import argparse
import os
from dataclasses import dataclass

import torch

from benchmarks.sizes import FULL, SMALL, Sizes, register_miniatures

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmarks.

    Attributes:
        small: Use miniature models instead of the published sizes.
        device: ``cpu`` or ``cuda``.
        precision: ``32-true`` or ``bf16-mixed``, as for the trainer; of both sides.
        batch_size: Images per step.
        repeats: Rounds for medians.
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
        """Models and numbers of images and classes."""
        return SMALL if self.small else FULL

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of frozen arithmetic under autocast; None for float32."""
        return _AUTOCAST[self.precision]

    def precise(self) -> torch.autocast:
        """Return the context of all arithmetic: autocast, or nothing in float32."""
        return torch.autocast(self.device, self.autocast, enabled=self.autocast is not None)

    def prepare(self) -> None:
        """Set the number of threads of this process, and register the miniature models."""
        # the same for both sides, regardless of OMP_NUM_THREADS
        torch.set_num_threads(self.threads)
        register_miniatures()

    def arguments(self) -> list[str]:
        """Return the options for these settings."""
        named = {name: value for name, value in vars(self).items() if name != "small"}
        options = [
            text
            for name, value in named.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        return [*options, *(["--small"] if self.small else [])]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the settings."""
    parser.add_argument(
        "--small", action="store_true", help="use miniature models, to test the benchmarks"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--precision", choices=list(_AUTOCAST), default="32-true", help="of both sides"
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=8, help="images per step (default 8)"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=3, help="rounds for medians (default 3)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=os.cpu_count(), help="threads of both sides"
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings from parsed options."""
    return Settings(
        options.small,
        options.device,
        options.precision,
        options.batch_size,
        options.repeats,
        options.threads,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}, expected 1 or more")
    return number
