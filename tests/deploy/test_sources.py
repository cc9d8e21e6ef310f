import io
import tarfile

import pytest
import world
from PIL import Image

from kdpl.deploy.sources import find_sources, part_of, printable, read_items
from kdpl.errors import ConfigError, DataError


def encoded(value, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 7)).save(file, kind)
    return file.getvalue()


def write_shard(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def pictures(tmp_path):
    """Images a.png, deep/b.jpg and deep/c.PNG, and a text."""
    (tmp_path / "p" / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.png", "deep/b.jpg", "deep/c.PNG"]):
        (tmp_path / "p" / name).write_bytes(encoded(i, "JPEG" if "jpg" in name else "PNG"))
    (tmp_path / "p" / "deep" / "note.txt").touch()
    return tmp_path / "p"


def test_files_folders_patterns_and_lists_come_in_the_order_given(pictures, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"x y.png\r\n\nnot there.jpg\n" + str(pictures).encode() + b"/a.png")
    (pictures / "[1].png").touch()  # a file, though its name looks like a pattern
    arguments = ["deep/c.PNG", "", "**/*.[jp][pn]g", "[1].png"]
    found = find_sources([f"{pictures}/{each}" for each in arguments], listed)
    assert [path.removeprefix(f"{pictures}/") for path in found] == [
        *("deep/c.PNG", "[1].png", "a.png", "deep/b.jpg", "deep/c.PNG", "[1].png", "a.png", "deep/b.jpg"),
        *("[1].png", "x y.png", "not there.jpg", "a.png"),
    ]


@pytest.mark.parametrize(
    ("arguments", "listed", "match"),
    [
        (["gone.png"], None, "gone.png does not exist"),
        (["{}/*.gif"], None, "does not exist"),
        ([], None, "no images to classify"),
        ([], "gone.txt", r"gone\.txt does not exist"),
    ],
)
def test_a_missing_argument_is_named(arguments, listed, match, pictures):
    with pytest.raises(DataError, match=match) as error:
        find_sources([each.format(pictures) for each in arguments], listed and pictures / listed)
    assert world.one_sentence(error)


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_the_parts_in_order_are_all_sources(count, parts):
    sources = [str(i) for i in range(count)]
    pieces = [part_of(sources, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert [each for piece in pieces for each in piece] == sources == part_of(sources, None)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "-1/3", "1/2/3", "1/0"])
def test_an_invalid_part_is_named(part):
    with pytest.raises(ConfigError, match=f"--part is {part}, expected I/N") as error:
        part_of([], part)
    assert world.one_sentence(error)


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("TAR", "w")])
def test_a_shard_gives_its_images_in_order_without_unpacking_them(ending, mode, tmp_path):
    members = {"b/2.png": encoded(2), "b/2.json": b"{}", "1.jpg": encoded(1, "JPEG"), "._1.jpg": b"x", "bad.png": b"no"}
    shard = write_shard(tmp_path / f"s.{ending}", members, mode)
    items = list(read_items([str(shard)]))
    assert [item.name for item in items] == [f"{shard}/{name}" for name in ("b/2.png", "1.jpg", "bad.png")]
    assert items[0].open().getpixel((0, 0)) == (2, 4, 7)
    items[1].open()
    with pytest.raises(DataError, match=r"image .*s\.\S+/bad\.png cannot be read"):
        items[2].open()
    assert list(tmp_path.iterdir()) == [shard]


@pytest.mark.parametrize("damage", [0, 100, 700, 1536 + 100, 1536 + 512 + 20, "garbled"])
def test_a_damaged_shard_gives_what_it_has_and_then_an_error(damage, tmp_path):
    # each member takes a header and two blocks of 512 bytes
    content = encoded(1)[:20] + bytes(600)
    shard = write_shard(tmp_path / "s.tar", {f"{i}.png": content for i in range(3)})
    content = shard.read_bytes()
    shard.write_bytes(content[:1536] + b"?" * 300 + content[1836:] if damage == "garbled" else content[:damage])
    *images, error = read_items([str(shard)])
    assert len(images) == (1 if damage == "garbled" else damage // 1536)
    with pytest.raises(DataError, match=r"shard .*s\.tar is damaged \(") as raised:
        error.open()
    assert world.one_sentence(raised)


def test_a_missing_shard_of_a_list_is_an_error_in_its_place(tmp_path):
    gone, after = read_items([str(tmp_path / "gone.tar"), "after.png"])
    assert (gone.name, after.name) == (f"{tmp_path}/gone.tar", "after.png")
    with pytest.raises(DataError, match=r"gone\.tar does not exist"):
        gone.open()


def test_links_in_a_shard_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(3))
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        shard.addfile(info)
    assert list(read_items([str(tmp_path / "s.tar")])) == []


def test_a_path_that_is_not_utf8_is_printable():
    assert printable("é\udcff.png") == "é\\xff.png"
