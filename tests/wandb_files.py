"""Reads what the real wandb client wrote in a run's folder."""

import json
import struct
import time

from wandb.proto import wandb_internal_pb2


def _records(data):
    """The records of a W&B run file: a log of blocks of 32 KiB, over which a record may be split."""
    at, pieces, found = 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last piece of one
            found.append(wandb_internal_pb2.Record.FromString(pieces))
            pieces = b""
    return found


def records_of(run, seconds=60):
    """The records of a run's processes by kind, once complete: the client writes them from a process of its own."""
    end, found = time.monotonic() + seconds, {}
    for file in sorted(run.rglob("*.wandb")):
        while "exit" not in {record.WhichOneof("record_type") for record in _records(file.read_bytes())[-3:]}:
            assert time.monotonic() < end, f"{file} was not closed"
            time.sleep(0.1)
        for record in _records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


def values_of(items):
    """The values of items of a row or of a config by name, decoded."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
