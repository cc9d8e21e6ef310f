import errno
import io
import os
import resource
import tarfile
import tempfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
import torch
import world
from runs import noise
from torch.utils.data import Dataset
from zoo import add

from kdpl import DomainDataModule
from kdpl.data.augmentation import to_tensor
from kdpl.data.batches import LabeledBatch
from kdpl.data.loader import LazyLoader, TrainSampler
from kdpl.data.names import Names
from kdpl.data.shards import archives, pieces, spool
from kdpl.data.shards.pieces import WINDOW, InPiece, InPieces, by_pieces
from kdpl.data.sources import content_of, find_unlabeled
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing

IMAGE = 3000  # bytes


def content(number):
    return bytes([number + 1]) * IMAGE


def shard_of(numbers, note=b""):
    """A shard of images that say their number, each followed by a note."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for number in numbers:
            add(shard, f"{number:03d}.png", content(number))
            if note:
                add(shard, f"{number:03d}.txt", note)
    return file.getvalue()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """URLs of twenty shards of ten images each, and a list of all later reads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool._fetched.cache_clear()
    files = fsspec.filesystem("memory")
    for number in range(20):
        files.pipe(
            f"/pool/{number:02d}.tar",
            shard_of(range(10 * number, 10 * number + 10), note=b"a note"),
        )
    names = find_unlabeled("memory://pool/{00..19}.tar")
    reads, read = [], spool.read
    monkeypatch.setattr(spool, "read", lambda path, *args: reads.append(path) or read(path, *args))
    yield names, reads
    files.rm("/pool", recursive=True)


def distant(reads):
    return [path for path in reads if "://" in path]


