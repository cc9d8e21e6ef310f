"""The benchmark's datasets as facts: folder, layout and number of classes of each. Imports nothing heavy.

The layouts are those of CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022), which the field
has kept since.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
        layout: A JSON file of three lists; FGVC Aircraft's own lists; ImageNet's folders ``train`` and ``val``; or test
            images in one folder a class, named by WordNet id or by label.
        num_classes: Number of classes of the whole dataset.
    """

    name: str
    folder: str
    images: str
    index: str
    layout: Layout
    num_classes: int

    @property
    def test_only(self) -> bool:
        """Whether it has test images alone."""
        return self.layout in ("class_folders", "numbered_folders")


_V2_IMAGES = "imagenetv2-matched-frequency-format-val"
_ALL = (
    Benchmark("caltech101", "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "split_file", 100),
    Benchmark("oxford_pets", "oxford_pets", "images", "split_zhou_OxfordPets.json", "split_file", 37),
    Benchmark("stanford_cars", "stanford_cars", ".", "split_zhou_StanfordCars.json", "split_file", 196),
    Benchmark("oxford_flowers", "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "split_file", 102),
    Benchmark("food101", "food-101", "images", "split_zhou_Food101.json", "split_file", 101),
    Benchmark("fgvc_aircraft", "fgvc_aircraft", "images", "variants.txt", "aircraft", 100),
    Benchmark("sun397", "sun397", "SUN397", "split_zhou_SUN397.json", "split_file", 397),
    Benchmark("dtd", "dtd", "images", "split_zhou_DescribableTextures.json", "split_file", 47),
    Benchmark("eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json", "split_file", 10),
    Benchmark("ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "split_file", 101),
    Benchmark("imagenet", "imagenet", "images", "classnames.txt", "imagenet", 1000),
    Benchmark("imagenetv2", "imagenetv2", _V2_IMAGES, "classnames.txt", "numbered_folders", 1000),
    Benchmark("imagenet_sketch", "imagenet-sketch", "images", "classnames.txt", "class_folders", 1000),
    Benchmark("imagenet_a", "imagenet-adversarial", "imagenet-a", "classnames.txt", "class_folders", 200),
    Benchmark("imagenet_r", "imagenet-rendition", "imagenet-r", "classnames.txt", "class_folders", 200),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


class Location:
    """A dataset of the benchmark below somebody's ``root``, the folder of all datasets."""

    def __init__(self, benchmark: Benchmark, root: Path) -> None:
        self.benchmark, self.root = benchmark, root
        self.folder = root / benchmark.folder
        self.images = self.folder / benchmark.images
        self.index = self.folder / benchmark.index
        self.origin = f"dataset {benchmark.name} in {self.folder}"

    def require_folder(self, path: Path) -> None:
        """Raise a DataError that names the command which gets the data if this folder is missing."""
        if not path.is_dir():
            raise self._missing("folder", path)

    def read_text(self, path: Path) -> str:
        """Text of one of the dataset's files; DataError if it is missing or not text."""
        if not path.is_file():
            raise self._missing("file", path)
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.damaged(path, "is not UTF-8 text") from error

    def damaged(self, path: Path, fault: str) -> DataError:
        """The error for a file or folder that is there but wrong; ``fault`` continues after its name."""
        return DataError(f"{path} of dataset {self.benchmark.name} {fault}: replace it ({self._remedy()})")

    def _missing(self, what: str, path: Path) -> DataError:
        said = f"dataset {self.benchmark.name} needs the {what} {path}, which does not exist"
        remedy = f"set root to the folder that holds {self.benchmark.folder}/, or get the data ({self._remedy()})"
        return DataError(f"{said}: {remedy}")

    def _remedy(self) -> str:
        command = f"python -m kdpl data download {self.benchmark.name} --root {self.root}"
        return f"{command} tells how" if self.benchmark.layout == "imagenet" else command
