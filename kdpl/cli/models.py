"""``python -m kdpl models [WORD]``: the CLIPs that can be teacher or student."""

from dataclasses import astuple

from kdpl.errors import ConfigError

COLUMNS = (
    "model",
    "tags",
    "image_size",
    "as_teacher",
    "as_student",
    "extra",
    "licence",
)
"""Columns of the tab-separated list, the fields of ``CatalogueEntry``.

Scripts read them by name: add further ones at the end.
"""


def models(word: str | None = None) -> int:
    """List the CLIPs that can be teacher or student: prompts, size, licence.

    Lists the models of open_clip and registered ones, without a network.

    In a pipe, the output is tab-separated: a header line with the names of the columns, then a line
    for each model and licence. The columns keep their names and their order (docs/models.md).

    Args:
        word: Part of a model's name or tag, ignoring case; by default all are listed.
    """
    from rich.console import Console
    from rich.table import Table

    from kdpl.clip.catalogue import catalogue

    entries = catalogue(word or "")
    if not entries:
        raise ConfigError(
            f"no name or tag of a CLIP contains {word!r}: give a part of one, such as SigLIP; a "
            "student may also be a network of timm, timm:NAME"
        )

    # for scripts: tab-separated columns
    console = Console()
    if not console.is_terminal:
        print(*COLUMNS, sep="\t")
        for entry in entries:
            model, tags, *facts = astuple(entry)
            print(model, ",".join(tags), *facts, sep="\t")
        return 0

    # for people: a table as wide as the terminal
    table = Table(box=None, padding=(0, 1, 1, 0), pad_edge=False, header_style="bold")
    table.add_column("model\n[dim]tags", overflow="fold", ratio=1)
    table.add_column("px", justify="right", no_wrap=True)
    for title in ("as teacher", "as student", "licence"):
        table.add_column(title)
    for entry in entries:
        name = f"{entry.model}\n[dim]{', '.join(entry.tags)}"
        extra = f"\n[dim]{entry.extra}" if entry.extra else ""
        size = str(entry.image_size)
        table.add_row(name, size, entry.teacher + extra, entry.student, entry.licence)
    console.print(table)
    console.print(
        "px: edge of the images. as teacher: prompts that it takes, and the extra of kdpl that it "
        "needs. as student: what is trained, and the "
        "projector always. A student may also be a network of timm: timm:NAME, and both an "
        "image-text model of transformers: hf:OWNER/NAME. More: docs/models.md",
        style="dim", highlight=False,
    )  # fmt: skip
    return 0
