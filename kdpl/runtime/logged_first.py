"""Metrics are logged before the checkpoint from which a run goes on, which Lightning does the other way round.

A run that was cut in between would lack them for ever.
"""

from lightning.pytorch import Trainer


def log_step(trainer: Trainer) -> None:
    """Log a step's metrics; for a training that ends with this step, since Lightning would log them once more."""
    trainer._logger_connector.update_train_step_metrics()


def log_epoch(trainer: Trainer) -> None:
    """Log an epoch's metrics, once its validation and all that logs at its end are done; the first call counts."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    connector.on_epoch_end()
    # as Lightning does: at the number of the last step, not of the next
    loop._batches_that_stepped -= 1
    connector.update_train_epoch_metrics()
    loop._batches_that_stepped += 1
