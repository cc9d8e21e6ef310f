"""What refined targets make of labels, against ten lines of scikit-learn: ``python -m benchmarks.experts --help``.

For each number of labels a class, on the test images and over seeds: the zero-shot teacher; a logistic regression on the
frozen features of the student's network, and of the teacher's; and a linear student on the student's frozen features, which
learns the refined targets of the unlabelled images.
Both regressions, and the linear student, see each image as in evaluation. The settings of the refinement are kdpl's own;
no test image chooses anything.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig, ImageTower, load_image_clip
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import build_data
from kdpl.data.probe import choose_strength, fit_probe, linear_student
from kdpl.data.splits import Record
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.configs import read_config
from kdpl.runtime.messages import quiet_libraries
from kdpl.runtime.run_folder import PROMPTS_FILE
from kdpl.targets.inputs import ImageFeatures
from kdpl.targets.refinement.experts import Evidence, assign
from kdpl.targets.refinement.refine import RefinementConfig

_FLOOR = 1e-3


@torch.no_grad()
def encode(
    tower: ImageTower, data: DomainDataModule, records: Sequence[Record], views: int
) -> tuple[ImageFeatures, Tensor]:
    """Return pooled features, and the mean over views of those of the joint space; all are normalised.

    The first view is that of evaluation, the others are random.
    """
    resizing = tower.preprocessing.resizing
    view, parts = data.view(resizing), []
    for start in range(0, len(records), 64):
        images = [data.splits.open_image(record.source) for record in records[start : start + 64]]
        drawn = [[to_tensor(resize_and_crop(each, resizing)) for each in images]]
        drawn += [
            [view.make(each, view.draw(each, start + i, number)) for i, each in enumerate(images)]
            for number in range(views - 1)
        ]
        batches = [torch.stack(each) for each in drawn]
        pooled = torch.stack([F.normalize(tower.pooled(each).float(), dim=1) for each in batches])
        joint = torch.stack([F.normalize(tower(each).float(), dim=1) for each in batches])
        parts.append((pooled[0], pooled.mean(dim=0), joint.mean(dim=0)))
    still, mean, joint = (F.normalize(torch.cat(part), dim=1) for part in zip(*parts, strict=True))
    return ImageFeatures(still, mean), joint


def cell(values: Sequence[float]) -> str:
    """Write the mean over seeds, and the standard deviation if there are several."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def measure(
    config: str,
    teacher: str,
    student: ClipConfig,
    shots: Sequence[int],
    seeds: Sequence[int],
    views: int,
) -> None:
    """Print a row of the table for each number of labels."""
    vectors = ClassVectors.of_teacher(teacher)
    towers = [
        TunedPrompts.load(Path(teacher) / PROMPTS_FILE).load_image_clip().image_tower.eval(),
        load_image_clip(student).image_tower.eval(),
    ]
    data = build_data([read_config(config)["data"]], [])
    # the pool of a domain has no labels: all labelled training images count as its images as well
    train, test = list(data.splits.train), list(data.splits.test)
    sources = {record.source for record in train}
    pool = [*train, *(Record(each, -1) for each in data.splits.pool if each not in sources)]
    own, joint = encode(towers[0], data, pool, views)
    own_test, joint_test = encode(towers[0], data, test, 1)
    of_student, _ = encode(towers[1], data, pool, views)
    small, small_test = of_student.still, encode(towers[1], data, test, 1)[0].still
    both = own, of_student
    text, text_test = (
        (vectors.logit_scale * each @ vectors.vectors.T).log_softmax(dim=1)
        for each in (joint, joint_test)
    )
    truth = torch.tensor([record.label for record in test])

    def accuracy(scores: Tensor) -> float:
        return 100 * (scores.argmax(dim=1) == truth).float().mean().item()

    x, y = (own.still, own_test.still), (small, small_test)
    for number in shots:
        rows = []
        for seed in seeds:
            sample = build_data(
                [read_config(config)["data"]],
                [f"--data.init_args.shots={number}", f"--data.init_args.seed={seed}"],
            )
            labeled = {record.source: record.label for record in sample.labels.tuning("labeled")}
            labels = torch.tensor([labeled.get(record.source, -1) for record in pool])
            alone = torch.arange(len(labels))  # these data have no groups
            made = assign(
                Evidence(
                    torch.cat([encoded.blend for encoded in both], dim=1),
                    torch.cat([encoded.mean for encoded in both], dim=1),
                    text,
                    labels,
                    torch.full_like(labels, -1),
                    alone,
                    trusted=True,
                    widths=tuple(encoded.mean.shape[1] for encoded in both),
                ),
                RefinementConfig(),
            )
            weight, bias = linear_student(
                small,
                (1 - _FLOOR) * made.assignments + _FLOOR / len(vectors.class_names),
            )
            row = [accuracy(text_test), accuracy(small_test @ weight + bias)]
            for features in (y, x) if number else ():
                known = features[0][labels >= 0], labels[labels >= 0]
                strength, _ = choose_strength(*known, alone[labels >= 0])
                probe = fit_probe(*known, strength)
                row.append(accuracy(probe.log_probabilities(features[1])))
            rows.append(row)
        cells = [cell(column) for column in zip(*rows, strict=True)]
        zero_shot, linear, *probes = cells
        print(
            f"| {Path(config).stem} | {number} | {zero_shot.split()[0]} | {' | '.join(probes or ('', ''))} | **{linear}** |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of a domain."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="config of a domain")
    parser.add_argument("--teacher", required=True, help="folder of a zero-shot teacher's run")
    parser.add_argument("--student", required=True, help="model of the student's network")
    parser.add_argument("--pretrained", help="its weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--views", type=int, default=RefinementConfig.views)
    options = parser.parse_args(argv)
    quiet_libraries()
    student = ClipConfig(options.student, options.pretrained, image_size=options.image_size)
    print(
        "| domain | labels a class | teacher, zero-shot | regression, student's network | regression, teacher's network | linear student of refined targets |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    measure(options.data, options.teacher, student, options.shots, options.seeds, options.views)


if __name__ == "__main__":
    main()
