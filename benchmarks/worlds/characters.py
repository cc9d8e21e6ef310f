"""Letters and digits in one domain, for a tree of classes: character, then digit, vowel or consonant, then symbol."""

from pathlib import Path

from PIL import Image

from benchmarks.worlds.letters import Letters, open_letter
from kdpl.data.decoding import PUBLISHED
from kdpl.data.readers.digits import Digits, open_digit
from kdpl.data.splits import Reader, Record, Splits

TAXONOMY = Path(__file__).parent / "characters.csv"
"""The tree, a table with the columns child and parent."""


class Characters(Reader):
    """The images of both; there is nothing to set."""

    from_user = False
    decoding = PUBLISHED

    def read(self) -> Splits:
        """Read 2,260 training, 458 validation and 2,199 test images of 36 classes."""
        digits, letters = Digits().read(), Letters().read()
        first = len(digits.class_names)

        def joined(own: tuple[Record, ...], others: tuple[Record, ...]) -> tuple[Record, ...]:
            return (*own, *(Record(source, first + label) for source, label in others))

        names = (*digits.class_names, *letters.class_names)
        train, val, test = (
            joined(getattr(digits, part), getattr(letters, part))
            for part in ("train", "val", "test")
        )
        return Splits("dataset characters", names, train, val, test, None, open_character)


def open_character(source: str) -> Image.Image:
    """Open a digit or a letter by its source in its own domain."""
    return open_digit(source) if source.startswith("digits/") else open_letter(source)
