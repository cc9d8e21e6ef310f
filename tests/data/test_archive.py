import io
import tarfile
import zipfile

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


@pytest.mark.parametrize("name", ["/etc/x", "../x", "dtd/../../x", "C:/x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_member_that_leaves_the_folder_is_refused_before_anything_is_written(tmp_path, name, kind):
    path = tmp_path / f"bad.{kind}"
    if kind == "zip":
        zipped(path, {"dtd/fine.jpg": b"1", name: b"2"})
    else:
        tarred(path, ("dtd/fine.jpg", tarfile.REGTYPE, b"1"), (name, tarfile.REGTYPE, b"2"))
    with pytest.raises(DataError, match=r"^archive .*bad\.\w+ has a member .* that leaves its folder: do not use it$"):
        unpack(path, tmp_path / "out", is_dtd)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = tarred(tmp_path / "bad.tar", ("dtd/fine.jpg", tarfile.REGTYPE, b"1"), ("dtd/l", kind, "/etc/passwd"))
    with pytest.raises(DataError, match="has a member 'dtd/l' that is neither file nor folder"):
        unpack(path, tmp_path / "out", is_dtd)
    assert not (tmp_path / "out").exists()


def test_link_in_a_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo("dtd/l")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("dtd/fine.jpg", b"1")
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="has a member 'dtd/l' that is neither file nor folder"):
        unpack(tmp_path / "bad.zip", tmp_path / "out", is_dtd)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"^archive .*bad\.zip is damaged \(.*\): remove it and download it again$"):
        unpack(tmp_path / "bad.zip", tmp_path / "out", is_dtd)


def test_damaged_contents_are_named(tmp_path):
    path = zipped(tmp_path / "bad.zip", {"dtd/1.jpg": b"0123456789" * 10})
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456788", 1))
    with pytest.raises(DataError, match=r"bad\.zip is damaged"):
        unpack(path, tmp_path / "out", is_dtd)
