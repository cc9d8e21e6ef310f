"""``python -m kdpl class-vectors``: class vectors of other class names, from a teacher that is tuned already."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from kdpl.cli.arguments import Parser, output_file
from kdpl.errors import ConfigError, DataError, reason
from kdpl.runtime.class_names import fault_of_name
from kdpl.runtime.configs import require_configs


def class_vectors(argv: Sequence[str]) -> int:
    """Encode class names with a tuned teacher's prompts and write them as class vectors.

    Args:
        argv: Arguments after ``class-vectors``.

    Returns:
        0.

    Raises:
        KdplError: The teacher, the data or a file is missing or damaged, or names are empty, double or too long.
    """
    options, settings = _parse(argv)
    out = output_file("--out", options.out)
    num_base: int | None = None
    texts: tuple[str, ...] | None = None
    if options.config is not None:
        names, num_base, texts = _names_of_data(options.config, settings)
    elif options.class_list is not None:
        names = _distinct(_lines(Path(options.class_list)), options.class_list)
    else:
        names = _distinct(options.classes, "--classes")

    from kdpl.class_vectors import NameEncoder

    NameEncoder.load(options.teacher).encode(names, num_base, texts).save(out)
    print(f"class vectors of {len(names)} classes: {out}")
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m kdpl class-vectors",
        description="Encode class names with the prompts of a tuned teacher; nothing is trained.",
        epilog="After --config, --data.init_args.NAME VALUE changes a setting of the data.",
    )
    parser.add_argument("--teacher", required=True, metavar="RUN", help="run folder of a teacher")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--classes", nargs="+", metavar="NAME", help="the class names, in the order of their labels")
    source.add_argument("--class-list", metavar="FILE", help="text file with a class name on each line, in that order")
    source.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="config whose data section says the classes, for example a run's config.yaml; may be given several times",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    options, settings = parser.parse_known_args(argv)
    if settings and options.config is None:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    return options, settings


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"class list {file} cannot be read ({reason(error)}): give a text file with a class name on each line"
        ) from error
    return [line for line in text.splitlines() if line.strip()]


def _distinct(given: Sequence[str], source: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given)
    if not all(names):
        raise ConfigError(f"{source} has an empty class name: write all names out")
    for i, name in enumerate(names):
        fault = fault_of_name(name)
        if fault:
            raise ConfigError(f"{source} has a class name that {fault}: give another")
        if name in names[:i]:
            raise ConfigError(f"{source} has the class name {name!r} twice: give each class once")
    if not names:
        raise ConfigError(f"{source} has no class names: write one on each line")
    return names


def _names_of_data(
    files: Sequence[str], settings: Sequence[str]
) -> tuple[tuple[str, ...], int | None, tuple[str, ...]]:
    """Names, number of base classes and texts of the data that configs and further settings describe."""
    require_configs(files)
    sections = [yaml.safe_load(Path(file).read_text(encoding="utf-8")).get("data", {}) for file in files]
    for file, section in zip(files, sections, strict=True):
        if not isinstance(section, dict):
            raise ConfigError(f"data in config {file} is {section!r}, expected a section of settings: correct it")

    from kdpl.classification import Domain
    from kdpl.data.section import build_data

    data = build_data(sections, settings)
    if not isinstance(data, Domain):
        raise ConfigError(
            f"{type(data).__name__} does not say its class names: give the config of a DomainDataModule as --config"
        )
    return data.class_names, data.num_base, data.class_texts
