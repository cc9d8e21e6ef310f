"""Words for things that are not a class, and their text features in a run's folder."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import composed, fault_of_name
from kdpl.runtime.files import lines_of, read_text

NEGATIVE_VECTORS_FILE = "negative_vectors.safetensors"
"""File in the folder of a teacher or student, in the format of class vectors."""

_FAR, _SHARE_OF_WORDS = 0.95, 0.5


def distant_words(run: Path, vectors: ClassVectors) -> tuple[Tensor, tuple[str, ...]]:
    """Return a student's negative vectors far from all classes, [M, D], and their words."""
    file = run / NEGATIVE_VECTORS_FILE
    if not file.is_file():
        return vectors.vectors[:0], ()
    negatives = ClassVectors.load(file)
    usable = other_than(vectors.class_names, negatives.class_names, str(file))
    kept = [usable[i] for i in farthest(negatives.vectors[usable], vectors.vectors)]
    return negatives.vectors[kept], tuple(negatives.class_names[i] for i in kept)


@cache
def everyday_words() -> tuple[str, ...]:
    """Return words for things that most domains do not have as a class."""
    return read_words(str(Path(__file__).with_name("everyday_words.txt")))


def read_words(file: str) -> tuple[str, ...]:
    """Read words of things that are not a class, one on each line; a DataError if empty."""
    lines = lines_of(read_text(Path(file).expanduser(), "negative words"))
    words = tuple(dict.fromkeys(lines))
    if not words:
        raise DataError(f"negative words {file} has no words: write one on each line")
    for word in words:
        if problem := fault_of_name(word):
            raise DataError(f"negative words {file} has a word that {problem}: give another")
    return words


def other_than(class_names: Sequence[str], words: Sequence[str], source: str) -> list[int]:
    """Return the positions of words that do not name a class."""
    # nobody chose the everyday words
    classes = {_plain(name) for name in class_names}
    clashes = [word for word in words if _plain(word) in classes and word not in everyday_words()]
    if clashes:
        raise ConfigError(
            f"{source} has the word {clashes[0]!r}, which is a class: leave it out, since an image "
            "of a class would count as none of them"
        )
    return [i for i, word in enumerate(words) if _plain(word) not in classes]


def _plain(name: str) -> str:
    return " ".join(composed(name).replace("_", " ").casefold().split())


def farthest(words: Tensor, classes: Tensor) -> list[int]:
    """Choose the half of word vectors [N, D] that are least similar to class vectors [C, D].

    NegMining of NegLabel (arXiv 2403.20078, section 3.2), by 95 % quantiles of the similarities;
    both vectors are normalised.
    """
    if not len(words):
        return []
    similarity = (words.double() @ classes.double().T).quantile(_FAR, dim=1)
    count = max(1, round(_SHARE_OF_WORDS * len(words)))
    return sorted(similarity.argsort(stable=True)[:count].tolist())
