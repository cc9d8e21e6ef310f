from pathlib import Path

import pytest
import torch
from zoo import write_shard

from kdpl.data.shards import index as shard_index
from kdpl.data.shards.index import INDEX_FILE, index_shards
from kdpl.errors import DataError
from kdpl.runtime.artifacts import write_tensors

KIND, VERSION = "an index of shards", 2


@pytest.fixture
def shards(tmp_path):
    """Four shards of two images each, the last of them in a folder of its own."""
    paths = [tmp_path / name for name in ("a/0.tar", "a/1.tar", "a/2.tar", "b/3.tar")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write_shard(path, [2 * number, 2 * number + 1])
    return [str(path) for path in paths]


@pytest.fixture
def looked(monkeypatch):
    """The shards that were looked through, by name."""
    names, look = [], shard_index._look_through
    monkeypatch.setattr(
        shard_index, "_look_through", lambda shard: names.append(shard[-5:]) or look(shard)
    )
    return names


def described(index):
    return {
        shard: [(str(name), name.shard, name.offset, name.size) for name in names]
        for shard, names in index.items()
    }


def plain(shards):
    return described({shard: shard_index._look_through(shard) for shard in shards})


def test_shards_are_looked_through_once_whichever_of_them_are_asked_for(shards, looked):
    requests = [shards, shards[:2], shards[2::-1], [shards[3], shards[1]]]
    expected = [plain(asked) for asked in requests]
    looked.clear()
    assert [described(index_shards(asked)) for asked in requests] == expected
    assert sorted(looked) == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_a_shard_that_changed_is_looked_through_again_and_no_other(shards, looked):
    index_shards(shards)
    write_shard(Path(shards[1]), [7, 8, 9])
    looked.clear()
    for _ in range(2):
        assert described(index_shards(shards)) == plain(shards)
    assert looked.count("1.tar") == 1 + 2
    Path(shards[1]).unlink()
    with pytest.raises(DataError, match="does not exist"):
        index_shards(shards)


ODD = {"rows": torch.ones(3), "text": torch.ones(2)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: write_tensors(file, KIND, VERSION, ODD, {"stamps": 3}),
        lambda file: write_tensors(file, KIND, VERSION - 1, {}, {}),
    ],
)
def test_a_damaged_index_is_made_anew(shards, looked, damage):
    expected = described(index_shards(shards))
    file = Path(shards[0]).parent / INDEX_FILE
    whole = file.read_bytes()
    damage(file)
    looked.clear()
    assert described(index_shards(shards)) == expected
    assert sorted(looked) == ["0.tar", "1.tar", "2.tar"]
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_is_indexed_at_each_start(shards, looked, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_index, "write_tensors", refuse)
    for _ in range(2):
        assert described(index_shards(shards)) == plain(shards)
    assert len(looked) == 2 * (4 + 4), "half of them for the plain list"
