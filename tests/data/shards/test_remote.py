import re
import socket
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import pytest
import runs
import torch
from world import refused
from zoo import encoded, write_shard

from kdpl.__main__ import main
from kdpl.classifier.sources import find_sources, read_items
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.shards import index, remote
from kdpl.data.sources import content_of, find_unlabeled
from kdpl.errors import ConfigError, DataError, ServerError
from kdpl.runtime.resizing import Resizing

pytest.importorskip("s3fs")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


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
        with file.open("rb") as whole:
            whole.seek(int(asked[1]))
            content = whole.read(int(asked[2]) + 1 - int(asked[1]))
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return BytesIO(content)


@contextmanager
def web(folder, port=0):
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Ranges, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3(folder, patch):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    try:
        files.makedirs("bucket", exist_ok=True)
        for file in folder.iterdir():
            files.put(str(file), f"bucket/shards/{file.name}")
        yield "s3://bucket/shards"
    finally:
        server.stop()


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Two tar shards and a Parquet file of 24 images, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAITS", (0.05, 0.05))
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "0.tar", range(8))
    write_shard(folder / "1.tar", range(8, 16))
    rows = pa.table({"image": [encoded(number) for number in range(16, 24)]})
    pq.write_table(rows, folder / "2.parquet", row_group_size=3)
    return folder


@pytest.fixture(params=["s3", "http"])
def url(request, shards, monkeypatch):
    if request.param == "s3":
        with s3(shards, monkeypatch) as url:
            yield url
    else:
        with web(shards) as server:
            yield f"http://127.0.0.1:{server.server_port}"


def test_shards_behind_a_url_are_those_of_a_folder(shards, url, monkeypatch):
    local = find_unlabeled(str(shards))
    names = [name.replace(str(shards), url) for name in local]
    found = find_unlabeled(f"{url}/")
    assert list(found) == names
    assert [*map(content_of, found)] == [encoded(number) for number in range(24)]
    listed = shards.parent / "list.txt"
    listed.write_text(f"{url}/1.tar\n")
    assert list(find_unlabeled(str(listed))) == names[8:16]
    sources = find_sources([f"{url}/*.tar", f"{url}/{{2,2}}.parquet"])
    assert [item.content for item in read_items(sources[:3])] == [encoded(n) for n in range(24)]
    # the index of the first start is read, and a shard that has changed is indexed again
    looked, look = [], index._look_through
    monkeypatch.setattr(index, "_look_through", lambda shard: looked.append(shard) or look(shard))
    assert list(find_unlabeled(f"{url}/*.tar")) == names[:16]
    assert looked == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_the_same_views_in_the_same_order_as_local_shards(shards, url, workers):
    root = shards.parent / "data"
    runs.image_folder(root, classes=("a",), images=1, splits=("train",))

    def views(pool):
        data = DomainDataModule(
            "folder", str(root), unlabeled=pool, batch_size=5, num_workers=workers
        )
        loader = data.train_dataloader_for("unlabeled", Resizing(7))
        return [(batch.images, batch.indices) for batch in loader]

    assert find_unlabeled(str(shards))  # before workers are forked
    for local, behind_url in zip(views(str(shards)), views(f"{url}/"), strict=True):
        assert all(map(torch.equal, local, behind_url))


def test_what_cannot_be_read_is_one_sentence(shards, monkeypatch):
    with web(shards) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        with refused(DataError, r"gone\.tar does not exist: check the address"):
            find_unlabeled(f"{url}/gone.tar")
        (shards / "none").mkdir()
        with refused(DataError, r"/none/ has no shards"):
            find_unlabeled(f"{url}/none/")
        (shards / "x.tar").write_bytes((shards / "0.tar").read_bytes()[:700])
        with refused(DataError, r"shard http.*x\.tar is damaged"):
            find_unlabeled(f"{url}/x.tar")
        found = find_unlabeled([f"{url}/0.tar", f"{url}/2.parquet"])
        for fault in (500, 503):
            monkeypatch.setattr(Ranges, "fault", fault)
            for image in (found[0], found[-1]):
                index.parquet._read.cache_clear()
                with refused(ServerError, r"cannot be reached \(.*run the command again"):
                    content_of(image)
            # no row says that an image or a shard is damaged
            for shard in (f"{url}/0.tar", f"{url}/2.parquet"):
                with refused(ServerError, r"cannot be reached"):
                    list(read_items([shard]))
    with refused(ConfigError, r"nosuch://x/0\.tar cannot be opened"):
        find_unlabeled("nosuch://x/0.tar")


def test_a_server_that_fails_or_hangs_for_a_while_is_asked_again(shards, monkeypatch):
    monkeypatch.setattr(remote, "_TIMEOUT", 0.5)
    with web(shards) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        image = find_unlabeled(f"{url}/0.tar")[3]
        monkeypatch.setattr(Ranges, "fault", 503)
        monkeypatch.setattr(
            remote.time, "sleep", lambda _: monkeypatch.setattr(Ranges, "fault", None)
        )
        assert content_of(image) == encoded(3)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, refused(ServerError, r"0\.tar cannot be reached"):
        find_unlabeled(f"http://127.0.0.1:{silent.getsockname()[1]}/0.tar")


def test_a_run_whose_server_was_killed_in_an_epoch_resumes_to_the_same_student(
    shards, tmp_path, capsys
):
    root, teacher = tmp_path / "data", tmp_path / "teacher"
    runs.image_folder(root)
    assert main(runs.folder_fit(root, teacher)) == 0
    data = [*runs.configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={root}"]
    options = [*runs.STUDENT, *runs.SHORT, f"--model.init_args.teacher={teacher}"]
    options += ["--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]

    def fit(out, pool):
        chosen = [f"--data.init_args.unlabeled={pool}", f"--out={tmp_path / out}"]
        return main(["fit", *data, *options, "--trainer.limit_train_batches=1.0", *chosen])

    def student(out):
        file = tmp_path / out / "checkpoints/last.ckpt"
        return torch.load(file, weights_only=True)["state_dict"]

    assert fit("local", shards) == 0
    with web(shards) as server:
        port = server.server_port
        url = f"http://127.0.0.1:{port}/"

        def kill():
            server.shutdown()
            server.server_close()

        capsys.readouterr()
        with runs.at_step(11, kill):
            assert fit("web", url) == 1
        assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
    with web(shards, port):
        assert fit("web", url) == 0
    local, resumed = student("local"), student("web")
    assert local.keys() == resumed.keys()
    assert all(torch.equal(local[name], resumed[name]) for name in local)
