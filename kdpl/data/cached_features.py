"""Teachers' features that were computed before a fit."""

from typing import Protocol

from torch.utils.data import Dataset

from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datasets import UnlabeledImages


class CachedFeatures(Protocol):
    """All teachers' features of views of each unlabelled image.

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
