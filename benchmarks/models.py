"""``make models``: count the parameters of open_clip's image towers, and write the page of its models."""

import json
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import open_clip

from kdpl.clip import catalogue
from kdpl.clip.loading import count_image_parameters
from kdpl.clip.versions import list_models
from kdpl.runtime.files import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "all_models.md"
_USABLE = {*list_models()}
PAIRS = [pair for pair in open_clip.list_pretrained() if pair[0] in _USABLE]
NAMES = list(dict.fromkeys(name for name, _ in PAIRS))
TEACHERS = ("text + visual", "text", "visual", "zero-shot")
STUDENTS = ("prompts", "projector")


def page() -> str:
    """Return the page of all pretrained models of open_clip."""
    entries = [each for each in catalogue.catalogue() if each.model in NAMES]
    teachers, students = (
        {each: getattr(each, part) for each in entries} for part in ("teacher", "student")
    )
    total = sum(len(each.tags) for each in entries)
    rows = [
        f"| {each.model} | {', '.join(each.tags)} | {each.image_size} | "
        f"{each.parameters / 1e6:.1f} M | "
        f"{each.teacher} | {each.student} | {each.extra} | {each.licence} |"
        for each in entries
    ]
    return "\n".join(
        [
            "# All models",
            "",
            f"The {total} pretrained pairs of model and tag in open_clip "
            f"{version('open_clip_torch')}, with what",
            "each can be used for; `python -m kdpl models [WORD]` lists them, too, and `make "
            "models` writes this page.",
            "[Which teacher, which student](models.md) helps to choose and explains the columns.",
            "",
            "| | pairs |",
            "|---|--:|",
            *_counts("as a teacher, prompts: ", TEACHERS, teachers),
            *_counts("as a student, trained: ", STUDENTS, students),
            "",
            "| model | tags | pixels | image tower | as teacher | as student | extra | licence |",
            "|---|---|--:|--:|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _counts(
    what: str, known: Iterable[str], grades: dict[catalogue.CatalogueEntry, str]
) -> list[str]:
    """Rows of how many pairs have each grade."""
    counts = Counter(dict.fromkeys(known, 0))
    for each, grade in grades.items():
        counts[grade] += len(each.tags)
    return [f"| {what}{grade} | {count} |" for grade, count in counts.items()]


def main() -> None:
    """Count, which takes minutes, and write both files."""
    counted = {name: count_image_parameters(open_clip.get_model_config(name)) for name in NAMES}
    write_text(
        ROOT / "kdpl" / "catalogue" / catalogue.PARAMETERS_FILE,
        json.dumps(counted, indent=1) + "\n",
    )
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
