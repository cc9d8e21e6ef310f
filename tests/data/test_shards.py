import gzip
import re
import shutil
import tarfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import pytest
import runs
import torch
from runs import noise
from world import refused
from zoo import add, encoded, write_shard

from kdpl.classifier.sources import find_sources, read_items
from kdpl.data import shards as module
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.options import ReadingOptions
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.errors import ConfigError, DataError, KdplError
from kdpl.runtime.resizing import Resizing

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


IMAGES = [encoded(number) for number in range(32)]


class Ranges(SimpleHTTPRequestHandler):
    """A web server that sends parts of files, or with ``fault`` a status of its own."""

    fault = None

    def log_message(self, *args):
        pass

    def send_head(self):
        if self.fault:
            return self.send_error(self.fault)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if not asked or not file.is_file():
            return super().send_head()
        content = file.read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return BytesIO(content)


@contextmanager
def web(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3(folder):
    s3fs = pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.makedirs("bucket", exist_ok=True)
        files.put(f"{folder}/", "bucket/shards/", recursive=True)
        yield "s3://bucket/shards"
    server.stop()


def write_rows(path, contents, rows=100):
    """A Parquet file with the column ``image``, in row groups of so many rows."""
    table = pa.table({"image": [*contents], "label": ["x"] * len(contents)})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)


