import io
import tarfile
import zipfile
from contextlib import suppress

import pytest

from kdpl.data.archive import unpack
from kdpl.errors import DataError


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, *members):
    """A tar of (name, type, link target or content)."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_dtd(name):
    return name == "dtd"


MEMBERS = {"dtd/images/a/1.jpg": b"one", "dtd/labels.txt": b"two", "dtd/empty/": b""}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_own_folder_is_left_out(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(path, MEMBERS)
    else:
        files = [
            (name.rstrip("/"), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE, content or "")
            for name, content in MEMBERS.items()
        ]
        tarred(path, *files)
    unpack(path, tmp_path / "out", is_dtd)
    assert contents(tmp_path / "out") == {"images/a/1.jpg": b"one", "labels.txt": b"two"}
    assert (tmp_path / "out/empty").is_dir()


def test_other_folders_stay_and_what_a_mac_adds_goes(tmp_path):
    members = {"dtd/1.jpg": b"1", "more/2.jpg": b"2", "__MACOSX/dtd/._1.jpg": b"x", "dtd/.DS_Store": b"x"}
    unpack(zipped(tmp_path / "a.zip", members), tmp_path / "a", is_dtd)
    assert contents(tmp_path / "a") == {"dtd/1.jpg": b"1", "more/2.jpg": b"2"}
    unpack(zipped(tmp_path / "b.zip", {"images/1.jpg": b"1"}), tmp_path / "b", is_dtd)
    assert contents(tmp_path / "b") == {"images/1.jpg": b"1"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "dtd/../../x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside_of_the_folder(tmp_path, name, kind):
    path, out = tmp_path / f"bad.{kind}", tmp_path / "in" / "out"
    if kind == "zip":
        zipped(path, {"dtd/fine.jpg": b"1", name: b"2"})
        unpack(path, out, is_dtd)
    else:
        tarred(path, ("dtd/fine.jpg", tarfile.REGTYPE, b"1"), (name, tarfile.REGTYPE, b"2"))
        with suppress(DataError):
            unpack(path, out, is_dtd)
    assert {each.relative_to(tmp_path).parts[0] for each in tmp_path.rglob("*")} == {path.name, "in"}
    assert [each.name for each in (tmp_path / "in").iterdir()] == ["out"]
    assert not [each for each in out.rglob("*") if each.is_symlink()]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_devices_and_links_that_lead_outside_are_refused(tmp_path, kind):
    path = tarred(tmp_path / "bad.tar", ("dtd/fine.jpg", tarfile.REGTYPE, b"1"), ("dtd/l", kind, "/etc/passwd"))
    with pytest.raises(DataError, match="is damaged or unsafe"):
        unpack(path, tmp_path / "out", is_dtd)
    assert not list((tmp_path / "out").iterdir())


def test_a_link_in_a_zip_becomes_a_file(tmp_path):
    link = zipfile.ZipInfo("l")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    unpack(tmp_path / "bad.zip", tmp_path / "out", is_dtd)
    assert contents(tmp_path / "out") == {"l": b"/etc/passwd"}
    assert not (tmp_path / "out/l").is_symlink()


@pytest.mark.parametrize("content", [b"no archive", b"", None])
def test_a_damaged_archive_is_named(tmp_path, content):
    path = tmp_path / "bad.zip"
    if content is None:
        zipped(path, {"dtd/1.jpg": b"0123456789" * 10})
        content = path.read_bytes().replace(b"0123456789", b"0123456788", 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^archive .*bad\.zip is damaged or unsafe \(.*\): remove it and download it"):
        unpack(path, tmp_path / "out", is_dtd)