@pytest.mark.parametrize("size", [2 * IMAGE, 5 * IMAGE, 10**6])
def test_an_epoch_is_one_read_for_each_piece_of_a_shard_whatever_process_reads(
    pool, monkeypatch, size
):
    names, reads = pool
    monkeypatch.setattr(pieces, "PIECE", size)
    sources = InPieces(names)
    assert len(sources.starts) == -(-200 * IMAGE // size)
    for number, (index, _) in enumerate(
        TrainSampler(200, 8, seed=1, shuffle=by_pieces(sources.starts, 200))
    ):
        if number % 50 == 0:
            spool._fetched.cache_clear()  # as in another process
        assert content_of(sources[index]) == content(index)
    assert len(distant(reads)) == max(20, len(sources.starts))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_on_shards_is_the_same_for_any_number_of_workers_and_processes_and_resumes(
    tmp_path, monkeypatch, num_workers
):
    monkeypatch.setattr(pieces, "PIECE", 10_000)
    for shard in range(10):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(20 * shard, 20 * shard + 20):
                file = io.BytesIO()
                noise(40, 40, seed=number).save(file, "PNG")
                add(tar, f"{number}.png", file.getvalue())
    (tmp_path / "data/train/a").mkdir(parents=True)
    noise(8, 8).save(tmp_path / "data/train/a/0.png")

    def batches(rank=0, world_size=1, batch_size=8):
        own = {
            "root": str(tmp_path / "data"),
            "unlabeled": str(tmp_path / "{0..9}.tar"),
            "augmentation": "none",
        }
        datamodule = DomainDataModule(
            "folder", **own, batch_size=batch_size, num_workers=num_workers, seed=3
        )
        monkeypatch.setattr(datamodule, "_processes", lambda: (rank, world_size))
        return datamodule.train_dataloader_for("unlabeled", Resizing(40))

    alone = batches()
    seen = [pair for batch in alone for pair in zip(batch.images, batch.indices, strict=True)]
    assert len(alone.dataset.sources.starts) > WINDOW
    assert [int(index) for _, index in seen] == [index for index, _ in alone.sampler]
    # all but the labelled image, which comes after those in shards
    in_shards = [(pixels, int(index)) for pixels, index in seen if index < 200]
    assert len(seen) - 1 <= len(in_shards)
    assert all(torch.equal(pixels, to_tensor(noise(40, 40, seed=i))) for pixels, i in in_shards)
    two = zip(*(batches(rank, 2, 4) for rank in range(2)), strict=True)
    merged = [
        torch.stack([batch.indices for batch in both], dim=1).flatten().tolist() for both in two
    ]
    assert merged == [batch.indices.tolist() for batch in alone]
    resumed = LazyLoader(alone.dataset, alone.sampler, 8, num_workers, batches_done=lambda: 7)
    assert [batch.indices.tolist() for batch in resumed] == merged[7:]


def test_a_piece_is_read_as_it_is_now_whatever_an_earlier_run_kept_and_again_once_it_made_room(
    pool, monkeypatch
):
    names, reads = pool
    content_of(InPieces(names)[0])
    spool._fetched.cache_clear()
    files = fsspec.filesystem("memory")
    files.pipe("/pool/00.tar", files.cat("/pool/00.tar").replace(content(0), content(99)))
    sources = InPieces(names)
    assert content_of(sources[0]) == content(99)
    monkeypatch.setattr(spool, "MOST_PIECES", 3)
    unfinished = spool._folder() / "0.part"
    unfinished.write_bytes(b"")
    os.utime(unfinished, (0, 0))
    for index in (10, 20, 30, 40, 0):
        content_of(sources[index])
    kept = [path for path in spool._folder().iterdir() if path.suffix != ".lock"]
    assert len(kept) == 3
    assert [path[-6:] for path in distant(reads)] == [
        f"{i}.tar" for i in ("00", "00", "01", "02", "03", "04", "00")
    ]


def test_images_are_read_alone_where_most_of_a_piece_is_something_else(pool, tmp_path):
    names, _ = pool
    assert isinstance(InPieces(names)[0], InPiece)
    few = InPieces(names.take(slice(None, None, 5)))
    assert not isinstance(few[0], InPiece), "of ten images in a shard two are wanted"
    (tmp_path / "notes.tar").write_bytes(shard_of(range(10), note=bytes(4 * IMAGE)))
    notes = InPieces(find_unlabeled(str(tmp_path / "notes.tar")))
    assert not isinstance(notes[3], InPiece)
    assert content_of(few[7]) == content(35)
    assert content_of(notes[3]) == content(3)


def test_a_pool_of_files_has_no_pieces_and_one_of_both_has_files_among_them(pool):
    names, _ = pool
    files = Names.of(f"photos/{number}.jpg" for number in range(200))
    assert archives.arrange(files) == (files, None)
    both = archives.arrange(Names.joined([files, names])).sources
    assert both.starts.tolist() == [0, 64, 128, 192]
    assert both[3] == "photos/3.jpg"
    assert content_of(both[203]) == content(3)


def test_a_folder_that_cannot_hold_pieces_is_one_sentence(pool, monkeypatch):
    names, _ = pool
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        with world.refused(DataError, "kdpl-.* belongs to another user: set TMPDIR"):
            content_of(InPieces(names)[0])

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with world.refused(
        DataError, r"kdpl-.* cannot hold pieces of shards \(.*No space left on device\): set TMPDIR"
    ):
        content_of(InPieces(names)[0])


@pytest.mark.slow
def test_workers_get_a_piece_behind_a_url_by_one_request(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(20):
        (tmp_path / f"{number:02d}.tar").write_bytes(shard_of(range(10 * number, 10 * number + 10)))
    monkeypatch.setattr(pieces, "PIECE", 5 * IMAGE)
    with served(tmp_path) as (url, requests):
        sources = InPieces(find_unlabeled(f"{url}/{{00..19}}.tar"))
        requests.clear()
        sampler = TrainSampler(200, 8, seed=1, shuffle=by_pieces(sources.starts, 200))
        loader = LazyLoader(Contents(sources), sampler, 8, num_workers=2)
        seen = [number for batch in loader for number in batch.labels.tolist()]
    assert sorted(seen) == list(range(200))
    assert len(requests) == len(set(requests)) == len(sources.starts) == 40


class Contents(Dataset):
    """The number that an image says, for a key of training."""

    def __init__(self, sources):
        self.sources = sources

    def __getitem__(self, key):
        return LabeledBatch(torch.zeros(1), content_of(self.sources[key[0]])[0] - 1)


@contextmanager
def served(folder):
    """The URL of the files of a folder, and a list of the ranges that are asked for."""
    requests = []

    class Ranges(SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["Range"]))
            content = Path(self.translate_path(self.path)).read_bytes()
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            part = content[first : last + 1]
            self.send_header("Content-Length", str(len(part)))
            self.send_header(
                "Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            )
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


@pytest.mark.slow
def test_ten_thousand_shards_are_trained_on_with_few_files_open(tmp_path, monkeypatch):
    for number in range(10_000):
        (tmp_path / f"{number:04d}.tar").write_bytes(shard_of([number % 200]))
    monkeypatch.setattr(pieces, "PIECE", 50 * IMAGE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        sources = InPieces(find_unlabeled(str(tmp_path / "{0000..9999}.tar")))
        order = [
            index
            for index, _ in TrainSampler(
                10_000, 8, seed=1, shuffle=by_pieces(sources.starts, 10_000)
            )
        ]
        assert all(content_of(sources[index]) == content(index % 200) for index in order)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (len(order), len(sources.starts)) == (10_000, 200)
