"""What a stage asks of the data: the names of the classes, and which of them the teacher may be tuned on."""

from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningModule
from torch import Tensor

from kdpl.data.teacher_cache import TeacherCache
from kdpl.errors import ConfigError


@runtime_checkable
class Domain(Protocol):
    """The side of the datamodule that both stages see.

    Attributes:
        class_names: All C class names, by label.
        class_texts: What the text tower reads for each; mostly its name.
        num_base: How many of them, the first ones, are base classes; None where there is no such split.
        tuning_class_names: The names that the teacher is tuned on: the base ones where there is a split.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def class_texts(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def num_base(self) -> int | None: ...  # noqa: D102

    @property
    def tuning_class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    def preview(self, n: int, image_size: int) -> Tensor:
        """Give up to n unlabelled images, uint8 [n, 3, image_size, image_size]."""
        ...


@runtime_checkable
class CachingDomain(Domain, Protocol):
    """A domain that may keep the teacher's features of its unlabelled images.

    Attributes:
        view_source: What decides which views of the unlabelled images the epochs see: a seed, and the number of views
            of each; None for one of its own in each epoch.
    """

    @property
    def view_source(self) -> tuple[int, int | None]: ...  # noqa: D102

    def open_teacher_cache(
        self, teacher: str, width: int, views: int | None = None, all_views: bool = False
    ) -> TeacherCache | None:
        """Open the cache for a teacher's features of that width, if there is to be one; see DomainDataModule."""
        ...


def domain_of(module: LightningModule) -> Domain:
    """Give the domain that a module is being run on.

    Raises:
        ConfigError: The trainer was not given a datamodule that knows its classes.
    """
    datamodule = getattr(module.trainer, "datamodule", None)
    if not isinstance(datamodule, Domain):
        raise ConfigError(
            f"{type(module).__name__} needs to know the class names: run it with a DomainDataModule as datamodule"
        )
    return datamodule
