"""Whether a tower is carried along frozen or owned and trained."""

from typing import Any, Generic, TypeVar

from torch import nn

from kdpl.clip.float32 import Float32Module

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Frozen(nn.Module, Generic[ModuleT]):
    """Carries a module along without making it part of the owner's state.

    The module moves with its owner between devices and dtypes, but its weights are not in the
    owner's ``state_dict()`` or ``parameters()``: checkpoints, optimisers and DistributedDataParallel
    do not see them. It stays in evaluation mode.

    Args:
        module: The module to carry; its parameters stop requiring gradients.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        # not through nn.Module's __setattr__, which would register it as a child
        object.__setattr__(self, "module", module.eval().requires_grad_(False))

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen[ModuleT]":  # noqa: ANN401
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Trained(Float32Module, Generic[ModuleT]):
    """Owns a tower to be trained as a whole: in float32, and part of the owner's state.

    Statistics of batch norms and dropout stay as in evaluation: a tower's ``train()`` does not flip it.

    Args:
        module: The tower; its parameters start requiring gradients.
    """

    module: ModuleT

    def __init__(self, module: ModuleT) -> None:
        super().__init__()
        self.module = module.requires_grad_(True)


class FrozenTower(nn.Module):
    """A tower that no ``train()`` flips: evaluation is its only mode."""

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stay in evaluation mode, whatever ``mode`` says."""
        del mode
        return super().train(False)
