"""The kinds of torch datasets: what each yields, and so what can leak from it, is visible in its type."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from kdpl.data.augmentation import Augmentation, Parameters
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.randomness import generator
from kdpl.data.splits import Record
from kdpl.data.teacher_features import TeacherFeatures
from kdpl.errors import DataError

OpenImage = Callable[[str], Image]


class RandomView:
    """Opens an image and makes the view of it that belongs to a seed, an index and an epoch.

    Args:
        open_image: Opens a source as an RGB image.
        augmentation: Family of views.
        image_size: Edge of the views in pixels.
        seed: Seed of the run.
    """

    def __init__(self, open_image: OpenImage, augmentation: Augmentation, image_size: int, seed: int) -> None:
        self.open_image = open_image
        self.augmentation = augmentation
        self.image_size = image_size
        self.seed = seed

    def __call__(self, source: str, index: int, epoch: int) -> torch.Tensor:
        """View of ``source`` as uint8 [3, S, S]."""
        image = self.open_image(source)
        return self.make(image, self.draw(image, index, epoch))

    def draw(self, image: Image, index: int, epoch: int) -> Parameters:
        """The numbers that define the view of an image that is open."""
        rng = generator(self.seed, "augmentation", epoch=epoch, index=index)
        return self.augmentation.parameters(rng, image.width, image.height)

    def make(self, image: Image, parameters: Parameters) -> torch.Tensor:
        """The view that the numbers define, uint8 [3, S, S]."""
        return to_tensor(self.augmentation.apply(image, parameters, self.image_size))


class LabeledImages(Dataset[tuple[torch.Tensor, int]]):
    """Random views of labelled images: item (index, epoch) is (uint8 [3, S, S], label)."""

    def __init__(self, records: Sequence[Record], view: RandomView) -> None:
        self.records = tuple(records)
        self.view = view

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        source, label = self.records[index]
        return self.view(source, index, epoch), label

    def source(self, i: int) -> str:
        """Name of image i."""
        return self.records[i].source

    def __len__(self) -> int:
        return len(self.records)


class UnlabeledImages(Dataset[tuple[torch.Tensor, int]]):
    """Random views of unlabelled images: item (i, epoch) is (uint8 [3, S, S], index).

    It is given sources alone, so there is no label that could leak.

    Args:
        sources: The images.
        view: Makes the views. A view belongs to an index, so that a share of the images has the views of the whole.
        indices: The images' indices in the list of all that there are; None: these are all.
    """

    def __init__(self, sources: Sequence[str], view: RandomView, indices: Sequence[int] | None = None) -> None:
        self.sources = tuple(sources)
        self.view = view
        self.indices = range(len(self.sources)) if indices is None else tuple(indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        i, epoch = key
        return self.view(self.sources[i], self.indices[i], epoch), self.indices[i]

    def source(self, i: int) -> str:
        """Name of image i."""
        return self.sources[i]

    def __len__(self) -> int:
        return len(self.sources)


class CachedView(NamedTuple):
    """A view of an unlabelled image and the teacher's feature of it; in a batch, each stacked.

    Attributes:
        image: uint8 [3, S, S].
        image_index: Index of the image, int64 [].
        row: Row of the view in the cache, int64 [].
        feature: Float16 [D]; NaN where the cache does not have it yet.
    """

    image: torch.Tensor
    image_index: torch.Tensor
    row: torch.Tensor
    feature: torch.Tensor


class CachedImages(Dataset[CachedView]):
    """Unlabelled images and the teacher's features of them: item (i, epoch) is a :class:`CachedView`.

    Args:
        images: The images; their views' seed is the cache's.
        features: The cache, which has views of all images that there are.
        fill: Whether features may be missing; the numbers that define such a view are written into the cache.
    """

    def __init__(self, images: UnlabeledImages, features: TeacherFeatures, fill: bool) -> None:
        self.images = images
        self.features = features
        self.fill = fill
        self._last: tuple[int, Image] | None = None

    def __getitem__(self, key: tuple[int, int]) -> CachedView:
        """Give view ``epoch mod V`` of an image.

        Raises:
            DataError: The cache is damaged, or lacks the feature and is not to be filled.
        """
        i, epoch = key
        image, index, manifest = self._open(i), self.images.indices[i], self.features.manifest
        view = epoch % manifest.views
        row = view * manifest.images + index
        cached = self.features.read(row)
        if cached is not None:
            parameters, feature = cached.parameters, torch.from_numpy(cached.feature)
            if not feature.isfinite().all():
                raise DataError(
                    f"the teacher cache {self.features.folder} has no finite feature of image "
                    f"{self.images.sources[i]}: remove the folder and fill it again with a teacher that is whole"
                )
        elif self.fill:
            parameters = self.images.view.draw(image, index, view)
            self.features.write_parameters(row, parameters)
            feature = torch.full((manifest.width,), torch.nan, dtype=torch.float16)
        else:
            raise DataError(
                f"the teacher cache {self.features.folder} lacks view {view} of image {self.images.sources[i]}: "
                "fill it with python -m kdpl cache and the settings of the fit"
            )
        pixels = self.images.view.make(image, parameters)
        return CachedView(pixels, torch.tensor(index), torch.tensor(row), feature)

    def source(self, i: int) -> str:
        """Name of image i."""
        return self.images.source(i)

    def __len__(self) -> int:
        return len(self.images)

    def _open(self, i: int) -> Image:
        """Open an image, or give it once more: whoever fills a cache asks for all views of one in a row."""
        if self._last is None or self._last[0] != i:
            self._last = i, self.images.view.open_image(self.images.sources[i])
        return self._last[1]


class EvaluationImages(Dataset[tuple[torch.Tensor, int, int]]):
    """Labelled images under the evaluation transform: item i is (uint8 [3, S, S], label, i)."""

    def __init__(self, records: Sequence[Record], open_image: OpenImage, image_size: int) -> None:
        self.records = tuple(records)
        self.open_image = open_image
        self.image_size = image_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        source, label = self.records[index]
        return to_tensor(resize_and_crop(self.open_image(source), self.image_size)), label, index

    def __len__(self) -> int:
        return len(self.records)
