"""What a LightningModule tells the datamodule, and what it may not be run with."""

from typing import Literal, Protocol, cast, get_args

from lightning.pytorch import Trainer

from kdpl.errors import ConfigError

TrainSplit = Literal["labeled", "unlabeled"]


class DataConsumer(Protocol):
    """What a LightningModule tells the datamodule.

    Attributes:
        train_split: The split that it trains on.
        image_size: Edge in pixels of the square images that it takes.
    """

    train_split: TrainSplit
    image_size: int


def consumer_of(trainer: Trainer | None) -> DataConsumer:
    """Give the module that a trainer runs.

    Raises:
        ConfigError: It does not say what it wants of the data.
    """
    module = trainer.lightning_module if trainer else None
    for name, expected in (("train_split", "labeled or unlabeled"), ("image_size", "the edge of its images")):
        if not hasattr(module, name):
            raise ConfigError(
                f"{type(module).__name__} has no {name}: the datamodule expects a LightningModule with "
                f"{name}, {expected}."
            )
    consumer = cast(DataConsumer, module)
    if consumer.train_split not in get_args(TrainSplit):
        raise ConfigError(
            f"train_split of {type(module).__name__} is {consumer.train_split!r}: expected labeled or unlabeled."
        )
    return consumer


def refuse_second_sharding(trainer: Trainer) -> None:
    """Refuse a trainer that would wrap the datamodule's samplers, so that images would go missing without a word.

    Raises:
        ConfigError: It has several processes and would do so.
    """
    connector = getattr(trainer, "_accelerator_connector", None)
    if trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
        raise ConfigError(
            "trainer.use_distributed_sampler must be false on several processes: the datamodule shards by itself."
        )
