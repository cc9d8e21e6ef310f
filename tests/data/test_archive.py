import tarfile
import zipfile
from contextlib import suppress

import pytest
from zoo import add

from kdpl.data.archive import unpack
from kdpl.errors import DataError


def packed(path, members):
    """An archive of contents by name; in a tar, also of members of another kind."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, content in members.items():
                if name.endswith("/"):
                    add(archive, name.rstrip("/"), kind=tarfile.DIRTYPE)
                elif content in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                    add(archive, name, kind=content, link="/etc/passwd")
                else:
                    add(archive, name, content)
    return path


def unpacked(path):
    out = path.parent / "in/out"
    unpack(path, out, lambda name: name == "dtd")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_own_folder_is_left_out(tmp_path, kind):
    path = packed(tmp_path / f"x.{kind}", {"dtd/images/a/1.jpg": b"one", "dtd/labels.txt": b"two", "dtd/empty/": b""})
    assert unpacked(path) == {"images/a/1.jpg": b"one", "labels.txt": b"two"}
    assert (tmp_path / "in/out/empty").is_dir()


@pytest.mark.parametrize("kept", [{"dtd/1.jpg": b"1", "more/2.jpg": b"2"}, {"images/1.jpg": b"1"}])
def test_other_folders_stay_and_what_a_mac_adds_goes(tmp_path, kept):
    added = {"__MACOSX/dtd/._1.jpg": b"x", "dtd/.DS_Store": b"x"}
    assert unpacked(packed(tmp_path / "a.zip", {**kept, **added})) == kept


@pytest.mark.parametrize("name", ["/etc/x", "../x", "dtd/../../x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside_of_the_folder(tmp_path, name, kind):
    path = packed(tmp_path / f"bad.{kind}", {"dtd/fine.jpg": b"1", name: b"2"})
    with suppress(DataError):
        unpacked(path)
    assert {each.relative_to(tmp_path).parts[0] for each in tmp_path.rglob("*")} == {path.name, "in"}
    assert [each.name for each in (tmp_path / "in").iterdir()] == ["out"]
    assert not [each for each in tmp_path.rglob("*") if each.is_symlink()]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_devices_and_links_that_lead_outside_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match="is damaged or unsafe"):
        unpacked(packed(tmp_path / "bad.tar", {"dtd/fine.jpg": b"1", "dtd/l": kind}))
    assert not list((tmp_path / "in/out").iterdir())


def test_a_link_in_a_zip_becomes_a_file(tmp_path):
    link = zipfile.ZipInfo("l")
    link.create_system = 3
    link.external_attr = 0o120777 << 16
    assert unpacked(packed(tmp_path / "bad.zip", {link: "/etc/passwd"})) == {"l": b"/etc/passwd"}
    assert not (tmp_path / "in/out/l").is_symlink()


@pytest.mark.parametrize("content", [b"no archive", b"", None])
def test_a_damaged_archive_is_named(tmp_path, content):
    path = packed(tmp_path / "bad.zip", {"dtd/1.jpg": b"0123456789" * 10})
    flipped = path.read_bytes().replace(b"0123456789", b"0123456788", 1)
    path.write_bytes(flipped if content is None else content)
    with pytest.raises(DataError, match=r"^archive .*bad\.zip is damaged or unsafe \(.*\): remove it and download it"):
        unpacked(path)
