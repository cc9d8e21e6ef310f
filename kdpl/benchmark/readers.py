"""The benchmark's datasets: folder, layout and number of classes of each, and their reader.

The layouts are those of CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV
2022), which the field has kept since, but for the order within a class of ImageNet: here it is that
of the images' names. The field takes them in the order in which the file system lists them, so that
no two machines share a k-shot sample of it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from kdpl.data.decoding import PUBLISHED, open_image
from kdpl.data.splits import Reader, Record, Splits
from kdpl.data.storage import find_images
from kdpl.errors import DataError

Layout = Literal["split_file", "aircraft", "imagenet", "class_folders", "numbered_folders"]


@dataclass(frozen=True)
class Benchmark:
    """One dataset of the benchmark.

    Attributes:
        name: Its name in configs and commands.
        folder: Its folder below the root of all datasets.
        images: Folder of the images below ``folder``.
        index: File below ``folder`` that lists images or class names.
        layout: A JSON file of three lists; FGVC Aircraft's own lists; ImageNet's folders ``train``
            and ``val``; or test images alone, in one folder a class, named by WordNet id or by
            label.
        num_classes: Number of classes of the whole dataset.
    """

    name: str
    folder: str
    images: str
    index: str
    layout: Layout
    num_classes: int


_SHOWN = 200  # characters of what is wrong with a damaged dataset
_V2_IMAGES = "imagenetv2-matched-frequency-format-val"
_ALL = (
    Benchmark(
        "caltech101",
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        "split_file",
        100,
    ),
    Benchmark(
        "oxford_pets", "oxford_pets", "images", "split_zhou_OxfordPets.json", "split_file", 37
    ),
    Benchmark(
        "stanford_cars", "stanford_cars", ".", "split_zhou_StanfordCars.json", "split_file", 196
    ),
    Benchmark(
        "oxford_flowers",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "split_file",
        102,
    ),
    Benchmark("food101", "food-101", "images", "split_zhou_Food101.json", "split_file", 101),
    Benchmark("fgvc_aircraft", "fgvc_aircraft", "images", "variants.txt", "aircraft", 100),
    Benchmark("sun397", "sun397", "SUN397", "split_zhou_SUN397.json", "split_file", 397),
    Benchmark("dtd", "dtd", "images", "split_zhou_DescribableTextures.json", "split_file", 47),
    Benchmark("eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json", "split_file", 10),
    Benchmark("ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "split_file", 101),
    Benchmark("imagenet", "imagenet", "images", "classnames.txt", "imagenet", 1000),
    Benchmark("imagenetv2", "imagenetv2", _V2_IMAGES, "classnames.txt", "numbered_folders", 1000),
    Benchmark(
        "imagenet_sketch", "imagenet-sketch", "images", "classnames.txt", "class_folders", 1000
    ),
    Benchmark(
        "imagenet_a", "imagenet-adversarial", "imagenet-a", "classnames.txt", "class_folders", 200
    ),
    Benchmark(
        "imagenet_r", "imagenet-rendition", "imagenet-r", "classnames.txt", "class_folders", 200
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


class BenchmarkSet(Reader):
    """A dataset of the benchmark, a key of ``BENCHMARKS``, below the ``root`` of all datasets."""

    own = False
    decoding = PUBLISHED

    def __init__(self, name: str, root: str) -> None:
        self.benchmark, self.root = BENCHMARKS[name], Path(root).expanduser()
        self.folder = self.root / self.benchmark.folder
        self.images = self.folder / self.benchmark.images
        self.index = self.folder / self.benchmark.index
        self.origin = f"dataset {name} in {self.folder}"

    def read(self) -> Splits:
        """Read the dataset.

        Raises a DataError that names what is missing or damaged and the command that gets the data.
        """
        self.require_parts()
        try:
            names, parts = _LAYOUTS[self.benchmark.layout](self)
        except (LookupError, ValueError) as error:
            why = " ".join(str(error).split())[:_SHOWN]
            problem = f"{self.origin} is damaged ({type(error).__name__}: {why})"
            raise DataError(f"{problem}: replace its files ({self._remedy()})") from error
        opened = partial(open_image, decoding=self.decoding)
        train, val, test = map(tuple, parts)
        return Splits(self.origin, tuple(names), train, val, test, None, opened)

    def require_parts(self) -> None:
        """Raise a DataError if folder, images or a needed index are missing."""
        for path in (self.folder, self.images):
            self.require(path)
        if self.benchmark.layout in ("split_file", "aircraft"):
            self.require(self.index)

    def require(self, path: Path) -> Path:
        """Return a path of the dataset; if it is missing, a DataError that tells how to get it."""
        if path.exists():
            return path
        what = "file" if path.suffix else "folder"
        problem = f"dataset {self.benchmark.name} needs the {what} {path}, which does not exist"
        remedy = f"set root to the folder that holds {self.benchmark.folder}/"
        raise DataError(f"{problem}: {remedy}, or get the data ({self._remedy()})")

    def _remedy(self) -> str:
        command = f"python -m kdpl data download {self.benchmark.name} --root {self.root}"
        return f"{command} tells how" if self.benchmark.layout == "imagenet" else command


_Read = tuple[list[str], list[list[Record]]]
"""Class names by label, and the images to train, validate and test on."""


class _SplitFile(BaseModel):
    train: list[tuple[str, int, str]]
    val: list[tuple[str, int, str]]
    test: list[tuple[str, int, str]]


def _read_split_file(dataset: BenchmarkSet) -> _Read:
    """Read a JSON file of the three splits, with the labels, names and order of the file.

    Its form is ``{"train": [[path, label, class name], …], "val": […], "test": […]}``.

    The images themselves are not looked for, which takes minutes on a network disk.
    """
    content = _SplitFile.model_validate_json(dataset.index.read_bytes())
    folder = os.path.normpath(dataset.images)
    splits = (content.train, content.val, content.test)
    names = {label: name for split in splits for _, label, name in split}
    for split in splits:
        for path, _, _ in split:
            if ".." in path.replace("\\", "/").split("/"):
                raise ValueError(f"{path} does not stay in the image folder")
    parts = [
        [Record(f"{folder}{os.sep}{path}", label) for path, label, _ in split] for split in splits
    ]
    return [names[label] for label in range(len(names))], parts


def _read_aircraft(dataset: BenchmarkSet) -> _Read:
    """Read ``variants.txt`` and ``images_variant_{train,val,test}.txt``.

    The former has one class name a line, by label.

    The lines of the latter are ``<image id> <class name>``; the image is ``<image id>.jpg``. Their
    order is kept.
    """
    names = _lines(dataset.index)
    parts = []
    for split in ("train", "val", "test"):
        lines = _lines(dataset.require(dataset.folder / f"images_variant_{split}.txt"))
        listed = [line.split(maxsplit=1) for line in lines]
        parts.append(
            [
                Record(f"{dataset.images}{os.sep}{image}.jpg", names.index(name))
                for image, name in listed
            ]
        )
    return names, parts


def _read_imagenet(dataset: BenchmarkSet) -> _Read:
    """Read ``images/train/<wnid>/`` and ``images/val/<wnid>/``.

    A label is the rank of the folder's name.

    ImageNet's validation images are the test split, since their true test labels are not public;
    there is no validation split.
    """
    train, val = dataset.images / "train", dataset.images / "val"
    folders = _class_folders(dataset, train)
    if differing := sorted(set(folders) ^ set(_class_folders(dataset, val))):
        raise ValueError(f"class folder {differing[0]} is in only one of train and val")
    names = _names_by_wnid(dataset)
    parts = [_records(train, folders), [], _records(val, folders)]
    return [names[folder] for folder in folders], parts


def _read_class_folders(dataset: BenchmarkSet) -> _Read:
    """Read test images in folders ``<wnid>/``.

    A label is the rank of the folder's name among the existing ones.
    """
    folders, names = _class_folders(dataset, dataset.images), _names_by_wnid(dataset)
    return [names[folder] for folder in folders], [[], [], _records(dataset.images, folders)]


def _read_numbered_folders(dataset: BenchmarkSet) -> _Read:
    """Read test images in folders ``0/``, ``1/``, ….

    The folder's number is the label among all of ImageNet's classes.
    """
    names = [name for _, name in sorted(_names_by_wnid(dataset).items())]
    folders = sorted(_class_folders(dataset, dataset.images), key=int)
    if int(folders[-1]) >= len(names):
        raise ValueError(f"folder {folders[-1]} is not one of 0 to {len(names) - 1}")
    records = _records(dataset.images, folders)
    return names, [[], [], [Record(r.source, int(folders[r.single])) for r in records]]


def _class_folders(dataset: BenchmarkSet, top: Path) -> list[str]:
    with os.scandir(dataset.require(top)) as entries:
        folders = sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        )
    if not folders:
        raise ValueError(f"{top} has no class folders")
    return folders


def _records(top: Path, folders: list[str]) -> list[Record]:
    """The images of class folders, with the rank of their folder as label."""
    records = []
    for label, folder in enumerate(folders):
        images = find_images(top / folder)
        if not images:
            raise ValueError(f"{top / folder} has no images")
        records += [Record(image, label) for image in images]
    return records


def _names_by_wnid(dataset: BenchmarkSet) -> dict[str, str]:
    """Class names by WordNet id; several ids may share a name, as in ImageNet two of them do."""
    # where there are none, the names that open_clip uses
    known = files("kdpl.benchmark").joinpath("imagenet_classes.txt")
    lines = _lines(dataset.index if dataset.index.exists() else known)
    return dict(line.split(maxsplit=1) for line in lines)


def _lines(file: Path | Traversable) -> list[str]:
    text = file.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


_LAYOUTS: dict[Layout, Callable[[BenchmarkSet], _Read]] = {
    "split_file": _read_split_file,
    "aircraft": _read_aircraft,
    "imagenet": _read_imagenet,
    "class_folders": _read_class_folders,
    "numbered_folders": _read_numbered_folders,
}

READERS = {name: partial(BenchmarkSet, name) for name in BENCHMARKS}
"""The readers by name; entry point of ``kdpl.datasets``."""
