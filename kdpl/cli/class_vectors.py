"""``python -m kdpl class-vectors``: class vectors of further names."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kdpl.cli.arguments import output_file
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.class_names import ClassText, composed, fault_of_name
from kdpl.runtime.files import lines_of, read_text
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE, STAGE_FOLDERS


def class_vectors(
    *,
    out: str,
    teacher: str,
    classes: list[str] = [],  # noqa: B006 - the parser's default
    class_list: str | None = None,
    config: list[str] = [],  # noqa: B006
    classifier: str | None = None,
    settings: list[str],
) -> int:
    """Encode class names with a tuned teacher.

    Nothing is trained. The names come from one of --classes, --class-list and --config. After
    --config, --data.init_args.NAME VALUE changes a setting of the data.

    Args:
        out: The file to write.
        teacher: Run folder of a teacher, or of run.
        classes: The class names, in the order of their labels.
        class_list: Text file with a class name on each line, in that order.
        config: Config whose data section names the classes, such as a run's config.yaml; may be
            repeated.
        classifier: Classifier folder that is to take the classes; ends with an error, and no file,
            if it cannot.
        settings: Settings of the data.
    """
    # check the options before anything is read
    file = output_file("--out", out)
    if sum(map(bool, (classes, class_list, config))) != 1:
        raise ConfigError(
            "class-vectors takes its names from one source: give --classes, --class-list or "
            "--config"
        )
    if settings and not config:
        raise ConfigError(
            f"class-vectors has no option {settings[0]}, except after --config: leave it out"
        )

    # read the class names
    num_base: int | None = None
    texts: tuple[ClassText, ...] | None = None
    if config:
        names, num_base, texts = _names_of_data(config, settings)
    elif class_list:
        names = _distinct(lines_of(read_text(Path(class_list), "class list")), class_list)
    else:
        names = _distinct(classes, "--classes")

    # imports torch, so only after the checks
    from kdpl.class_vectors import NameEncoder
    from kdpl.classifier import Classifier
    from kdpl.runtime.messages import inform

    teacher = _teacher_folder(teacher)
    vectors = NameEncoder.load(teacher).encode(names, num_base, texts)
    if classifier is not None:
        Classifier.load(classifier).add_classes(vectors)  # refuses what predict would refuse
    vectors.save(file)
    print(f"class vectors of {len(names)} class{'es' * (len(names) > 1)}: {file}")
    if not config and not _tuned_on(teacher).issuperset(names):
        inform("a student distilled without images of a class may not find it by name")
    return 0


def _tuned_on(teacher: str) -> set[str]:
    from kdpl.class_vectors import ClassVectors

    with suppress(ArtifactError):
        return {*ClassVectors.load(Path(teacher) / CLASS_VECTORS_FILE).class_names}
    return set()


def _distinct(texts: Sequence[str], source: str) -> tuple[str, ...]:
    names = tuple(composed(text.strip()) for text in texts)
    for i, name in enumerate(names):
        if problem := fault_of_name(name):
            raise ConfigError(f"{source} has a class name that {problem}: give another")
        if name in names[:i]:
            raise ConfigError(f"{source} has the class name {name!r} twice: give each class once")
    if not names:
        raise ConfigError(f"{source} has no class names: write one on each line")
    return names


def _teacher_folder(run: str) -> str:
    inside = Path(run) / STAGE_FOLDERS[0]
    return str(inside) if (inside / PROMPTS_FILE).is_file() else run


def _names_of_data(
    files: Sequence[str], settings: Sequence[str]
) -> tuple[tuple[str, ...], int | None, tuple[ClassText, ...]]:
    from kdpl.data.domain import build_data
    from kdpl.runtime.configs import find_config, read_config

    sections = [read_config(find_config(file)).get("data", {}) for file in files]
    data = build_data(sections, settings)
    return data.class_names, data.num_base, data.class_texts
