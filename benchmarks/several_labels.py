"""``python -m benchmarks.several_labels``: images of several labels, without labels and with few.

Students of what the zero-shot teacher sees in crops (``target: local_views``), beside the teacher
and a student of it on whole images, and logistic regression on frozen features with the same labels.
The world is that of pages of digits, or of collages of photographs. The features of the crops, which
are the same in all runs, are kept in the folder. Interrupted, the same command resumes.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from benchmarks.worlds.collages import write_collages
from benchmarks.worlds.pages import write_pages
from kdpl.__main__ import main as kdpl
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.splits import Record
from kdpl.multilabel import local_views
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.local_views import LocalViews, LogOdds, summaries_of
from kdpl.report.run_folder import Run
from kdpl.targets.inputs import TargetInputs

SEEDS, SHOTS = (1, 2, 3), (0, 4, 16)
VIEWS = 4  # of an image, for the students of whole images
STRENGTHS = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class World:
    """Images of several labels each, and the two networks that they are measured with."""

    write: Callable[[Path], Path]  # the images into a folder; returns their table
    data: str  # config
    teacher: str  # config, of the original CLIP
    student: tuple[str, ...]  # config, and options after it
    teacher_clip: ClipConfig
    student_clip: ClipConfig
    target: dict[str, Any]  # settings of local views, from what is known of the images


PHOTOGRAPHS = Path("runs/photographs")
WORLDS = {
    "pages": World(
        lambda out: write_pages(out / "pages"),
        "benchmarks/worlds/pages.yaml",
        "configs/teacher/quickstart.yaml",
        ("--config=configs/student/quickstart_timm_64.yaml",),
        ClipConfig("tiny-teacher", "glyphs"),
        ClipConfig("timm:test_resnet", "random", image_size=64),
        {},
    ),
    "collages": World(
        lambda out: write_collages(PHOTOGRAPHS / "data/clothing", out / "collages"),
        "benchmarks/worlds/collages.yaml",
        "benchmarks/worlds/photographs/teacher.yaml",
        (
            "--config=benchmarks/worlds/photographs/student.yaml",
            # best on validation images with all labels
            "--model.init_args.optim.optimizer=adamw",
            "--model.init_args.optim.lr=0.0003",
            "--model.init_args.optim.weight_decay=0.0001",
            "--trainer.max_epochs=10",
            "--trainer.check_val_every_n_epoch=5",
        ),
        ClipConfig(f"local-dir:{PHOTOGRAPHS}/clips/lite2", None),
        ClipConfig(f"local-dir:{PHOTOGRAPHS}/clips/lite0", None),
        # the longer edge of a photograph is 3/8 to 1/2 of a collage's, and there are at most four
        {"scales": [1, 2, 2.5], "count": 6},
    ),
}


@dataclass(eq=False)
class Remembered(LocalViews):
    """The same target, with the features of crops from a file where they are known."""

    file: str = ""

    def gather(self, inputs: TargetInputs) -> LogOdds:
        """Encode the crops of the pool once for all runs."""
        known, file = dict[str, Tensor](), Path(self.file)

        def remembered(
            inputs: TargetInputs,
            crop: Crops,
            summarize: Callable[[Tensor], Tensor],
            images: Sequence[str] | None = None,
        ) -> Tensor:
            pool = [*inputs.pool.images.take(inputs.pool.targeted)]
            if not file.is_file():
                save_file({"features": summaries_of(inputs, crop, torch.flatten)}, file)
            if not known:
                known.update(zip(pool, load_file(file)["features"], strict=True))
            width = inputs.vectors.vectors.shape[1]
            sources = pool if images is None else images
            return torch.stack([summarize(known[each].view(-1, width)) for each in sources])

        with patch.object(local_views, "summaries_of", remembered):
            return super().gather(inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and test what is missing, and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.several_labels", description="Several labels for an image."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the runs")
    parser.add_argument("--world", choices=WORLDS, default="pages", help="the images")
    options = parser.parse_args(argv)
    out, world = options.out, WORLDS[options.world]
    # as the quickstart runs, whatever the number of cores
    torch.set_num_threads(1)
    table = world.write(out)
    fit = partial(fit_and_test, world=world, table=table)

    teacher = _map(fit(out / "teacher", "teacher", 0, 1))
    print("| mAP, % | no labels | 4 a class | 16 a class |\n|---|--:|--:|--:|")
    print(f"| teacher on whole images, zero-shot | {teacher:.1f} | | |", flush=True)
    plain = [_map(fit(out / f"plain_{seed}", "plain", 0, seed)) for seed in SEEDS]
    print(f"| student of whole images | {_mean_and_spread(plain)} | | |", flush=True)
    runs = {
        shots: [fit(out / f"student_{shots}_{seed}", "student", shots, seed) for seed in SEEDS]
        for shots in SHOTS
    }
    students = [_mean_and_spread([_map(run) for run in runs[shots]]) for shots in SHOTS]
    networks = {"student's network": world.student_clip, "teacher's CLIP": world.teacher_clip}
    for title, clip in networks.items():
        features = _features(clip, Run.find(runs[SHOTS[-1]][0]))
        found = [_mean_and_spread([_probe(run, features) for run in runs[k]]) for k in SHOTS[1:]]
        print(f"| logistic regression, {title} | | {' | '.join(found)} |", flush=True)
    print(f"| **student of local views** | {' | '.join(students)} |", flush=True)
    every = _map(fit(out / "student_all_1", "student", None, 1))
    print(f"\nstudent of all labels, seed 1: {every:.1f}")
    return 0


def fit_and_test(
    folder: Path, stage: str, shots: int | None, seed: int, *, world: World, table: Path
) -> Path:
    """Fit and test the zero-shot teacher, a ``plain`` student of it, or one of local views."""
    if not (folder / "test.json").is_file():
        options = [
            f"--config={world.data}",
            "--config=configs/trainer/cpu.yaml",
            f"--data.init_args.root={table}",
            f"--data.init_args.shots={'null' if shots is None else shots}",
        ]
        if stage == "teacher":
            options += [f"--config={world.teacher}", "--config=configs/teacher/zero_shot.yaml"]
        else:
            options += [*world.student, f"--model.init_args.teacher={folder.parent / 'teacher'}"]
        if stage == "student":
            file = str(folder.parent / "crops.safetensors")
            target = {
                "class_path": "benchmarks.several_labels.Remembered",
                "init_args": {"file": file, **world.target},
            }
            options.append(f"--model.init_args.target={json.dumps(target)}")
        commands = []
        if stage == "plain":
            # the teacher's features of the same few views for all seeds, from a short fit
            options.append(f"--model.init_args.teacher_cache={folder.parent / 'cache'}")
            short = [f"--trainer.max_epochs={VIEWS}", "--seed_everything=1"]
            commands.append(["fit", *options, *short, f"--out={folder.parent / 'views'}"])
        for command in (
            *commands,
            ["fit", *options, f"--seed_everything={seed}", f"--out={folder}"],
            ["test", f"--config={folder}/config.yaml"],
        ):
            if kdpl(command):
                raise SystemExit(1)
    return folder


def _map(folder: Path) -> float:
    results = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    return 100 * float(results["test/map"])


def _features(clip: ClipConfig, run: Run) -> dict[str, Tensor]:
    """Normalised features of all images under the evaluation transform, by source."""
    tower, splits = load_image_clip(clip).image_tower.eval(), run.data.splits
    sources = [record.source for record in (*splits.train, *splits.val, *splits.test)]
    found = {}
    with torch.no_grad():
        for source in sources:
            image = resize_and_crop(splits.open_image(source), tower.preprocessing.resizing)
            found[source] = tower.pooled(to_tensor(image)[None])[0]
    return {source: each / each.norm() for source, each in found.items()}


def _probe(folder: Path, features: dict[str, Tensor]) -> float:
    """One logistic regression for each class, whose regularisation is the best on validation images."""
    data = Run.find(folder).data
    count = len(data.class_names)

    def arrays(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        x = torch.stack([features[record.source] for record in records]).numpy()
        return x, np.array([[c in r.labels for c in range(count)] for r in records])

    (x, y), val, test = map(
        arrays, (data.labels.tuning("labeled"), data.splits.val, data.splits.test)
    )
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    scores = []
    for strength in STRENGTHS:
        models = [
            LogisticRegression(C=strength, max_iter=1000).fit((x - mean) / spread, y[:, c])
            for c in range(count)
        ]
        scores.append(
            [
                100
                * statistics.mean(
                    average_precision_score(
                        has[:, c], models[c].decision_function((rows - mean) / spread)
                    )
                    for c in range(count)
                )
                for rows, has in (val, test)
            ]
        )
    return chosen_on_validation(scores)


def chosen_on_validation(scores: Sequence[Sequence[float]]) -> float:
    """Return the second of the pair whose first is largest; of equals the most regularised, which comes first."""
    return max(scores, key=lambda pair: pair[0])[1]


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
