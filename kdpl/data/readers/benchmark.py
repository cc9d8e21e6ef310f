"""The benchmark's datasets and their reader: folder, layout and number of classes.

The layouts come from CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV
2022), and are the field's standard. The one difference is that images within a class of ImageNet
are sorted by name. Published code takes them as the file system lists them, so that k-shot samples
differ between machines.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from kdpl.data.decoding import PUBLISHED, open_image
from kdpl.data.layout import class_folders
from kdpl.data.paths import find_images
from kdpl.data.splits import Reader, Record, Splits
from kdpl.errors import DataError, reason
from kdpl.runtime.advice import command
from kdpl.runtime.files import lines_of, read_text


@dataclass(frozen=True)
class Benchmark:
    """One dataset of the benchmark.

    Attributes:
        images: Folder of the images below ``folder``.
        index: File below ``folder`` that lists images or class names.
        read: Reads the layout: a JSON file of three lists; the lists of FGVC Aircraft; ImageNet's
            folders ``train`` and ``val``; or only test images, in a folder per class, named by
            WordNet id or label.
        num_classes: Number of classes of the whole dataset.
    """

    folder: str
    images: str
    index: str
    read: "Callable[[BenchmarkSet], Splits]"
    num_classes: int


class BenchmarkSet(Reader):
    """A dataset of the benchmark, a key of ``BENCHMARKS``, below the ``root`` of all datasets."""

    from_user = False
    decoding = PUBLISHED

    def __init__(self, name: str, root: str) -> None:
        self.name, self.benchmark, self.root = name, BENCHMARKS[name], Path(root).expanduser()
        self.folder = self.root / self.benchmark.folder
        self.images = self.folder / self.benchmark.images
        self.index = self.folder / self.benchmark.index
        self.origin = f"dataset {name} in {self.folder}"

    def read(self) -> Splits:
        """Read the dataset."""
        self.require_folder(self.folder)
        try:
            return self.benchmark.read(self)
        except (ValueError, LookupError, TypeError) as error:
            raise self.damaged(self.index, f"does not fit ({reason(error)})") from error

    def require_folder(self, path: Path) -> None:
        """Raise a DataError that names the command to get the data, if a folder is missing."""
        if not path.is_dir():
            raise self._missing("folder", path)

    def read_text(self, path: Path) -> str:
        """Read one of the dataset's text files; DataError if it is missing or not text."""
        if not path.is_file():
            raise self._missing("file", path)
        return read_text(path, f"file of dataset {self.name}")

    def damaged(self, path: Path, problem: str) -> DataError:
        """Return the error for an existing but invalid path; its name and ``problem`` begin it."""
        return DataError(f"{path} of dataset {self.name} {problem}: replace it ({self._remedy()})")

    def _missing(self, what: str, path: Path) -> DataError:
        return DataError(
            f"dataset {self.name} needs the {what} {path}, which does not exist: set root to the "
            f"folder that holds {self.benchmark.folder}/, or get the data ({self._remedy()})"
        )

    def _remedy(self) -> str:
        download = command("data", "download", self.name, "--root", self.root)
        return f"{download} tells how" if self.benchmark.read is read_imagenet else download


def read_split_file(dataset: BenchmarkSet) -> Splits:
    """Read a JSON file of the three splits; labels, names and order are kept.

    Its form is ``{"train": [[path, label, class name], …], "val": […], "test": […]}``.

    Does not check that the images exist, since this takes minutes on a network disk.
    """
    content = json.loads(dataset.read_text(dataset.index))
    dataset.require_folder(dataset.images)
    folder = os.path.normpath(dataset.images)
    splits = {split: content[split] for split in ("train", "val", "test")}
    names = {label: name for rows in splits.values() for _, label, name in rows}
    records = {
        split: [Record(f"{folder}{os.sep}{path}", label) for path, label, _ in rows]
        for split, rows in splits.items()
    }
    return _splits(dataset, [names[label] for label in range(len(names))], **records)


def _read_aircraft(dataset: BenchmarkSet) -> Splits:
    """Read ``variants.txt`` and ``images_variant_{train,val,test}.txt``.

    ``variants.txt`` has one class name per line, by label. The lines of the other files are
    ``<image id> <class name>``; the image is ``<image id>.jpg``. Their order is kept.
    """
    names = lines_of(dataset.read_text(dataset.index))
    label_of = {name: label for label, name in enumerate(names)}
    dataset.require_folder(dataset.images)
    records: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for split, split_records in records.items():
        path = dataset.folder / f"images_variant_{split}.txt"
        for line in lines_of(dataset.read_text(path)):
            image, _, name = line.partition(" ")
            if name.strip() not in label_of:
                raise dataset.damaged(
                    path, f"names {name!r}, a class without a line in {dataset.index.name}"
                )
            source = f"{dataset.images}{os.sep}{image}.jpg"
            split_records.append(Record(source, label_of[name.strip()]))
    return _splits(dataset, names, **records)


