"""``python -m kdpl suggest RUN``: images to label next, and labels that look wrong."""

from pathlib import Path

from jsonargparse.typing import PositiveInt

from kdpl.errors import ConfigError


def suggest(
    run: str,
    *,
    out: str,
    images: PositiveInt | None = None,
    pool: PositiveInt = 10_000,
    trust: bool = False,
) -> int:
    """Choose the images to label next, and point out labels that look wrong.

    Both rest on the teacher of a finished run. Writes labels.csv, a table to fill in, and
    suggestions.html, a page to look through.

    Args:
        run: the --out of run, or of a stage's fit
        out: folder to write into
        images: number of images to label, by default 4 for each class
        pool: images without a label that are looked at; if there are more, that many drawn at
            random
        trust: import any class that the configs name, for a run that you trust
    """
    from kdpl.report.labeling.page import PAGE, TABLE, Suggestions
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import quiet_libraries

    folder = Path(out)
    # somebody may have filled in the table
    if (folder / TABLE).exists():
        raise ConfigError(f"{folder / TABLE} exists already: choose another --out, or remove it")
    quiet_libraries()
    opened = Run.find(Path(run), trust)
    suggestions = Suggestions.of(opened, images, pool)
    suggestions.save(folder)
    counts = len(suggestions.to_label), len(suggestions.doubtful)
    print(f"{counts[0]} images to label, {counts[1]} labels that look wrong: {folder / TABLE}")
    for note in suggestions.notes:
        print(f"  {note}")
    print(f"to look through: {folder / PAGE}")
    print("fill in the column label, and take it over into your labels: docs/labelling.md")
    return 0
