"""Trainer, models and target that ``run PATH`` chooses where they are not given, and why."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdpl.runtime.advice import command
from kdpl.runtime.configs import find_config, read_config
from kdpl.runtime.origin import Origin, flatten

_TARGET = (".target", ".target.class_path")
_SMALL_GPU = 8 * 2**30  # bytes; a step of the published teacher with 1,000 classes takes 5.6 GB
_POOL_TO_SEARCH = 500  # images to distil on, of which a search holds 100 out


@dataclass(frozen=True)
class Options:
    """Configs by name, as options of ``run`` take them, settings of both stages, and the rest.

    ``search`` has the learning rates to try, by default those of ``run --search``; None: no search.
    """

    config: Sequence[str] = ()
    teacher: Sequence[str] = ()
    student: Sequence[str] = ()
    search: Sequence[float] | None = None
    settings: Sequence[str] = ()
    seed: int = 1
    tuned: bool = False

    def files(self) -> dict[str, list[str]]:
        """Return the files of the configs, shared and of each stage, all of which can be read."""
        files = {
            "shared": [find_config(name) for name in self.config],
            "teacher": [find_config(name, "teacher") for name in self.teacher],
            "student": [find_config(name, "student") for name in self.student],
        }
        for file in (*files["shared"], *files["teacher"], *files["student"]):
            read_config(file)
        return files

    def words(self) -> list[str | Path]:
        """Return the options but for settings as words of ``command``."""
        words: list[str | Path] = []
        for option in ("config", "teacher", "student"):
            for value in getattr(self, option):
                words += [f"--{option}", Path(value) if Path(value).exists() else value]
        if self.search is not None:
            words += ["--search", *map(str, self.search)]
        return words + [f"--seed={self.seed}"] * (self.seed != 1)

    def in_full(self, out: Path) -> str:
        """Return the command with these options, to be pasted in any folder."""
        return command("run", *self.words(), *self.settings, "--out", out)

    def way_here(self) -> str:
        """Return what precedes a command if configs or settings may hold paths relative to here."""
        settings = [setting.partition("=")[2] or setting for setting in self.settings]
        files = (*self.config, *self.teacher, *self.student, *settings)
        paths = any(Path(value).exists() for value in files) or any("/" in s for s in settings)
        return f"cd {shlex.quote(str(Path.cwd()))} && " if paths else ""

    def names_set(self, stage: str = "student") -> list[str]:
        """Return the names of the settings that are given, as options or in a stage's configs.

        Such as ``model.target``, without ``init_args``.
        """
        files = self.files()
        configs = map(read_config, files["shared"] + files[stage])
        names = [name for config in configs for name in flatten(config)]
        names += [setting.lstrip("-").partition("=")[0] for setting in self.settings]
        return [name.replace(".init_args", "") for name in names]

    @property
    def has_original_clip(self) -> bool:
        """Whether the teacher is an original CLIP, by its last config."""
        return bool(self.teacher) and Path(self.teacher[-1]).stem == "zero_shot"

    def target(self) -> str | None:
        """Return the student's target, by name or class path, if configs or settings set one."""
        files = self.files()
        given = {
            name: value
            for config in map(read_config, files["shared"] + files["student"])
            for name, value in flatten(config).items()
        }
        given |= dict(
            setting.lstrip("-").split("=", 1) for setting in self.settings if "=" in setting
        )
        targets = [str(value) for name, value in given.items() if name.endswith(_TARGET)]
        return targets[-1] if targets else None


