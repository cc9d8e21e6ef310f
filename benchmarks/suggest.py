"""``python -m benchmarks.suggest``: what ``python -m kdpl suggest`` is worth on both offline worlds.

Teachers and students of 4 labels a class: those of the images that it suggests from the zero-shot
CLIP, of as many that are drawn at random, and of 4 of each class, which takes the labels to draw;
students of targets refined with these labels; and a linear discriminant of them beside the teacher.
And labels that look wrong: how many are marked where all are correct, and how many of planted ones.
Interrupted, the same command resumes.
"""

import argparse
import csv
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.worlds import CONFIGS, WORLDS
from kdpl.__main__ import main as kdpl
from kdpl.class_vectors import ClassVectors
from kdpl.data.sampling import few_shot
from kdpl.data.splits import Reader, Record, Splits
from kdpl.report.labeling.page import encode
from kdpl.report.labeling.suggestions import cross_validated_scores, discriminant, wrong_labels
from kdpl.report.run_folder import Run
from kdpl.targets.frozen_teacher import FrozenTeacher

SEEDS, SHOTS = (1, 2, 3), 4
CHOICES = ("random", "balanced", "suggested")
WRONG = 0.05
WITH_WRONG = {
    "4 labels a class": (4, False, 20),
    "8 labels a class": (8, False, 20),
    "16 labels a class": (16, False, 20),
    "16 labels a class, teacher tuned on them": (16, True, len(SEEDS)),
    "20 labels a class": (20, False, 20),
    "labels of all training images": (None, False, 20),
}
"""Labels a class, whether the teacher was tuned on them or is zero-shot, and how often they are drawn."""
REFINED = ("--config=configs/student/refined_always.yaml",)
DISCRIMINANT = 0.5  # weight of its log-likelihood
TITLES = {
    "random": "drawn at random",
    "balanced": "4 of each class, drawn at random",
    "suggested": "**suggested, without a label**",
}


