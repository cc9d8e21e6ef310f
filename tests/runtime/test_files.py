import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdpl.runtime.files import append, atomic_path, cut_to_whole_lines


def test_a_file_in_a_new_folder_is_written_beside_its_place(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("complete")
        assert temporary.parent.parent == tmp_path / "deep", "a rename across file systems is not atomic"
    assert [path.read_text() for path in (tmp_path / "deep").iterdir()] == ["complete"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_has_its_name_is_on_the_disk(folder, tmp_path, monkeypatch):
    written = set()
    fsync = os.fsync

    def note(descriptor):
        assert not (tmp_path / "a").exists()
        written.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()).rpartition("/a")[2])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_path(tmp_path / "a") as temporary:
        if folder:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / "file").write_text("b")
        else:
            temporary.write_text("a")
    assert written == {"/deep/file" if folder else ""}


def test_others_may_read_what_was_written(tmp_path):
    tensors = {"numbers": torch.tensor([1.0, 2.0])}
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / "a.safetensors")
    (tmp_path / "usual").touch()
    assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("folder/a.safetensors", "usual")}) == 1


def test_text_is_appended_and_an_unfinished_line_removed(tmp_path):
    file = tmp_path / "lines"
    append(file, "a\n")
    append(file, "b\nc")
    assert cut_to_whole_lines(file) == 2
    assert file.read_text() == "a\nb\n"
