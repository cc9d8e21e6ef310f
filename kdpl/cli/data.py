"""``python -m kdpl data download|check NAME``: getting datasets, and checking that they are complete."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt


def data(
    action: Literal["download", "check"],
    name: str,
    *,
    root: str | None = None,
    unlabeled: list[str] = [],  # noqa: B006 - read from the signature, never changed
    class_names: str | None = None,
    workers: PositiveInt | None = None,
) -> int:
    """Download a dataset of the benchmark, or count the classes of a dataset and decode every image.

    Args:
        action: download gets a dataset, and resumes if it was interrupted; check looks at one that is there.
        name: A dataset of the benchmark, for example oxford_pets; check also takes folder and table.
        root: The folder of all datasets; for folder, the dataset's own; for table, the file.
        unlabeled: Folder, pattern, list or shards of unlabelled images, for folder and table.
        class_names: File that names the class folders or labels, for folder and table.
        workers: Processes that decode; by default one for each processor core.

    Returns:
        0, or 1 if the dataset is not complete or cannot be downloaded for others.

    Raises:
        KdplError: The dataset is unknown, missing or damaged, or the hub cannot be reached.
    """
    from kdpl.errors import ConfigError

    if action == "download":
        if root is None:
            raise ConfigError("download needs the folder of all datasets: give --root")
        from kdpl.data.download import download

        return 0 if download(name, Path(root).expanduser()) else 1
    from kdpl.data.check import check

    return 0 if check(name, workers, root=root, unlabeled=unlabeled or None, class_names=class_names) else 1
