"""``python -m benchmarks.messy_pool``: unlabelled images that do not match the classes, and what options make of them.

The quickstart's students with 700 unlabelled digits and none, 233 or 700 other images: letters
drawn like the digits, textures, or as many of each; and with the digits of all classes but one.
Interrupted, the same command resumes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from benchmarks.worlds.glyphs import CLASSES, DIGIT_NAMES, render_bank
from kdpl.__main__ import main as kdpl
from kdpl.data.readers.digits import open_digit, read_digits
from kdpl.data.splits import Reader, Splits

SEEDS = (1, 2, 3)
SHARES = (0.25, 0.5)
POOLS = {
    "letters": ["letters"],
    "textures": ["textures"],
    "letters and textures": ["letters", "textures"],
}
_FILTER, _REFINED = "--model.init_args.pool_filter=0.05", "--config=configs/student/refined.yaml"
SETTINGS = {
    "without": [],
    "pool_filter: 0.05": [_FILTER],
    "refined": [_REFINED],
    "refined, pool_filter: 0.05": [_REFINED, _FILTER],
}

_COMMON = ["--config=configs/data/digits.yaml", "--config=configs/trainer/cpu.yaml"]
_GRIDS = (2, 4, 8, 16, 32)  # colours along an edge: from smooth to noise


@dataclass
class MessyDigits(Reader):
    """The digits, with others among the unlabelled images.

    Attributes:
        others: Kinds of the other images, of which there are as many each.
        share: Share of the unlabelled images that are others; all 700 digits stay.
        missing: Digit of which no unlabelled image shows one.
    """

    others: list[str]
    share: float
    missing: int | None = None
    from_user = False

    def read(self) -> Splits:
        """Read the digits, and add the others at the end of the unlabelled ones."""
        digits = read_digits()
        sources = [record.source for record in digits.train if record.label != self.missing]
        number, kinds = round(len(sources) * self.share / (1 - self.share)), self.others
        sources += [f"{kinds[i % len(kinds)]}/{i // len(kinds)}" for i in range(number)]
        return replace(digits, unlabeled=tuple(sources), open_image=open_any)


def open_any(source: str) -> Image.Image:
    """Open ``digits/<number>``, ``letters/<number>`` or ``textures/<number>`` as a 32 x 32 RGB image."""
    kind, _, number = source.partition("/")
    if kind == "digits":
        return open_digit(source)
    pixels = _MAKERS[kind]()[int(number)].numpy()
    if kind == "textures":
        return Image.fromarray(pixels)
    enlarged = Image.fromarray(pixels).resize((24, 24), resample=Image.Resampling.BICUBIC)
    return ImageOps.expand(enlarged, border=4, fill=0).convert("RGB")


@cache
def _letters(count: int = 700) -> Tensor:
    """Printed letters at the digits' own size, uint8 [N, 8, 8]."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(len(DIGIT_NAMES), len(CLASSES), (count,), generator=draw)
    small = F.interpolate(render_bank().sample(labels, draw)[:, None], size=8, mode="area")[:, 0]
    return (255 * small / small.amax(dim=(1, 2), keepdim=True)).round().byte()


@cache
def _textures(count: int = 700) -> Tensor:
    """Random colours on a grid, enlarged to uint8 [N, 32, 32, 3]."""
    draw = torch.Generator().manual_seed(0)
    images = []
    for _ in range(count):
        edge = _GRIDS[int(torch.randint(len(_GRIDS), (1,), generator=draw))]
        colours = torch.rand(1, 3, edge, edge, generator=draw)
        images.append(F.interpolate(colours, size=32, mode="bicubic").clamp(0, 1)[0])
    return (255 * torch.stack(images)).round().byte().permute(0, 2, 3, 1)


_MAKERS = {"letters": _letters, "textures": _textures}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test all students, and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.messy_pool", description="What other images cost."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the runs"
    )
    parser.add_argument(
        "--only", nargs="*", default=[*SETTINGS], choices=[*SETTINGS], help="default: all settings"
    )
    parser.add_argument(
        "--pools", nargs="*", default=[], metavar="POOL", help="some of the table's pools, by title"
    )
    options = parser.parse_args(argv)
    # as the quickstart runs, whatever the number of cores
    torch.set_num_threads(1)
    pools: dict[str, dict[str, Any]] = {
        "digits alone": {},
        "no eights": {"others": [], "share": 0, "missing": 8},
    }
    for (title, kinds), share in ((pool, share) for pool in POOLS.items() for share in SHARES):
        pools[f"{share:.0%} {title}"] = {"others": kinds, "share": share}
    rows = []
    for title, settings_of_pool in pools.items():
        if options.pools and title not in options.pools:
            continue
        reader = {"class_path": "benchmarks.messy_pool.MessyDigits", "init_args": settings_of_pool}
        pool = [f"--data.init_args.dataset={json.dumps(reader)}"] if settings_of_pool else []
        cells = []
        for name in options.only:
            folder = options.out / f"{title} {name}".replace(" ", "_").replace(":", "")
            settings = [*pool, *SETTINGS[name]]
            found = [
                100 * _student(options.out, folder / f"seed_{seed}", seed, settings)
                for seed in SEEDS
            ]
            cells.append(f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    head = (
        f"| unlabelled images | {' | '.join(options.only)} |",
        f"|---{'|--:' * len(options.only)}|",
    )
    print("\n".join([*head, *rows]))
    return 0


def _student(out: Path, folder: Path, seed: int, settings: Sequence[str]) -> float:
    """Accuracy on the test images of a student of the seed's teacher."""
    teacher, seeded = out / f"teacher_{seed}", [*_COMMON, f"--seed_everything={seed}"]
    _kdpl("fit", *seeded, "--config=configs/teacher/quickstart.yaml", f"--out={teacher}")
    student = [
        *seeded,
        "--config=configs/student/quickstart.yaml",
        f"--model.init_args.teacher={teacher}",
        *settings,
    ]
    if not (folder / "test.json").is_file():
        for command in ("fit", "test"):
            _kdpl(command, *student, f"--out={folder}")
    return float(json.loads((folder / "test.json").read_text(encoding="utf-8"))["test/acc"])


def _kdpl(*args: str) -> None:
    if kdpl(args):
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
