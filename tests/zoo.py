"""Image files of every odd kind, good and bad: how each is made, and what becomes of it; and tar shards of images."""

import io
import struct
import tarfile
import zlib

from PIL import Image
from runs import noise

ORIENTATION = 0x0112


def _png(width, height, pixels, depth=8, kind=2):
    """A PNG file by hand, of any claimed size: RGB, or another kind."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c))
        for name, c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _deep(kind, *values):
    pixel = b"\0" + struct.pack(f">{len(values)}H", *values)
    return lambda path: path.write_bytes(_png(1, 1, pixel, 16, kind))


def _palette(**options):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return lambda path: image.save(path, **options)


def _moving(path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, **lossless)


def tag(orientation):
    """EXIF of an orientation alone."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def odd_photo(path, width=50, height=40):
    """Noise, partly transparent and turned by its tag."""
    image = noise(width, height, "RGBA")
    image.putalpha(noise(width, height, "L", seed=1))
    image.save(path, exif=tag(6))
    return path


def _turned(path):
    image = Image.new("RGB", (8, 6), "red")
    image.paste("blue", (0, 3, 8, 6))
    image.save(path, exif=tag(6))


def _cut(path):
    noise(40, 40).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def _flipped(path):
    noise(9, 7).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 60] ^= 1
    path.write_bytes(content)


def _bomb(path):
    path.write_bytes(_png(60_000, 60_000, bytes(99)))


def _plain(mode, colour, size=(4, 4), **options):
    return lambda path: Image.new(mode, size, colour).save(path, **options)


_BROWN, _RED, _DARK = (200, 100, 50), (255, 0, 0), (7, 8, 9)
_INK = (0, 255, 255, 0)
_GREEN, _BLUE, _WHITE = (10, 200, 30), (0, 0, 255), (255, 255, 255)
_CLEAR = (0x1234, 0x5678, 0x9ABC)
_CLEAR_GREEN = (*_GREEN, 0)


def _good(name, make, colour, size=(4, 4), pixel=(0, 0)):
    return name, make, size, pixel, colour


# kind: file name, how it is made, size, a pixel, and its colour
GOOD = {
    "grey": _good("grey.png", _plain("L", 77), (77, 77, 77)),
    "1 bit": _good("bit.png", _plain("1", 1), _WHITE),
    "CMYK TIFF": _good("print.tif", _plain("CMYK", _INK), _RED),
    "CMYK JPEG": _good("print.jpg", _plain("CMYK", _INK, (8, 8)), _RED, (8, 8)),
    "palette": _good("palette.png", _palette(), _BROWN),
    "clear palette": _good("clear palette.png", _palette(transparency=1), _WHITE),
    # a quarter of brown on white
    "half-clear palette": _good("half.png", _palette(transparency=b"\xff\x40"), (241, 216, 204)),
    "palette with a clear colour elsewhere": _good("p.png", _palette(transparency=0), _BROWN),
    "RGBA": _good("clear.png", _plain("RGBA", _CLEAR_GREEN), _WHITE),
    "RGBA WebP": _good("clear.webp", _plain("RGBA", _CLEAR_GREEN, lossless=True), _WHITE),
    "grey and alpha": _good("clear grey.png", _plain("LA", (90, 0)), _WHITE),
    "clear colour": _good("key.png", _plain("RGB", _GREEN, transparency=_GREEN), _WHITE),
    "clear grey": _good("key grey.png", _plain("L", 77, transparency=77), _WHITE),
    "clear bit": _good("key bit.png", _plain("1", 0, transparency=0), _WHITE),
    "16-bit RGBA": _good("deep clear.png", _deep(6, *_CLEAR, 0), _WHITE, (1, 1)),
    "16-bit grey and alpha": _good("deep grey.png", _deep(4, 0x1234, 0), _WHITE, (1, 1)),
    "turned by EXIF": _good("turned.png", _turned, _BLUE, (6, 8)),
    "animated GIF": _good("moving.gif", _moving, _RED, (8, 8), (3, 3)),
    "animated WebP": _good("moving.webp", _moving, _RED, (8, 8), (3, 3)),
    "one pixel": _good("pixel.png", _plain("RGB", _DARK, (1, 1)), _DARK, (1, 1)),
    "20,000 pixels wide": _good(
        "wide.png", _plain("RGB", _DARK, (20_000, 2)), _DARK, (20_000, 2), (19_999, 1)
    ),
    "PNG named .jpg": _good("really a png.jpg", _plain("RGB", _DARK, format="PNG"), _DARK),
    "bad profile": _good("profile.png", _plain("RGB", _DARK, icc_profile=b"no profile"), _DARK),
}

# what becomes of some without compositing and turning, as the field does it: size and the colour of the same pixel
PUBLISHED = {
    "half-clear palette": ((4, 4), _BROWN),
    "RGBA": ((4, 4), _GREEN),
    "grey and alpha": ((4, 4), (90, 90, 90)),
    "clear colour": ((4, 4), _GREEN),
    "16-bit RGBA": ((1, 1), (0x12, 0x56, 0x9A)),
    "turned by EXIF": ((8, 6), _RED),
}

# kind: file name, how it is made, and why it cannot be used
BAD = {
    "empty": ("0 empty.png", lambda p: p.touch(), "no format that Pillow knows"),
    "text named .jpg": ("2 text.jpg", lambda p: p.write_text("text"), "no format that Pillow"),
    "cut PNG": ("1 cut.png", _cut, "truncated"),
    "cut JPEG": ("4 cut.jpg", _cut, "Truncated"),
    **{
        f"cut {kind}": (f"5 cut.{kind.lower()}", _cut, r"cannot be read \(")
        for kind in ("WebP", "GIF", "BMP", "TIFF")
    },
    "a flipped bit": ("6 flipped.png", _flipped, r"cannot be read \("),
    "bomb": ("3 bomb.png", _bomb, r"cannot be read \(Image size \(3600000000 pixels\) exceeds"),
    "float TIFF": ("9 float.tif", _plain("F", 0.5), "8 or 16 unsigned bits"),
    "32-bit TIFF": ("9 integer.tif", _plain("I", 5), "8 or 16 unsigned bits"),
    "0 pixels": ("7 nothing.png", lambda p: p.write_bytes(_png(0, 4, b"")), r"cannot be read \("),
    "link to nowhere": ("8 gone.png", lambda p: p.symlink_to("nowhere.png"), "does not exist"),
}


def write(folder, kinds):
    """Make the files of a table in a folder; returns their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make, *_ in kinds.values():
        make(folder / name)
    return sorted(str(folder / name) for name, *_ in kinds.values())


def encoded(seed):
    file = io.BytesIO()
    noise(9, 7, seed=seed).save(file, "PNG")
    return file.getvalue()


def add(shard, name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    shard.addfile(info, io.BytesIO(content))


def write_shard(path, seeds, mode="w"):
    """A shard as WebDataset writes them: an image and its notes for each key."""
    with tarfile.open(path, mode) as shard:
        for seed in seeds:
            add(shard, f"{seed:04d}.png", encoded(seed))
            add(shard, f"{seed:04d}.json", b"{}")
    return path
