"""A campaign: which variants are run on which datasets with which seeds, read from a YAML file.

It is composed from the very configs that ``fit`` takes; ``configs/benchmark/`` has examples.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml

from kdpl.benchmark.published import METHODS
from kdpl.errors import ConfigError
from kdpl.runtime.configs import require_configs

Protocol = Literal["few_shot", "base_to_novel", "cross_dataset", "domain_generalization"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

DATA_CONFIGS = "configs/data"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """One variant, which is one line of the table.

    Attributes:
        name: Name of its run's folder.
        title: What the table calls it; ``**title**`` is printed bold.
        stage: ``teacher`` or ``student``.
        configs: Config files of its fit, after those that all share.
        of: For a student, the row of its teacher.
        options: Options of its fit.
        teacher_file: For a teacher that is imported in place of fitted: its published file, with the placeholders
            {dataset} and {seed}.
        published: Key of ``kdpl.benchmark.published.METHODS`` whose figures stand beside its own.
    """

    name: str
    title: str
    stage: Literal["teacher", "student"]
    configs: tuple[str, ...]
    of: str | None = None
    options: tuple[str, ...] = ()
    teacher_file: str | None = None
    published: str | None = None


@dataclass(frozen=True)
class Exceptional:
    """What is set differently on some datasets.

    Attributes:
        datasets: Names of the datasets.
        teacher: Config files for teachers, after those of their rows.
        student: Config files for students, after those of their rows.
    """

    datasets: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()


@dataclass(frozen=True)
class Campaign:
    """What a campaign's file says.

    Attributes:
        name: Name of the file without its ending.
        protocols: Which experiments; ``kdpl/benchmark/protocols.py`` tells them.
        datasets: Names of configs in ``configs/data``, or config files: those of few_shot and base_to_novel, and the
            targets of cross_dataset.
        seeds: Seeds; the table gives means over them.
        rows: The variants by name, in the table's order.
        configs: Config files for every fit.
        shots: Labelled images a class under few_shot.
        source: Dataset that cross_dataset and domain_generalization tune on.
        variants: Other test sets of the source's classes, for domain_generalization.
        per_dataset: Settings that differ by dataset.
    """

    name: str
    protocols: tuple[Protocol, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: Mapping[str, Row]
    configs: tuple[str, ...] = ()
    shots: tuple[int, ...] = ()
    source: str | None = None
    variants: tuple[str, ...] = ()
    per_dataset: tuple[Exceptional, ...] = ()

    def choose(
        self, datasets: Collection[str] | None, seeds: Collection[int] | None, rows: Collection[str] | None
    ) -> "Campaign":
        """Give a part of the campaign; None takes all. Rows keep the teachers that they need, which are not chosen.

        Raises:
            ConfigError: Something is chosen that the campaign does not have.
        """
        names = (*self.datasets, *self.variants)
        _require_known(self.name, "dataset", datasets or (), names)
        _require_known(self.name, "seed", seeds or (), self.seeds)
        _require_known(self.name, "row", rows or (), self.rows)
        return replace(
            self,
            datasets=_chosen(self.datasets, datasets),
            variants=_chosen(self.variants, datasets),
            seeds=_chosen(self.seeds, seeds),
        )

    def config_files(self) -> list[str]:
        """Give all config files that the campaign names, those of its datasets included."""
        datasets = (*self.datasets, *self.variants, *((self.source,) if self.source else ()))
        known = {dataset_name(each) for each in datasets}
        # a name that is misspelt is found here too
        others = [each for exceptional in self.per_dataset for each in exceptional.datasets if each not in known]
        files = [config_of(each) for each in (*datasets, *others)] + [*self.configs]
        for row in self.rows.values():
            files += row.configs
        for exceptional in self.per_dataset:
            files += (*exceptional.teacher, *exceptional.student)
        return files


def config_of(dataset: str) -> str:
    """Give the config of a dataset: the file itself, or the one in ``configs/data`` by name."""
    return dataset if dataset.endswith(".yaml") else f"{DATA_CONFIGS}/{dataset}.yaml"


def dataset_name(dataset: str) -> str:
    """Give what folders and tables call a dataset."""
    return Path(dataset).stem


def _chosen(everything: tuple[_T, ...], wanted: Collection[_T] | None) -> tuple[_T, ...]:
    return tuple(each for each in everything if wanted is None or each in wanted)


def _require_known(campaign: str, what: str, wanted: Collection[Any], known: Collection[Any]) -> None:
    for each in wanted:
        if each not in known:
            raise ConfigError(
                f"{what} {each} is not in the campaign {campaign}: choose from {', '.join(map(str, known))}, or add it"
            )


def read_campaign(file: Path) -> Campaign:
    """Read a campaign's file.

    Raises:
        ConfigError: The file is missing or says something that cannot be.
    """
    require_configs([str(file)])
    campaign = parse_campaign(yaml.safe_load(file.read_text(encoding="utf-8")), file.stem, str(file))
    require_configs(campaign.config_files())
    return campaign


def parse_campaign(content: Mapping[str, Any], name: str, origin: str) -> Campaign:
    """Turn what a campaign's file holds into a Campaign.

    Args:
        content: The file's mapping.
        name: What the campaign is called.
        origin: The file, for error messages.

    Raises:
        ConfigError: Something in it cannot be.
    """
    reader = _Reader(origin)
    allowed = ("protocols", "datasets", "seeds", "configs", "rows", "per_dataset", "shots", "source", "variants")
    reader.keys(content, "the campaign", allowed)
    protocols = reader.texts(content, "protocols")
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise reader.wrong(f"protocol {protocol!r} is unknown", f"choose from {', '.join(PROTOCOLS)}")
    rows = content.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise reader.wrong("there are no rows", "add 'rows:' with at least one variant")
    seeds = reader.numbers(content, "seeds", 0) or (1,)
    campaign = Campaign(
        name=name,
        protocols=protocols,  # type: ignore[arg-type]
        datasets=reader.texts(content, "datasets"),
        seeds=seeds,
        rows={str(key): _row(reader, str(key), row) for key, row in rows.items()},
        configs=reader.texts(content, "configs"),
        shots=reader.numbers(content, "shots", 1),
        source=reader.text(content, "source"),
        variants=reader.texts(content, "variants"),
        per_dataset=tuple(_exceptional(reader, entry) for entry in content.get("per_dataset") or ()),
    )
    _require_whole(reader, campaign)
    return campaign


class _Reader:
    """Takes values out of mappings, and names the campaign's file when one is wrong."""

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def wrong(self, fault: str, remedy: str) -> ConfigError:
        return ConfigError(f"campaign {self.origin}: {fault}: {remedy}")

    def keys(self, content: Any, where: str, allowed: Collection[str]) -> None:  # noqa: ANN401
        if not isinstance(content, dict):
            raise self.wrong(f"{where} is {content!r}, expected settings by name", f"use {', '.join(allowed)}")
        for key in content:
            if key not in allowed:
                raise self.wrong(f"{where} has no setting {key!r}", f"use {', '.join(allowed)}")

    def text(self, content: Mapping[str, Any], key: str) -> str | None:
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{key} is {value!r}", "give one name")
        return value

    def texts(self, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = content.get(key) or []
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise self.wrong(f"{key} is {value!r}", "give a list of names")
        self._unique(key, values)
        return tuple(values)

    def numbers(self, content: Mapping[str, Any], key: str, minimum: int) -> tuple[int, ...]:
        value = content.get(key) or []
        values = value if isinstance(value, list) else [value]
        if not all(type(each) is int and each >= minimum for each in values):
            raise self.wrong(f"{key} is {value!r}", f"give a list of whole numbers from {minimum}")
        self._unique(key, values)
        return tuple(values)

    def _unique(self, key: str, values: list[Any]) -> None:
        if len(set(values)) < len(values):
            raise self.wrong(f"{key} names something twice", "remove one of them")


def _row(reader: _Reader, name: str, content: Any) -> Row:  # noqa: ANN401
    where = f"row {name!r}"
    if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
        raise reader.wrong(f"{where} names a folder", "use letters, digits, _ and -")
    reader.keys(content, where, ("title", "teacher", "student", "of", "options", "import", "published"))
    stages = [stage for stage in ("teacher", "student") if content.get(stage)]
    if len(stages) != 1:
        raise reader.wrong(f"{where} needs configs", "give either 'teacher:' or 'student:' with config files")
    stage: Literal["teacher", "student"] = "teacher" if stages == ["teacher"] else "student"
    if stage == "student" and not content.get("of"):
        raise reader.wrong(f"{where} has no teacher", "name the row of its teacher as 'of:'")
    if stage == "teacher" and content.get("of"):
        raise reader.wrong(f"{where} is a teacher and has an 'of:'", "remove it, or give 'student:' configs")
    if stage == "student" and content.get("import"):
        raise reader.wrong(f"{where} is a student and has an 'import:'", "import teachers alone")
    published, teacher_file = reader.text(content, "published"), reader.text(content, "import")
    if published is not None and published not in METHODS:
        raise reader.wrong(f"{where} has no published figures {published!r}", f"choose from {', '.join(METHODS)}")
    try:
        (teacher_file or "").format(dataset="", seed=0)
    except (KeyError, IndexError, ValueError) as error:
        raise reader.wrong(f"{where} imports {teacher_file}", "use the placeholders {dataset} and {seed}") from error
    return Row(
        name=name,
        title=reader.text(content, "title") or name,
        stage=stage,
        configs=reader.texts(content, stage),
        of=reader.text(content, "of"),
        options=reader.texts(content, "options"),
        teacher_file=teacher_file,
        published=published,
    )


def _exceptional(reader: _Reader, content: Any) -> Exceptional:  # noqa: ANN401
    reader.keys(content, "an entry of per_dataset", ("datasets", "teacher", "student"))
    return Exceptional(*(reader.texts(content, key) for key in ("datasets", "teacher", "student")))


def _require_whole(reader: _Reader, campaign: Campaign) -> None:
    needs = {
        "few_shot": ("datasets", "shots"),
        "base_to_novel": ("datasets",),
        "cross_dataset": ("source", "datasets"),
        "domain_generalization": ("source", "variants"),
    }
    if not campaign.protocols:
        raise reader.wrong("there are no protocols", f"choose from {', '.join(PROTOCOLS)}")
    for protocol in campaign.protocols:
        for key in needs[protocol]:
            if not getattr(campaign, key):
                raise reader.wrong(f"protocol {protocol} needs {key}", f"add '{key}:'")
    for names in (campaign.datasets, campaign.variants):
        if len({dataset_name(each) for each in names}) < len(names):
            raise reader.wrong("two datasets have one name", "rename a config file")
    for row in campaign.rows.values():
        if row.of is not None and (row.of not in campaign.rows or campaign.rows[row.of].stage != "teacher"):
            teachers = [each.name for each in campaign.rows.values() if each.stage == "teacher"]
            raise reader.wrong(
                f"row {row.name!r} is of {row.of!r}, which is not the row of a teacher",
                f"choose from {', '.join(teachers)}" if teachers else "add the row of a teacher",
            )
