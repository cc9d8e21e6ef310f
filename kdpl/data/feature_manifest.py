"""What a cache of teacher features is of: its manifest, and whether that is what a run needs."""

import hashlib
import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdpl.data.augmentation import Augmentation
from kdpl.errors import DataError
from kdpl.runtime.fields import Fields
from kdpl.runtime.files import atomic_path

FILE = "manifest.json"
"""Name of the file in a cache's folder."""

ROWS_PER_SHARD = 65_536

_REPR = reprlib.Repr()
_REPR.maxdict = _REPR.maxlist = _REPR.maxstring = 100

_KIND = "teacher features"
_DTYPE = "float16"
_MOST_SHARDS = 1_000_000  # files in one folder
_VERSION = 1
_REMEDY = "choose another folder as data.init_args.teacher_cache, or remove it"

# what a run must have in common with a cache, and how a person calls it
_MUST_AGREE = {
    "teacher": "the teacher",
    "width": "the width of the features",
    "dataset": "the dataset",
    "images": "the number of unlabelled images",
    "sources": "the digest of the list of unlabelled images",
    "image_size": "the image size of the student",
    "augmentation": "the augmentation",
    "view_parameters": "the parameters of a view",
}


@dataclass(frozen=True)
class Manifest:
    """What the features of a cache were made of, as JSON values.

    Attributes:
        teacher: Fingerprint of the teacher.
        width: Width D of its features.
        dataset: Name of the dataset.
        images: Number N of its unlabelled images.
        sources: Digest of their list, wherever the dataset lies.
        image_size: Edge of a view in pixels.
        augmentation: Class and settings of the augmentation.
        view_parameters: Names of the P numbers that define a view.
        view_seed: Seed that the views were drawn with.
        views: Number V of views of each image.
        rows_per_shard: Views a file.
        made_with: Versions of the libraries that made the views, for information.
    """

    teacher: str
    width: int
    dataset: str
    images: int
    sources: str
    image_size: int
    augmentation: dict[str, Any]
    view_parameters: list[str]
    view_seed: int
    views: int
    rows_per_shard: int
    made_with: dict[str, str]

    @classmethod
    def of(
        cls,
        *,
        teacher: str,
        width: int,
        dataset: str,
        sources: Sequence[str],
        image_size: int,
        augmentation: Augmentation,
        view_seed: int,
        views: int,
    ) -> "Manifest":
        """Describe the features of a list of images under an augmentation, with the libraries that are there."""
        return cls(
            teacher=teacher,
            width=width,
            dataset=dataset,
            images=len(sources),
            sources=_digest(sources),
            image_size=image_size,
            augmentation=_describe(augmentation),
            view_parameters=list(augmentation.parameter_names),
            view_seed=view_seed,
            views=views,
            rows_per_shard=ROWS_PER_SHARD,
            made_with={name: version(name) for name in ("pillow", "torch", "torchvision", "numpy")},
        )

    def save(self, folder: Path) -> None:
        """Write the file into a cache's folder, atomically."""
        fields = {"kind": _KIND, "version": _VERSION, "dtype": _DTYPE, **asdict(self)}
        with atomic_path(folder / FILE) as temporary:
            temporary.write_text(json.dumps(fields, indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the file of a cache's folder.

        Raises:
            DataError: The folder holds no cache, one of another version, or a damaged manifest.
        """
        file = folder / FILE
        if not file.is_file():
            raise DataError(f"{folder} is not a cache of teacher features (it has no {FILE}): {_REMEDY}")
        source, remedy = f"the manifest {file}", f"remove the folder {folder} and fill the cache again"
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{source} is damaged (it is not UTF-8): {remedy}") from error
        fields = Fields.parse(text, source, remedy, DataError)
        if fields.text("kind") != _KIND or fields.text("dtype") != _DTYPE:
            raise DataError(f"{source} is damaged (it is one of something else): {remedy}")
        found = fields.whole("version")
        if found != _VERSION:
            raise DataError(
                f"the teacher cache {folder} has format version {found}, this kdpl reads version {_VERSION}: {_REMEDY}"
            )
        manifest = cls(
            teacher=fields.text("teacher"),
            width=fields.whole("width", 1),
            dataset=fields.text("dataset"),
            images=fields.whole("images", 1),
            sources=fields.text("sources"),
            image_size=fields.whole("image_size", 1),
            augmentation=fields.mapping("augmentation"),
            view_parameters=fields.texts("view_parameters"),
            view_seed=fields.whole("view_seed", most=2**63),
            views=fields.whole("views", 1),
            rows_per_shard=fields.whole("rows_per_shard", 1),
            made_with=fields.mapping("made_with"),
        )
        if manifest.images * manifest.views > _MOST_SHARDS * manifest.rows_per_shard:
            raise fields.refuse("rows_per_shard")
        return manifest

    def require(self, folder: Path, needed: "Manifest") -> None:
        """Refuse features that are not those that a run needs.

        Args:
            folder: Where the cache is, for the message.
            needed: The manifest that the run would write; seed, views and shards may differ.

        Raises:
            DataError: Something differs; the first difference is named.
        """
        for name, title in _MUST_AGREE.items():
            theirs, ours = getattr(self, name), getattr(needed, name)
            if theirs != ours:
                raise DataError(
                    f"the teacher cache {folder} is of something else ({title} is {_short(theirs)} there and {ours} "
                    f"here): {_REMEDY}"
                )


def _short(value: object) -> str:
    return str(value)[:200] if isinstance(value, str | int) else _REPR.repr(value)


def _digest(sources: Sequence[str]) -> str:
    """Digest a list of images by their paths below the folder that holds them all, so that a dataset may be moved."""
    try:
        base = os.path.commonpath([os.path.dirname(source) for source in sources])  # noqa: PTH120 - any string, not a path
    except ValueError:
        base = ""  # paths from the root and others, or URLs, which cannot be moved together
    digest = hashlib.sha256()
    for source in sources:
        name = source[len(base) :].replace(os.sep, "/").lstrip("/")
        digest.update(name.encode(errors="surrogateescape") + b"\0")  # a path need not be UTF-8
    return digest.hexdigest()


def _describe(augmentation: Augmentation) -> dict[str, Any]:
    """Give an augmentation's class and settings as JSON values."""
    kind = type(augmentation)
    settings = json.loads(json.dumps(vars(augmentation), default=repr, sort_keys=True))
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **settings}
