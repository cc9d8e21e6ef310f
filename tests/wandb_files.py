"""Reads what the real wandb client wrote in a run's folder."""

import json
import struct
import time


def records(file):
    """The records of a W&B run file: a log of blocks of 32 KiB, over which a record may be split."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, pieces = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            # it is being written, or its writer was killed
            return
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def closed(file, seconds=60):
    """The records of a run file once it is complete: the client writes it from a process of its own."""
    end = time.monotonic() + seconds
    while True:
        found = list(records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < end, f"{file} was not closed"
        time.sleep(0.1)


def history(found):
    """The logged rows, decoded."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]


def of_kind(found, kind):
    """The records of one kind."""
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def offline(monkeypatch, home):
    """Let wandb work without a server, with its cache and configuration in this folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
