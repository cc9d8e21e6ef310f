"""Steps of longer commands: ``run`` and ``benchmark`` resume where one is not done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdpl.runtime.files import copy
from kdpl.runtime.run_folder import DECODED_FILE


@dataclass(frozen=True)
class Step:
    """One step, which is done once its result exists.

    Attributes:
        title: Its name among the steps.
        kind: What is done, such as ``fit`` or ``test``.
        result: The file or folder that it writes last, into the folder that it works in.
    """

    title: str
    kind: str
    result: Path

    @property
    def folder(self) -> Path:
        """The folder that it writes into."""
        return self.result.parent

    def done(self) -> bool:
        """Return whether its result exists."""
        return self.result.exists()


@dataclass(frozen=True)
class LocalStep(Step):
    """A step that ``start`` does in this process."""

    start: Callable[[], object]


def take_decoded(file: Path, folder: Path) -> None:
    """Copy the file in which another step noted which images can be decoded, if there is one."""
    from kdpl.runtime.messages import process_rank

    copied = folder / DECODED_FILE
    if process_rank() == 0 and file.is_file() and not copied.exists():
        # the images are the same, and need not be decoded once more
        copy(file, copied)
