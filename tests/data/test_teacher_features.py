import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.feature_manifest import Manifest
from kdpl.data.teacher_features import TeacherFeatures
from kdpl.errors import DataError

IMAGES, VIEWS, WIDTH, SHARD = 7, 3, 6, 8


def manifest(**changes):
    made = Manifest.of(
        teacher="t" * 32,
        width=WIDTH,
        dataset="folder",
        sources=[f"/data/{i}.png" for i in range(IMAGES)],
        image_size=32,
        augmentation=RandomResizedCrop(),
        view_seed=1,
        views=VIEWS,
    )
    return Manifest(**{**vars(made), "rows_per_shard": SHARD, **changes})


def content(rows):
    """Parameters and features that cannot be mixed up."""
    rows = np.asarray(rows)
    parameters = [tuple(row + np.arange(5) / 8 + 1e-9) for row in rows.tolist()]
    return parameters, (rows[:, None] + np.arange(WIDTH) / 16).astype(np.float16)


def write(features, rows):
    parameters, values = content(rows)
    for row, numbers in zip(rows, parameters, strict=True):
        features.write_parameters(row, numbers)
    features.write_features(np.array(rows), values)


@pytest.fixture
def made(tmp_path):
    return TeacherFeatures.create(tmp_path / "cache", manifest())


def refused(error):
    text = str(error.value)
    assert "\n" not in text
    assert ": " in text
    return text


def test_what_is_written_is_read_bit_for_bit_in_any_order_and_anew(made):
    order = np.random.default_rng(0).permutation(IMAGES * VIEWS).tolist()
    for part in (order[:5], order[5:6], order[6:]):
        write(made, part)
    for features in (made, TeacherFeatures.open(made.folder), pickle.loads(pickle.dumps(made))):  # noqa: S301
        for row in range(IMAGES * VIEWS):
            parameters, values = content([row])
            read = features.read(row)
            assert read.parameters == parameters[0], "float64, or a view would not be the same pixels"
            assert read.feature.dtype == np.float16
            assert np.array_equal(read.feature, values[0])
    made.require_shards()


def test_shards_have_the_layout_that_is_documented(made):
    write(made, [9, 13])
    parameters, values = content([9, 13])
    raw = made.path(1).read_bytes()
    assert len(raw) == SHARD * (8 * 5 + 4 + 2 * WIDTH)
    assert made.path(2).stat().st_size == (IMAGES * VIEWS - 2 * SHARD) * (8 * 5 + 4 + 2 * WIDTH), "the rest"
    assert struct.unpack_from("<5d", raw, 5 * 40) == parameters[1]
    start = SHARD * 44 + 1 * 12
    assert raw[start : start + 12] == values[0].astype("<f2").tobytes()
    (checksum,) = struct.unpack_from("<I", raw, SHARD * 40 + 4 * 1)
    assert checksum == zlib.crc32(values[0].tobytes(), zlib.crc32(struct.pack("<5d", *parameters[0]), 9))


def test_a_row_is_missing_until_its_feature_is_written(made):
    every = np.arange(IMAGES * VIEWS)
    assert made.missing(every).tolist() == every.tolist()
    made.write_parameters(4, content([4])[0][0])
    assert made.read(4) is None
    write(made, [3, 8, 20])
    assert made.missing(np.array([20, 4, 3, 8, 0])).tolist() == [4, 0]
    write(TeacherFeatures.open(made.folder), [4])
    assert made.missing(every).tolist() == [i for i in range(21) if i not in (3, 4, 8, 20)]


def test_an_empty_cache_takes_up_no_room(tmp_path):
    big = TeacherFeatures.create(tmp_path / "cache", manifest(images=100_000, width=768, rows_per_shard=65_536))
    assert sum(path.stat().st_size for path in big.folder.iterdir()) > 300_000 * 1500
    assert sum(path.stat().st_blocks * 512 for path in big.folder.iterdir()) < 1e6


