"""Write a folder of photographs to try kdpl on: ``python examples/clothing.py my_clothes``.

About 1,150 photographs of ten kinds of clothes, in the public domain (CC0), of
https://github.com/alexeygrigorev/clothing-dataset-small. Of the training photographs, four of each
kind keep their label and the others lie in ``unlabeled``; all test photographs are taken.
Needs git, and fetches about 30 MB.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = "https://github.com/alexeygrigorev/clothing-dataset-small"
LABELS = 4  # a class
NAMES = {"longsleeve": "long-sleeved shirt", "outwear": "coat or jacket"}
"""Names that a text tower understands, of folders whose names it does not."""


def fetch(repository: str, clone: Path) -> None:
    """Clone the newest commit, with the test photographs and a quarter of the training ones."""
    # names of files are random hexadecimal digits
    wanted = ["/test/", "/train/*/[0-3]*"]
    git = ["git", "-C", str(clone)]
    options = ["--quiet", "--depth=1", "--filter=blob:none", "--no-checkout"]
    for command in (
        ["git", "clone", *options, repository, str(clone)],
        [*git, "sparse-checkout", "set", "--no-cone", *wanted],
        [*git, "checkout", "--quiet"],
    ):
        subprocess.run(command, check=True)


def main(folder: Path, repository: str = REPOSITORY) -> None:
    """Write ``train/<class>``, ``test/<class>`` and ``unlabeled`` below a new folder."""
    with TemporaryDirectory() as clone:
        fetch(repository, Path(clone))
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            for source in sorted(Path(clone, split).iterdir()):
                name = NAMES.get(source.name, source.name)
                for number, photograph in enumerate(sorted(source.iterdir())):
                    labeled = split == "test" or number < LABELS
                    part = Path(split, name) if labeled else Path("unlabeled")
                    (folder / part).mkdir(parents=True, exist_ok=True)
                    shutil.copy(photograph, folder / part)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python examples/clothing.py FOLDER")
    if Path(sys.argv[1]).exists():
        sys.exit(f"{sys.argv[1]} exists already: name another folder")
    try:
        main(Path(sys.argv[1]))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{REPOSITORY} could not be fetched ({error}): it takes git and a network")
