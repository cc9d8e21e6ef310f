"""A teacher's image features of views of images, on disk: computed once, for any number of students.

Row ``view * N + index`` is view ``view`` of image ``index``. A shard is one file of fixed size that holds, for each of
its rows, in three arrays one after the other:

- the numbers that define the view, float64 [rows, P];
- a checksum of row number, view and feature, uint32 [rows]; 0 while the feature is not there;
- the normalised feature, float16 [rows, D].

The checksum is written last. So a row is there or not, whenever writing was cut, and a shard needs no end: it can be
read and gone on with at any row. Files are as large as what was written into them.
"""

import os
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdpl.data.augmentation import Parameters
from kdpl.data.feature_manifest import Manifest
from kdpl.errors import DataError
from kdpl.runtime.file_lock import taken
from kdpl.runtime.files import atomic_path

Rows = npt.NDArray[np.int64]
"""Row numbers, int64 [R]."""

_LOCK_FILE = ".lock"


class Row(NamedTuple):
    """A view and its feature.

    Attributes:
        parameters: The numbers that define the view.
        feature: Float16 [D].
    """

    parameters: Parameters
    feature: npt.NDArray[np.float16]


class _Shard(NamedTuple):
    parameters: npt.NDArray[np.float64]
    checksums: npt.NDArray[np.uint32]
    features: npt.NDArray[np.float16]


