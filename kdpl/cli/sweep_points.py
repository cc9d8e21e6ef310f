"""Reads a sweep's file, which is W&B's own format, and works out the settings of each of its fits.

W&B's package of the same search methods needs numpy below 2, and so cannot stand beside torch's newer friends; grid and
random are a few lines. Searches that look at earlier results are the server's.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import yaml

from kdpl.errors import ConfigError
from kdpl.runtime.configs import require_configs

Point = dict[str, Any]
"""The settings of one fit, by the names of its options."""

_RANGES: dict[str, Callable[[random.Random, float, float], float]] = {
    "uniform": lambda draw, low, high: draw.uniform(low, high),
    "int_uniform": lambda draw, low, high: draw.randint(int(low), int(high)),
    "log_uniform_values": lambda draw, low, high: math.exp(draw.uniform(math.log(low), math.log(high))),
}


@dataclass(frozen=True)
class Sweep:
    """A sweep's file.

    Attributes:
        file: Where it lies.
        method: How points are chosen.
        metric: What they are compared by.
        goal: Which end of it is better.
        parameters: Each setting's values or range, as the file gives them.
        run_cap: How many points at most, where the file says so.
    """

    file: Path
    method: Literal["grid", "random"]
    metric: str
    goal: Literal["maximize", "minimize"]
    parameters: Mapping[str, Mapping[str, Any]]
    run_cap: int | None

    def points(self, count: int | None, seed: int) -> list[Point]:
        """Give the settings of the fits; more of them begin with those of fewer.

        Args:
            count: How many at most; None: what the file says.
            seed: Seed of a random sweep.

        Raises:
            ConfigError: A random sweep has no end.
        """
        count = count if count is not None else self.run_cap
        if self.method == "grid":
            values = [p["values"] if "values" in p else [p["value"]] for p in self.parameters.values()]
            return [dict(zip(self.parameters, point, strict=True)) for point in islice(product(*values), count)]
        if count is None:
            raise ConfigError(f"random sweep {self.file} has no run_cap: add one, or give --count")
        return [
            {name: _draw(parameter, random.Random(f"{seed} {i} {name}")) for name, parameter in self.parameters.items()}  # noqa: S311
            for i in range(count)
        ]


def read_sweep(file: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        ConfigError: It is not there, or asks for what cannot be done without W&B's server or at all.
    """
    require_configs([str(file)])
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if content.get("method") not in ("grid", "random"):
        raise ConfigError(
            f"sweep {file} has the method {content.get('method')}, expected grid or random: choose one, or let W&B's "
            "server search (wandb sweep)"
        )
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise ConfigError(f"sweep {file} has no metric with a name, such as val/acc: add one")
    goal = metric.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        raise ConfigError(f"sweep {file} has the goal {goal}, expected maximize or minimize: correct it")
    if metric["name"].startswith("test/"):
        raise ConfigError(
            f"sweep {file} compares by {metric['name']}, and nothing may be chosen on test images: name a metric of "
            "validation images, such as val/acc"
        )
    run_cap = content.get("run_cap")
    if run_cap is not None and not (isinstance(run_cap, int) and run_cap > 0):
        raise ConfigError(f"sweep {file} has the run_cap {run_cap}, expected a whole number above 0: correct it")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"sweep {file} has no parameters: add settings and their values")
    for name, parameter in parameters.items():
        _check(f"parameter {name} of sweep {file}", parameter, content["method"])
    return Sweep(file, content["method"], metric["name"], goal, parameters, run_cap)


def as_options(point: Point) -> list[str]:
    """Give a point's settings as options of ``fit``."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in point.items()]


def _check(what: str, parameter: Any, method: str) -> None:  # noqa: ANN401
    if not isinstance(parameter, dict):
        raise ConfigError(f"{what} is {parameter}, expected a mapping with value, values, or min and max: correct it")
    if "value" in parameter:
        return
    if "values" in parameter:
        if not isinstance(parameter["values"], list) or not parameter["values"] or "probabilities" in parameter:
            raise ConfigError(f"{what} needs a list of values, all equally likely: correct it")
        return
    if method == "grid":
        raise ConfigError(f"{what} has no values, which a grid needs: list them, or set method to random")
    kind, low, high = _range(parameter)
    if kind not in _RANGES:
        raise ConfigError(f"{what} has the distribution {kind}, expected one of {', '.join(_RANGES)}: choose one")
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not low <= high or (kind == "log_uniform_values" and low <= 0):
        raise ConfigError(
            f"{what} ranges from {low} to {high}, expected two numbers in order, above 0 on a logarithmic scale: "
            "correct min and max (1.0e-4 is a number to YAML, 1e-4 a word)"
        )


def _range(parameter: Mapping[str, Any]) -> tuple[str, Any, Any]:
    low, high = parameter.get("min"), parameter.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    # without a distribution, W&B goes by the type of the ends
    return parameter.get("distribution", "int_uniform" if whole else "uniform"), low, high


def _draw(parameter: Mapping[str, Any], draw: random.Random) -> Any:  # noqa: ANN401
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return draw.choice(parameter["values"])
    kind, low, high = _range(parameter)
    return _RANGES[kind](draw, low, high)
