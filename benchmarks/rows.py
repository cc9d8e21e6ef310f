"""The comparisons, with their sides and targets."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.caching import Filling, Reading
from benchmarks.commands import commands
from benchmarks.distillation import CACHED, KDPL, PUBLISHED, Distillation, largest_difference
from benchmarks.formats import TORCH, format_sides, network_sides
from benchmarks.inference import (
    CLASSIFIER,
    ONNX,
    ONNX_INT8,
    OPEN_CLIP_STUDENT,
    OPEN_CLIP_TEACHER,
    Inference,
)
from benchmarks.measuring import alternate, matrix_product, median
from benchmarks.memory import (
    KDPL_TEXTS,
    PUBLISHED_TEXTS,
    STAGE_1,
    STAGE_2,
    STAGE_2_CACHED,
    peak_in_own_process,
)
from benchmarks.memory_formats import CONTIGUOUS, LAST, MINIATURES, NETWORKS
from benchmarks.memory_formats import format_sides as memory_format_sides
from benchmarks.refinement import refinements
from benchmarks.settings import Settings
from benchmarks.texts import Texts
from benchmarks.tuning import Tuning
from kdpl.clip.modules import FrozenTower
from kdpl.errors import reason

# rounds of comparisons that take minutes on a processor
_FEW_ROUNDS = 2

Sides = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """A result.

    Attributes:
        name: Title of the comparison.
        value: The result; None if it could not be measured.
        unit: Its unit; ``x`` for a ratio.
        at_least: The target, if higher is better.
        at_most: The target, if lower is better.
        details: Times, operations and memory of the sides, as JSON values.
        failure: Why it could not be measured.
    """

    name: str
    value: float | None = None
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the result reaches its target; None without one."""
        if self.value is None:
            return None
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None


def failed(name: str, error: Exception) -> Row:
    """Return the row of what could not be measured."""
    return Row(name, failure=f"{type(error).__name__}: {reason(error)}")


