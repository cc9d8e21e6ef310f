"""The caches of a fit's teachers: where they are, and what is in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpl.data.augmentation import Augmentation
from kdpl.data.decoding import Decoding
from kdpl.data.feature_cache import FeatureCache, Manifest, require_same_views
from kdpl.data.names import Names
from kdpl.data.needs import TeacherDescription


def cache_folders(
    folder: str, teachers: Sequence[TeacherDescription]
) -> list[tuple[Path, TeacherDescription]]:
    """Return the folder of each teacher's cache (FOLDER, FOLDER.2, …), and its description."""
    first = Path(folder).expanduser()
    further = (Path(f"{first}.{number}") for number in range(2, len(teachers) + 1))
    return list(zip((first, *further), teachers, strict=True))


@dataclass(frozen=True)
class CacheSettings:
    """Settings that cached features depend on besides teacher and images.

    Fields are those of ``DomainDataModule``.
    """

    dataset: str
    decoding: Decoding
    augmentation: Augmentation
    seed: int

    def manifest(
        self,
        teacher: TeacherDescription,
        images: Names,
        views: int | None = None,
        view_seed: int | None = None,
    ) -> Manifest:
        """Describe the cache that a run needs, by default of any number of views, of its seed."""
        return Manifest.of(
            teacher=teacher.fingerprint,
            width=teacher.width,
            dataset=self.dataset,
            sources=images,
            resizing=teacher.resizing,
            decoding=self.decoding,
            augmentation=self.augmentation,
            view_seed=self.seed if view_seed is None else view_seed,
            views=views or 0,
        )

    def open(
        self,
        folders: Sequence[tuple[Path, TeacherDescription]],
        images: Names,
        rank: int,
        world_size: int,
    ) -> list[FeatureCache]:
        """Open all teachers' complete caches; DataError if one is missing or has other views."""
        caches = [
            FeatureCache.open(folder, self.manifest(teacher, images), rank, world_size)
            for folder, teacher in folders
        ]
        require_same_views(caches)
        return caches
