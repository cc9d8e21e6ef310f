"""Teachers' features that were computed before a fit, as a room provides them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datasets import UnlabeledImages


class CachedFeatures(Protocol):
    """All teachers' features of views of each unlabelled image.

    An entry point ``kdpl.caches`` makes it of a ``DomainDataModule``; None if no teacher is needed.

    Attributes:
        views: Number V of views of each image; epoch e sees view e mod V.
        view_seed: The seed that they are drawn with.
    """

    @property
    def views(self) -> int: ...  # noqa: D102 - see above

    @property
    def view_seed(self) -> int: ...  # noqa: D102

    def with_features(self, images: UnlabeledImages) -> Dataset[UnlabeledBatch]:
        """Return a dataset whose item (i, epoch) also has ``teacher_features``.

        ``images`` have views of ``view_seed``, for the student.
        """
        ...

    def means(
        self,
        images: Sequence[str] | None,
        views: int,
        teacher_index: int,
        encode: Callable[[Tensor], Tensor],
    ) -> Callable[[int], Tensor] | None:
        """Return what reads the mean feature of an image by its index, float32 [D].

        Called on all processes together. None if there are fewer views, or no place for others.

        Args:
            images: Sources of labelled or validation images, whose features may be computed for
                this; None: all unlabelled images.
            views: Number of the first views that the mean is over.
            teacher_index: Which teacher, among several.
            encode: The teacher: uint8 [B, 3, S, S] on the CPU to normalised features [B, D].
        """
        ...
