"""Two sets of photographs from public repositories, as a user's folders: train, val, test and unlabeled."""

import csv
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from PIL import Image

from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path

SHORT_EDGE = 256
"""Pixels to which the shorter edge of larger images is reduced."""

LABELED = {"train": 16, "val": 4, "test": 40}
"""Images of each class in the splits with labels."""


@dataclass(frozen=True)
class PhotoSet:
    """Photographs in a git repository, in one folder for each class."""

    repository: str  # on GitHub
    folders: tuple[str, ...]  # of the repository, each with a folder for each class
    class_names: Mapping[str, str]  # of the classes' folders
    unlabeled: int  # images of each class in the pool, at most


SETS = {
    "scenes": PhotoSet(
        "lionelmessi6410/Scene-Recognition-with-Bag-of-Words",
        ("data/train", "data/test"),
        {
            "Bedroom": "bedroom",
            "Coast": "coast",
            "Forest": "forest",
            "Highway": "highway",
            "Industrial": "industrial plant",
            "InsideCity": "inner city street",
            "Kitchen": "kitchen",
            "LivingRoom": "living room",
            "Mountain": "mountain",
            "Office": "office",
            "OpenCountry": "open country",
            "Store": "store",
            "Street": "street",
            "Suburb": "suburb",
            "TallBuilding": "tall building",
        },
        unlabeled=100,
    ),
    "clothing": PhotoSet(
        "alexeygrigorev/clothing-dataset-small",
        ("train", "validation", "test"),
        {
            "dress": "dress",
            "hat": "hat",
            "longsleeve": "long-sleeved shirt",
            "outwear": "coat or jacket",
            "pants": "pants",
            "shirt": "shirt",
            "shoes": "shoes",
            "shorts": "shorts",
            "skirt": "skirt",
            "t-shirt": "t-shirt",
        },
        unlabeled=140,
    ),
}


def write_set(name: str, repository: Path, out: Path) -> None:
    """Write the folders of one of ``SETS``.

    Args:
        name: The set.
        repository: Clone of its repository, with or without a work tree; only its HEAD is read.
        out: Folder to write, which must not exist. ``train``, ``val`` and ``test`` have a folder
            for each class; ``unlabeled`` has none, and its classes are in ``unlabeled.csv``, for
            measurements alone. An image that is in two classes is left out.

    Raises:
        DataError: If the repository cannot be read, or has too few images of a class.
    """
    photos = SETS[name]
    images: dict[str, dict[str, bytes]] = {each: {} for each in photos.class_names.values()}
    for folder, content in _read_images(repository, photos.folders):
        class_name = photos.class_names.get(folder)
        if class_name is not None:
            # identical images are one
            images[class_name][sha256(content).hexdigest()] = content
    classes_of = Counter(chain.from_iterable(images.values()))

    with atomic_path(out) as unfinished:
        rows = []
        for class_name, by_digest in images.items():
            own = [digest for digest in by_digest if classes_of[digest] == 1]
            for split, digests in split_images(own, photos.unlabeled).items():
                for digest in digests:
                    # neither a folder nor a name may tell the class of an unlabelled image
                    folder = "" if split == "unlabeled" else class_name
                    path = unfinished / split / folder / f"{digest[:16]}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(reduce_image(by_digest[digest]))
                    if split == "unlabeled":
                        rows.append((path.name, class_name))
        with (unfinished / "unlabeled.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "class"), *sorted(rows)])


def split_images(digests: Sequence[str], unlabeled: int) -> dict[str, list[str]]:
    """Split the images of one class by the order of their digests, which is as good as random.

    Args:
        digests: Hexadecimal digests of the images' contents, in any order.
        unlabeled: Most images to use without labels.

    Returns:
        The digests of each split, disjoint; those that are left over are in none.

    Raises:
        DataError: If there are not enough for the splits with labels.
    """
    if len(digests) < sum(LABELED.values()):
        raise DataError(
            f"a class has {len(digests)} different images but needs {sum(LABELED.values())}: "
            "clone the repository again, in full"
        )
    rest = iter(sorted(digests))
    counts = {**LABELED, "unlabeled": unlabeled}
    return {
        split: [digest for _, digest in zip(range(count), rest, strict=False)]
        for split, count in counts.items()
    }


def reduce_image(content: bytes) -> bytes:
    """Reduce the shorter edge to ``SHORT_EDGE``; returns a JPEG file, the same if it is small already."""
    with Image.open(io.BytesIO(content)) as image:
        scale = SHORT_EDGE / min(image.size)
        if scale >= 1 and image.format == "JPEG":
            return content
        width, height = (round(min(scale, 1) * edge) for edge in image.size)
        reduced = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    reduced.save(file, "JPEG", quality=90)
    return file.getvalue()


def _read_images(repository: Path, folders: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Read the JPEG files of HEAD, each with the name of its folder."""
    git_dir = repository / ".git" if (repository / ".git").exists() else repository
    command = ["git", f"--git-dir={git_dir}", "archive", "--format=tar", "HEAD", *folders]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        raise DataError(
            f"cannot read {', '.join(folders)} of the git repository {repository}: "
            f"{archive.stderr.decode(errors='replace').strip()}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        for member in files:
            if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg")):
                file = files.extractfile(member)
                assert file is not None  # noqa: S101 - it is a file
                yield Path(member.name).parent.name, file.read()