@dataclass
class Relabeled(Reader):
    """An offline world with other labels of its training images, all of which stay unlabelled.

    Attributes:
        world: ``digits`` or ``letters``.
        labels: File with the sources and labels of the labelled images.
    """

    world: str
    labels: str
    from_user = False

    def __post_init__(self) -> None:
        self.decoding = WORLDS[self.world].decoding

    def read(self) -> Splits:
        """Read the world, and take the labels of the file."""
        world = WORLDS[self.world].read()
        train = tuple(
            Record(*each) for each in json.loads(Path(self.labels).read_text(encoding="utf-8"))
        )
        return replace(world, train=train, unlabeled=tuple(record.source for record in world.train))


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test what is missing, and print the tables; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.suggest", description="What suggestions are worth."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the runs"
    )
    parser.add_argument(
        "--worlds", nargs="*", default=[*WORLDS], choices=WORLDS, help="default: both"
    )
    options = parser.parse_args(argv)
    # as the quickstart runs, whatever the number of cores
    torch.set_num_threads(1)
    columns = [f"{world}: {stage}" for world in options.worlds for stage in ("teacher", "student")]
    print(f"| accuracy, % | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for choice in CHOICES:
        cells = []
        for world in options.worlds:
            found = [accuracies(options.out / world, world, choice, seed) for seed in SEEDS]
            cells += [_mean_and_spread(each) for each in zip(*found, strict=True)]
        print(f"| {TITLES[choice]} | {' | '.join(cells)} |", flush=True)
    print(
        f"\n| student of refined targets, % | {' | '.join(options.worlds)} "
        f"|\n|---{'|--:' * len(options.worlds)}|"
    )
    for choice in ("random", "suggested"):
        found = [
            [refined(options.out / world, world, choice, seed) for seed in SEEDS]
            for world in options.worlds
        ]
        print(f"| {TITLES[choice]} | {' | '.join(map(_mean_and_spread, found))} |", flush=True)
    columns = [
        f"{world}: {title}"
        for world in options.worlds
        for title in ("zero-shot + d", "teacher", "teacher + d")
    ]
    print(f"\n| with a discriminant d, % | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for choice in CHOICES:
        cells = []
        for world in options.worlds:
            each = [with_discriminant(options.out / world, world, choice, seed) for seed in SEEDS]
            cells += map(_mean_and_spread, zip(*each, strict=True))
        print(f"| {TITLES[choice]} | {' | '.join(cells)} |", flush=True)
    columns = [
        f"{world}: {each}"
        for world in options.worlds
        for each in ("correct, marked", "precision", "recall")
    ]
    print(f"\n| labels that look wrong, % | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for title, (shots, tuned, draws) in WITH_WRONG.items():
        cells = []
        for world in options.worlds:
            each = [
                wrong_found(options.out / world, world, shots, tuned, seed)
                for seed in range(1, draws + 1)
            ]
            cells += map(_mean_and_spread, zip(*each, strict=True))
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    return 0


def accuracies(folder: Path, world: str, choice: str, seed: int) -> tuple[float, float]:
    """Accuracies on the test images, in percent, of a teacher that saw these labels, and of its student."""
    run, chosen = folder / f"{choice}_{seed}", _chosen(folder, world, choice, seed)
    stages = {"teacher": [], "student": [f"--model.init_args.teacher={run / 'teacher'}"]}
    return tuple(
        _accuracy(run / stage, world, chosen, stage, seed, more) for stage, more in stages.items()
    )


def refined(folder: Path, world: str, choice: str, seed: int) -> float:
    """Accuracy, in percent, of a student of that teacher's predictions refined with its labels."""
    run = folder / f"{choice}_{seed}"
    more = [f"--model.init_args.teacher={run / 'teacher'}", *REFINED]
    return _accuracy(
        run / "refined", world, _chosen(folder, world, choice, seed), "student", seed, more
    )


def with_discriminant(folder: Path, world: str, choice: str, seed: int) -> tuple[float, ...]:
    """Accuracies on training and validation images without a label, in percent, with a discriminant of the labels.

    Of the zero-shot prediction and a discriminant of its features, of the teacher, and of the
    teacher and a discriminant of its own features. A class without a label has the least likelihood
    of all.
    """
    splits, chosen = WORLDS[world].read(), _chosen(folder, world, choice, seed)
    _suggested(folder, world, splits.train)  # makes the zero-shot teacher
    records, known = [*splits.train, *splits.val], {*chosen}
    labels = torch.tensor([record.label for record in records])
    seen = torch.tensor([record in known for record in records])
    found = []
    for run in (folder / "zero_shot", folder / f"{choice}_{seed}" / "teacher"):
        teacher = FrozenTeacher(run, ClassVectors.of_teacher(str(run)))
        teacher.load()
        features = encode(teacher, Run.find(run, trusted=True).data, records)
        plain = teacher.logits(features).log_softmax(dim=1)
        scores = discriminant(features[seen], labels[seen], plain.shape[1], features)
        scores = scores.where(
            scores.isfinite(), scores.where(scores.isfinite(), torch.inf).amin(dim=1, keepdim=True)
        )
        found += [
            (each.argmax(dim=1) == labels)[~seen] for each in (plain, plain + DISCRIMINANT * scores)
        ]
    return tuple(100 * each.float().mean().item() for each in found[1:])


def wrong_found(
    folder: Path, world: str, shots: int | None, tuned: bool, seed: int
) -> tuple[float, ...]:
    """Shares, in percent: of correct labels that are marked; of those marked that are wrong, and of these marked."""
    train = WORLDS[world].read().train
    classes, found = len({record.label for record in train}), []
    for share in (0.0, WRONG):
        draw, labels = random.Random(seed), few_shot(train, (), shots, None, seed)[0]  # noqa: S311
        wrong = set(draw.sample(range(len(labels)), round(share * len(labels))))
        for i in wrong:
            labels[i] = Record(
                labels[i].source, (labels[i].label + draw.randrange(1, classes)) % classes
            )
        if tuned:
            run = folder / f"{'wrong' if wrong else 'right'}_{shots}_tuned_{seed}"
            if not (run / "class_vectors.safetensors").is_file():
                _fit(run, world, labels, "teacher", seed)
            features = _features(run, labels)
        else:
            known = _zero_shot_features(folder, world)
            features = torch.stack([known[record.source] for record in labels])
        given = torch.tensor([record.label for record in labels])
        scores = cross_validated_scores(features, given, classes, torch.arange(len(given)))
        probabilities, _ = wrong_labels(scores, given)
        marked = set(torch.nonzero(probabilities > 0.5).flatten().tolist())
        both = len(wrong & marked)
        found += (
            [both / max(len(marked), 1), both / len(wrong)]
            if wrong
            else [len(marked) / len(labels)]
        )
    return tuple(100 * each for each in found)


@cache
def _zero_shot_features(folder: Path, world: str) -> dict[str, torch.Tensor]:
    train = WORLDS[world].read().train
    _suggested(folder, world, train)  # makes the zero-shot teacher
    return dict(
        zip(
            (record.source for record in train), _features(folder / "zero_shot", train), strict=True
        )
    )


def _features(run: Path, records: Sequence[Record]) -> torch.Tensor:
    teacher = FrozenTeacher(run, ClassVectors.of_teacher(str(run)))
    teacher.load()
    return encode(teacher, Run.find(run, trusted=True).data, records)


def _chosen(folder: Path, world: str, choice: str, seed: int) -> list[Record]:
    """The images that are labelled, with their labels."""
    train = WORLDS[world].read().train
    if choice == "suggested":
        return _suggested(folder, world, train)
    if choice == "balanced":
        return few_shot(train, (), SHOTS, None, seed)[0]
    return random.Random(seed).sample(train, SHOTS * len({record.label for record in train}))  # noqa: S311


def _suggested(folder: Path, world: str, train: Sequence[Record]) -> list[Record]:
    """The images that are suggested from the zero-shot CLIP, which sees no label, with their labels revealed."""
    run, out, label_of = folder / "zero_shot", folder / "zero_shot_suggestions", dict(train)
    if not (out / "labels.csv").is_file():
        _fit(
            run,
            world,
            None,
            "teacher",
            1,
            ["--config=configs/teacher/zero_shot.yaml", "--data.init_args.shots=0"],
        )
        _kdpl(
            "suggest",
            str(run),
            "--trust",
            f"--out={out}",
            f"--images={SHOTS * len(set(label_of.values()))}",
        )
    return [Record(row["image"], label_of[row["image"]]) for row in _rows(out / "labels.csv")]


def _accuracy(
    folder: Path, world: str, labels: list[Record], stage: str, seed: int, more: Sequence[str]
) -> float:
    if not (folder / "test.json").is_file():
        _fit(folder, world, labels, stage, seed, more)
        _kdpl("test", f"--config={folder}/config.yaml")
    return 100 * float(json.loads((folder / "test.json").read_text(encoding="utf-8"))["test/acc"])


def _fit(
    folder: Path,
    world: str,
    labels: list[Record] | None,
    stage: str,
    seed: int,
    more: Sequence[str] = (),
) -> None:
    """Fit the quickstart's teacher or student on these labels; on the world's own without any."""
    files = [CONFIGS[world], "configs/trainer/cpu.yaml", f"configs/{stage}/quickstart.yaml"]
    settings = [f"--config={file}" for file in files]
    if labels is not None:
        file = folder.with_name(f"{folder.name}_labels.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(labels), encoding="utf-8")
        given = {"world": world, "labels": str(file)}
        reader = {"class_path": "benchmarks.suggest.Relabeled", "init_args": given}
        settings += [
            f"--data.init_args.dataset={json.dumps(reader)}",
            "--data.init_args.shots=null",
        ]
    _kdpl("fit", *settings, *more, f"--seed_everything={seed}", f"--out={folder}")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _kdpl(*args: str) -> None:
    if kdpl(args):
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
