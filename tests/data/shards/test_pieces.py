import errno
import io
import os
import resource
import tarfile
from pathlib import Path

import fsspec
import pytest
import torch
import world
from fsspec.implementations.memory import MemoryFileSystem
from runs import noise
from torch.utils.data import Dataset
from zoo import add, encoded

from kdpl import DomainDataModule
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.batches import LabeledBatch
from kdpl.data.loader import LazyLoader, TrainSampler
from kdpl.data.names import Names
from kdpl.data.shards import archives, pieces, spool
from kdpl.data.shards.pieces import WINDOW, InPiece, InPieces, by_pieces
from kdpl.data.sources import content_of, find_unlabeled, open_source
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
def pool(monkeypatch):
    """URLs of twenty shards of ten images each, and a list of all later reads."""
    files = fsspec.filesystem("memory")
    for number in range(20):
        shard = shard_of(range(10 * number, 10 * number + 10), note=b"a note")
        files.pipe(f"/pool/{number:02d}.tar", shard)
    names = find_unlabeled("memory://pool/{00..19}.tar")
    reads, read = [], spool.read
    monkeypatch.setattr(spool, "read", lambda path, *args: reads.append(path) or read(path, *args))
    yield names, reads
    files.rm("/pool", recursive=True)


def order_of(sources):
    size = len(sources.names)
    return TrainSampler(size, 8, seed=1, shuffle=by_pieces(sources.starts, size))


def distant(reads):
    return [path for path in reads if "://" in path]


@pytest.mark.parametrize("size", [2 * IMAGE, 5 * IMAGE, 10**6])
def test_an_epoch_reads_each_piece_once_in_any_process(pool, monkeypatch, size):
    names, reads = pool
    monkeypatch.setattr(pieces, "PIECE", size)
    sources = InPieces(names)
    assert len(sources.starts) == -(-200 * IMAGE // size)
    for number, (index, _) in enumerate(order_of(sources)):
        if number % 50 == 0:
            spool._fetched.cache_clear()  # as in another process
        assert content_of(sources[index]) == content(index)
    assert len(distant(reads)) == max(20, len(sources.starts))


def write_pool(folder, kind):
    """Ten files of twenty images each, and a labelled image; returns the pool's place."""
    for start in range(0, 200, 20):
        contents = [encoded(number) for number in range(start, start + 20)]
        if kind == "parquet":
            pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
            table = pa.table({"image": pa.array(contents)})
            pq.write_table(table, folder / f"{start}.parquet", row_group_size=2)
        else:
            with tarfile.open(folder / f"{start}.tar", "w") as tar:
                for number, image in enumerate(contents, start):
                    add(tar, f"{number}.png", image)
    (folder / "data/train/a").mkdir(parents=True)
    noise(8, 8).save(folder / "data/train/a/0.png")
    return f"{folder}/*.{kind}"


@pytest.mark.parametrize(("kind", "num_workers"), [("tar", 0), ("parquet", 2)])
def test_processes_share_an_epoch_of_shards_and_it_resumes(
    tmp_path, monkeypatch, kind, num_workers
):
    monkeypatch.setattr(pieces, "PIECE", 600 if kind == "tar" else 1)
    place = write_pool(tmp_path, kind)

    def batches(rank=0, world_size=1, batch_size=8):
        options = {"unlabeled": place, "augmentation": "none", "seed": 3}
        options |= {"batch_size": batch_size, "num_workers": num_workers}
        data = DomainDataModule("folder", str(tmp_path / "data"), **options)
        monkeypatch.setattr(data, "_processes", lambda: (rank, world_size))
        return data.train_dataloader_for("unlabeled", Resizing(7))

    alone = batches()
    sources = alone.dataset.sources
    assert len(sources.starts) > WINDOW
    seen = [pair for batch in alone for pair in zip(batch.images, batch.indices, strict=True)]
    for pixels, index in seen:
        plain = open_source(sources.names[int(index)])
        assert torch.equal(pixels, to_tensor(resize_and_crop(plain, Resizing(7))))
    order = [int(index) for _, index in seen]
    assert order == [index for index, _ in alone.sampler]
    # two processes take turns, four images each
    halves = [[index for index, _ in batches(rank, 2, 4).sampler] for rank in range(2)]
    assert [index for pair in zip(*halves, strict=True) for index in pair] == order
    resumed = LazyLoader(alone.dataset, alone.sampler, 8, 0, batches_done=lambda: 20)
    assert [index for batch in resumed for index in batch.indices.tolist()] == order[160:]


def test_a_piece_is_read_anew_by_each_run_and_once_it_made_room(pool, monkeypatch):
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
    assert [path[-6:-4] for path in distant(reads)] == ["00", "00", "01", "02", "03", "04", "00"]


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
    said = r"kdpl-.* cannot hold pieces of shards \(.*No space left on device\): set TMPDIR"
    with world.refused(DataError, said):
        content_of(InPieces(names)[0])


class Numbers(Dataset):
    """The number that an image says, for a key of training."""

    def __init__(self, sources):
        self.sources = sources

    def __getitem__(self, key):
        return LabeledBatch(torch.zeros(1), content_of(self.sources[key[0]])[0] - 1)


def test_workers_get_a_piece_behind_a_url_by_one_request(pool, monkeypatch, tmp_path):
    names, _ = pool
    monkeypatch.setattr(pieces, "PIECE", 5 * IMAGE)
    get = MemoryFileSystem.cat_file

    def noting(files, path, start=None, end=None):
        with (tmp_path / "requests.txt").open("a") as requests:
            requests.write(f"{path} {start} {end}\n")
        return get(files, path)  # whole, as from a server that ignores ranges

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noting)
    sources = InPieces(names)
    # the workers are forked, and take the patch with them
    loader = LazyLoader(Numbers(sources), order_of(sources), 8, num_workers=2)
    assert sorted(n for batch in loader for n in batch.labels.tolist()) == list(range(200))
    requests = (tmp_path / "requests.txt").read_text().splitlines()
    assert len(requests) == len(set(requests)) == len(sources.starts) == 40


def test_many_shards_are_trained_on_with_few_files_open(tmp_path, monkeypatch):
    for number in range(200):
        (tmp_path / f"{number:03d}.tar").write_bytes(shard_of([number]))
    monkeypatch.setattr(pieces, "PIECE", 10 * IMAGE)
    limits, in_use = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, limits[1]))
    try:
        sources = InPieces(find_unlabeled(str(tmp_path / "{000..199}.tar")))
        order = [index for index, _ in order_of(sources)]
        assert all(content_of(sources[index]) == content(index) for index in order)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (len(order), len(sources.starts)) == (200, 20)
