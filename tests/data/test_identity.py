"""What an image is, where something is kept of it: its name, its size and the time of its last change."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from runs import image_folder
from zoo import write_shard

from kdpl.data import identity
from kdpl.data.identity import CHANGED, SIZES, digest_of, files_of, stamp
from kdpl.data.names import Names
from kdpl.data.paths import find_images
from kdpl.data.readers.digits import read_digits
from kdpl.data.sources import find_unlabeled


def touch(file, seconds=100):
    """Change nothing but the time of a file."""
    status = Path(file).stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "here", images=3, splits=("train",))


def images_of(folder):
    return Names.of(find_images(folder))


def differing(before, now):
    assert before.keys() == now.keys() == {SIZES, CHANGED}
    return {name for name in now if before[name] != now[name]}


def test_a_dataset_is_the_same_wherever_it_is_if_copies_keep_their_times(folder, tmp_path):
    before, names = files_of(images_of(folder)), digest_of(images_of(folder))
    shutil.copytree(folder, tmp_path / "else/where")  # as cp -a
    folder.rename(tmp_path / "moved")
    for place in (tmp_path / "else/where", tmp_path / "moved"):
        assert (files_of(images_of(place)), digest_of(images_of(place))) == (before, names)
        assert files_of([*images_of(place)]) == before
    # as cp without -p
    copied = shutil.copytree(tmp_path / "moved", tmp_path / "copied", copy_function=shutil.copyfile)
    touch(next(copied.rglob("0.png")))
    assert differing(before, files_of(images_of(copied))) == {CHANGED}


@pytest.mark.parametrize("change", ["content", "length", "time", "exchange", "removal"])
def test_another_size_or_time_is_another_image(change, folder):
    images = images_of(folder)
    before, file = files_of(images), folder / "train/dog/1.png"
    if change == "content":
        # as long as before
        file.write_bytes(bytes(len(file.read_bytes())))
        touch(file)
    elif change == "length":
        with file.open("ab") as opened:
            opened.write(b"more")
        touch(file)
    elif change == "time":
        touch(file)
    elif change == "exchange":
        file.write_bytes(b"1")
        other = folder / "train/cat/0.png"
        before = files_of(images)
        for name, to in ((file, "x"), (other, file), (folder / "train/dog/x", other)):
            name.rename(folder / "train/dog" / to)
    else:
        file.unlink()
    now = files_of(images)
    only_time = change in ("content", "time")
    assert differing(before, now) == ({CHANGED} if only_time else {SIZES, CHANGED})
    if change in ("content", "length", "time"):
        when = datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
        assert now[CHANGED].startswith(f"{when.isoformat(' ', 'seconds')} of 1.png (")


def test_images_in_a_shard_change_with_the_shard(folder, tmp_path):
    write_shard(tmp_path / "a.tar", [0, 1])
    shard = tmp_path / "a.tar"
    file = str(folder / "train/cat/0.png")
    images = Names.of([*find_unlabeled(str(shard)), file])
    before = files_of(images)
    assert files_of([*images]) == before
    touch(file)
    changed = files_of(images)
    assert differing(before, changed) == {CHANGED}
    touch(shard, 1000)
    assert differing(changed, files_of(images)) == {CHANGED}
    assert "0001.png" in files_of(images)[CHANGED] or "0000.png" in files_of(images)[CHANGED]
    # the other image of a shard as large
    swapped = Names(images.text, images.rows[[1, 0, 2]], images.folders)
    assert SIZES in differing(files_of(images), files_of(swapped))


def test_what_is_not_a_file_has_its_name_alone():
    assert files_of([record.source for record in read_digits().test]) == {}
    assert files_of([]) == {}
    assert files_of(["no\0name.png"]) == {}
    assert stamp("nowhere.png") == [-1, -1]


def test_an_image_costs_one_system_call_and_a_shard_one(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_CHUNK", 4)
    write_shard(tmp_path / "a.tar", [0, 1, 2])
    images = Names.joined([images_of(folder), find_unlabeled(str(tmp_path / "a.tar"))])
    calls, plain = [], os.stat
    expected = files_of(images)
    monkeypatch.setattr(identity.os, "stat", lambda path: calls.append(path) or plain(path))
    assert files_of(images) == expected
    # in chunks of four images
    assert sorted(calls) == sorted([*images[:6], *[str(tmp_path / "a.tar")] * 2])


def test_times_are_compared_in_nanoseconds(folder):
    images = images_of(folder)
    before = files_of(images)
    status = Path(images[0]).stat()
    os.utime(images[0], ns=(0, status.st_mtime_ns + 1))
    assert differing(before, files_of(images)) == {CHANGED}
    assert np.array(stamp(images[0])).dtype == np.int64
