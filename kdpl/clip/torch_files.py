"""Tensors out of torch's files that hold more than tensors, without running anything that stands in them.

``torch.load(weights_only=True)`` refuses such files whole; plain ``torch.load`` and ``torch.jit.load`` run what they
say. Here only tensors, numbers, strings and plain containers are built; in the place of all else stands an object that
does nothing.
"""

import io
import math
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.errors import ArtifactError, reason

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# tuples in tuples, used as a key, are hashed by recursion in C, which ends the process; a checkpoint has a few thousand
_MAX_TUPLES = 50_000


class _StandIn:
    """Stands for any class or function of a file and for what they would make: takes everything, does nothing.

    All is static, so that pickle's instructions find the same on the class and on its instances, and there are no
    slots, so that neither can be given anything.
    """

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "_StandIn":
        return self

    @staticmethod
    def _nothing(*_: object) -> None:
        pass

    # state, and the items of what would be a dict, a list or a set
    __setstate__ = __setitem__ = append = extend = add = update = _nothing


class _Dict(dict[Any, Any]):
    """What a file calls ``collections.OrderedDict``, but without the attributes that a file could put over methods."""

    __slots__ = ()

    __setstate__ = staticmethod(_StandIn.__setstate__)


class _RebuildTensor:
    """What a file calls ``torch._utils._rebuild_tensor_v2``; no function, since a file could give that attributes."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:  # noqa: ANN401
        whole = all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) and len(size) == len(stride)
        if not isinstance(storage, Tensor) or not whole:
            raise pickle.UnpicklingError("a tensor has no proper size")
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # a tensor with more elements than its storage could fill any memory once it is copied
        if numel > len(storage) or offset > len(storage) or (numel > 0 and last >= len(storage)):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        return storage.as_strided(size, stride, offset)


class _RebuildParameter:
    """What a file calls ``torch._utils._rebuild_parameter``."""

    __slots__ = ()

    def __call__(self, data: Any, *_: object) -> Tensor:  # noqa: ANN401
        if not isinstance(data, Tensor):
            raise pickle.UnpicklingError("a parameter is not a tensor")
        return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("collections", "OrderedDict"): _Dict,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _ScriptModule:
    """What a TorchScript archive calls by the name of a class of its own code: remembers its attributes."""

    __slots__ = ("attributes",)

    attributes: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.attributes = state if isinstance(state, dict) else {}


class _Archive:
    """The zip file that torch writes: one pickle, and one record of bytes for each storage.

    Attributes:
        scripted: Whether it is a TorchScript archive, which holds code as well.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ArtifactError(f"{path} is a zip file, but none of torch.save: fetch it again")
        self._root = pickles[0].removesuffix("data.pkl")
        self.scripted = f"{self._root}constants.pkl" in self._members
        # torch stores what is read here as it is: then no record unpacks to more than the file holds
        read = [info for name, info in self._members.items() if self._is_read(name)]
        if any(info.compress_type != zipfile.ZIP_STORED for info in read):
            raise pickle.UnpicklingError("records are compressed")
        if sum(info.file_size for info in read) > path.stat().st_size:
            raise pickle.UnpicklingError("records overlap")
        # archives of old versions of torch do not say it
        order = self.read("byteorder").decode("ascii") if f"{self._root}byteorder" in self._members else "little"
        if order != sys.byteorder:
            raise ArtifactError(
                f"{path} was written with {order}-endian numbers, this machine has {sys.byteorder}-endian ones: "
                "save it again on a machine of this kind"
            )
        self._storages: dict[str, bytearray] = {}

    def _is_read(self, name: str) -> bool:
        own = name.removeprefix(self._root)
        return own in ("data.pkl", "byteorder") or own.startswith("data/")

    def read(self, name: str) -> bytes:
        """Give the bytes of a record."""
        return self._archive.read(self._members[self._root + name])

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """Give a record as a tensor [numel]; records that several tensors share are read once."""
        info = self._members.get(f"{self._root}data/{key}")
        if info is None or info.file_size != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is missing or has another length")
        if numel == 0:
            return torch.empty(0, dtype=dtype)
        if key not in self._storages:
            self._storages[key] = bytearray(self._archive.read(info))
        return torch.frombuffer(self._storages[key], dtype=dtype)


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain values; no name of the file is ever looked up."""

    def __init__(self, data: bytes, archive: _Archive) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Give what is known by this name here, or the stand-in."""
        if self._archive.scripted and module.partition(".")[0] == "__torch__":
            return _ScriptModule
        return _KNOWN.get((module, name), _StandIn)

    def persistent_load(self, pid: Any) -> Tensor:  # noqa: ANN401
        """Give a storage: ("storage", dtype, key, device, number of elements)."""
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(numel) is not int:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return self._archive.storage(key, dtype, numel)


