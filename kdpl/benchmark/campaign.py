"""Campaigns: the variants that are run on each dataset with each seed, read from a YAML file.

A campaign is composed from the configs that ``fit`` takes; ``configs/benchmark/`` has examples.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kdpl.errors import ConfigError
from kdpl.runtime.configs import read_config

Protocol = Literal["few_shot", "base_to_novel", "cross_dataset", "domain_generalization"]
Stage = Literal["teacher", "student"]

DATA_CONFIGS = "configs/data"

_NEEDS = {
    "few_shot": ("datasets", "shots"),
    "base_to_novel": ("datasets",),
    "cross_dataset": ("source", "datasets"),
    "domain_generalization": ("source", "variants"),
}

_T = TypeVar("_T")


def _listed(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _unique(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names something twice: remove one of them")
    return values


Several = Annotated[tuple[_T, ...], BeforeValidator(_listed), AfterValidator(_unique)]
"""A list without repetitions, for which one value may stand as well."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CampaignRow(_Settings):
    """One variant, which is one line of the table.

    Attributes:
        title: Title in the table; ``**title**`` is printed bold. Empty: the row's name.
        teacher: Config files of a teacher's fit, after the config files of all fits.
        student: Config files of a student's fit; one of the two is empty.
        of: For a student, the row of its teacher.
        protocols: Protocols under which it is run; empty: all of the campaign.
        shots: Numbers of shots with which it is run under few_shot; empty: all of the campaign.
        options: Options of its fit.
        published: Method whose published figures are shown next to the measured ones.
    """

    title: str = ""
    teacher: Several[str] = ()
    student: Several[str] = ()
    of: str | None = None
    protocols: Several[Protocol] = ()
    shots: Several[Annotated[int, Field(ge=0)]] = ()
    options: Several[str] = ()
    published: Literal["promptkd"] | None = None

    @property
    def stage(self) -> Stage:
        """The stage that it fits."""
        return "student" if self.student else "teacher"

    @property
    def configs(self) -> tuple[str, ...]:
        """Config files of its fit."""
        return self.student or self.teacher

    def runs(self, protocol: str, shots: int | None) -> bool:
        """Return whether it is run under a protocol, with a number of shots under few_shot."""
        chosen = not self.protocols or protocol in self.protocols
        return chosen and (shots is None or not self.shots or shots in self.shots)

    @model_validator(mode="after")
    def _is_one_stage(self) -> "CampaignRow":
        if bool(self.teacher) == bool(self.student):
            raise ValueError(
                "needs either 'teacher:' or 'student:' with config files: give one of them"
            )
        if bool(self.student) != (self.of is not None):
            raise ValueError(
                "needs 'of:' with the row of its teacher if it is a student, and only "
                "then: correct it"
            )
        return self


class Exceptional(_Settings):
    """Config files of the stages on some datasets, after those of rows, and teachers' options."""

    datasets: Several[str]
    teacher: Several[str] = ()
    student: Several[str] = ()
    teacher_options: Several[str] = ()


