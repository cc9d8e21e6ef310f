"""A run's checkpoints on disk: each is written whole, and the one before is kept until the next is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import LAST, PREVIOUS


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill or a full disk leaves the one before.

    Lightning's own way goes through the system's temporary folder, which may lie on another disk, where moving is
    copying. A ``last.ckpt`` that is there becomes ``previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write; called on one process."""
        del storage_options
        path = Path(path)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            if path.name == Path(LAST).name and path.is_file():
                _keep(path, path.with_name(Path(PREVIOUS).name))


def _keep(last: Path, previous: Path) -> None:
    """Give a checkpoint a second name, so that there is one at any moment, also for who tests a run that goes on."""
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(last)
    except OSError:
        # a file system without links
        last.replace(previous)


def newest(folder: Path) -> Path | None:
    """Give the newest whole checkpoint of a run that was cut; None where there is none at all.

    One that is damaged is named in a warning, and the one before it is taken.

    Args:
        folder: The run's folder.

    Raises:
        ArtifactError: There are checkpoints, and all are damaged.
    """
    damaged: ArtifactError | None = None
    for file in _files(folder):
        try:
            require_whole(file)
        except ArtifactError as error:
            damaged = error
            continue
        if damaged is not None:
            rank_zero_warn(f"{str(damaged).split(': ')[0]}; going on from the one before, {file}")
        return file
    if damaged is not None:
        raise damaged
    return None


def whole_last(folder: Path) -> Path | None:
    """Give the last checkpoint of a run; None where there is none.

    Raises:
        ArtifactError: It is damaged.
    """
    file = folder / LAST
    if not file.is_file():
        return None
    require_whole(file)
    return file


def _files(folder: Path) -> Iterator[Path]:
    return (folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file())


def require_whole(file: Path) -> None:
    """Refuse a file that is no whole checkpoint, before anything is built for it.

    Raises:
        ConfigError: It does not exist.
        ArtifactError: It is damaged or no checkpoint.
    """
    if not file.is_file():
        raise ConfigError(f"checkpoint {file} does not exist: give the file of a run's checkpoint as --ckpt_path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        whole = {"state_dict", "epoch", "pytorch-lightning_version"} <= content.keys()
    except Exception as error:  # pickle, zipfile and torch each raise their own
        raise ArtifactError(
            f"checkpoint {file} is damaged ({reason(error)}): remove it to start anew, or give another --ckpt_path"
        ) from error
    if not whole:
        raise ArtifactError(f"{file} is not a checkpoint of a run: give one that fit wrote")


def remove_previous(folder: Path) -> None:
    """Remove what a finished run needs no more."""
    (folder / PREVIOUS).unlink(missing_ok=True)
