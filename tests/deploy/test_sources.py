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
    found = find_sources([str(pictures / "deep" / "c.PNG"), str(pictures), f"{pictures}/**/*.[jp][pn]g"], listed)
    shortened = [path.removeprefix(f"{pictures}/") for path in found]
    assert shortened == [
        *("deep/c.PNG", "a.png", "deep/b.jpg", "deep/c.PNG"),
        *("a.png", "deep/b.jpg", "x y.png", "not there.jpg", "a.png"),
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    for name in ("[1].png", "1.png"):
        (tmp_path / name).touch()
    assert find_sources([f"{tmp_path}/[1].png"], None) == [f"{tmp_path}/[1].png"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["gone.png"], "gone.png does not exist"),
        (["{}/*.gif"], "does not exist"),
        ([], "no images to classify"),
    ],
)
def test_what_is_not_there_is_named(arguments, match, pictures):
    with pytest.raises(DataError, match=match) as error:
        find_sources([each.format(pictures) for each in arguments], None)
    assert world.one_sentence(error)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        find_sources([], tmp_path / "gone.txt")


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_the_parts_one_after_another_are_all_sources_once(count, parts):
    sources = [str(i) for i in range(count)]
    pieces = [part_of(sources, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert [each for piece in pieces for each in piece] == sources == part_of(sources, None)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "-1/3", "1/2/3", "1/0"])
def test_a_part_that_cannot_be_is_named(part):
    with pytest.raises(ConfigError, match=f"--part is {part}, expected I/N") as error:
        part_of([], part)
    assert world.one_sentence(error)


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("TAR", "w")])
def test_a_shard_gives_its_images_in_their_order_and_nothing_is_unpacked(ending, mode, tmp_path):
    members = {"b/2.png": encoded(2), "b/2.json": b"{}", "1.jpg": encoded(1, "JPEG"), "._1.jpg": b"x", "9.cls": b"3"}
    shard = write_shard(tmp_path / f"s.{ending}", members, mode)
    items = list(read_items([str(shard)]))
    assert [item.name for item in items] == [f"{shard}/b/2.png", f"{shard}/1.jpg"]
    assert [item.open().getpixel((0, 0)) for item in items] == [(2, 4, 7), items[1].open().getpixel((0, 0))]
    assert list(tmp_path.iterdir()) == [shard]


def test_a_bad_image_in_a_shard_is_named_with_its_shard(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"bad.png": b"no image", "good.png": encoded(1)})
    bad, good = read_items([str(shard)])
    with pytest.raises(DataError, match=r"image .*s\.tar/bad\.png cannot be read"):
        bad.open()
    good.open()


@pytest.mark.parametrize("keep", [0, 100, 700, 1536 + 100, 1536 + 512 + 20])
def test_a_shard_that_was_cut_off_gives_what_it_has_and_then_an_error(keep, tmp_path):
    # each member takes a header and two blocks of 512 bytes
    content = encoded(1)[:20] + bytes(600)
    shard = write_shard(tmp_path / "s.tar", {"1.png": content, "2.png": content, "3.png": content})
    shard.write_bytes(shard.read_bytes()[:keep])
    *images, error = read_items([str(shard)])
    assert len(images) == keep // 1536
    with pytest.raises(DataError, match=r"shard .*s\.tar is damaged \(") as raised:
        error.open()
    assert world.one_sentence(raised)


def test_a_shard_garbled_between_its_members_ends_with_an_error(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {f"{i}.png": bytes(600) for i in range(3)})
    content = bytearray(shard.read_bytes())
    content[1536 : 1536 + 300] = b"?" * 300
    shard.write_bytes(content)
    first, error = read_items([str(shard)])
    assert first.error is None
    with pytest.raises(DataError, match="is damaged"):
        error.open()


def test_a_missing_shard_of_a_list_is_an_item_with_an_error_and_what_follows_comes(tmp_path):
    gone, after = read_items([str(tmp_path / "gone.tar"), "after.png"])
    assert (gone.name, after.name) == (f"{tmp_path}/gone.tar", "after.png")
    with pytest.raises(DataError, match=r"gone\.tar does not exist"):
        gone.open()


def test_links_in_a_shard_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(3))
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        shard.addfile(info)
    assert list(read_items([str(tmp_path / "s.tar")])) == []


def test_a_path_that_is_no_utf8_is_printable():
    assert printable("é\udcff.png") == "é\\xff.png"