def _require_modest(data: bytes) -> None:
    """Refuse a pickle that would take more memory or stack than a checkpoint needs."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        tuples += "TUPLE" in opcode.name or opcode.name == "FROZENSET"
        # the unpickler makes a table as long as the highest place that is named
        place = argument if opcode.name.endswith("PUT") and isinstance(argument, int) else 0
        if place > len(data) or tuples > _MAX_TUPLES:
            raise pickle.UnpicklingError("it is not built as a checkpoint is")


def _require_real(content: object) -> None:
    """Refuse tensors with more elements than bytes behind them, which would fill any memory once they are copied.

    Those that ``_RebuildTensor`` made have enough, but a pickle may give a tensor another state.
    """
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise pickle.UnpicklingError("a tensor reaches beyond its storage")
            continue
        if not isinstance(value, dict | list | tuple | set | frozenset | _ScriptModule) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, _ScriptModule):
            waiting.append(getattr(value, "attributes", None))
        else:
            waiting += value


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of one that claims to span several disks it does not say no
        return False


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path")
    if not _is_zip(path):
        raise ArtifactError(
            f"{path} is damaged, or not a zip file as torch.save writes them since version 1.6: fetch it again"
        )
    try:
        with zipfile.ZipFile(path) as file:
            yield _Archive(file, path)
    except ArtifactError:
        raise
    except Exception as error:  # whatever zipfile, pickle and torch raise at garbled bytes
        raise ArtifactError(f"{path} is damaged ({reason(error)}): fetch it again") from error


def _content(archive: _Archive) -> Any:  # noqa: ANN401
    data = archive.read("data.pkl")
    _require_modest(data)
    content = _Unpickler(data, archive).load()
    _require_real(content)
    return content


def read_torch_file(path: Path) -> Any:  # noqa: ANN401
    """Read a file that ``torch.save`` has written; nothing that stands in it is called or imported.

    Args:
        path: The file, a zip archive, as ``torch.save`` writes them since version 1.6.

    Returns:
        What was saved: tensors (which share memory as they did when saved), numbers, strings, dicts, lists and tuples;
        meaningless objects in the place of everything else.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with _opened(path) as archive:
        if archive.scripted:
            raise ArtifactError(f"{path} is a TorchScript archive, expected a checkpoint: give the authors' own file")
        return _content(archive)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI publishes its CLIPs; False also for what is damaged."""
    if not _is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except zipfile.BadZipFile:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive's modules; none of its code is looked at.

    Args:
        path: What ``torch.jit.save`` has written.

    Returns:
        The tensors by their names in the module's ``state_dict``, and beside them those that are plain attributes.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with _opened(path) as archive:
        root = _content(archive)
        if not isinstance(root, _ScriptModule):
            raise pickle.UnpicklingError("it holds no module")
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        waiting = [("", root)]
        while waiting:
            prefix, module = waiting.pop()
            if id(module) in seen:
                raise pickle.UnpicklingError("a module stands in several places")
            seen.add(id(module))
            for name, value in getattr(module, "attributes", {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{prefix}{name}"] = value
                elif isinstance(value, _ScriptModule):
                    waiting.append((f"{prefix}{name}.", value))
        return tensors
