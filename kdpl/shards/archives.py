"""The core's interface to archives, for tar shards.

Training shuffles images and resumes in the middle of an epoch, so shards are not streamed: they are
indexed once, and a view is one read of an image's own bytes, or of the piece of its shard that
``kdpl/shards/pieces.py`` gives it.
"""

from collections.abc import Mapping, Sequence

from kdpl.data.archives import Archives
from kdpl.data.names import Names
from kdpl.data.storage import is_shard
from kdpl.shards.pieces import arrange
from kdpl.shards.reader import read_shard


def _index(shards: Sequence[str]) -> Mapping[str, Names]:
    # imports torch, which takes seconds
    from kdpl.shards.index import index_shards

    return index_shards(shards)


SHARDS = Archives(is_shard, _index, read_shard, arrange)
