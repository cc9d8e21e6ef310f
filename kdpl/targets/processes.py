"""The processes of a fit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of a fit; all of them call its methods together.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        strategy: Connects them; None for one process.
    """

    rank: int = 0
    world_size: int = 1
    strategy: Strategy | None = None

    def agree(self, function: Callable[[], T]) -> T:
        """Return the result of a function that the first process calls."""
        value = function() if self.rank == 0 else None
        return cast(T, value if self.strategy is None else self.strategy.broadcast(value))

    def on_first(self, function: Callable[[], object]) -> None:
        """Call a function on the first process; the other processes wait."""
        if self.rank == 0:
            function()
        self.wait()

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.strategy is not None:
            self.strategy.barrier("kdpl targets")

    def reduce(self, tensor: Tensor, operation: str) -> Tensor:
        """Return the ``sum`` or ``max`` of a tensor over all processes."""
        if self.strategy is None:
            return tensor
        return cast(Tensor, self.strategy.reduce(tensor, reduce_op=operation))


def processes_of(trainer: Trainer) -> Processes:
    """Return the processes of a trainer."""
    return Processes(trainer.global_rank, trainer.world_size, trainer.strategy)
