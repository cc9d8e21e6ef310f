"""Real handwriting without a download: scikit-learn's copy of the UCI handwritten digits.

1,797 grey images of 8 x 8 pixels (Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits",
1998), enlarged to 24 x 24 and set into a black 32 x 32 frame.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from kdpl.data.decoding import PUBLISHED
from kdpl.data.splits import Reader, Record, Splits

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(Reader):
    """Reader of the digits, without settings."""

    from_user = False
    decoding = PUBLISHED

    def read(self) -> Splits:
        """Read the dataset; see ``read_digits``."""
        return read_digits()


def read_digits() -> Splits:
    """Read 700 training, 198 validation and 899 test images."""
    labels = _arrays()[1]
    order = np.random.RandomState(0).permutation(len(labels))
    records = tuple(Record(f"digits/{i:04d}", int(labels[i])) for i in order)
    # hyperparameters are chosen on val
    train, val, test = (records[:700], records[700:898], records[898:])
    return Splits("dataset digits", CLASS_NAMES, train, val, test, None, open_digit)


def open_digit(source: str) -> Image.Image:
    """Open ``digits/<number>`` as a 32 x 32 RGB image, white on black."""
    grey = Image.fromarray(_arrays()[0][int(source.removeprefix("digits/"))])
    enlarged = grey.resize((24, 24), resample=Image.Resampling.BICUBIC)
    return ImageOps.expand(enlarged, border=4, fill=0).convert("RGB")


@cache
def _arrays() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Load all images, uint8 [1797, 8, 8], and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
