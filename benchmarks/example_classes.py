"""``python -m benchmarks.example_classes``: classes that are added by name, by example images, or by both.

For each world and seed a teacher is tuned and a student distilled without the images and names of some classes, as in the
quickstart. These classes are then added together, by images drawn from those left out of training, several times. Settings of
the added classes were chosen on the validation images of the digits.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import yaml

from benchmarks.worlds import CONFIGS, WORLDS
from kdpl import Classifier
from kdpl.__main__ import main as kdpl
from kdpl.class_vectors import NameEncoder
from kdpl.data.decoding import PUBLISHED
from kdpl.data.splits import Reader, Record, Splits
from kdpl.metrics import harmonic_mean
from kdpl.runtime.configs import read_config

LEFT_OUT = {
    "digits": {1: (0, 4, 8), 2: (1, 5, 9), 3: (2, 3, 6)},
    "letters": {1: (0, 5, 10, 15, 20, 25), 2: (1, 6, 11, 16, 21, 23), 3: (2, 7, 12, 17, 22, 24)},
}
"""Classes left out, by world and seed."""

SHOTS, DRAWS = (1, 5, 20), 3


@dataclass
class Without(Reader):
    """A world without the images and names of the classes that are left out for a seed."""

    world: str
    seed: int

    from_user = False
    decoding = PUBLISHED

    def read(self) -> Splits:
        """Read the world, and number the remaining classes anew."""
        splits = WORLDS[self.world].read()
        left_out = LEFT_OUT[self.world][self.seed]
        kept = [label for label in range(len(splits.class_names)) if label not in left_out]

        def remaining(records: Sequence[Record]) -> tuple[Record, ...]:
            return tuple(
                Record(r.source, kept.index(r.single)) for r in records if r.single in kept
            )

        parts = {part: remaining(getattr(splits, part)) for part in ("train", "val", "test")}
        names = tuple(splits.class_names[label] for label in kept)
        return replace(splits, class_names=names, **parts)


def fit(world: str, seed: int, students: Sequence[str], out: Path) -> None:
    """Tune the teacher and distil the student without the classes; a finished run is left as it is."""
    config = read_config(CONFIGS[world])
    class_path = "benchmarks.example_classes.Without"
    dataset = {"class_path": class_path, "init_args": {"world": world, "seed": seed}}
    config["data"]["init_args"] |= {"dataset": dataset, "seed": seed}
    file = out.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config | {"seed_everything": seed}), encoding="utf-8")
    configs = [f"--config={file}", "--config=trainer/cpu", "--teacher=quickstart"]
    students = [f"--student={name}" for name in ("quickstart", *students)]
    if kdpl(["run", *configs, *students, f"--out={out}"]) != 0:
        raise SystemExit(1)


def accuracies(
    world: str, seed: int, out: Path, part: str
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield the ways to add the classes, and accuracies on old and new classes and their harmonic mean."""
    splits, left_out = WORLDS[world].read(), LEFT_OUT[world][seed]
    names = [splits.class_names[label] for label in left_out]
    classifier = Classifier.load(out / "student" / "classifier")
    named = NameEncoder.load(out / "teacher").encode(names)
    records = getattr(splits, part)
    features = classifier.embed([splits.open_image(record.source) for record in records])
    is_new = torch.tensor([record.single in left_out for record in records])
    truth = [splits.class_names[record.single] for record in records]

    def measure(extended: Classifier) -> tuple[float, float, float]:
        labels = extended.logits(features).argmax(dim=1).tolist()
        predicted = [extended.class_names[label] for label in labels]
        right = torch.tensor([a == b for a, b in zip(predicted, truth, strict=True)])
        old, new = (100 * right[rows].float().mean() for rows in (~is_new, is_new))
        return old.item(), new.item(), harmonic_mean(old, new).item()

    yield "not added", measure(classifier)
    yield "name", measure(classifier.add_classes(named))
    for shots in SHOTS:
        for draw in range(DRAWS):
            numbers = np.random.RandomState([seed, draw])
            examples = {
                splits.class_names[label]: [
                    splits.open_image(sources[number])
                    for number in numbers.permutation(len(sources))[:shots]
                ]
                for label in left_out
                for sources in [[r.source for r in splits.train if r.single == label]]
            }
            for way, texts in (("examples", None), ("name and examples", named)):
                vectors = classifier.encode_examples(examples, texts)
                yield f"{way}, {shots}", measure(classifier.add_classes(vectors))


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is not fitted yet, and print a table for each world."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.example_classes")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"))
    parser.add_argument("--worlds", nargs="+", choices=LEFT_OUT, default=[*LEFT_OUT])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--student", nargs="*", default=[], help="further configs of the student")
    parser.add_argument("--part", choices=("val", "test"), default="test", help="images to judge")
    options = parser.parse_args(argv)
    for world in options.worlds:
        results: dict[str, list[tuple[float, float, float]]] = {}
        for seed in options.seeds:
            out = options.out / f"{world}{seed}"
            fit(world, seed, options.student, out)
            for way, values in accuracies(world, seed, out, options.part):
                results.setdefault(way, []).append(values)
        print(f"\n| {world} | old classes | new classes | harmonic mean |\n|---|--:|--:|--:|")
        for way, rows in results.items():
            cells = [f"{mean(column):.1f}" for column in zip(*rows, strict=True)]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
