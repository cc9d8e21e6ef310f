"""Files and folders that are whole or not there at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write a file or folder to; it takes the name only once it is whole.

    An existing file or folder of that name is replaced. When the block raises, nothing stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a folder of its own, so that the temporary thing may be a file or a folder
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        # safetensors 0.8 makes files that their owner alone may read: give them the mode of any other new file
        example = Path(scratch) / "example"
        example.touch()
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file():
                written.chmod(example.stat().st_mode)
        if path.is_dir():
            path.rename(Path(scratch) / "replaced")
        temporary.replace(path)
