"""The teacher cache: filling it, relative to running only the teacher, and reading it."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.photographs import write_photographs
from benchmarks.settings import Settings
from benchmarks.teacher import RandomTeacher, random_weights_are_meant
from kdpl.class_vectors import ClassVectors
from kdpl.clip import Frozen
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.identity import files_of
from kdpl.data.loader import LazyLoader, TrainSampler
from kdpl.data.sources import open_source
from kdpl.runtime.origin import Origin
from kdpl.runtime.resizing import Resizing
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.store import Work
from kdpl.targets.teacher_cache import TeacherCache, fill
from kdpl.targets.teacher_cache import manifest_of as describe

_CLASSES = ("crab", "squid")
_SMALL_EDGE = 8  # of images that are not used


def manifest_of(images: UnlabeledImages, width: int) -> Origin:
    """Describe a cache of one view of each image."""
    view = images.view
    data = DomainDataModule("folder", ".", augmentation=view.augmentation, seed=view.seed)
    shown = SimpleNamespace(resizing=view.resizing)
    inputs = SimpleNamespace(
        pool=SimpleNamespace(images=images.sources),
        vectors=SimpleNamespace(
            teacher="random", vectors=torch.empty(1, width), preprocessing=shown
        ),
        dataset=data.dataset,
        files_of=lambda _: files_of(images.sources),
        views_origin=data.views_origin,
    )
    return describe(inputs, 1)


class Filling:
    """Filling of a teacher's cache from JPEG files of noise, and only the teacher's image tower on the same number of views.

    Args:
        settings: Models, number of images, batch size, device and precision.
        folder: An empty folder to work in.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        photographs = write_photographs(folder / "photographs", settings.sizes.fill_images)
        RandomTeacher(settings.sizes).write_run(folder, _CLASSES)
        with random_weights_are_meant():
            teacher = FrozenTeacher(folder, ClassVectors.of_teacher(str(folder)))
            teacher.load()
        self.teacher = Frozen(teacher).to(settings.torch_device)
        self.teacher.store_in(settings.autocast or torch.float32)
        self.width = teacher.head.class_vectors.shape[1]
        edge = teacher.tower.preprocessing.image_size
        view = RandomView(
            open_source, RandomResizedCrop(), teacher.tower.preprocessing.resizing, seed=1
        )
        self.images = UnlabeledImages([str(path) for path in photographs], view)
        self.views = torch.randint(256, (len(self.images), 3, edge, edge), dtype=torch.uint8)
        self.views = self.views.to(settings.torch_device)
        self._fills = 0

    def _encode(self, images: Tensor) -> Tensor:
        with self.settings.precise():
            return self.teacher.module.features(images.to(self.settings.torch_device))

    def fill(self) -> float:
        """Fill a new cache with one view of each image (decode, crop, encode, write); returns the seconds."""
        self._fills += 1
        start = time.perf_counter()
        done = fill(
            self.folder / f"cache-{self._fills}",
            manifest_of(self.images, self.width),
            Work(self.images, self._encode, self.settings.batch_size, num_workers=0),
        )
        if done != len(self.images):
            raise RuntimeError(f"{done} views were filled instead of {len(self.images)}")
        return time.perf_counter() - start

    def encode(self) -> None:
        """Encode the same number of views from memory with the teacher."""
        for batch in torch.split(self.views, self.settings.batch_size):
            self._encode(batch).half().cpu()


class _NoView(RandomView):
    """A view without pixels, to measure only the cache."""

    def make(self, image: Image.Image, parameters: tuple[float, ...]) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)


class Reading:
    """Batches of a student's training from a complete cache, without opening or augmenting images.

    Args:
        settings: Number of images and batch size.
        folder: An empty folder to work in.
        width: Width of the features.
    """

    def __init__(self, settings: Settings, folder: Path, width: int) -> None:
        self.settings = settings
        view = _NoView(
            lambda _: Image.new("RGB", (1, 1)), RandomResizedCrop(), Resizing(_SMALL_EDGE), seed=1
        )
        images = UnlabeledImages(
            [f"{index}.jpg" for index in range(settings.sizes.read_images)], view
        )
        manifest, draw = manifest_of(images, width), torch.Generator().manual_seed(0)
        self.cache = folder / "cache"

        def encode(batch: Tensor) -> Tensor:
            return F.normalize(torch.randn(len(batch), width, generator=draw), dim=1)

        fill(self.cache, manifest, Work(images, encode, settings.batch_size, num_workers=0))
        self.dataset = replace(images, cached=TeacherCache.open(self.cache, manifest))

    def read(self) -> None:
        """Read all rows once through the loader, in random order, in this process."""
        images, batch_size = len(self.dataset), self.settings.batch_size
        loader = LazyLoader(
            self.dataset, TrainSampler(images, batch_size, seed=1), batch_size, num_workers=0
        )
        for _ in loader:
            pass

    def bytes_per_view(self) -> float:
        """Return the bytes on disk per view."""
        files = [path for path in self.cache.iterdir() if path.is_file()]
        return sum(512 * path.stat().st_blocks for path in files) / len(self.dataset)
