"""Trainer, models and target that ``run PATH`` chooses where they are not given, and why."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from kdpl.cli.init import CONFIG, survey
from kdpl.data.storage import find_images
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.advice import command
from kdpl.runtime.configs import find_config, read_config
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import process_rank
from kdpl.runtime.origin import flatten
from kdpl.runtime.run_folder import DATA_FOLDER

_CHOICE = "choice.json"
_SMALL_GPU = 8 * 2**30  # bytes; a step of the published teacher with 1,000 classes takes 5.6 GB
_POOL_TO_SEARCH = 500  # images to distil on, of which a search holds 100 out


@dataclass(frozen=True)
class Options:
    """Configs by name, as options of ``run`` take them, settings of both stages, and the rest."""

    config: Sequence[str]
    teacher: Sequence[str]
    student: Sequence[str]
    search: bool
    settings: Sequence[str] = ()
    seed: int = 1

    def in_full(self, out: Path) -> str:
        """Return the command with these options, to be pasted in any folder."""
        words: list[str | Path] = ["run"]
        for option in ("config", "teacher", "student"):
            for value in getattr(self, option):
                words += [f"--{option}", Path(value) if Path(value).is_file() else value]
        words += ["--search"] * self.search + [f"--seed={self.seed}"] * (self.seed != 1)
        return command(*words, *self.settings, "--out", out)

    def names_paths(self) -> bool:
        """Return whether configs or settings of the user's may hold paths relative to here."""
        settings = [setting.partition("=")[2] or setting for setting in self.settings]
        files = (*self.config, *self.teacher, *self.student, *settings)
        return any(Path(value).exists() for value in files) or any("/" in s for s in settings)

    def names_set(self) -> list[str]:
        """Return the dotted names of all settings; a ConfigError if a config cannot be read."""
        for name in self.teacher:
            # sets nothing that is chosen
            read_config(find_config(name, "teacher"))
        configs = [read_config(find_config(name)) for name in self.config]
        configs += [read_config(find_config(name, "student")) for name in self.student]
        names = [name for config in configs for name in flatten(config)]
        names += [setting.lstrip("-").partition("=")[0] for setting in self.settings]
        return [name.replace(".init_args", "") for name in names]


@dataclass(frozen=True)
class Choice:
    """What was chosen for the images of a path, with a reason for each.

    ``images`` is a digest of which images these are.
    """

    path: str
    images: str
    trainer: list[str]
    teacher: list[str]
    student: list[str]
    target: str
    search: bool
    reasons: Mapping[str, str]

    def completed(
        self, given: Options, names: Sequence[str], data: str
    ) -> tuple[Options, list[str]]:
        """Return the options of the run, where those that are given win, and the reasons.

        ``names`` are those of the settings that are given.
        """
        trainer = [] if any(name == "trainer.accelerator" for name in names) else self.trainer
        target = [] if any(name.startswith("model.target") for name in names) else [self.target]
        search = self.search and not given.student
        reasons = dict(self.reasons)
        if self.search and given.student and not given.search:
            reasons["search"] = (
                "no search, since you give --student: add --search to choose what of it is trained"
            )
        options = replace(
            given,
            config=[data, *trainer, *given.config],
            teacher=given.teacher or self.teacher,
            student=[*(given.student or self.student), *target],
            search=given.search or search,
        )
        chosen = {
            "trainer": trainer,
            "models": not (given.teacher and given.student),
            "target": target,
            "search": self.search and not given.search,
        }
        return options, [why for name, why in reasons.items() if chosen[name]]