@pytest.fixture
def shards(tmp_path):
    """Two tar archives and two Parquet files, of 8 images each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "0.tar", range(8))
    write_shard(folder / "1.tar", range(8, 16))
    write_rows(folder / "2.parquet", IMAGES[16:24], 3)
    # as data sets of Hugging Face are written
    write_rows(folder / "3.parquet", [{"bytes": image, "path": "x"} for image in IMAGES[24:]], 5)
    return folder


@pytest.fixture(params=[web, s3])
def url(request, shards):
    with request.param(shards) as url:
        yield url


@pytest.fixture
def scanned(monkeypatch):
    """The names of the shards that were indexed or predicted."""
    names, members, rows = [], module._members, module._find_rows
    monkeypatch.setattr(
        module, "_members", lambda shard, read: names.append(shard[-5:]) or members(shard, read)
    )
    monkeypatch.setattr(module, "_find_rows", lambda shard: names.append(shard[-9:]) or rows(shard))
    return names


def names_in(folder):
    tars = [f"{folder}/{i // 8}.tar/{i:04d}.png" for i in range(16)]
    return [*tars, *(f"{folder}/{i}.parquet/{row}" for i in (2, 3) for row in range(8))]


def test_files_and_shards_are_found_in_their_order_each_image_once(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True)
        noise(9, 7).save(tmp_path / "p" / name)
    for number in range(3):
        write_shard(tmp_path / f"{number:03d}.tar", [number])
    (tmp_path / "list.txt").write_text(f"p/b/2.png\n\n000.tar\n{tmp_path}/p/a/1.png\n")
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("p/**/*.png", "p/a/1.png p/b/2.png"),
        ("p/{b,a}", "p/b/2.png p/a/1.png"),
        ("00{1..2}.tar", "001.tar/0001.png 002.tar/0002.png"),
        ("list.txt", f"p/b/2.png 000.tar/0000.png {tmp_path}/p/a/1.png"),
        (["p/b", "p", "000.tar"], "p/b/2.png p/a/1.png 000.tar/0000.png"),
    ):
        assert list(find_unlabeled(given)) == expected.split()


def test_images_of_shards_are_found_once_until_a_shard_changes(shards, scanned, monkeypatch):
    found = find_unlabeled(str(shards))
    assert list(found) == names_in(shards)
    assert [*map(content_of, found)] == IMAGES
    assert [*map(content_of, find_unlabeled(f"{shards}/1.tar"))] == IMAGES[8:16]
    monkeypatch.chdir(shards)
    assert list(find_unlabeled(["3.parquet", "0.tar"]))[8] == "0.tar/0000.png"
    assert sorted(scanned) == ["0.tar", "1.tar", "2.parquet", "3.parquet"]
    scanned.clear()
    write_shard(shards / "1.tar", [7, 8, 9])
    write_rows(shards / "2.parquet", IMAGES[5:7])
    for _ in range(2):
        contents = [*map(content_of, find_unlabeled(str(shards)))]
        assert contents == [*IMAGES[:8], *IMAGES[7:10], *IMAGES[5:7], *IMAGES[24:]]
    assert sorted(scanned) == ["1.tar", "2.parquet"]


def test_a_damaged_index_is_made_again_and_none_is_needed(shards, scanned, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = list(find_unlabeled(f"{shards}/0.tar"))
    (file,) = (tmp_path / "cache/kdpl/shards").iterdir()
    for content in (file.read_bytes()[:-20], b"", b"no index"):
        file.write_bytes(content)
        assert list(find_unlabeled(f"{shards}/0.tar")) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert list(find_unlabeled(f"{shards}/0.tar")) == expected
    assert len(scanned) == 5


def test_members_that_leave_the_folder_or_are_not_files_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as shard:
        add(shard, "../up.png", IMAGES[1])
        add(shard, "/etc/root.png", IMAGES[1])
        add(shard, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(shard, "hard.png", kind=tarfile.LNKTYPE, link="good.png")
        add(shard, "device.png", kind=tarfile.CHRTYPE)
        add(shard, "folder.png", kind=tarfile.DIRTYPE)
        add(shard, ".hidden.png", IMAGES[1])
        add(shard, "good.png", IMAGES[1])
        # of two of a name, the later counts; no file of some systems may have the others' names
        for number, name in enumerate(("good.png", "a:b?.png", "c:\\d*.png"), 2):
            add(shard, name, IMAGES[number])
    found = find_unlabeled(str(tmp_path / "evil.tar"))
    names = [f"{tmp_path}/evil.tar/{name}" for name in ("good.png", "a:b?.png", "c:\\d*.png")]
    assert list(found) == names
    assert [*map(content_of, found)] == IMAGES[2:5]
    assert [item.name for item in read_items([f"{tmp_path}/evil.tar"])] == [names[0], *names]
    # nothing is unpacked
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("TAR", "w")])
def test_prediction_reads_a_tar_in_its_order(ending, mode, tmp_path):
    path = write_shard(tmp_path / f"s.{ending}", [2, 1], mode)
    items = [(item.name, item.content) for item in read_items([str(path)])]
    assert items == [(f"{path}/0002.png", IMAGES[2]), (f"{path}/0001.png", IMAGES[1])]


@pytest.mark.parametrize("damage", [0, 100, 700, 1536 + 100, 1536 + 512 + 20, "garbled"])
def test_a_damaged_tar_gives_what_it_has_and_then_an_error(damage, tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as shard:
        for i in range(3):  # each takes a header and two blocks of 512 bytes
            add(shard, f"{i}.png", IMAGES[1][:20] + bytes(600))
    content = path.read_bytes()
    garbled = content[:1536] + b"?" * 300 + content[1836:]
    path.write_bytes(garbled if damage == "garbled" else content[:damage])
    *images, error = read_items([str(path)])
    assert len(images) == (1 if damage == "garbled" else damage // 1536)
    with refused(DataError, r"shard .*s\.tar cannot be read \("):
        error.open(Decoding())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.tar", None, "does not exist"),
        ("x.tar", lambda whole: whole[:700], "cannot be read"),
        ("x.tar", gzip.compress, "cannot be read"),
        ("x.tar.gz", gzip.compress, "is compressed"),
        ("x.tar", lambda _: bytes(10_240), "has no images"),
        ("x.parquet", lambda whole: whole, "cannot be read"),
        ("x.parquet", {"label": ["a"], "url": ["b"]}, "has 0 columns .* label, url"),
        ("x.parquet", {"jpg": [b"a"], "png": [b"b"]}, "has 2 columns .* jpg, png"),
        ("x.parquet", {"image": pa.array([], pa.binary())}, "has no images"),
    ],
)
def test_a_shard_that_cannot_be_trained_on_is_one_sentence(tmp_path, name, content, message):
    path, listed = tmp_path / name, tmp_path / "list.txt"
    listed.write_text(name)
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    elif content:
        path.write_bytes(content(write_shard(tmp_path / "whole.tar", [1, 2]).read_bytes()))
    with refused(DataError, rf"shard {path} {message}"):
        find_unlabeled(str(listed))


def test_huge_images_and_row_groups_are_refused(shards, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 100)
    with refused(DataError, r"0\.tar cannot be read \(0000\.png has more than 100 bytes"):
        find_unlabeled(f"{shards}/0.tar")
    with refused(DataError, r"2\.parquet has a row group above 100 bytes"):
        find_unlabeled(f"{shards}/2.parquet")


def test_a_shard_that_was_cut_or_removed_after_indexing_is_one_sentence(shards):
    found = find_unlabeled(str(shards))
    (shards / "0.tar").write_bytes((shards / "0.tar").read_bytes()[:1600])
    with refused(DataError, r"0\.tar lacks bytes of .*0001\.png"):
        open_source(found[1])
    write_rows(shards / "2.parquet", [IMAGES[1]])
    module._opened.cache_clear()
    with refused(DataError, r"2\.parquet cannot be read"):
        open_source(found[20])
    shutil.rmtree(shards)
    module._opened.cache_clear()
    for image in (found[0], found[16]):
        with refused(DataError, r"does not exist: restore it"):
            content_of(image)


def test_damaged_images_of_parquet_files_are_refused_together_or_left_out(tmp_path):
    contents = [b"no", IMAGES[1], None, b"", IMAGES[4]]
    path = write_rows(tmp_path / "x.parquet", contents, 2)
    items = list(read_items([path]))
    assert [item.content for item in items] == [content or b"" for content in contents]
    with refused(DataError, r"image .*x\.parquet/2 cannot be read \(no format"):
        items[2].open(Decoding())

    root = runs.image_folder(tmp_path / "data", classes=("a",), images=1, splits=("train",))
    refusing = DomainDataModule("folder", str(root), unlabeled=path)
    with refused(DataError, r"3 of 6 images cannot be used \(image .*x\.parquet/0 "):
        refusing.reading.scan(trains=True)
    skipping = DomainDataModule(
        "folder", str(root), unlabeled=path, reading=ReadingOptions(bad_images="skip")
    )
    skipping.reading.scan(trains=True)
    assert list(skipping.pool.images)[:2] == [f"{path}/1", f"{path}/4"]


def test_shards_behind_a_url_are_those_of_a_folder(shards, url, scanned):
    for _ in range(2):
        found = find_unlabeled(f"{url}/")
        assert list(found) == names_in(url)
    assert sorted(scanned) == ["0.tar", "1.tar", "2.parquet", "3.parquet"]
    assert [*map(content_of, found)] == IMAGES
    listed = shards.parent / "list.txt"
    listed.write_text(f"{url}/1.tar\n")
    assert list(find_unlabeled(str(listed))) == names_in(url)[8:16]
    sources = find_sources([f"{url}/*.tar", f"{url}/{{2,3}}.parquet"])
    assert [item.content for item in read_items(sources)] == IMAGES


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_the_same_views_in_the_same_order_as_files(shards, url, workers):
    root = runs.image_folder(shards.parent / "data", classes=("a",), images=1, splits=("train",))
    files = shards.parent / "files"
    files.mkdir()
    for number, image in enumerate(IMAGES):
        (files / f"{number:02d}.png").write_bytes(image)

    def views(pool):
        options = {"unlabeled": pool, "batch_size": 5, "num_workers": workers}
        data = DomainDataModule("folder", str(root), **options)
        loader = data.train_dataloader_for("unlabeled", Resizing(7))
        return [(batch.images, batch.indices) for batch in loader]

    expected = views(str(files))
    for pool in (str(shards), f"{url}/"):
        for batch, same in zip(views(pool), expected, strict=True):
            assert all(map(torch.equal, batch, same))


def test_a_server_that_fails_is_one_sentence_and_no_image_is_left_out(shards, monkeypatch):
    root = runs.image_folder(shards.parent / "data", classes=("a",), images=1, splits=("train",))
    with web(shards) as url:
        with refused(KdplError, r"gone\.tar does not exist: check address"):
            find_unlabeled(f"{url}/gone.tar")
        (shards / "none").mkdir()
        with refused(DataError, r"/none/ has no shards"):
            find_unlabeled(f"{url}/none/")
        (shards / "x.tar").write_bytes((shards / "0.tar").read_bytes()[:700])
        with refused(DataError, r"shard http.*x\.tar cannot be read"):
            find_unlabeled(f"{url}/x.tar")
        skipping = ReadingOptions(bad_images="skip", scan=False)
        options = {"batch_size": 1, "num_workers": 0, "reading": skipping}
        data = DomainDataModule("folder", str(root), unlabeled=f"{url}/0.tar", **options)
        batches = iter(data.train_dataloader_for("unlabeled", Resizing(7)))
        next(batches)
        monkeypatch.setattr(Ranges, "fault", 503)
        for message, read in (
            (r"cannot be read \(503.*run the command again", lambda: list(batches)),
            (r"0.tar does not exist", lambda: list(read_items([f"{url}/0.tar"]))),
            (r"2.parquet does not exist", lambda: list(read_items([f"{url}/2.parquet"]))),
        ):
            with refused(KdplError, message) as error:
                read()
            assert type(error.value) is KdplError
    with refused(ConfigError, r"nosuch://x/0\.tar cannot be opened"):
        find_unlabeled("nosuch://x/0.tar")


def test_a_shard_that_changed_on_a_server_is_indexed_again(shards):
    with web(shards) as url:
        assert len(find_unlabeled(f"{url}/0.tar")) == 8
        write_shard(shards / "0.tar", [8, 9])
        assert [*map(content_of, find_unlabeled(f"{url}/0.tar"))] == IMAGES[8:10]
