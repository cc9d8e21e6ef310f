"""Download of the benchmark's datasets from the authors' collection on the Hugging Face hub."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub import HfApi, hf_hub_download

from kdpl.data.paths import is_below
from kdpl.data.readers.benchmark import BENCHMARKS, BenchmarkSet, read_imagenet, read_split_file
from kdpl.errors import DataError, reason
from kdpl.runtime.advice import command
from kdpl.runtime.files import atomic_path

REPOSITORY = "zhengli97/prompt_learning_dataset"  # of PromptKD's authors, uploaded as a model

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

_IMAGENET = """\
ImageNet has a licence that each person accepts for themselves, so it is not downloaded here:
1. Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org/download
2. Unpack them, one folder for each WordNet id, the validation images too, into
     {images}/train/n01440764/…
     {images}/val/n01440764/…
3. If you have CoOp's classnames.txt (lines "<wnid> <class name>"), put it at
     {index}
   Without it, the class names of open_clip are used.
4. {check}
"""


def download(name: str, root: Path) -> bool:
    """Download a dataset to a folder below ``root``, completely or not at all.

    An interrupted download is resumed. For ImageNet, instructions are printed instead.

    Returns:
        Whether the dataset is there.
    """
    # no download of ImageNet, nor of what is there
    dataset = BenchmarkSet(name, str(root))
    check = command("data", "check", name, "--root", root)
    if dataset.benchmark.read is read_imagenet:
        print(_IMAGENET.format(images=dataset.images, index=dataset.index, check=check), end="")
        return False
    if dataset.folder.exists():
        if why := _refusal(name, root):
            problem = f"folder {dataset.folder} exists but is incomplete ({why})"
            raise DataError(f"{problem}: move or remove it, then start again")
        print(f"{dataset.origin} is there already: nothing to do")
        return True

    def is_dataset(folder: str) -> bool:
        # not the images' folder, such as SUN397 in sun397
        return folder != dataset.benchmark.images and _dataset_called(folder) == name

    store = root / f".{name}.download"
    files = _fetch(name, store)
    with atomic_path(dataset.folder) as staging:
        staging.mkdir()
        for file, path in files.items():
            if _ARCHIVE.search(file):
                unpack(store / file, staging / path.parent, is_dataset)
            else:
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store / file, staging / path)
        if why := _refusal(name, staging.parent):
            problem = f"repository {REPOSITORY} holds {name} in an unknown form ({why})"
            raise DataError(f"{problem}: arrange the files of {store} by hand as {dataset.folder}")
    shutil.rmtree(store)
    print(f"{dataset.origin} is there: {check} decodes every image")
    return True


def place_of(file: str) -> tuple[str, PurePosixPath] | None:
    """Return the dataset of a repository file, by its name, and the path in that dataset."""
    parts = PurePosixPath(file).parts
    for number, part in enumerate(parts):
        if name := _dataset_called(_ARCHIVE.sub("", part)):
            return name, PurePosixPath(*(parts[number + 1 :] or [part]))
    return None


def _fetch(name: str, store: Path) -> dict[str, PurePosixPath]:
    """Download the files of a dataset; return their paths below the dataset's folder."""
    try:
        listed = filter(is_below, HfApi().list_repo_files(REPOSITORY))
        # on Windows, a drive leads elsewhere
        paths = {file: place_of(file) for file in listed if not PureWindowsPath(file).drive}
        files = {file: path[1] for file, path in paths.items() if path and path[0] == name}
        for file in files:
            hf_hub_download(REPOSITORY, file, local_dir=store)
    except Exception as error:
        # an error of the disk names the file, unlike those of the hub's client and its transport
        if isinstance(error, OSError) and error.filename is not None:
            raise
        problem = f"dataset {name} cannot be downloaded from {REPOSITORY} ({reason(error)})"
        raise DataError(
            f"{problem}: check the network and start again, what has been downloaded is kept"
        ) from error
    if not files:
        raise DataError(
            f"repository {REPOSITORY} has no file for {name}: get the dataset elsewhere"
        )
    return files


def unpack(archive: Path, folder: Path, is_wrapper: Callable[[str], bool]) -> None:
    """Unpack a zip or tar archive into a folder, without the files that macOS adds.

    Members of a zip that would leave the folder are skipped. If the archive consists of one folder
    and ``is_wrapper`` is true of its name, the contents of that folder are unpacked instead.
    DataError if the archive is damaged, or a member of a tar would leave the folder or is a device.
    """
    try:
        # unpack next to the target, so that moving is a rename
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking.") as scratch:
            if zipfile.is_zipfile(archive):
                shutil.unpack_archive(archive, scratch, "zip")
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(scratch, filter="data")
            _move(Path(scratch), folder, is_wrapper)
    except Exception as error:  # formats raise errors of many classes on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = reason(error).rstrip(":")
        raise DataError(
            f"archive {archive} is damaged or unsafe ({why}): remove it and download it again"
        ) from error


def _move(scratch: Path, folder: Path, is_wrapper: Callable[[str], bool]) -> None:
    shutil.rmtree(scratch / "__MACOSX", ignore_errors=True)
    for path in [*scratch.rglob(".DS_Store"), *scratch.rglob("._*")]:
        path.unlink()
    # a folder around everything
    tops = list(scratch.iterdir())
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() and is_wrapper(tops[0].name) else scratch
    for path in list(top.rglob("*")):
        target = folder / path.relative_to(top)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            path.replace(target)


def _dataset_called(part: str) -> str | None:
    """Return the dataset that a file or folder is named after, however it is spelled."""

    def spelled(name: str) -> str:
        return "-".join(re.findall("[a-z0-9]+", name.lower()))

    called = {spelled(key): n for n, b in BENCHMARKS.items() for key in (n, b.folder)}
    called |= {spelled(b.index): n for n, b in BENCHMARKS.items() if b.read is read_split_file}
    # the longest match, since many names begin with imagenet
    keys = [key for key in called if f"{spelled(part)}-".startswith(f"{key}-")]
    return called[max(keys, key=len)] if keys else None


def _refusal(name: str, root: Path) -> str | None:
    """Return why the reader refuses a dataset, with paths below the root; None if it accepts."""
    try:
        BenchmarkSet(name, str(root)).read()
    except DataError as error:
        return str(error).split(": ")[0].replace(f"{root}/", "")
    return None