class Bench:
    """Runs the comparisons.

    Args:
        settings: Settings of all comparisons.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sizes = settings.sizes
        self.device = settings.torch_device

    @cached_property
    def rate(self) -> float:
        """Speed of the machine, floating-point operations per second in a large matrix product."""
        product, operations = self._product()
        product()
        seconds = alternate({"product": product}, 5, self.device)["product"]
        return operations / median(seconds)

    @property
    def _few_rounds(self) -> int:
        on_cpu = self.device.type == "cpu"
        return min(self.settings.repeats, _FEW_ROUNDS) if on_cpu else self.settings.repeats

    def distillation(self) -> list[Row]:
        """Compare distillation steps with few classes, on all sides."""
        step = self._few
        expected = step.gradients(PUBLISHED)
        differences = {
            side: largest_difference(step.gradients(side), expected) for side in (KDPL, CACHED)
        }
        sides = (PUBLISHED, KDPL, CACHED)
        times = self._times(
            {side: step.step(side) for side in sides}, {side: step.flops(side) for side in sides}
        )
        name = f"distillation step, {self.sizes.few} classes"
        return [
            self._ratio(f"{name}: published / kdpl", times, PUBLISHED, KDPL, at_least=1.7),
            self._ratio(
                f"{name}: published / kdpl with cached teacher",
                times,
                PUBLISHED,
                CACHED,
                at_least=4.5,
            ),
            Row(
                f"{name}: loss and gradients differ by",
                differences[KDPL],
                "",
                at_most=self._tolerance(1e-4),
            ),
            Row(f"{name}: the same with the cached features in float16", differences[CACHED], ""),
        ]

    def many_classes(self) -> list[Row]:
        """Compare distillation steps with many classes, where the text tower takes most of the time."""
        step = self._distillation(self.sizes.many)
        step.step(CACHED)()
        sides = (PUBLISHED, CACHED)
        times = self._times(
            {side: step.step(side) for side in sides},
            {side: step.flops(side) for side in sides},
            self._few_rounds,
        )
        name = f"distillation step, {self.sizes.many} classes: published / kdpl with cached teacher"
        return [self._ratio(name, times, PUBLISHED, CACHED, at_least=30)]

    def student(self) -> list[Row]:
        """Compare the student's step with a matrix product of as many operations."""
        step = self._few
        return self._beside_product(
            "student's step", step.step(CACHED), step.flops(CACHED), at_most=1.4
        )

    def tuning(self) -> list[Row]:
        """Compare a step of stage 1 with a matrix product of as many operations."""
        tuning = Tuning(self.settings, self.sizes.few)
        return self._beside_product("step of stage 1", tuning.step(), tuning.flops())

    def _beside_product(
        self, side: str, step: Callable[[], object], operations: int, at_most: float | None = None
    ) -> list[Row]:
        product, product_operations = self._product()
        sides = {side: step, "product": product}
        for run in sides.values():
            run()
        times = self._times(
            sides, {side: operations, "product": product_operations}, self.settings.repeats + 2
        )
        limit = times["product"]["median_s"] * operations / product_operations
        return [
            Row(
                f"{side} / a matrix product with as many operations",
                times[side]["median_s"] / limit,
                at_most=self._target(at_most),
                details=times,
            )
        ]

    def compiled(self) -> list[Row]:
        """Compare the student's step with and without torch.compile."""
        eager, compiled = (self._distillation(self.sizes.few) for _ in range(2))
        compiled.student.encoder.tower.module.compile_parts()
        sides = {"eager": eager.step(CACHED), "compiled": compiled.step(CACHED)}
        for run in sides.values():
            run()
        times = self._times(sides, {})
        return [self._ratio("student's step: eager / compiled", times, "eager", "compiled")]

    def bf16(self) -> list[Row]:
        """Compare steps in float32 and under autocast, and under autocast with frozen weights that it has to cast."""
        step, half = self._few, torch.bfloat16

        def distillation(side: str, autocast: torch.dtype | None) -> Callable[[], None]:
            run = step.step(side)

            def run_under() -> None:
                step.autocast = autocast
                run()

            return run_under

        own, teacher = step.student.encoder.tower.module, step.student.teacher.module.tower
        assert teacher is not None  # noqa: S101
        sides = {
            "float32": (torch.float32, distillation(CACHED, None)),
            "bf16-mixed": (half, distillation(CACHED, half)),
        }
        times = self._times_of_types([own], sides)
        rows = [self._ratio("student's step: float32 / bf16-mixed", times, "float32", "bf16-mixed")]

        texts = Texts(self.sizes, self.sizes.few, self.device, half)
        for name, towers, run in (
            ("distillation step", [own, teacher], distillation(KDPL, half)),
            (f"text features of {self.sizes.few} classes", [texts.tower], texts.runner(KDPL)),
        ):
            times = self._times_of_types(
                towers, {"cast": (torch.float32, run), "stored": (half, run)}
            )
            title = f"{name}, bf16-mixed: frozen weights cast at every use / stored in bfloat16"
            rows.append(self._ratio(title, times, "cast", "stored"))
        step.autocast = self.settings.autocast
        return rows

    def _times_of_types(
        self,
        towers: Sequence[FrozenTower],
        runs: Mapping[str, tuple[torch.dtype, Callable[[], object]]],
    ) -> dict[str, Any]:
        """Time runs, each with the weights of frozen towers in a type, and return them to their own."""
        weights = [weight for tower in towers for weight in tower.cast_weights()]
        kept = [weight.data for weight in weights]

        def put(values: list[Tensor]) -> None:
            for weight, value in zip(weights, values, strict=True):
                weight.data = value

        def with_weights_in(dtype: torch.dtype, run: Callable[[], object]) -> Callable[[], None]:
            values = [value.to(dtype) for value in kept]

            def run_with() -> None:
                put(values)
                run()

            return run_with

        sides = {name: with_weights_in(dtype, run) for name, (dtype, run) in runs.items()}
        for run_once in sides.values():
            run_once()
        times = self._times(sides, {})
        put(kept)
        return times

    def texts(self) -> list[Row]:
        """Compare the text tower on class names with learnt prompts, forward and backward."""
        texts = Texts(self.sizes, self.sizes.few, self.device, self.settings.autocast)
        difference = largest_difference(
            texts.forward_and_backward(KDPL), texts.forward_and_backward(PUBLISHED)
        )
        sides = (PUBLISHED, KDPL)
        times = self._times(
            {side: texts.runner(side) for side in sides},
            {side: texts.flops(side) for side in sides},
        )
        name = f"text features of {self.sizes.few} classes, forward and backward"
        return [
            self._ratio(f"{name}: published / kdpl", times, PUBLISHED, KDPL, at_least=12),
            Row(
                f"{name}: features and gradients differ by",
                difference,
                "",
                at_most=self._tolerance(1e-5),
            ),
        ]

    def cache(self) -> list[Row]:
        """Measure filling and reading of the teacher cache, and its size."""
        with TemporaryDirectory() as folder:
            filling = Filling(self.settings, Path(folder))
            seconds: dict[str, list[float]] = {"fill": [], "teacher": []}
            filling.encode()
            for _ in range(self._few_rounds):
                seconds["fill"].append(filling.fill())
                seconds["teacher"] += alternate({"teacher": filling.encode}, 1, self.device)[
                    "teacher"
                ]
            width = filling.width
        with TemporaryDirectory() as folder:
            reading = Reading(self.settings, Path(folder), width)
            seconds["read"] = alternate({"read": reading.read}, self.settings.repeats, self.device)[
                "read"
            ]
            size = reading.bytes_per_view()
        times = _with_medians(seconds)
        images = self.sizes.read_images
        rate = images / median(seconds["read"])
        filled = {side: times[side] for side in ("fill", "teacher")}
        return [
            Row(
                f"cache, filling with {self.sizes.fill_images} views / only the teacher",
                median(seconds["fill"]) / median(seconds["teacher"]),
                at_most=self._target(1.1),
                details=filled,
            ),
            Row(
                "cache, reading",
                rate,
                "images/s",
                at_least=self._target(2000),
                details={"read": times["read"]},
            ),
            Row("cache, on disk per view", size / 1000, "KB", at_most=self._target(1.6)),
        ]

    def commands(self) -> list[Row]:
        """Measure the processor time of short commands."""
        return [
            Row(name, value, unit, at_most=self._target(most))
            for name, value, unit, most in commands(self.settings)
        ]

    def refinement(self) -> list[Row]:
        """Measure the refinement of a pool's predictions."""
        found = refinements(self.settings)
        return [
            Row(name, v, unit, self._target(least), self._target(most))
            for name, v, unit, least, most in found
        ]

    def inference(self) -> list[Row]:
        """Compare classifiers with zero-shot classification by the teacher's CLIP and the student's CLIP."""
        with TemporaryDirectory() as folder:
            inference = Inference(self.settings, Path(folder))
            for side in inference.sides.values():
                side()
            times = self._times(inference.sides, {})
        images = self.sizes.infer_images
        speeds = [
            Row(
                f"classifying JPEG files: {side}",
                images / each["median_s"],
                "images/s",
                details={side: each},
            )
            for side, each in times.items()
        ]
        return [
            *speeds,
            *(
                self._ratio(f"classifying JPEG files: {other} / {side}", times, other, side)
                for other in (OPEN_CLIP_TEACHER, OPEN_CLIP_STUDENT)
                for side in (CLASSIFIER, ONNX, ONNX_INT8)
            ),
        ]

    def memory_formats(self) -> list[Row]:
        """Compare convolutional towers in both memory formats, frozen and trained.

        On a processor it is by processor time.
        """
        rows = []
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        for network, size in (MINIATURES if self.settings.small else NETWORKS).items():
            compared = memory_format_sides(network, size, self.settings)
            for kind, sides in compared.items():
                for side in sides.values():
                    side()
                seconds = alternate(sides, self.settings.repeats, self.device, clock)
                # other programs on the machine fill its caches
                best = {side: min(each) for side, each in seconds.items()}
                pixels = f" at {size} pixels" if size else ""
                name = f"{network}{pixels}, {kind}: {CONTIGUOUS} / {LAST}"
                rows.append(
                    Row(name, best[CONTIGUOUS] / best[LAST], details=_with_medians(seconds))
                )
        return rows

    def networks(self) -> list[Row]:
        """Measure networks and exported files on the device, with images in memory."""
        rows, sides = [], {}
        with TemporaryDirectory() as folder:
            for side, build in network_sides(self.settings, Path(folder)).items():
                try:
                    sides[side] = build()
                    sides[side]()
                except Exception as error:
                    sides.pop(side, None)
                    rows.append(failed(f"network alone: {side}", error))
            times = self._times(sides, {})
        batch = self.settings.batch_size
        return [
            *rows,
            *(
                Row(
                    f"network alone: {side}",
                    batch / each["median_s"],
                    "images/s",
                    details={side: each},
                )
                for side, each in times.items()
            ),
        ]

    def formats(self) -> list[Row]:
        """Compare exported files of every format with the classifier, without reading of images, by processor time."""
        with TemporaryDirectory() as folder:
            sides = format_sides(self.settings, Path(folder))
            for side in sides.values():
                side()
            seconds = alternate(sides, self.settings.repeats, self.device, time.process_time)
        # other programs delay threads that wait for each other, in some runtimes more than in
        # others
        best = {side: min(each) for side, each in seconds.items()}
        batch, name = self.settings.batch_size, "network alone, fastest round by processor time"
        speeds = [
            Row(
                f"{name}: {side}",
                batch / best[side],
                "images/s",
                details={side: each},
            )
            for side, each in _with_medians(seconds).items()
        ]
        others = [side for side in best if side != TORCH]
        return [
            *speeds,
            *(Row(f"{name}: {TORCH} / {side}", best[TORCH] / best[side]) for side in others),
        ]

    def memory(self) -> list[Row]:
        """Compare peak memory of the text tower, forward and backward, each in a separate process."""
        few, many = self.sizes.few, self.sizes.many
        plain = peak_in_own_process(PUBLISHED_TEXTS, few, self.settings)
        shared = peak_in_own_process(KDPL_TEXTS, few, self.settings)
        bounded = peak_in_own_process(KDPL_TEXTS, many, self.settings)
        return [
            Row(
                f"peak memory, text features of {few} classes: kdpl / published",
                shared["peak"] / plain["peak"],
                at_most=self._target(1 / 3),
                details={PUBLISHED: plain, KDPL: shared},
            ),
            Row(
                f"peak memory, text features: {many} classes / {few} classes",
                bounded["peak"] / shared["peak"],
                at_most=self._target(1.3),
                details={f"{few} classes": shared, f"{many} classes": bounded},
            ),
        ]

    def stage_1(self) -> list[Row]:
        """Measure peak memory of a whole step of stage 1."""
        measured = peak_in_own_process(STAGE_1, self.sizes.many, self.settings)
        name = f"peak memory, a step of stage 1, {self.sizes.many} classes, batch {self.settings.batch_size}"
        return [Row(name, measured["peak"] / 1e9, "GB", details=measured)]

    def stage_2(self) -> list[Row]:
        """Measure peak memory of a whole step of stage 2, with a teacher and with its cached features."""
        rows = []
        for case, teacher in ((STAGE_2, "teacher"), (STAGE_2_CACHED, "cached teacher")):
            measured = peak_in_own_process(case, self.sizes.few, self.settings)
            name = f"peak memory, a step of stage 2, {teacher}"
            rows.append(Row(name, measured["peak"] / 1e9, "GB", details=measured))
        return rows

    @cached_property
    def _few(self) -> Distillation:
        return self._distillation(self.sizes.few)

    def _distillation(self, classes: int) -> Distillation:
        return Distillation(
            self.sizes, classes, self.settings.batch_size, self.device, self.settings.autocast
        )

    def _product(self) -> tuple[Callable[[], object], int]:
        return matrix_product(
            self.sizes.product_edge, self.device, self.settings.autocast or torch.float32
        )

    def _times(
        self, sides: Sides, operations: Mapping[str, int], rounds: int | None = None
    ) -> dict[str, Any]:
        """Time sides in turn; returns seconds, operations and share of the machine's speed of each."""
        seconds = alternate(sides, rounds or self.settings.repeats, self.device)
        times = _with_medians(seconds)
        for side, count in operations.items():
            times[side]["flops"] = count
            times[side]["share_of_matrix_product_rate"] = (
                count / times[side]["median_s"] / self.rate
            )
        return times

    def _ratio(
        self,
        name: str,
        times: dict[str, Any],
        above: str,
        below: str,
        at_least: float | None = None,
    ) -> Row:
        value = times[above]["median_s"] / times[below]["median_s"]
        details = {side: times[side] for side in (above, below)}
        return Row(name, value, at_least=self._target(at_least), details=details)

    def _target(self, target: float | None) -> float | None:
        # targets are those of processors
        return None if self.settings.small or self.device.type == "cuda" else target

    def _tolerance(self, target: float) -> float | None:
        # the sides round differently under autocast
        return target if self.settings.autocast is None else None


def _with_medians(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the seconds of each side's rounds, and their median."""
    return {side: {"seconds": each, "median_s": median(each)} for side, each in seconds.items()}


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "distillation": Bench.distillation,
    "student": Bench.student,
    "bf16": Bench.bf16,
    "many-classes": Bench.many_classes,
    "texts": Bench.texts,
    "cache": Bench.cache,
    "commands": Bench.commands,
    "refinement": Bench.refinement,
    "inference": Bench.inference,
    "formats": Bench.formats,
    "memory-formats": Bench.memory_formats,
    "memory": Bench.memory,
    "stage-1": Bench.stage_1,
    "stage-2": Bench.stage_2,
    "tuning": Bench.tuning,
    "compile": Bench.compiled,
    "networks": Bench.networks,
}
"""The comparisons that ``--only`` selects, by name."""

ON_A_GPU = ("compile", "networks")
"""Those that are left out unless they are selected, since they are meant for GPUs."""
