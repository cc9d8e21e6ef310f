"""A reader as somebody writes it outside of the package."""

from PIL import Image

from kdpl.data.splits import Reader, Record, Splits


class Stripes(Reader):
    """Images of one colour each, ``red`` or ``blue``.

    Args:
        shades: Images a class.
    """

    own = False

    def __init__(self, shades: int = 4) -> None:
        self.shades = shades

    def read(self) -> Splits:
        """Return the images; a source is a colour and a shade."""
        records = tuple(Record(f"{label} {shade}", label) for label in (0, 1) for shade in range(self.shades))
        return Splits("stripes", ("red", "blue"), records, (), records, None, open_stripe)


def open_stripe(source: str) -> Image.Image:
    """Open an image of 8 x 8 pixels."""
    label, shade = map(int, source.split())
    colour = [0, 0, 0]
    colour[2 * label] = 100 + shade
    return Image.new("RGB", (8, 8), tuple(colour))
