"""Preparation of a fit before its first step."""

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.module import ClassifyingModule


class Prepare(Callback):
    """Prepares a module's fit before its first step, on all processes together."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the fit, before the training loader is made.

        Weights are restored by then; the module's ``on_fit_start`` sees the chosen images.
        """
        cast(ClassifyingModule, pl_module).prepare_fit()
