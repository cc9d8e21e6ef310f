"""Roles of the folders in a folder of images: splits, classes, unlabelled images, or none."""

import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.paths import walk
from kdpl.runtime.class_names import composed

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Split by the name of its folder, in lower case."""

# British or American, as in unlabelled_images
_UNLABELED = re.compile(r"unlabell?ed([ _-]?(data|images|photos|pictures))?", re.IGNORECASE)


class Part(NamedTuple):
    """Images of a split: the folder ``top``, and the folders in it that hold classes, or no labels.

    Classes that are not in a folder ``train`` are training images of the folder around them.
    """

    split: str
    top: Path
    folders: list[Path]
    labeled: bool = True

    @property
    def classes(self) -> set[str]:
        """Names of the folders."""
        return {composed(folder.name) for folder in self.folders}


def layout_of(top: Path, class_names: str | None = None) -> list[Part]:
    """Decide what each folder in a folder is; images outside of the parts are not used.

    A folder with the name of a split is a split

    - if only folders with such names and of unlabelled images are beside it,
    - if one of its classes is in another split, beside it, or in the file ``class_names``, or
    - if it holds folders of images, is not ``val``, and a single other folder is beside it.

    Otherwise it is a class. The other folders are classes if there is no split, or if one of them
    is a class of the file, or of ``test`` or ``val``, and there is no ``train``.
    """
    folders = class_folders(top)
    named = [
        Part(split, path, class_folders(path))
        for name, split in SPLIT_OF.items()
        for path in folders
        if path.name.lower() == name
    ]
    tops = {part.top for part in named}
    unnamed = [path for path in folders if named and path not in tops and any(walk(path))]
    beside = Part("train", top, unnamed)
    listed = read_class_mapping(Path(class_names), (), complete=False) if class_names else ()
    counts = Counter(chain(listed, *(part.classes for part in (beside, *named))))
    shared = [part for part in (beside, *named) if any(counts[name] > 1 for name in part.classes)]
    filled = [part for part in named if any(any(walk(path)) for path in part.folders)]
    # nobody has validation images alone: valid beside invalid is a class
    filled_pair = [part for part in filled if len(unnamed) == 1 and part.split != "val"]

    parts = [part for part in named if not unnamed or part in shared or part in filled_pair]
    if not parts or (beside in shared and all(part.split != "train" for part in parts)):
        tops = {part.top for part in parts}
        parts.insert(0, Part("train", top, [path for path in folders if path not in tops]))
    else:
        # a folder without classes, such as val, is no class beside splits
        parts = named
    for parent in dict.fromkeys([top, *(part.top for part in parts if part.split == "train")]):
        parts.append(Part("train", parent, class_folders(parent, labeled=False), labeled=False))
    return parts


def class_folders(top: Path, labeled: bool = True) -> list[Path]:
    """Find the folders in a folder, sorted, without hidden ones; with labels, or without."""
    folders = (path for path in top.iterdir() if not path.name.startswith(".") and path.is_dir())
    return sorted(path for path in folders if bool(_UNLABELED.fullmatch(path.name)) != labeled)
