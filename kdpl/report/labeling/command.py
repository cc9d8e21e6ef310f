"""``python -m kdpl suggest RUN``: the images to label next, and the labels that look wrong."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from kdpl.data.storage import is_url
from kdpl.errors import ConfigError

if TYPE_CHECKING:
    from kdpl.data.sources import OwnImages


def suggest(
    run: str,
    *,
    out: str,
    images: PositiveInt | None = None,
    pool: PositiveInt = 10_000,
    trust: bool = False,
) -> int:
    """Choose the images to label next, and point out labels that look wrong.

    Both rest on the teacher of a finished run. Writes labels.csv, a table to fill in, which init
    --labels reads, and suggestions.html, a page to look through.

    Args:
        run: the --out of run, or of a stage's fit
        out: folder to write into
        images: number of images to label, by default 4 for each class
        pool: images without a label that are looked at; if there are more, that many drawn at
            random
        trust: the run is your own: import whatever classes its configs name
    """
    from kdpl.cli import command_names
    from kdpl.data.sources import OwnImages
    from kdpl.report.labeling.page import PAGE, TABLE, Suggestions
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import quiet_libraries

    folder = Path(out)
    if (folder / TABLE).exists():  # somebody may have filled it in
        raise ConfigError(f"{folder / TABLE} exists already: choose another --out, or remove it")
    quiet_libraries()
    found = Run.find(Path(run), trust)
    suggestions = Suggestions.of(found, images, pool)
    suggestions.save(folder)
    counts = len(suggestions.to_label), len(suggestions.doubtful)
    print(f"{counts[0]} images to label, {counts[1]} labels that look wrong: {folder / TABLE}")
    for note in suggestions.notes:
        print(f"  {note}")
    print(f"to look through: {folder / PAGE}")
    reader = suggestions.data.reading.reader
    # of several labels an image init reads tables alone, which have a separator
    given = found.main.settings("data").get("label_separator")
    taken = given == suggestions.separator and "init" in command_names()
    if isinstance(reader, OwnImages) and taken:
        print(
            f"when {folder / TABLE} is filled "
            f"in:\n{shlex.join(_next_command(reader, folder / TABLE, suggestions.separator))}"
        )
    return 0


def _next_command(reader: "OwnImages", table: Path, separator: str | None) -> list[str]:
    """The command that takes the labels, with the places and class names of the run's data."""

    def absolute(place: str) -> str:
        return place if is_url(place) else str(Path(place).expanduser().absolute())

    command = ["python", "-m", "kdpl", "init", absolute(reader.root)]
    command += ["--labels", absolute(str(table)), "--out", absolute(f"{table.parent}_data")]
    command += ["--class-names", absolute(reader.class_names)] if reader.class_names else []
    command += ["--label-separator", separator] if separator is not None else []
    empty = getattr(reader, "empty_labels", None)
    command += ["--empty-labels", empty] if empty else []
    places = [reader.unlabeled] if isinstance(reader.unlabeled, str) else reader.unlabeled or ()
    return command + [word for place in places for word in ("--unlabeled", absolute(place))]
