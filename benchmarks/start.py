"""``python -m benchmarks.start``: the start of a fit of stage 2 on very many unlabelled images, and its memory."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from PIL import Image

from benchmarks.settings import Settings
from kdpl.__main__ import main as kdpl

SHARDS, FILES = "shards/*.tar", "files"
"""Where the images are, in tar archives or in folders."""

KINDS = {SHARDS: 30, FILES: 15}
"""The most seconds to the first step of each."""

_CONFIGS = Path(__file__).parents[1] / "configs"
_GROUPS = 100  # shards, and folders
_BATCH = 64
_WORKERS = 4


class Pool:
    """Images of 8 × 8 pixels without labels, some with labels, and a teacher.

    Args:
        settings: Whether there are few.
        folder: An empty folder to work in.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.folder = folder
        many = 2_000 if settings.small else 1_000_000
        files = 1_000 if settings.small else 200_000
        self.images = {SHARDS: many, FILES: files}
        self.seen = 640 if settings.small else 200_000
        draw = np.random.default_rng(0)
        content = [_png(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(40)]
        for group in range(_GROUPS):
            shard, files = folder / f"shards/{group:05}.tar", folder / f"files/{group:05}"
            files.mkdir(parents=True)
            shard.parent.mkdir(exist_ok=True)
            with tarfile.open(shard, "w") as archive:
                for index in range(self.images[SHARDS] // _GROUPS):
                    member = tarfile.TarInfo(f"{group:05}{index:06}.png")
                    member.size = len(content[index % 40])
                    archive.addfile(member, io.BytesIO(content[index % 40]))
            for index in range(self.images[FILES] // _GROUPS):
                (files / f"{index:06}.png").write_bytes(content[index % 40])
        for index, each in enumerate(content):
            file = folder / f"labelled/{'test' if index < 4 else 'train'}/{index % 2}/{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(each)
        _fit(folder, "teacher", "--trainer.max_epochs=1", f"--out={folder / 'teacher'}")

    def start(self, kind: str, images: int = 1) -> dict[str, float]:
        """Fit on images of a kind in a new process; returns seconds to the first step, and bytes of memory at the end.

        ``all`` is the memory of all processes with shared pages counted once; ``growth`` is that of
        the pages that a worker shares with no other process, since the first step and in the worker
        in which they grow the most.
        """
        begin = time.time()
        command = [
            sys.executable,
            "-m",
            "benchmarks.start",
            str(self.folder),
            kind,
            str(-(-images // _BATCH)),
        ]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(finished.stdout.splitlines()[-1])
        growth = max(last - first for first, last in zip(*found["workers"], strict=True))
        return {"first_step_s": found["first"] - begin, "all": found["all"], "growth": growth}


class Watch(Callback):
    """Prints the time of the first step, and the memory of this process and its workers, as JSON."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"workers": []}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note time and memory of the first step, and memory of the last."""
        self.found.setdefault("first", time.time())
        if trainer.global_step == 1 or trainer.is_last_batch:
            workers = [child.pid or 0 for child in multiprocessing.active_children()]
            self.found["workers"].append(
                [_memory(pid, "Private_Clean", "Private_Dirty") for pid in workers]
            )
            self.found["all"] = sum(_memory(pid, "Pss") for pid in [os.getpid(), *workers])

    def on_train_end(self, *_: Any) -> None:
        """Print all of it."""
        self.found["workers"] = [self.found["workers"][0], self.found["workers"][-1]]
        print(json.dumps(self.found))


def starts(settings: Settings) -> Iterator[tuple[str, float, str, float]]:
    """Start twice on images of each kind; yields what was measured at the second start, value, unit and target."""
    with TemporaryDirectory() as folder:
        pool = Pool(settings, Path(folder))
        for kind, most in KINDS.items():
            pool.start(kind)
            found = pool.start(kind, pool.seen)
            name = f"{pool.images[kind]} unlabelled images ({kind}), second start"
            yield f"{name}: first step after", found["first_step_s"], "s", most
            yield f"{name}: memory of all processes", found["all"] / 1e9, "GB", 1
            yield (
                f"{name}: growth of a worker over {pool.seen} images",
                found["growth"] / 1e6,
                "MB",
                20,
            )


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _fit(folder: Path, stage: str, *options: str) -> None:
    configs = ("data/folder.yaml", f"{stage}/quickstart.yaml", "trainer/cpu.yaml")
    data = {
        "root": folder / "labelled",
        "reading.test_share": "0",
        "reading.scan": "false",
        "num_workers": _WORKERS,
    }
    given = [f"--data.init_args.{name}={value}" for name, value in data.items()]
    arguments = ["fit", *(f"--config={_CONFIGS / name}" for name in configs), *given, *options]
    if kdpl([*arguments, "--trainer.enable_progress_bar=false"]):
        raise RuntimeError(f"the fit of the {stage} failed")


def _memory(pid: int, *keys: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in keys)


def main() -> None:
    """Fit a student on a pool, and print what ``Watch`` finds."""
    folder, kind, steps = Path(sys.argv[1]), *sys.argv[2:]
    _fit(
        folder,
        "student",
        f"--data.init_args.unlabeled={folder / kind}",
        f"--data.init_args.batch_size={_BATCH}",
        f"--model.init_args.teacher={folder / 'teacher'}",
        "--trainer.max_epochs=1",
        f"--trainer.limit_train_batches={steps}",
        "--trainer.callbacks+=benchmarks.start.Watch",
        f"--out={folder / f'student-{time.time_ns()}'}",
    )


if __name__ == "__main__":
    main()
