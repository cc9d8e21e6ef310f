"""``python -m benchmarks.memory``: peak memory of one case, in a separate process."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

from benchmarks.distillation import KDPL, PUBLISHED, student_step
from benchmarks.measuring import peak_memory
from benchmarks.settings import Settings, add_options, settings_of
from benchmarks.texts import Texts
from benchmarks.tuning import Tuning

PUBLISHED_TEXTS, KDPL_TEXTS = "published-texts", "kdpl-texts"
STAGE_1, STAGE_2, STAGE_2_CACHED = "stage-1", "stage-2", "stage-2-cached"


def peak_in_own_process(case: str, classes: int, settings: Settings) -> dict[str, int]:
    """Measure a case in a new process; returns ``before`` and ``peak`` in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory", case, str(classes), *settings.arguments()]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(finished.stderr.strip().rpartition("\n")[2])
    measured: dict[str, int] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def _texts(side: str) -> Callable[[Settings, int], Callable[[], object]]:
    return lambda settings, classes: Texts(
        settings.sizes, classes, settings.torch_device, settings.autocast
    ).runner(side)


def _stage_1(settings: Settings, classes: int) -> Callable[[], object]:
    return Tuning(settings, classes).step()


def _stage_2(with_teacher: bool) -> Callable[[Settings, int], Callable[[], object]]:
    return lambda settings, classes: student_step(settings, classes, with_teacher)


_CASES: dict[str, Callable[[Settings, int], Callable[[], object]]] = {
    PUBLISHED_TEXTS: _texts(PUBLISHED),
    KDPL_TEXTS: _texts(KDPL),
    STAGE_1: _stage_1,
    STAGE_2: _stage_2(with_teacher=True),
    STAGE_2_CACHED: _stage_2(with_teacher=False),
}


def main() -> None:
    """Print the peak memory of a case as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description="Print the peak memory of one case as JSON."
    )
    parser.add_argument("case", choices=list(_CASES))
    parser.add_argument("classes", type=int)
    add_options(parser)
    options = parser.parse_args()
    settings = settings_of(options)
    settings.prepare()
    measured = peak_memory(
        lambda: _CASES[options.case](settings, options.classes), settings.torch_device
    )
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
