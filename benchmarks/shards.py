"""Reading a pool of tar archives or Parquet files in training order, relative to reading each from end to end."""

import io
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.photographs import write_photographs
from benchmarks.settings import Settings
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.decoding import open_image
from kdpl.data.loader import LazyLoader, TrainSampler
from kdpl.data.names import Names
from kdpl.data.shards.pieces import InPieces, by_pieces
from kdpl.data.shards.remote import read
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.runtime.resizing import Resizing

LATENCY = 0.02
"""Seconds that the web server waits before each answer."""

_IMAGES_PER_SHARD = 1000
_BYTES = 110_000  # of an image, as in ImageNet
_VIEW = 224
_STEP = 2**20  # bytes at a time, from end to end
_ROWS = 64  # of a row group of photographs, about 8 MB


def write_rows(file: Path, contents: Sequence[bytes], row_group_size: int | None = None) -> None:
    """Write a Parquet file with an image in each row, by default in pyarrow's row groups."""
    import pyarrow
    from pyarrow.parquet import write_table

    file.parent.mkdir(exist_ok=True)
    # with a dictionary, images that are the same would be stored once
    table = pyarrow.table({"image": pyarrow.array(contents, pyarrow.binary())})
    write_table(table, file, row_group_size=row_group_size, use_dictionary=False)


class Shards:
    """Shards of JPEG files of 500 × 375 pixels and 110 KB, on the disk and behind a web server.

    Args:
        settings: Number of images and batch size.
        folder: An empty folder to work in.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        photographs = [path.read_bytes() for path in write_photographs(folder / "photographs", 32)]
        # decoders ignore what follows the end of an image
        padded = [photograph + os.urandom(_BYTES - len(photograph)) for photograph in photographs]
        self.images = settings.sizes.shard_images
        for first in range(0, self.images, _IMAGES_PER_SHARD):
            numbers = range(first, min(first + _IMAGES_PER_SHARD, self.images))
            contents = [padded[number % len(padded)] for number in numbers]
            self.write(folder / f"{first // _IMAGES_PER_SHARD:04}", numbers, contents)
        self.shards = sorted(map(str, folder.glob("*.[tp]ar*")))
        self.names = find_unlabeled(self.shards)

    def write(self, path: Path, numbers: Sequence[int], contents: Sequence[bytes]) -> None:
        """Write a shard of images with these numbers."""
        with tarfile.open(f"{path}.tar", "w") as shard:
            for number, content in zip(numbers, contents, strict=True):
                member = tarfile.TarInfo(f"{number:08}.jpg")
                member.size = _BYTES
                shard.addfile(member, io.BytesIO(content))

    def forget(self) -> None:
        """Drop the shards from the page cache, as far as the system lets a program do that."""
        os.sync()
        with suppress(OSError):  # of all files, which takes an administrator, and is surer
            Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        for shard in self.shards if hasattr(os, "posix_fadvise") else ():
            with Path(shard).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def end_to_end(self) -> None:
        """Read the image files of each shard from its beginning to its end, as loaders that stream shards do."""
        for shard in self.shards:
            with tarfile.open(shard, "r|") as stream:
                for member in stream:
                    content = stream.extractfile(member)
                    if content is None or len(content.read()) != _BYTES:
                        raise RuntimeError(f"{shard} has something else than images")

    def bytes_alone(self) -> None:
        """Read the bytes of each shard from its beginning to its end, into the same memory."""
        buffer = bytearray(_STEP)
        for shard in self.shards:
            with Path(shard).open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def in_training_order(self) -> None:
        """Read the image files of an epoch."""
        sources = InPieces(self.names)
        for index, _ in self._sampler(sources):
            content_of(sources[index])

    def views(self, in_training_order: bool) -> None:
        """Read, decode and augment all images, in training order or one after another."""
        sources = InPieces(self.names)
        order = (
            self._sampler(sources)
            if in_training_order
            else [(index, 0) for index in range(self.images)]
        )
        for _ in LazyLoader(
            UnlabeledImages(sources, self._view()), order, self.settings.batch_size, num_workers=0
        ):
            pass

    def from_web(self, url: str, images: int, in_pieces: bool) -> None:
        """Read the first image files of an epoch from a web server, in pieces or one by one."""
        distant = [each.replace(str(self.folder), url) for each in self.names.folders]
        names = Names(self.names.text, self.names.rows, distant)
        sources = InPieces(names)
        for index, _ in islice(self._sampler(sources), images):
            content_of(sources[index] if in_pieces else names[index])

    def _view(self) -> RandomView:
        return RandomView(open_source, RandomResizedCrop(), Resizing(_VIEW), seed=1)

    def _sampler(self, sources: InPieces) -> TrainSampler:
        return TrainSampler(
            self.images,
            self.settings.batch_size,
            seed=1,
            shuffle=by_pieces(sources.starts, self.images),
        )


class Rows(Shards):
    """The same images in Parquet files, in row groups of 8 MB."""

    def write(self, path: Path, numbers: Sequence[int], contents: Sequence[bytes]) -> None:
        """Write a file of images."""
        write_rows(path.with_suffix(".parquet"), contents, _ROWS)

    def end_to_end(self) -> None:
        """Read the image files of each Parquet file from its beginning to its end, as pyarrow does."""
        if sum(map(len, self._contents())) != self.images * _BYTES:
            raise RuntimeError("the files have something else than images")

    def plain_views(self) -> None:
        """Read by pyarrow from end to end, decode and augment all images."""
        contents = self._contents()
        sources = [""] * self.images
        view = replace(self._view(), open_image=lambda _: open_image("an image", next(contents)))
        order = [(index, 0) for index in range(self.images)]
        for _ in LazyLoader(
            UnlabeledImages(sources, view), order, self.settings.batch_size, num_workers=0
        ):
            pass

    def _contents(self) -> Iterator[bytes]:
        from pyarrow.parquet import ParquetFile

        for shard in self.shards:
            with ParquetFile(shard) as file:
                for batch in file.iter_batches(_ROWS, columns=["image"], use_threads=False):
                    yield from batch.column(0).to_pylist()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on this machine, from another process; yields the URL."""
    ours, theirs = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=_serve, args=(folder, theirs), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        server.terminate()
        server.join()


def _serve(folder: Path, pipe: Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder))) as server:
        pipe.send(server.server_port)
        server.serve_forever()


class _Ranges(SimpleHTTPRequestHandler):
    """Answers requests for part of a file, after a while."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the bytes that are asked for."""
        time.sleep(LATENCY)
        file = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            super().do_GET()
            return
        first, last = int(asked[1]), min(int(asked[2]), file.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{file.stat().st_size}")
        self.end_headers()
        self.wfile.write(read(str(file), first, last + 1 - first))

    def log_message(self, *_: object) -> None:
        """Say nothing."""
