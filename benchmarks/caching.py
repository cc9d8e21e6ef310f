"""The cache of teacher features: filling it beside the teacher alone, and reading it beside nothing."""

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kdpl.cli.feature_filling import FeatureFilling
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from benchmarks.photographs import PHOTOGRAPH, write_photographs
from benchmarks.settings import Settings
from benchmarks.teacher import RandomTeacher, random_weights_are_meant
from kdpl import StudentDistillation
from kdpl.class_vectors import ClassVectors
from kdpl.clip.frozen import Frozen
from kdpl.clip.identity import RANDOM
from kdpl.clip.loading import ClipConfig
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import CachedImages, RandomView, UnlabeledImages
from kdpl.data.feature_manifest import Manifest
from kdpl.data.loader import LazyLoader
from kdpl.data.sampler import TrainSampler
from kdpl.data.teacher_features import TeacherFeatures

_CLASSES = ("crab", "squid")


class _TimedFilling(FeatureFilling):
    """Looks at the clock when all is loaded and when all is written."""

    seconds = 0.0

    def on_predict_start(self) -> None:
        super().on_predict_start()
        self.seconds = -time.perf_counter()

    def on_predict_end(self) -> None:
        super().on_predict_end()
        self.seconds += time.perf_counter()


class Filling:
    """``kdpl cache`` on JPEG photographs of noise, and the teacher's image tower alone on as many views.

    Args:
        settings: Models, number of images, batch size, device and precision.
        folder: An empty folder to work in.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.images = settings.sizes.fill_images
        photographs = write_photographs(folder / "photographs", self.images)
        for index, path in enumerate(photographs):
            in_class = folder / "data" / "train" / _CLASSES[index % len(_CLASSES)] / path.name
            in_class.parent.mkdir(parents=True, exist_ok=True)
            path.rename(in_class)
        RandomTeacher(settings.sizes).write_run(folder, _CLASSES)
        with random_weights_are_meant():
            self.student = StudentDistillation(ClipConfig(settings.sizes.student, RANDOM), str(folder))
            vectors = ClassVectors.load(self.student.class_vectors_path)
            self.teacher: Frozen[FrozenTeacher] = Frozen(load_teacher(folder, vectors, self.student.class_vectors_path))
        edge = self.student.image_size
        self.width = self.teacher.module.head.class_vectors.shape[1]
        self.views = torch.randint(256, (self.images, 3, edge, edge), dtype=torch.uint8).to(settings.torch_device)
        self._fills = 0

    def fill(self) -> float:
        """Fill a new cache, one view of each image: decode, crop, encode, write; the seconds from first to last."""
        self._fills += 1
        batch_size = self.settings.batch_size
        data = DomainDataModule(
            "folder",
            root=str(self.folder / "data"),
            batch_size=batch_size,
            eval_batch_size=batch_size,
            num_workers=0,
            teacher_cache=str(self.folder / f"cache-{self._fills}"),
            fill_teacher_cache=True,
        )
        filling = _TimedFilling(self.student, num_views=1)
        filling.teacher = self.teacher
        trainer = Trainer(
            accelerator=self.settings.device,
            devices=1,
            precision=cast(Any, self.settings.precision),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.predict(filling, datamodule=data, return_predictions=False)
        if len(filling.views) != self.images:
            raise RuntimeError(f"{len(filling.views)} views were filled in place of {self.images}")
        return filling.seconds

    def encode(self) -> None:
        """Encode as many views, which lie ready in memory, with the teacher, as ``fill`` does."""
        autocast = self.settings.autocast
        self.teacher.to(self.settings.torch_device)
        with torch.autocast(self.settings.device, autocast, enabled=autocast is not None):
            for batch in torch.split(self.views, self.settings.batch_size):
                self.teacher.module.features(batch).half().cpu()


class _NoView(RandomView):
    """The view that is not made, so that what is left to measure is the cache."""

    def make(self, image: Image.Image, parameters: tuple[float, ...]) -> Tensor:  # noqa: ARG002
        return torch.empty(0, dtype=torch.uint8)


class Reading:
    """Batches of a student's training from a full cache, but for the images: those are neither opened nor made.

    Args:
        settings: Number of images and batch size.
        folder: An empty folder to work in.
        width: Width of the features.
    """

    def __init__(self, settings: Settings, folder: Path, width: int) -> None:
        self.settings = settings
        images = settings.sizes.read_images
        sources = [f"{index}.jpg" for index in range(images)]
        view = _NoView(lambda _: Image.new("RGB", (1, 1)), RandomResizedCrop(), 224, seed=1)
        manifest = Manifest.of(
            teacher="random",
            width=width,
            dataset="folder",
            sources=sources,
            image_size=view.image_size,
            augmentation=view.augmentation,
            view_seed=view.seed,
            views=1,
        )
        self.features = TeacherFeatures.create(folder / "cache", manifest)
        draw = np.random.default_rng(0)
        for row in range(images):
            self.features.write_parameters(row, view.augmentation.parameters(draw, *PHOTOGRAPH))
        rows = np.arange(images)
        self.features.write_features(rows, draw.standard_normal((images, width)).astype(np.float16))
        self.dataset = CachedImages(UnlabeledImages(sources, view), self.features, fill=False)

    def read(self) -> None:
        """Read all rows once through the loader, in random order, in this process."""
        images, batch_size = len(self.dataset), self.settings.batch_size
        loader = LazyLoader(self.dataset, TrainSampler(images, batch_size, seed=1), batch_size, num_workers=0)
        for _ in loader:
            pass

    def bytes_per_view(self) -> float:
        """What the cache takes up on the disk, for each view."""
        files = [path for path in self.features.folder.iterdir() if path.is_file()]
        return sum(512 * path.stat().st_blocks for path in files) / len(self.dataset)