@dataclass(frozen=True)
class Choice:
    """What was chosen for images, with a reason for each.

    ``target`` is the name of a student's config, and ``made_from`` the origin of what was surveyed.
    """

    trainer: list[str]
    teacher: list[str]
    student: list[str]
    target: str
    search: bool
    reasons: Mapping[str, str]
    path: str = ""
    made_from: Origin | None = None

    def for_pool(self, images: int) -> "Choice":
        """Return the choice without a search if the images to distil on are too few for one."""
        return replace(self, search=self.search and images >= _POOL_TO_SEARCH)

    def completed(self, options: Options, data: str) -> tuple[Options, list[str]]:
        """Return the options of the run, where the user's win, and the reasons for the others."""
        names = options.names_set()
        trainer = [] if any(name == "trainer.accelerator" for name in names) else self.trainer
        given = options.target()
        target = [] if given or options.tuned else [self.target]
        # its labels go into refined targets, and not into prompts
        refines = "refined" in (given or "".join(target)).lower() and not options.tuned
        teacher = [*(options.teacher or self.teacher)]
        settings = [*options.settings]
        if refines:
            teacher += ["zero_shot"] * (Path(teacher[-1]).stem != "zero_shot")
            if "data.train_on_val" not in names:
                settings.append("--data.init_args.train_on_val=true")
        reasons = dict(self.reasons)
        searches = self.search and options.search is None and not options.student
        if self.search and options.student and options.search is None:
            reasons["search"] = (
                "no search, since you give --student: add --search to choose what of it is trained"
            )
        completed = replace(
            options,
            config=[data, *trainer, *options.config],
            teacher=teacher,
            settings=settings,
            student=[*(options.student or self.student), *target],
            search=() if searches else options.search,
        )
        is_chosen = {
            "trainer": trainer,
            "models": not (options.teacher and options.student),
            "target": target,
            "labels": refines,
            "search": self.search and options.search is None,
        }
        return completed, [why for name, why in reasons.items() if is_chosen[name]]


def print_choice(path: str, reasons: Sequence[str]) -> None:
    """Print what was chosen for the images of a path."""
    print(f"chosen for {path}, where you give nothing else:", *reasons, sep="\n  ")


def choose(several_labels: bool) -> Choice:
    """Choose by the hardware, for images of any number."""
    import torch

    # hardware
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    trainer = ["trainer/gpu", *["trainer/ddp"] * (gpus > 1)] if gpus else ["trainer/cpu"]
    hardware = f"{gpus} GPUs were found" if gpus > 1 else f"{'a' if gpus else 'no'} GPU was found"
    reasons = {"trainer": f"{', '.join(trainer)}: {hardware}"}

    # models
    if not gpus:
        models = ["quickstart"], ["quickstart"]
        if several_labels:
            # a teacher tuned on whole images is worse at crops, and a network of 32 pixels cannot
            # tell small objects apart
            models = ["quickstart", "zero_shot"], ["quickstart_timm_64"]
        why = (
            f"miniature CLIPs, which know digits and letters and LITTLE ELSE, since {hardware}; "
            "for photographs give --teacher promptsrc_vit_l14 --student promptkd_vit_b16"
        )
    else:
        small = torch.cuda.get_device_properties(0).total_memory < _SMALL_GPU
        models = ["promptsrc_vit_l14", *["vit_b16"] * small], ["promptkd_vit_b16"]
        why = "the published models" + (", a smaller teacher for so small a GPU" if small else "")
    reasons["models"] = f"teacher {', '.join(models[0])}, student {', '.join(models[1])}: {why}"

    # target, and what of the student is trained
    target = "local_views" if several_labels else "refined"
    learned = "the teacher's predictions, corrected by any labels and the shape of the pool"
    if several_labels:
        learned = "what the teacher sees in crops of each image"
    reasons["target"] = f"target {target}: the student learns {learned}"
    reasons["labels"] = (
        "labels: all of them, validation images too, make the targets of the original CLIP, and no "
        "prompts are tuned: --tuned tunes the teacher's prompts on them, as published"
    )
    reasons["search"] = (
        f"search: {_POOL_TO_SEARCH} or more images to distil on are enough to choose what of so "
        "small a student is trained"
    )
    search = not gpus and not several_labels
    return Choice(trainer, *models, target, search, reasons)