def complete(
    path: str,
    out: Path,
    given: Options,
    reading: tuple[str | None, str | None],
) -> Options:
    """Survey images, choose what is not given, and print it; a run that resumes reads both."""
    # what is wrong with the options is said before all images are read
    given_names, (class_names, separator) = given.names_set(), reading
    folder, source = out / DATA_FOLDER, str(Path(path).expanduser().absolute())
    first, choice = process_rank() == 0, _read(folder)
    if choice is None and not first:
        words: list[str | Path] = ["--class-names", Path(class_names)] if class_names else []
        words += ["--label-separator", separator] if separator else []
        init = command("init", Path(path), *words, "--out", out.with_name(f"{out.name}_data"))
        raise ConfigError(
            f"one process surveys {path}: call {init}, and give its config as --config"
        )
    digest = _digest(Path(source), out)
    if choice is None:
        _, images = survey(
            path,
            folder,
            class_names=class_names,
            label_separator=separator,
            overwrite=True,
        )
        pool = sum(image.split == "train" for image in images)
        choice = choose(source, separator is not None, pool, digest)
        write_text(folder / _CHOICE, json.dumps(asdict(choice), indent=2))
    elif choice.path != source:
        raise ConfigError(f"{out} is a run of {choice.path}, not of {path}: choose another --out")
    elif choice.images != digest:
        raise ConfigError(
            f"{path} has other images than when {out} was begun: choose another --out, or remove it"
        )
    options, reasons = choice.completed(given, given_names, str(folder / CONFIG))
    if first:
        print(f"chosen for {path}, where you give nothing else:")
        for line in reasons:
            print(f"  {line}")
        here = f"cd {shlex.quote(str(Path.cwd()))} && " if given.names_paths() else ""
        print(f"the same command in full:\n  {here}{options.in_full(out)}")
    return options


def _read(folder: Path) -> Choice | None:
    """Return what was chosen before, or None; an ArtifactError if it cannot be read."""
    file = folder / _CHOICE
    try:
        return Choice(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{file} cannot be read ({reason(error)}): remove {folder}") from error


def _digest(source: Path, out: Path) -> str:
    """Return a digest of a table's content, or of the paths of a folder's images not in ``out``."""
    if source.is_file():
        return sha256(source.read_bytes()).hexdigest()
    if not source.is_dir():
        raise ConfigError(f"{source} does not exist: give the folder or table of your images")
    images = (path for path in find_images(source) if not Path(path).is_relative_to(out))
    return sha256("\n".join(images).encode(errors="surrogateescape")).hexdigest()


def choose(path: str, several_labels: bool, pool: int, images: str = "") -> Choice:
    """Choose by the hardware, by the weights that can be loaded, and by the images."""
    import torch

    from kdpl.clip.weights import obtainable

    # hardware
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    trainer = ["trainer/gpu", *["trainer/ddp"] * (gpus > 1)] if gpus else ["trainer/cpu"]
    found = f"{gpus} GPUs were found" if gpus > 1 else f"{'a' if gpus else 'no'} GPU was found"
    reasons = {"trainer": f"{', '.join(trainer)}: {found}"}

    # models
    published = ("ViT-L-14-quickgelu", "ViT-B-16-quickgelu")
    miniatures = not gpus or not obtainable(published, "openai")
    if miniatures:
        models = ["quickstart"], ["quickstart"]
        if several_labels:
            # a teacher tuned on whole images is worse at crops, and a network of 32 pixels cannot
            # tell small objects apart
            models = ["quickstart", "zero_shot"], ["quickstart_timm_64"]
        why = (
            "miniature CLIPs, which know digits and letters and LITTLE ELSE, since "
            + ("the published weights are not cached and cannot be fetched" if gpus else found)
            + "; for photographs give --teacher promptsrc_vit_l14 --student promptkd_vit_b16"
        )
    else:
        small = torch.cuda.get_device_properties(0).total_memory < _SMALL_GPU
        models = ["promptsrc_vit_l14", *["vit_b16"] * small], ["promptkd_vit_b16"]
        why = "the published models" + (", a smaller teacher for so small a GPU" if small else "")
    reasons["models"] = f"teacher {', '.join(models[0])}, student {', '.join(models[1])}: {why}"

    # target, and what of the student is trained
    target = "local_views" if several_labels else "refined"
    learned = (
        "what the teacher sees in crops of each image"
        if several_labels
        else "the teacher's predictions, corrected by your labels and the shape of the pool"
    )
    reasons["target"] = f"target {target}: the student learns {learned}"
    search = miniatures and not several_labels and pool >= _POOL_TO_SEARCH
    reasons["search"] = (
        f"search: {pool} images to distil on are enough to choose what of so small a student is "
        "trained"
    )
    return Choice(path, images, trainer, *models, target, search, reasons)