class TeacherFeatures:
    """A cache in a folder. It travels to worker processes, which open its files for themselves.

    Args:
        folder: The cache's folder.
        manifest: What it says of itself.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._maps: dict[int, _Shard] = {}
        self._unlock: Callable[[], object] = lambda: None

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> "TeacherFeatures":
        """Make an empty cache; its folder appears whole.

        Raises:
            DataError: There is something else in the folder, or another process made one meanwhile.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} holds something else than a teacher cache: choose another folder, or remove it")
        try:
            with atomic_path(folder, replace=False) as temporary:
                temporary.mkdir()
                made = cls(temporary, manifest)
                for shard in range(made.num_shards):
                    made._create_shard(shard)
                manifest.save(temporary)
        except FileExistsError as error:
            raise DataError(
                f"another process made the teacher cache {folder} at the same time and fills it: wait for its end, and "
                "start again"
            ) from error
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: Path) -> "TeacherFeatures":
        """Open a cache.

        Raises:
            DataError: There is none, or it is damaged.
        """
        return cls(folder, Manifest.load(folder))

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-self._num_rows // self.manifest.rows_per_shard)

    @property
    def _num_rows(self) -> int:
        return self.manifest.images * self.manifest.views

    def restore_shards(self) -> None:
        """Put an empty file where one was removed."""
        for shard in range(self.num_shards):
            if not self.path(shard).exists():
                self._create_shard(shard)

    def require_shards(self) -> None:
        """Refuse files that are missing or of another size.

        Raises:
            DataError: The first of them is named.
        """
        for shard in range(self.num_shards):
            path, expected = self.path(shard), self._offsets(shard)[-1]
            size = path.stat().st_size if path.is_file() else None
            if size != expected:
                found = "is missing" if size is None else f"has {size} bytes in place of {expected}"
                raise DataError(f"{path} {found}: {_fill_again(path)}")

    def lock(self) -> None:
        """Keep others from writing, for as long as this object lives.

        Raises:
            DataError: Another process writes.
        """
        import fcntl  # Windows has none

        descriptor = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        if not taken(fcntl.flock, descriptor, self.folder):
            os.close(descriptor)
            raise DataError(
                f"the teacher cache {self.folder} is being filled by another process: wait for it, or end it"
            )
        self._unlock = weakref.finalize(self, os.close, descriptor)

    def unlock(self) -> None:
        """Let others write."""
        self._unlock()

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.bin"

    def missing(self, rows: Rows) -> Rows:
        """Those rows whose features are not there, in their order."""
        there = np.empty(len(rows), dtype=bool)
        for shard, chosen, local in self._by_shard(rows):
            there[chosen] = self._open(shard).checksums[local] != 0
        return rows[~there]

    def read(self, row: int) -> Row | None:
        """A view and its feature; None if it is not there.

        Raises:
            DataError: The row is not what was written.
        """
        shard, local = divmod(row, self.manifest.rows_per_shard)
        arrays = self._open(shard)
        checksum = int(arrays.checksums[local])
        if checksum == 0:
            return None
        parameters, feature = arrays.parameters[local], arrays.features[local]
        if _checksum(row, parameters, feature) != checksum:
            path = self.path(shard)
            raise DataError(f"{path} is damaged (wrong checksum in row {local}): {_fill_again(path)}")
        return Row(tuple(parameters.tolist()), np.array(feature))

    def write_parameters(self, row: int, parameters: Parameters) -> None:
        """Write what defines a view; the row is not there before its feature is written as well."""
        shard, local = divmod(row, self.manifest.rows_per_shard)
        values = np.array(parameters, dtype=np.float64)
        with _writing(self.path(shard)) as write:
            write(local * values.nbytes, values)

    def write_features(self, rows: Rows, features: npt.NDArray[np.float16]) -> None:
        """Write features of views whose parameters are written.

        Args:
            rows: The rows, int64 [B], each once.
            features: Their features, float16 [B, D].
        """
        for shard, chosen, local in self._by_shard(rows):
            arrays = self._open(shard)
            checksums, start, _ = self._offsets(shard)
            with _writing(self.path(shard)) as write:
                for first, last in _runs(local):
                    some, here = features[chosen[first:last]], slice(local[first], local[last - 1] + 1)
                    write(start + int(here.start) * some[0].nbytes, some)
                    sums = [
                        _checksum(row, parameters, feature)
                        for row, parameters, feature in zip(
                            rows[chosen[first:last]].tolist(), arrays.parameters[here], some, strict=True
                        )
                    ]
                    write(checksums + 4 * int(here.start), np.array(sums, dtype=np.uint32))

    def _create_shard(self, shard: int) -> None:
        # a hole of that size: it takes up room only as it is written
        with atomic_path(self.path(shard)) as temporary, temporary.open("wb") as file:
            file.truncate(self._offsets(shard)[-1])

    def _rows_of(self, shard: int) -> int:
        rows = self.manifest.rows_per_shard
        return min(rows, self._num_rows - shard * rows)

    def _offsets(self, shard: int) -> tuple[int, int, int]:
        """Where checksums and features begin, and where the file ends."""
        rows = self._rows_of(shard)
        checksums = 8 * rows * len(self.manifest.view_parameters)
        features = checksums + 4 * rows
        return checksums, features, features + 2 * rows * self.manifest.width

    def _open(self, shard: int) -> _Shard:
        if shard not in self._maps:
            raw = np.memmap(self.path(shard), dtype=np.uint8, mode="r")
            checksums, features, end = self._offsets(shard)
            rows = self._rows_of(shard)
            self._maps[shard] = _Shard(
                raw[:checksums].view(np.float64).reshape(rows, len(self.manifest.view_parameters)),
                raw[checksums:features].view(np.uint32),
                raw[features:end].view(np.float16).reshape(rows, self.manifest.width),
            )
        return self._maps[shard]

    def _by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """For each shard with some of the rows: its number, which of ``rows`` they are, and where they are in it."""
        shards, local = np.divmod(rows, self.manifest.rows_per_shard)
        order = np.lexsort((local, shards))
        present, starts = np.unique(shards[order], return_index=True)
        for shard, chosen in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
            yield shard, chosen, local[chosen]


def _runs(rising: Rows) -> Iterator[tuple[int, int]]:
    """First and last + 1 position of each stretch without a gap."""
    ends = [*(np.flatnonzero(np.diff(rising) != 1) + 1).tolist(), len(rising)]
    yield from zip([0, *ends[:-1]], ends, strict=True)


def _checksum(row: int, parameters: npt.NDArray[np.float64], feature: npt.NDArray[np.float16]) -> int:
    # 0 stands for a row that is not there
    return zlib.crc32(feature.tobytes(), zlib.crc32(parameters.tobytes(), row & 0xFFFFFFFF)) or 1


@contextmanager
def _writing(path: Path) -> Iterator[Callable[[int, npt.NDArray[Any]], None]]:
    """Give a function that writes an array to a place in a file; what it is given last is written last."""
    try:
        with path.open("r+b") as file:

            def write(position: int, values: npt.NDArray[Any]) -> None:
                file.seek(position)
                file.write(np.ascontiguousarray(values).tobytes())

            yield write
    except OSError as error:
        # a full disk: the system does not say of which file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _fill_again(path: Path) -> str:
    return f"remove {path.name} and fill the cache again with python -m kdpl cache and the settings of the fit"
