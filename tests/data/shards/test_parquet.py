from pathlib import Path

import fsspec
import numpy as np
import pytest
import world
from runs import noise
from torch.utils.data import DataLoader
from zoo import encoded

from kdpl import DomainDataModule
from kdpl.classifier.sources import find_sources, read_items
from kdpl.data.decoding import Decoding
from kdpl.data.names import ShardImage
from kdpl.data.options import ReadingOptions
from kdpl.data.shards import archives, parquet, pieces, spool
from kdpl.data.shards import index as shard_index
from kdpl.data.shards.index import INDEX_FILE
from kdpl.data.shards.pieces import InPieces
from kdpl.data.sources import content_of, find_unlabeled, open_source
from kdpl.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, numbers, rows, column="image", layout=None, **others):
    """A file of the images of these numbers, in row groups of so many rows."""
    Path(path).parent.mkdir(exist_ok=True)
    contents = pa.array([encoded(number) for number in numbers], layout or pa.binary())
    pq.write_table(pa.table({column: contents, **others}), path, row_group_size=rows)
    return str(path)


def write_struct(path, contents, rows=100):
    """A file as Hugging Face's datasets write it."""
    layout = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [c if c is None else {"bytes": c, "path": "x.png"} for c in contents]
    pq.write_table(pa.table({"image": pa.array(values, layout)}), path, row_group_size=rows)
    return str(path)


def contents_of(sources):
    return [content_of(source) for source in sources]


@pytest.fixture
def folder(tmp_path):
    """Files of 40 images in row groups of different sizes and columns of different types."""
    write(tmp_path / "p/a.parquet", range(17), 3, label=list("x" * 17))
    write(tmp_path / "p/b.parquet", range(17, 25), 100, "jpg", pa.large_binary())
    write(tmp_path / "p/c/part-0.parquet", [], 1)
    write(tmp_path / "p/c/part-1.parquet", range(25, 33), 1, "bytes")
    write_struct(tmp_path / "p/d.parquet", map(encoded, range(33, 40)), 2)
    (tmp_path / "p/_SUCCESS").write_text("")
    return tmp_path / "p"


def test_each_row_of_a_folder_of_files_is_an_image_named_by_its_number(folder):
    found = find_unlabeled(str(folder))
    rows = [("a", 17), ("b", 8), ("c/part-1", 8), ("d", 7)]
    names = [f"{folder}/{name}.parquet/{row}" for name, number in rows for row in range(number)]
    assert list(found) == names
    assert contents_of(found) == [encoded(number) for number in range(40)]
    found = find_unlabeled([f"{folder}/b.parquet", f"{folder}/*.parquet"])
    assert list(found) == names[17:25] + names[:17] + names[33:]


@pytest.mark.parametrize(("size", "step"), [(1, 1), (1, 6), (700, 6), (10**6, 1)])
def test_pieces_are_whole_row_groups_and_all_are_read(folder, monkeypatch, size, step):
    monkeypatch.setattr(pieces, "PIECE", size)
    names = find_unlabeled(str(folder)).take(slice(None, None, step))
    sources, packed, pack = InPieces(names), [], spool.pack
    monkeypatch.setattr(spool, "pack", lambda *piece: packed.append(piece) or pack(*piece))
    order = np.random.default_rng(0).permutation(len(names))
    for _ in range(2):
        for index in order:
            assert content_of(sources[index]) == encoded(int(index) * step)
    assert len(packed) == len(set(packed)), "each piece is read once"
    groups = [(name.shard, name.offset) for name in names]
    assert all(index == 0 or groups[index] != groups[index - 1] for index in sources.starts)
    if size == 1:
        assert len(sources.starts) == len(set(groups)) == len(packed)


def test_a_file_is_indexed_once_from_its_footer_and_again_when_it_has_changed(folder, monkeypatch):
    looked, read = [], parquet.index_rows
    monkeypatch.setattr(shard_index, "index_rows", lambda path: looked.append(path) or read(path))
    monkeypatch.setattr(parquet.ImageColumn, "values", None)  # nothing but footers is read
    first = find_unlabeled(str(folder))
    assert (folder / INDEX_FILE).is_file()
    looked.clear()
    again = find_unlabeled(str(folder))
    assert again == first
    for one, other in zip(again, first, strict=True):
        assert (one.offset, one.size) == (other.offset, other.size)
    assert looked == [f"{folder}/c/part-0.parquet"], "an empty file is not in the index"
    write(folder / "b.parquet", range(9), 2)
    assert len(find_unlabeled(str(folder))) == len(first) + 1
    assert looked.count(f"{folder}/b.parquet") == 1


def test_a_file_that_was_replaced_while_a_run_reads_it_is_one_sentence(folder):
    found = find_unlabeled(f"{folder}/a.parquet")
    write(folder / "a.parquet", range(17), 4)
    with world.refused(DataError, r"a\.parquet has other row groups than when the run began"):
        content_of(found[16])
    (folder / "a.parquet").unlink()
    spool._fetched.cache_clear()
    with world.refused(DataError, r"a\.parquet does not exist: restore it"):
        content_of(found[16])


