import shutil
from pathlib import Path

import pytest
import runs
import torch
import world
from runs import noise
from zoo import encoded

from kdpl.classifier.sources import find_sources, read_items
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.options import ReadingOptions
from kdpl.data.shards import parquet
from kdpl.data.shards.index import INDEX_FILE
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, contents, rows, column="image", layout=None, **others):
    """A file of these images, in row groups of so many rows."""
    Path(path).parent.mkdir(exist_ok=True)
    column_of = {column: pa.array([*contents], layout or pa.binary())}
    pq.write_table(pa.table({**column_of, **others}), path, row_group_size=rows)
    return str(path)


def write_struct(path, contents, rows=100):
    """A file as data sets of Hugging Face are written."""
    layout = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [c if c is None else {"bytes": c, "path": "x.png"} for c in contents]
    return write(path, values, rows, layout=layout)


@pytest.fixture
def folder(tmp_path):
    """Files of 40 images in row groups of several sizes and columns of several types."""
    write(tmp_path / "p/a.parquet", map(encoded, range(17)), 3, label=list("x" * 17))
    write(tmp_path / "p/b.parquet", map(encoded, range(17, 25)), 100, "jpg", pa.large_binary())
    write(tmp_path / "p/c/part-1.parquet", map(encoded, range(25, 33)), 1, "bytes")
    write_struct(tmp_path / "p/d.parquet", map(encoded, range(33, 40)), 2)
    (tmp_path / "p/_SUCCESS").write_text("")
    return tmp_path / "p"


def test_each_row_of_a_folder_of_files_is_an_image_named_by_its_number(folder, monkeypatch):
    found = find_unlabeled(str(folder))
    rows = [("a", 17), ("b", 8), ("c/part-1", 8), ("d", 7)]
    names = [f"{folder}/{name}.parquet/{row}" for name, number in rows for row in range(number)]
    assert list(found) == names
    assert [*map(content_of, found)] == [encoded(number) for number in range(40)]
    monkeypatch.setattr(parquet, "index_rows", None)  # the index of the first start is read
    assert (folder / INDEX_FILE).is_file()
    again = find_unlabeled([f"{folder}/b.parquet", f"{folder}/*.parquet"])
    assert list(again) == names[17:25] + names[:17] + names[33:]
    assert content_of(again[-1]) == encoded(39)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_the_same_views_in_the_same_order_as_files(tmp_path, workers):
    runs.image_folder(tmp_path / "data", classes=("a",), images=1, splits=("train",))
    (tmp_path / "files").mkdir()
    for number in range(20):
        (tmp_path / f"files/{number:02d}.png").write_bytes(encoded(number))
    write_struct(tmp_path / "x.parquet", map(encoded, range(20)), 3)

    def views(pool):
        options = {"unlabeled": str(tmp_path / pool), "batch_size": 4, "num_workers": workers}
        data = DomainDataModule("folder", root=str(tmp_path / "data"), **options)
        loader = data.train_dataloader_for("unlabeled", Resizing(7))
        return [(batch.images, batch.indices) for batch in loader]

    for of_files, of_rows in zip(views("files"), views("x.parquet"), strict=True):
        assert all(map(torch.equal, of_files, of_rows))


def test_a_file_that_was_replaced_while_a_run_reads_it_is_one_sentence(folder):
    found = find_unlabeled(f"{folder}/a.parquet")
    write(folder / "a.parquet", map(encoded, range(17)), 4)
    parquet._opened.cache_clear()
    with world.refused(DataError, r"a\.parquet has other row groups than when it was indexed"):
        content_of(found[16])
    assert content_of(find_unlabeled(f"{folder}/a.parquet")[16]) == encoded(16)
    shutil.rmtree(folder)
    parquet._opened.cache_clear()
    with world.refused(DataError, r"a\.parquet does not exist: restore it"):
        content_of(found[16])


def test_predict_reads_files_in_order_and_damaged_images_are_those_of_other_pools(tmp_path):
    path = write_struct(tmp_path / "x.parquet", [encoded(1), b"no", None, b"", encoded(4)], 2)
    items, found = list(read_items(find_sources([str(tmp_path)]))), find_unlabeled(path)
    assert [item.name for item in items] == list(found)
    for number in (0, 4):
        assert items[number].open(Decoding()).tobytes() == open_source(found[number]).tobytes()
    for number in (1, 2, 3):
        message = rf"image .*x\.parquet/{number} cannot be read \(no format"
        with world.refused(DataError, message):
            items[number].open(Decoding())
        with world.refused(DataError, message):
            open_source(found[number])


def test_damaged_images_of_a_pool_are_refused_together_or_left_out(tmp_path):
    contents = [encoded(number) if number % 10 else b"no" for number in range(20)]
    path = write_struct(tmp_path / "x.parquet", contents, 7)
    (tmp_path / "data/train/a").mkdir(parents=True)
    noise(9, 7).save(tmp_path / "data/train/a/0.png")

    def pool(**settings):
        data = DomainDataModule("folder", str(tmp_path / "data"), unlabeled=path, **settings)
        data.reading.scan(trains=True)
        return data.pool.images

    with world.refused(DataError, r"2 of 21 images cannot be used \(image .*x\.parquet/0 "):
        pool()
    kept = pool(reading=ReadingOptions(bad_images="skip"))
    good = [f"{path}/{number}" for number in range(20) if number % 10]
    assert list(kept) == [*good, str(tmp_path / "data/train/a/0.png")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"], "url": ["b"]}, "has no column of images but label, url"),
        ({"jpg": [b"a"], "png": [b"b"]}, "in the columns jpg and png"),
        (lambda whole: whole[:300], "is damaged"),
        (lambda _: b"", "is damaged"),
    ],
)
def test_a_file_whose_images_cannot_be_found_is_one_sentence(tmp_path, columns, message):
    path = tmp_path / "x.parquet"
    if callable(columns):
        path.write_bytes(columns(Path(write(path, map(encoded, range(5)), 2)).read_bytes()))
    else:
        pq.write_table(pa.table(columns), path)
    with world.refused(DataError, rf"shard .*x\.parquet .*{message}"):
        find_unlabeled(str(path))
    (item,) = read_items([str(path)])
    assert message in item.error


def test_a_file_without_rows_or_with_huge_row_groups_is_one_sentence(folder, monkeypatch):
    with world.refused(DataError, r"empty\.parquet has no images"):
        find_unlabeled(write(folder / "empty.parquet", [], 1))
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 1000)
    with world.refused(DataError, r"b\.parquet has a row group with \d+ bytes of images"):
        find_unlabeled(f"{folder}/b.parquet")
