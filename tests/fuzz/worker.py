"""The process that reads garbled files, so that one that crashes it or never ends can be told of."""

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.target import Build, Target

from kdpl.errors import KdplError

_START = 300  # seconds in which a process has to have imported torch
_HERE = Path("/proc/self")


@dataclass(frozen=True)
class Limits:
    """What reading one small file may take.

    Attributes:
        seconds: Time, also where other programs keep the machine busy.
        megabytes: Memory beyond what the process has before.
    """

    seconds: float = 60.0
    megabytes: float = 1000.0


@dataclass(frozen=True)
class Fault:
    """What was wrong with a reading.

    Attributes:
        what: In a few words, the same for the same fault.
        details: The traceback, if there is one.
    """

    what: str
    details: str = ""


class Worker:
    """Reads files in a process of its own, and in another one once that has gone.

    Args:
        build: Writes the whole files; a function at module level.
        folder: Where the process works; all that may be written is there.
        limits: What a reading may take.

    Attributes:
        whole: The whole file of each target.
    """

    def __init__(self, build: Build, folder: Path, limits: Limits) -> None:
        self._build, self._folder, self._limits = build, folder, limits
        self._start()

    def read(self, name: str, content: bytes) -> Fault | None:
        """Have a target read what is put into the place of its file."""
        self._connection.send((name, content))
        try:
            if self._connection.poll(self._limits.seconds):
                fault: Fault | None = self._connection.recv()
                return fault
            what = f"took more than {self._limits.seconds:g} s"
        except EOFError:
            self._process.join()
            what = f"ended the process with {self._process.exitcode}"
        self.close()
        self._start()
        return Fault(what)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (self._build, self._folder, self._limits, other)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        if not self._connection.poll(_START):
            raise RuntimeError(f"the process that reads did not start within {_START} s")
        self.whole: dict[str, tuple[str, bytes]] = self._connection.recv()


def _serve(build: Build, folder: Path, limits: Limits, connection: Connection) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        scratch = work / "scratch"
        scratch.mkdir()
        # what is written by a relative name, or where temporary files go, is seen as well
        os.chdir(scratch)
        tempfile.tempdir = str(scratch)
        files = work / "files"
        files.mkdir()
        targets = build(files)
        connection.send({name: (t.file, (files / t.file).read_bytes()) for name, t in targets.items()})
        while True:
            try:
                name, content = connection.recv()
            except EOFError:
                return
            connection.send(judge(targets[name], work, files, content, limits))


def judge(target: Target, work: Path, files: Path, content: bytes, limits: Limits) -> Fault | None:
    """Read a garbled file, and say what is wrong with how that went; None if it was read or refused in a sentence."""
    file = files / target.file
    whole = file.read_bytes()
    file.write_bytes(content)
    before = _listing(work)
    try:
        with _memory() as megabytes:
            fault = _fault_of(target, file)
        if fault is None and megabytes and megabytes[0] > limits.megabytes:
            fault = Fault(f"took more than {limits.megabytes:g} MB")
        if fault is None and (changed := before ^ _listing(work)):
            fault = Fault("wrote files", ", ".join(sorted({path for path, _, _ in changed})))
    finally:
        file.write_bytes(whole)
    return fault


def _fault_of(target: Target, file: Path) -> Fault | None:
    try:
        target.read(file)
    except KdplError as error:
        return Fault("has an error of several lines", str(error)) if "\n" in str(error) else None
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"raised {type(error).__name__} in {last.name} ({Path(last.filename).name})"
        return Fault(what, "".join(traceback.format_exception(error)))
    return None


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    found = ((str(path), path.lstat()) for path in folder.rglob("*") if not path.is_dir())
    return {(path, stat.st_size, stat.st_mtime_ns) for path, stat in found}


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Measure the most memory that the block has beyond what was there before; the list stays empty off Linux."""
    measured: list[float] = []
    try:
        (_HERE / "clear_refs").write_text("5")  # the highest memory from here on
    except OSError:
        yield measured
        return
    before = _megabytes("VmRSS")
    yield measured
    measured.append(_megabytes("VmHWM") - before)


def _megabytes(field: str) -> float:
    lines = (_HERE / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))