def test_files_behind_a_url_are_listed_and_read(folder):
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/store/rows.parquet", recursive=True)
    try:
        found = find_unlabeled("memory://store/rows.parquet")
        store = "memory:///store/rows.parquet"
        assert list(found)[::20] == [f"{store}/a.parquet/0", f"{store}/b.parquet/3"]
        sources = InPieces(found)
        assert content_of(sources[0]) == encoded(0)
        # in processes that are forked from one that has read
        loader = DataLoader(sources, 4, num_workers=2, collate_fn=contents_of)
        read = [content for contents in loader for content in contents]
        assert read == [encoded(number) for number in range(40)]
        part = "memory://store/rows.parquet/c/part-1.parquet"
        assert list(find_unlabeled(part))[2:4] == [f"{part}/2", f"{part}/3"]
        with world.refused(DataError, r"memory://store/gone\.parquet does not exist"):
            find_unlabeled("memory://store/gone.parquet")
    finally:
        files.rm("/store", recursive=True)


def test_a_column_of_paths_is_a_list_of_files_each_of_which_counts_once(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        noise(9, 7, seed=number).save(tmp_path / f"photos/{number}.png")
    paths = ["photos/0.png", f"{tmp_path}/photos/1.png", "memory://store/9.png", "./photos/0.png"]
    pq.write_table(pa.table({"path": paths, "caption": paths}), tmp_path / "list.parquet")
    expected = [f"{tmp_path}/photos/{number}.png" for number in (2, 0, 1)]
    found = find_unlabeled([expected[0], str(tmp_path / "list.parquet"), f"{tmp_path}/photos"])
    assert list(found) == [*expected, "memory://store/9.png"]
    assert not any(isinstance(name, ShardImage) for name in found)
    sources = find_sources([str(tmp_path / "list.parquet")])
    assert [item.name for item in read_items(sources)][:2] == expected[1:]

    pq.write_table(pa.table({"path": ["a.png", None]}), tmp_path / "list.parquet")
    with world.refused(DataError, r"row 1 of shard .*list\.parquet has no path: fill it in"):
        find_unlabeled(str(tmp_path / "list.parquet"))
    items = list(read_items(sources))
    assert [item.error is None for item in items] == [True, False]


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
        data.reading.prepare(trains=True)
        return data.pool.images

    with world.refused(DataError, r"2 of 21 images cannot be used \(image .*x\.parquet/0 "):
        pool()
    kept = pool(reading=ReadingOptions(bad_images="skip"))
    good = [f"{path}/{number}" for number in range(20) if number % 10]
    assert list(kept) == [*good, str(tmp_path / "data/train/a/0.png")]
    sources = InPieces(kept)
    assert [content_of(sources[i]) for i in range(18)] == [c for c in contents if c != b"no"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"], "url": ["b"]}, "has no column of images but label, url"),
        ({"jpg": [b"a"], "png": [b"b"]}, "in the columns jpg and png"),
        ({"image": ["a"], "path": ["b"]}, "in the columns image and path"),
        (lambda whole: whole[:300], "is damaged"),
        (lambda _: b"", "is damaged"),
    ],
)
def test_a_file_whose_images_cannot_be_found_is_one_sentence(tmp_path, columns, message):
    path = tmp_path / "x.parquet"
    if callable(columns):
        path.write_bytes(columns(Path(write(path, range(5), 2)).read_bytes()))
    else:
        pq.write_table(pa.table(columns), path)
    with world.refused(DataError, rf"shard .*x\.parquet .*{message}"):
        find_unlabeled(str(path))
    (item,) = read_items([str(path)])
    assert message in item.error


def test_what_cannot_be_read_in_parts_or_has_no_image_is_one_sentence(folder, monkeypatch):
    with world.refused(DataError, "unlabeled names no images"):
        find_unlabeled(f"{folder}/c/part-0.parquet")
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 1000)
    with world.refused(DataError, r"b\.parquet has a row group with \d+ bytes of images"):
        find_unlabeled(f"{folder}/b.parquet")


def test_large_pieces_make_room_for_others_earlier(folder, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1)
    monkeypatch.setattr(spool, "_IN_USE", 3)
    monkeypatch.setattr(spool, "_ROOM", 1)
    sources = InPieces(find_unlabeled(str(folder)))
    for _ in range(2):
        for index in range(40):
            assert content_of(sources[index]) == encoded(index)
    assert len([*spool._folder().glob("*.piece")]) == 3


def test_images_beside_shards_in_a_folder_are_taken_alone_as_ever(folder):
    noise(9, 7).save(folder / "1.png")
    assert list(find_unlabeled(str(folder))) == [f"{folder}/1.png"]
    assert archives.arrange(find_unlabeled(str(folder))).shuffle is None
