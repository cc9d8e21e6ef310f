"""``python -m kdpl models [WORD]``: the CLIPs that can be teacher or student."""

from dataclasses import astuple

from kdpl.errors import ConfigError

# the fields of CatalogueEntry; scripts read them by name: add further ones at the end
COLUMNS = ("model", "tags", "image_size", "as_teacher", "as_student", "extra", "licence")


def models(word: str | None = None) -> int:
    """List the CLIPs that can be teacher or student: prompts, size, licence.

    Lists the models of open_clip and registered ones, without a network, tab-separated: a header
    line with the names of the columns, then a line for each model and licence. The columns keep
    their names and their order (docs/models.md).

    Args:
        word: Part of a model's name or tag, ignoring case; by default all are listed.
    """
    from kdpl.clip.catalogue import catalogue

    entries = catalogue(word or "")
    if not entries:
        raise ConfigError(
            f"no name or tag of a CLIP contains {word!r}: give a part of one, such as SigLIP; a "
            "student may also be a network of timm, timm:NAME"
        )

    print(*COLUMNS, sep="\t")
    for entry in entries:
        model, tags, *facts = astuple(entry)
        print(model, ",".join(tags), *facts, sep="\t")
    return 0
