"""Torch datasets; an item is a batch of one image without the first dimension."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from kdpl.data.augmentation import Augmentation, Parameters, resize_and_crop, to_tensor
from kdpl.data.batches import EvaluationBatch, LabeledBatch, UnlabeledBatch
from kdpl.data.names import Indices
from kdpl.data.sampling import generator
from kdpl.data.splits import Label, Record
from kdpl.runtime.resizing import Resizing

OpenImage = Callable[[str], Image]

_NO_PIXELS = torch.empty(0, dtype=torch.uint8)


def label_tensor(label: Label, num_classes: int) -> torch.Tensor:
    """Return a label as int64 [], or several labels of C classes as 0 and 1, float32 [C]."""
    if not isinstance(label, tuple):
        return torch.tensor(label)
    has = torch.zeros(num_classes)
    has[list(label)] = 1
    return has


@dataclass
class RandomView:
    """Random view of an image for a tower's ``resizing``, fixed by seed, index and epoch."""

    open_image: OpenImage
    augmentation: Augmentation
    resizing: Resizing
    seed: int

    def __call__(self, source: str, index: int, epoch: int) -> torch.Tensor:
        """Make the view of ``source``, uint8 [3, S, S]."""
        image = self.open_image(source)
        return self.make(image, self.draw(image, index, epoch))

    def draw(self, image: Image, index: int, epoch: int) -> Parameters:
        """Draw the numbers that define the view of an open image."""
        rng = generator(self.seed, "augmentation", epoch=epoch, index=index)
        return self.augmentation.parameters(rng, image.width, image.height)

    def make(
        self, image: Image, parameters: Parameters, to: Resizing | None = None
    ) -> torch.Tensor:
        """Make the view that the parameters define, uint8 [3, S, S]."""
        return to_tensor(self.augmentation.apply(image, parameters, to or self.resizing))


@dataclass(eq=False)
class LabeledImages(Dataset[LabeledBatch]):
    """Random views of labelled images, by (index, epoch).

    With ``stored_views``, each item names one of so many views whose features are stored, and no
    image is opened.
    """

    records: Sequence[Record]
    view: RandomView
    num_classes: int = 0
    stored_views: int = 0

    def __getitem__(self, key: tuple[int, int]) -> LabeledBatch:
        index, epoch = key
        source, label = self.records[index]
        labels = label_tensor(label, self.num_classes)
        if self.stored_views:
            view = stored_view(self.stored_views, self.view.seed, epoch, index)
            return LabeledBatch(_NO_PIXELS, labels, torch.tensor(index), torch.tensor(view))
        return LabeledBatch(self.view(source, index, epoch), labels)

    def __len__(self) -> int:
        return len(self.records)


class CachedFeatures(Protocol):
    """The teacher's features of views of each unlabelled image.

    Attributes:
        views: Number V of views of each image; epoch e sees view e mod V.
        view_seed: The seed that they are drawn with.
    """

    views: int
    view_seed: int

    def read(self, view: int, index: int) -> npt.NDArray[np.float16]:
        """Read the normalised feature of a view of an image, float16 [D]."""
        ...


@dataclass(eq=False)
class UnlabeledImages(Dataset[UnlabeledBatch]):
    """Random views of unlabelled images, by (i, epoch).

    The dataset holds only sources, so no label can leak. ``indices`` are positions in the list of
    all unlabelled images, None for all of them. A view belongs to an index, so a share has the same
    views as the whole. The same views are also made for a teacher of another resizing. With
    ``cached`` features, the views are the cache's, by its seed. With ``stored_views``, each item
    names one of so many views whose features are stored, and no image is opened.
    """

    sources: Sequence[str]
    view: RandomView
    indices: Indices | None = None
    teacher: Resizing | None = None
    cached: CachedFeatures | None = None
    stored_views: int = 0

    def __getitem__(self, key: tuple[int, int]) -> UnlabeledBatch:
        i, epoch = key
        index = self.index_of(i)
        if self.stored_views:
            view = stored_view(self.stored_views, self.view.seed, epoch, index)
            return UnlabeledBatch(_NO_PIXELS, torch.tensor(index), torch.tensor(view))
        if self.cached is not None:
            epoch %= self.cached.views
        image = self.view.open_image(self.sources[i])
        parameters = self.view.draw(image, index, epoch)
        item = UnlabeledBatch(self.view.make(image, parameters), torch.tensor(index))
        if self.teacher is not None and self.teacher != self.view.resizing:
            # the same crop as the student's
            item.teacher_images = self.view.make(image, parameters, self.teacher)
        if self.cached is not None:
            item.teacher_features = torch.from_numpy(self.cached.read(epoch, index))
        return item

    def index_of(self, i: int) -> int:
        """Return the i-th image's position in the list of all; its views are drawn by it."""
        return i if self.indices is None else int(self.indices[i])

    def __len__(self) -> int:
        return len(self.sources)


def stored_view(views: int, seed: int, epoch: int, index: int) -> int:
    """Draw one of the stored views of an image for an epoch.

    The first view, as in evaluation, is drawn for half of the images, as ``HalfWhole`` draws it.
    """
    rng = generator(seed, "stored view", epoch=epoch, index=index)
    return 0 if views == 1 or rng.random() < 0.5 else int(rng.integers(1, views))


@dataclass(eq=False)
class EvaluationImages(Dataset[EvaluationBatch]):
    """Labelled images under the evaluation transform; ``num_classes`` as in ``LabeledImages``.

    With ``pixels`` false, no image is opened.
    """

    records: Sequence[Record]
    open_image: OpenImage
    resizing: Resizing
    num_classes: int = 0
    pixels: bool = True

    def __getitem__(self, index: int) -> EvaluationBatch:
        source, label = self.records[index]
        image = _NO_PIXELS
        if self.pixels:
            image = to_tensor(resize_and_crop(self.open_image(source), self.resizing))
        return EvaluationBatch(image, label_tensor(label, self.num_classes), torch.tensor(index))

    def __len__(self) -> int:
        return len(self.records)
