import io
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import published_files as files
import pytest
import torch
import world

from kdpl.clip.torch_files import _STORAGES, is_torchscript, read_torch_file, read_torchscript
from kdpl.errors import ArtifactError


def archive(path, data, storages=(), **options):
    """A zip file as torch.save writes it, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/byteorder", sys.byteorder)
        for key, content in enumerate(storages):
            file.writestr(f"a/data/{key}", content)
    return path


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Storage(pickle.Pickler):
    """Pickles pairs (dtype name, numel) in a Handle as storage 0."""

    def persistent_id(self, obj):
        if isinstance(obj, Handle):
            return ("storage", getattr(torch, obj.kind), "0", "cpu", obj.numel)
        return None


class Handle:
    def __init__(self, kind, numel):
        self.kind, self.numel = kind, numel


def pickled(obj):
    buffer = io.BytesIO()
    Storage(buffer, protocol=2).dump(obj)
    return buffer.getvalue()


def tensor_file(path, *, kind="FloatStorage", numel=6, offset=0, size=(2, 3), stride=(3, 1), content=bytes(24)):
    call = Call(torch._utils._rebuild_tensor_v2, Handle(kind, numel), offset, size, stride, False, OrderedDict())
    return archive(path, pickled({"t": call}), [content])


def test_a_file_that_torch_refuses_is_read_whole(tmp_path):
    state = files.teacher_state()
    path = files.write(tmp_path / "model.pth.tar-20", state)
    with pytest.raises(pickle.UnpicklingError, match="CosineAnnealingLR"):
        torch.load(path, weights_only=True)
    content = read_torch_file(path)
    assert content["epoch"] == 20
    assert list(content["state_dict"]) == list(state)
    for name, tensor in state.items():
        read = content["state_dict"][name]
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    world.assert_plain_values(content["optimizer"]["param_groups"])
    for key in ("scheduler", "val_result"):
        assert type(content[key]).__module__ == "kdpl.clip.torch_files"


@pytest.mark.parametrize("dtype", _STORAGES.values(), ids=_STORAGES.keys())
def test_tensors_of_every_kind_and_shape_come_back(dtype, tmp_path):
    whole = (torch.arange(24) % 7 - (0 if dtype in (torch.uint8, torch.bool) else 3)).to(dtype).reshape(4, 6)
    saved = {
        "whole": whole,
        "view": whole[1:3, ::2],
        "transposed": whole.T,
        "scalar": whole[2, 3],
        "empty": torch.empty(0, 5, dtype=dtype),
        "parameter": torch.nn.Parameter(whole, requires_grad=False),
    }
    torch.save(saved, tmp_path / "f")
    read = read_torch_file(tmp_path / "f")
    assert all(torch.equal(read[k], v) and read[k].dtype == dtype for k, v in saved.items())
    # storages that several share are read once
    assert read["whole"].data_ptr() == read["transposed"].data_ptr()


class WritesAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestNothingRuns:
    @pytest.mark.parametrize("place", ["state_dict", "scheduler", "val_result"])
    def test_a_call_that_plain_loading_makes_is_not_made(self, place, tmp_path):
        trace = tmp_path / "trace"
        path = tmp_path / "f"
        torch.save({"state_dict": {}, "scheduler": None, place: WritesAFile(trace)}, path)
        torch.load(path, weights_only=False)[place].close()
        assert trace.exists()
        trace.unlink()
        read_torch_file(path)
        assert not trace.exists()

    def test_a_shell_command_is_not_run(self, tmp_path):
        trace = tmp_path / "trace"
        path = archive(tmp_path / "f", pickle.dumps(Call(os.system, f"touch {trace}"), protocol=2))
        with zipfile.ZipFile(path) as file:
            assert pickle.loads(file.read("a/data.pkl")) == 0  # noqa: S301 - this is the danger that is shown
        assert trace.exists()
        trace.unlink()
        read_torch_file(path)
        assert not trace.exists()

    def test_chains_over_getattr_and_eval_are_inert(self, tmp_path, monkeypatch):
        called = []
        monkeypatch.setitem(__builtins__ if isinstance(__builtins__, dict) else vars(__builtins__), "kdpl_trap", called)
        data = (
            b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\nX\x02\x00\x00\x00os\x85RX\x06\x00\x00\x00systemtR"
            b"X\x04\x00\x00\x00true\x85R0cbuiltins\neval\nX\x13\x00\x00\x00kdpl_trap.append(1)\x85R."
        )
        pickle.loads(data)  # noqa: S301 - this is the danger that is shown
        assert called == [1]
        read_torch_file(archive(tmp_path / "f", data))
        assert called == [1]

    @pytest.mark.parametrize(
        "target",
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._utils\n_rebuild_parameter\n",
            b"ccollections\nOrderedDict\n",
            b"ctorch\nFloatStorage\n",
            b"cany\nthing\n",
            b"cany\nthing\n)R",
        ],
    )
    @pytest.mark.parametrize("key", [b"__call__", b"__defaults__", b"__setstate__", b"__reduce__"])
    def test_a_file_cannot_change_what_it_is_read_with(self, target, key, tmp_path):
        text = b"X" + len(key).to_bytes(4, "little") + key
        # the instruction BUILD, with a dict of attributes and with one of slots
        for state in (b"}" + text + b"cany\nthing\ns", b"N}" + text + b"cany\nthing\ns\x86"):
            path = archive(tmp_path / "f", b"\x80\x02" + target + state + b"b.")
            try:
                read_torch_file(path)
            except ArtifactError as error:
                assert "is damaged" in str(error)  # noqa: PT017 - both answers are safe ones
        torch.save({"t": torch.ones(2)}, tmp_path / "whole")
        assert read_torch_file(tmp_path / "whole")["t"].tolist() == [1, 1]

    def test_a_file_cannot_put_anything_over_a_dicts_methods(self, tmp_path):
        data = (
            b"\x80\x02ccollections\nOrderedDict\n)RN}X\x04\x00\x00\x00keyscany\nthing\ns\x86bX\x01\x00\x00\x00aK\x05s."
        )
        assert dict(read_torch_file(archive(tmp_path / "f", data))) == {"a": 5}

    def test_no_module_is_imported(self, tmp_path):
        data = b"\x80\x02cwave\nopen\nX\x01\x00\x00\x00f\x85R."
        code = (
            f"import sys; from pathlib import Path; from kdpl.clip.torch_files import read_torch_file; "
            f"read_torch_file(Path({str(archive(tmp_path / 'f', data))!r})); print('wave' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"

    def test_objects_with_items_and_state_are_taken_and_forgotten(self, tmp_path):
        from collections import Counter, defaultdict, deque

        saved = [defaultdict(list, a=[1]), Counter("aab"), deque([1, 2]), {3, 4}, np.float64(2), np.arange(3), 1j]
        torch.save({"junk": saved, "kept": 5}, tmp_path / "f")
        content = read_torch_file(tmp_path / "f")
        assert content["kept"] == 5
        assert {type(item).__name__ for item in content["junk"]} == {"_StandIn"}


class TestTensorsStayInTheirStorage:
    def test_a_proper_one_is_read(self, tmp_path):
        content = torch.arange(6, dtype=torch.float32).numpy().tobytes()
        path = tensor_file(tmp_path / "f", offset=1, size=(2, 2), stride=(3, 1), content=content)
        assert read_torch_file(path)["t"].tolist() == [[1, 2], [4, 5]]

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"offset": 1}, "reaches beyond its storage"),
            ({"offset": 7, "size": (0,), "stride": (1,)}, "reaches beyond its storage"),
            ({"size": (3, 3)}, "reaches beyond its storage"),
            ({"size": (2, 3), "stride": (4, 1)}, "reaches beyond its storage"),
            # no more elements than the storage has, and none beyond 64 bits
            ({"size": (10**12,), "stride": (0,)}, "reaches beyond its storage"),
            ({"size": (2**62, 4), "stride": (1, 1)}, "reaches beyond its storage"),
            ({"offset": -1}, "no proper size"),
            ({"size": (-2, -3)}, "no proper size"),
            ({"stride": (-3, 1)}, "no proper size"),
            ({"stride": (3,)}, "no proper size"),
            ({"size": (2.0, 3)}, "no proper size"),
            ({"offset": True}, "no proper size"),
            ({"size": "23"}, "no proper size"),
            ({"offset": None}, "no proper size"),
            ({"numel": 5}, "another length"),
            ({"numel": 7}, "another length"),
            ({"numel": -6}, "another length"),
            ({"numel": 10**18}, "another length"),
            ({"numel": 6.0}, "unknown kind"),
            ({"kind": "DoubleStorage"}, "another length"),
            ({"kind": "ComplexFloatStorage"}, "unknown kind"),
            ({"content": bytes(20)}, "another length"),
        ],
        ids=str,
    )
    def test_others_are_refused(self, bad, message, tmp_path):
        with pytest.raises(ArtifactError, match=f"is damaged .*{message}") as error:
            read_torch_file(tensor_file(tmp_path / "f", **bad))
        assert world.one_sentence(error)


class TestDamage:
    @pytest.fixture
    def whole(self, tmp_path):
        return files.write(tmp_path / "whole", files.student_state()).read_bytes()

    @pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_one_sentence(self, part, whole, tmp_path):
        (tmp_path / "f").write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ArtifactError, match="is damaged, or not a zip file") as error:
            read_torch_file(tmp_path / "f")
        assert world.one_sentence(error)

    def test_bytes_that_changed_are_noticed_or_harmless(self, whole, tmp_path):
        expected = files.student_state()
        draw = torch.Generator().manual_seed(0)
        noticed = 0
        for _ in range(60):
            garbled = bytearray(whole)
            place = int(torch.randint(len(whole), (), generator=draw))
            garbled[place] ^= 0x55
            (tmp_path / "f").write_bytes(garbled)
            try:
                read = read_torch_file(tmp_path / "f")["state_dict"]
            except ArtifactError:
                noticed += 1
            else:
                assert all(torch.equal(read[k], v) for k, v in expected.items())
        assert noticed > 30

    def test_garbled_pickles_are_one_sentence(self, tmp_path):
        data = pickled({"epoch": 3, "names": ["a", "b"], "sizes": (1, 2.5), "x": Call(OrderedDict)})
        draw = torch.Generator().manual_seed(1)
        failed = 0
        for _ in range(300):
            garbled = bytearray(data)
            garbled[int(torch.randint(len(data), (), generator=draw))] = int(torch.randint(256, (), generator=draw))
            path = archive(tmp_path / "f", bytes(garbled))
            try:
                read_torch_file(path)
            except ArtifactError as error:
                failed += 1
                assert "\n" not in str(error)  # noqa: PT017 - only some of them are damaged
        assert failed > 50

    def test_a_memo_of_two_thousand_million_places_is_never_made(self, tmp_path):
        with pytest.raises(ArtifactError, match="not built as a checkpoint is"):
            read_torch_file(archive(tmp_path / "f", b"\x80\x02Nr\xff\xff\xff\x7f."))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x80\x02",
            b"\x80\x02}",
            # a million tuples in one another as a key: hashing it would end the process
            b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
            b"\x80\x04}(" + b"(" * 100_000 + b"\x91" * 100_000 + b"K\x01u.",
            b"\x80\x04\x96" + (2**62).to_bytes(8, "little") + b"..",
            b"\x80\x02X\x01\x00\x00\x00aQ.",
        ],
        ids=["empty", "no end", "no end after a dict", "deep tuples", "deep sets", "bytes", "storage"],
    )
    def test_pickles_made_to_harm_are_one_sentence(self, data, tmp_path):
        with pytest.raises(ArtifactError, match="is damaged") as error:
            read_torch_file(archive(tmp_path / "f", data))
        assert world.one_sentence(error)

    def test_lists_in_lists_without_end_do_no_harm(self, tmp_path):
        read_torch_file(archive(tmp_path / "f", b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."))

    def test_compressed_records_are_refused(self, tmp_path):
        path = archive(tmp_path / "f", pickle.dumps({}, 2), [bytes(10**6)], compression=zipfile.ZIP_DEFLATED)
        with pytest.raises(ArtifactError, match="records are compressed"):
            read_torch_file(path)

    def test_records_that_overlap_are_refused(self, tmp_path):
        path = tmp_path / "f"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", pickle.dumps({}, 2))
            file.writestr("a/data/0", bytes(10_000))
            for key in range(1, 20):
                twin = zipfile.ZipInfo(f"a/data/{key}")
                first = file.getinfo("a/data/0")
                twin.header_offset, twin.CRC = first.header_offset, first.CRC
                twin.file_size = twin.compress_size = first.file_size
                file.filelist.append(twin)
        with pytest.raises(ArtifactError, match="records overlap"):
            read_torch_file(path)


class TestOtherFiles:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"none\.pth does not exist: check the path"):
            read_torch_file(tmp_path / "none.pth")

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_a_torchscript_archive(self, tmp_path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "f")
        with pytest.raises(ArtifactError, match="is a TorchScript archive") as error:
            read_torch_file(tmp_path / "f")
        assert world.one_sentence(error)

    def test_another_zip_file(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "f", "w") as file:
            file.writestr("a.txt", "a")
        with pytest.raises(ArtifactError, match=r"none of torch\.save") as error:
            read_torch_file(tmp_path / "f")
        assert world.one_sentence(error)

    def test_the_format_before_torch_1_6(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "f", _use_new_zipfile_serialization=False)
        with pytest.raises(ArtifactError, match=r"not a zip file as torch\.save writes them since version 1\.6"):
            read_torch_file(tmp_path / "f")

    def test_numbers_in_another_byte_order(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "f", "w") as file:
            file.writestr("a/data.pkl", pickle.dumps({}, 2))
            file.writestr("a/byteorder", "big" if sys.byteorder == "little" else "little")
        with pytest.raises(ArtifactError, match="-endian numbers") as error:
            read_torch_file(tmp_path / "f")
        assert world.one_sentence(error)

    def test_a_file_of_a_torch_that_did_not_say_its_byte_order(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "f", "w") as file:
            file.writestr("a/data.pkl", pickle.dumps({"a": 1}, 2))
        assert read_torch_file(tmp_path / "f") == {"a": 1}


def test_the_limit_on_tuples_is_far_above_a_real_checkpoint(tmp_path):
    # as many tensors as ViT-L/14's teacher has: two image towers of 24 layers and a text tower of 12
    state = {f"w{i}": torch.zeros(1, dtype=torch.float16) for i in range(1000)}
    torch.save(files.published(state), tmp_path / "f")
    with zipfile.ZipFile(tmp_path / "f") as file:
        data = file.read("f/data.pkl")
    assert sum("TUPLE" in opcode.name for opcode, _, _ in pickletools.genops(data)) < 10_000
    assert len(read_torch_file(tmp_path / "f")["state_dict"]) == 1000


def test_a_tensor_that_is_given_more_elements_than_its_storage_has_is_refused(tmp_path):
    # BUILD calls the tensor's own __setstate__, after the size has been looked at
    small = Call(torch._utils._rebuild_tensor_v2, Handle("FloatStorage", 1), 0, (1,), (1,), False, OrderedDict())
    data = pickled({"t": small})
    state = pickle.dumps((10**6, 10**6), 2)[2:-1] + pickle.dumps((0, 0), 2)[2:-1]
    memo = b"q\x60"
    i = data.rindex(b"R")
    # tensor, (tensor, offset, size, stride), BUILD
    data = data[: i + 1] + memo + b"(h\x60K\x00" + state + b"tb" + data[i + 1 :]
    for nested in (data, data[:-1] + b"\x85."):
        with pytest.raises(ArtifactError, match="a tensor reaches beyond its storage") as error:
            read_torch_file(archive(tmp_path / "f", nested, [bytes(4)]))
        assert world.one_sentence(error)


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor(7))
        self.small = torch.nn.Parameter(torch.randn(2, 3).half())
        self.number, self.pair, self.listed = 5, (1, 2), [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Outer(Inner):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.more = torch.nn.Sequential(torch.nn.LayerNorm(2), torch.nn.ReLU())


class CreatesAFile(torch.nn.Module):
    """Its code runs as the archive is loaded, and creates a file of this name."""

    def __init__(self, path):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.path = str(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight = torch.from_file(state[1], shared=True, size=4)
        self.path, self.training = state[1], state[2]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:`torch.jit.*` is deprecated")
class TestTorchScript:
    @pytest.mark.parametrize("make", ["script", "trace"])
    def test_its_tensors_are_those_of_the_module(self, make, tmp_path):
        module = Outer()
        scripted = torch.jit.script(module) if make == "script" else torch.jit.trace(module, torch.ones(1, 3))
        scripted.save(tmp_path / "f")
        assert is_torchscript(tmp_path / "f")
        read, expected = read_torchscript(tmp_path / "f"), scripted.state_dict()
        assert sorted(read) == sorted(expected)
        for name, tensor in expected.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)

    def test_its_code_is_not_run(self, tmp_path):
        trace, file = tmp_path / "trace", tmp_path / "f"
        torch.jit.script(CreatesAFile(trace)).save(file)
        torch.jit.load(file)
        assert trace.exists()
        trace.unlink()
        assert read_torchscript(file) == {}
        assert not trace.exists()

    def test_another_file_of_torch_is_none(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "f")
        assert not is_torchscript(tmp_path / "f")
        with pytest.raises(ArtifactError, match=r"holds no module") as error:
            read_torchscript(tmp_path / "f")
        assert world.one_sentence(error)

    def test_a_module_within_itself_is_refused(self, tmp_path):
        root = b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
        path = archive(tmp_path / "f", root)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("a/constants.pkl", b"")
        with pytest.raises(ArtifactError, match="a module stands in several places") as error:
            read_torchscript(path)
        assert world.one_sentence(error)

    @pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
    def test_a_damaged_one_is_one_sentence(self, where, tmp_path):
        torch.jit.trace(Outer(), torch.ones(1, 3)).save(tmp_path / "f")
        whole = (tmp_path / "f").read_bytes()
        (tmp_path / "f").write_bytes(whole[: int(where * len(whole))])
        assert not is_torchscript(tmp_path / "f")
        with pytest.raises(ArtifactError, match="is damaged") as error:
            read_torchscript(tmp_path / "f")
        assert world.one_sentence(error)
