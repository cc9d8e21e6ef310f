"""``python -m benchmarks.several_labels``: pages of digits, several labels each, without labels and with few.

Students of what the zero-shot teacher sees in crops (``target: local_views``), beside the teacher
on whole pages and logistic regression on frozen features with the same labels. The features of the
crops, which are the same in all runs, are kept in the folder. Interrupted, the same command resumes.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from benchmarks.worlds.pages import write_pages
from kdpl.__main__ import main as kdpl
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.splits import Record, labels_of
from kdpl.multilabel import local_views
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.local_views import LocalViews, summaries_of
from kdpl.report.run_folder import Run
from kdpl.targets.inputs import TargetInputs

SEEDS, SHOTS = (1, 2, 3), (0, 4, 16)
STUDENT = ClipConfig("timm:test_resnet", "random", image_size=64)
TEACHER = ClipConfig("tiny-teacher", "glyphs")
STRENGTHS = (0.1, 1.0, 10.0, 100.0)


@dataclass(eq=False)
class Remembered(LocalViews):
    """The same target, with the features of crops from a file where they are known."""

    file: str = ""

    def prepare(self, inputs: TargetInputs) -> None:
        """Encode the crops of the pool once for all runs."""
        known, file = dict[str, Tensor](), Path(self.file)

        def remembered(
            inputs: TargetInputs,
            crop: Crops,
            summarize: Callable[[Tensor], Tensor],
            images: Sequence[str] | None = None,
        ) -> Tensor:
            pool = [inputs.pool[i] for i in inputs.indices.tolist()]
            if not file.is_file():
                save_file({"features": summaries_of(inputs, crop, torch.flatten)}, file)
            if not known:
                known.update(zip(pool, load_file(file)["features"], strict=True))
            width = inputs.teachers[0].vectors.shape[1]
            sources = pool if images is None else images
            return torch.stack([summarize(known[each].view(-1, width)) for each in sources])

        with patch.object(local_views, "summaries_of", remembered):
            super().prepare(inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and test what is missing, and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.several_labels", description="Several labels for an image."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the runs")
    out = parser.parse_args(argv).out
    # as the quickstart runs, whatever the number of cores
    torch.set_num_threads(1)
    table = write_pages(out / "pages")

    teacher = _map(_fit(out / "teacher", table, "teacher", 0, 1))
    print("| mAP, % | no labels | 4 a class | 16 a class |\n|---|--:|--:|--:|")
    print(f"| teacher on whole pages, zero-shot | {teacher:.1f} | | |", flush=True)
    runs = {
        shots: [
            _fit(out / f"student_{shots}_{seed}", table, "student", shots, seed) for seed in SEEDS
        ]
        for shots in SHOTS
    }
    students = [_mean_and_spread([_map(run) for run in runs[shots]]) for shots in SHOTS]
    for title, clip in (("student's network", STUDENT), ("teacher's CLIP", TEACHER)):
        features = _features(clip, Run.find(runs[SHOTS[-1]][0], trusted=True))
        found = [_mean_and_spread([_probe(run, features) for run in runs[k]]) for k in SHOTS[1:]]
        print(f"| logistic regression, {title} | | {' | '.join(found)} |", flush=True)
    print(f"| **student of local views** | {' | '.join(students)} |", flush=True)
    return 0


def _fit(folder: Path, table: Path, stage: str, shots: int, seed: int) -> Path:
    if not (folder / "test.json").is_file():
        configs = ["benchmarks/worlds/pages.yaml", "configs/trainer/cpu.yaml"]
        more = [f"--data.init_args.root={table}", f"--data.init_args.shots={shots}"]
        if stage == "teacher":
            configs += ["configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"]
        else:
            configs.append("configs/student/quickstart_timm.yaml")
            file = str(folder.parent / "crops.safetensors")
            target = {
                "class_path": "benchmarks.several_labels.Remembered",
                "init_args": {"file": file},
            }
            more += [
                f"--model.init_args.teacher={folder.parent / 'teacher'}",
                f"--model.init_args.clip.image_size={STUDENT.image_size}",
                f"--model.init_args.target={json.dumps(target)}",
                "--data.init_args.batch_size=32",
            ]
        options = [*(f"--config={config}" for config in configs), *more]
        for command in (
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
    """Normalised features of all pages under the evaluation transform, by source."""
    tower, splits = load_image_clip(clip).image_tower.eval(), run.data.splits
    sources = [record.source for record in (*splits.train, *splits.val, *splits.test)]
    found = {}
    with torch.no_grad():
        for source in sources:
            image = resize_and_crop(splits.open_image(source), tower.preprocessing.resizing)
            found[source] = tower.pooled(to_tensor(image)[None])[0]
    return {source: each / each.norm() for source, each in found.items()}


def _probe(folder: Path, features: dict[str, Tensor]) -> float:
    """One logistic regression for each class, whose regularisation is the best on validation pages."""
    data = Run.find(folder, trusted=True).data
    count = len(data.class_names)

    def arrays(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        x = torch.stack([features[record.source] for record in records]).numpy()
        return x, np.array([[c in labels_of(r) for c in range(count)] for r in records])

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
    return max(scores)[1]


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