def read_imagenet(dataset: BenchmarkSet) -> Splits:
    """Read ``images/train/<wnid>/`` and ``images/val/<wnid>/``.

    ImageNet's validation images are the test split, since their true test labels are not public;
    there is no validation split.
    """
    train, val = dataset.images / "train", dataset.images / "val"
    label_of = _ranks(dataset, train)
    if differing := sorted(label_of.keys() ^ _ranks(dataset, val).keys()):
        raise dataset.damaged(
            dataset.images, f"has class {differing[0]} in only one of train and val"
        )
    names = _names_of(dataset, label_of)
    images, tested = (_records(dataset, top, label_of) for top in (train, val))
    return _splits(dataset, names, images, test=tested)


def _read_class_folders(dataset: BenchmarkSet) -> Splits:
    """Read test images in folders ``<wnid>/``."""
    label_of = _ranks(dataset, dataset.images)
    test = _records(dataset, dataset.images, label_of)
    return _splits(dataset, _names_of(dataset, label_of), test=test)


def _read_numbered_folders(dataset: BenchmarkSet) -> Splits:
    """Read test images in folders ``0/``, ``1/``, …, by label among all of ImageNet's classes."""
    names = [name for _, name in sorted(_names_by_wnid(dataset).items())]
    folders = _ranks(dataset, dataset.images)
    if unknown := [name for name in folders if not name.isdecimal() or int(name) >= len(names)]:
        raise dataset.damaged(
            dataset.images, f"has a folder {unknown[0]}, expected 0 to {len(names) - 1}"
        )
    label_of = {name: int(name) for name in sorted(folders, key=int)}
    return _splits(dataset, names, test=_records(dataset, dataset.images, label_of))


def _splits(
    dataset: BenchmarkSet,
    names: Iterable[str],
    train: Iterable[Record] = (),
    val: Iterable[Record] = (),
    test: Iterable[Record] = (),
) -> Splits:
    opened = partial(open_image, decoding=dataset.decoding)
    return Splits(dataset.origin, tuple(names), tuple(train), tuple(val), tuple(test), None, opened)


def _ranks(dataset: BenchmarkSet, top: Path) -> dict[str, int]:
    """Return the ranks of the names of class folders, which are labels in most layouts."""
    dataset.require_folder(top)
    ranks = {folder.name: rank for rank, folder in enumerate(class_folders(top))}
    if not ranks:
        raise dataset.damaged(top, "has no class folders")
    return ranks


def _records(dataset: BenchmarkSet, top: Path, label_of: Mapping[str, int]) -> list[Record]:
    records = []
    for folder, label in label_of.items():
        images = find_images(top / folder)
        if not images:
            raise dataset.damaged(top / folder, "has no images")
        records += [Record(image, label) for image in images]
    return records


def _names_of(dataset: BenchmarkSet, folders: Iterable[str]) -> list[str]:
    names = _names_by_wnid(dataset)
    for folder in folders:
        if folder not in names:
            raise dataset.damaged(
                dataset.images, f"has a class folder {folder} that no class name belongs to"
            )
    return [names[folder] for folder in folders]


def _names_by_wnid(dataset: BenchmarkSet) -> dict[str, str]:
    """Read class names by WordNet id; two ids may share a name, as in ImageNet."""
    if dataset.index.exists():
        text = dataset.read_text(dataset.index)
    else:  # the names that open_clip uses
        text = (
            files("kdpl.data.readers").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
        )
    # an id without a name is an error
    return dict(line.split(maxsplit=1) for line in lines_of(text))


def _zhou(folder: str, images: str, name: str, num_classes: int) -> Benchmark:
    return Benchmark(folder, images, f"split_zhou_{name}.json", read_split_file, num_classes)


def _imagenet(
    folder: str, images: str, read: Callable[[BenchmarkSet], Splits], num_classes: int
) -> Benchmark:
    return Benchmark(folder, images, "classnames.txt", read, num_classes)


_V2_IMAGES = "imagenetv2-matched-frequency-format-val"

BENCHMARKS: dict[str, Benchmark] = {
    "caltech101": _zhou("caltech-101", "101_ObjectCategories", "Caltech101", 100),
    "oxford_pets": _zhou("oxford_pets", "images", "OxfordPets", 37),
    "stanford_cars": _zhou("stanford_cars", ".", "StanfordCars", 196),
    "oxford_flowers": _zhou("oxford_flowers", "jpg", "OxfordFlowers", 102),
    "food101": _zhou("food-101", "images", "Food101", 101),
    "fgvc_aircraft": Benchmark("fgvc_aircraft", "images", "variants.txt", _read_aircraft, 100),
    "sun397": _zhou("sun397", "SUN397", "SUN397", 397),
    "dtd": _zhou("dtd", "images", "DescribableTextures", 47),
    "eurosat": _zhou("eurosat", "2750", "EuroSAT", 10),
    "ucf101": _zhou("ucf101", "UCF-101-midframes", "UCF101", 101),
    "imagenet": _imagenet("imagenet", "images", read_imagenet, 1000),
    "imagenetv2": _imagenet("imagenetv2", _V2_IMAGES, _read_numbered_folders, 1000),
    "imagenet_sketch": _imagenet("imagenet-sketch", "images", _read_class_folders, 1000),
    "imagenet_a": _imagenet("imagenet-adversarial", "imagenet-a", _read_class_folders, 200),
    "imagenet_r": _imagenet("imagenet-rendition", "imagenet-r", _read_class_folders, 200),
}


READERS = {name: partial(BenchmarkSet, name) for name in BENCHMARKS}
"""Readers by name of the dataset."""