@pytest.mark.parametrize("place", ["parameters", "checksum", "feature"])
def test_a_changed_byte_is_found_when_the_row_is_read(made, place):
    write(made, range(IMAGES * VIEWS))
    raw = bytearray(made.path(1).read_bytes())
    raw[{"parameters": 3 * 40 + 7, "checksum": 8 * 40 + 4 * 3, "feature": 8 * 44 + 3 * 12 + 5}[place]] ^= 1
    made.path(1).write_bytes(raw)
    read = TeacherFeatures.open(made.folder)
    assert read.read(10) is not None
    with pytest.raises(DataError, match=r"shard-00001\.bin is damaged \(wrong checksum in row 3\): remove") as error:
        read.read(8 + 3)
    refused(error)


def test_a_row_in_the_place_of_another_is_found(made):
    write(made, [0, 1])
    raw = bytearray(made.path(0).read_bytes())
    raw[:40], raw[320:324], raw[352:364] = raw[40:80], raw[324:328], raw[364:376]
    made.path(0).write_bytes(raw)
    with pytest.raises(DataError, match="wrong checksum in row 0"):
        TeacherFeatures.open(made.folder).read(0)


@pytest.mark.parametrize(("damage", "words"), [("cut", "has 100 bytes in place of 448"), ("gone", "is missing")])
def test_a_shard_that_is_cut_or_gone_is_named_and_one_that_is_gone_can_be_filled_again(made, damage, words):
    write(made, range(IMAGES * VIEWS))
    if damage == "cut":
        made.path(1).write_bytes(made.path(1).read_bytes()[:100])
    else:
        made.path(1).unlink()
    read = TeacherFeatures.open(made.folder)
    with pytest.raises(DataError, match=rf"shard-00001\.bin {words}: remove shard-00001\.bin and fill") as error:
        read.require_shards()
    refused(error)
    made.path(1).unlink(missing_ok=True)
    read.restore_shards()
    read.require_shards()
    assert read.missing(np.arange(21)).tolist() == list(range(8, 16))


def test_another_folder_is_not_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="mine holds something else than a teacher cache") as error:
        TeacherFeatures.create(tmp_path / "mine", manifest())
    refused(error)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    TeacherFeatures.create(tmp_path / "empty", manifest()).require_shards()


def test_one_writes_at_a_time(made):
    made.lock()
    other = TeacherFeatures.open(made.folder)
    with pytest.raises(DataError, match="is being filled by another process") as error:
        other.lock()
    refused(error)
    made.unlock()
    third = TeacherFeatures.open(made.folder)
    third.lock()
    del third
    made.lock()


_WRITER = """
import os, sys
import numpy as np
from pathlib import Path
from kdpl.data.teacher_features import TeacherFeatures
features = TeacherFeatures.open(Path(sys.argv[1]))
features.lock()
for row in range(13):
    features.write_parameters(row, (row,) * 5)
    if row < 12:
        features.write_features(np.array([row]), np.full((1, 6), row, dtype=np.float16))
os.kill(os.getpid(), 9)
"""


def test_a_writer_that_is_killed_leaves_whole_rows_and_no_lock(made):
    writer = [sys.executable, "-c", _WRITER, str(made.folder)]
    assert subprocess.run(writer, check=False).returncode == -9
    made.lock()
    assert made.missing(np.arange(21)).tolist() == list(range(12, 21))
    assert all(made.read(row).parameters == (row,) * 5 for row in range(12))


def test_of_two_processes_that_make_one_cache_at_the_same_time_the_second_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    original = TeacherFeatures._create_shard
    first = []

    def meanwhile(self, shard):
        if not first:
            first.append(None)
            first[0] = TeacherFeatures.create(folder, manifest())
            first[0].lock()
        original(self, shard)

    monkeypatch.setattr(TeacherFeatures, "_create_shard", meanwhile)
    with pytest.raises(DataError, match=r"another process made the teacher cache .* at the same time and fills it"):
        TeacherFeatures.create(folder, manifest())
    first[0].require_shards()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