class Campaign(_Settings):
    """The content of a campaign's file.

    Attributes:
        protocols: The experiments; ``kdpl/benchmark/protocols.py`` describes them.
        datasets: Names of configs in ``configs/data``, or config files: those of few_shot and
            base_to_novel, and the targets of cross_dataset.
        seeds: Seeds; the table gives means over them.
        rows: The variants by name, in the table's order; a name is that of a folder.
        configs: Config files for every fit.
        shots: Labelled images a class under few_shot; 0: no label is used, which suits rows that
            tune no teacher.
        source: Dataset that cross_dataset and domain_generalization tune on.
        variants: Other test sets of the source's classes, for domain_generalization.
        per_dataset: Settings that differ by dataset.
        notes: Sentences below each of its tables, such as what the accuracies depend on.
    """

    protocols: Several[Protocol] = Field(min_length=1)
    datasets: Several[str] = ()
    seeds: Several[Annotated[int, Field(ge=0)]] = (1,)
    rows: dict[str, CampaignRow] = Field(min_length=1)
    configs: Several[str] = ()
    shots: Several[Annotated[int, Field(ge=0)]] = ()
    source: str | None = None
    variants: Several[str] = ()
    per_dataset: Several[Exceptional] = ()
    notes: Several[str] = ()

    @model_validator(mode="after")
    def _is_complete(self) -> "Campaign":
        for protocol in self.protocols:
            for key in _NEEDS[protocol]:
                if not getattr(self, key):
                    raise ValueError(f"protocol {protocol} needs {key}: add '{key}:'")
        for names in (self.datasets, self.variants):
            if len(set(map(dataset_name, names))) < len(names):
                raise ValueError("two datasets have one name: rename a config file")
        # with few_shot, each number of shots is a separate setting
        settings = [(name, n) for name in self.protocols for n in self.shots_of(name)]
        for name, row in self.rows.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"row {name!r} names a folder: use letters, digits, _ and -")
            if row.of is None:
                continue
            if row.of not in self.rows_of("teacher"):
                raise ValueError(
                    f"row {name!r} is of {row.of!r}, which is not the row of a "
                    "teacher: name one of those"
                )
            if any(row.runs(*s) and not self.rows[row.of].runs(*s) for s in settings):
                raise ValueError(
                    f"row {name!r} is run where its teacher {row.of!r} is not: give both the same"
                )
        return self

    def shots_of(self, protocol: Protocol) -> Sequence[int | None]:
        """Return the numbers of shots under a protocol; it has none but under few_shot."""
        return self.shots if protocol == "few_shot" else (None,)

    def rows_of(self, stage: Stage) -> list[str]:
        """Return the names of a stage's rows."""
        return [name for name, row in self.rows.items() if row.stage == stage]

    def choose(
        self,
        datasets: Collection[str] = (),
        seeds: Collection[int] = (),
        rows: Collection[str] = (),
    ) -> "Campaign":
        """Return a part of the campaign, or raise a ConfigError; an empty choice is all.

        All rows stay, since those chosen may need them.
        """
        choices: list[tuple[str, Collection[object], Collection[object]]] = [
            ("dataset", datasets, (*self.datasets, *self.variants)),
            ("seed", seeds, self.seeds),
            ("row", rows, self.rows),
        ]
        for kind, wanted, options in choices:
            if unknown := [value for value in wanted if value not in options]:
                choice = ", ".join(map(str, options))
                raise ConfigError(
                    f"{kind} {unknown[0]} is not in the campaign: choose from {choice}"
                )
        chosen = {"datasets": datasets, "variants": datasets, "seeds": seeds}
        parts = {
            key: tuple(value for value in getattr(self, key) if value in wanted)
            for key, wanted in chosen.items()
            if wanted
        }
        return self.model_copy(update=parts)

    def config_files(self) -> list[str]:
        """Return all config files that the campaign names, also of its datasets."""
        datasets = [*self.datasets, *self.variants, *filter(None, [self.source])]
        files, names = list(self.configs), set(map(dataset_name, datasets))
        for row in self.rows.values():
            files += row.configs
        for exception in self.per_dataset:
            files += [*exception.teacher, *exception.student]
            # the config of an exception for a misspelt dataset does not exist
            datasets += [name for name in exception.datasets if name not in names]
        return [*map(config_of, datasets), *files]


def config_of(dataset: str) -> str:
    """Return the config of a dataset: the file itself, or the one in ``configs/data`` by name."""
    return dataset if dataset.endswith(".yaml") else f"{DATA_CONFIGS}/{dataset}.yaml"


def dataset_name(dataset: str) -> str:
    """Return the name of a dataset in folders and tables."""
    return Path(dataset).stem


def read_campaign(file: Path) -> Campaign:
    """Read a campaign's file; a ConfigError if it, or one that it names, is missing or invalid."""
    campaign = parse_campaign(read_config(str(file)), file)
    for config in campaign.config_files():
        read_config(config)
    return campaign


def parse_campaign(content: dict[str, Any], file: Path) -> Campaign:
    """Turn the content of a campaign's file into a Campaign, or raise a ConfigError."""
    try:
        return Campaign.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        # errors of a validator say what to do
        says_remedy = first["type"] == "value_error"
        problem = (
            f"{key} {first['ctx']['error']}"
            if says_remedy
            else f"{key}: {first['msg']}, correct it"
        )
        raise ConfigError(f"campaign {file}: {problem.strip()}") from error
