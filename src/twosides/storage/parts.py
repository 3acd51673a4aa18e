"""Schedules, clocks, outputs and samplers as JSON, and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from twosides import clocks as denoisers
from twosides import schedules
from twosides.clocks import Clock
from twosides.naming import unknown
from twosides.outputs import Output, output_named
from twosides.sampling import grids, noise, solvers
from twosides.sampling.grids import Grid
from twosides.sampling.noise import Stochasticity
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Solver
from twosides.schedules import Schedule

MAX_COUNT = 1 << 20  # the largest count in a description, such as the length of a table

SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        schedules.FlowMatching,
        schedules.Cosine,
        schedules.VPLinear,
        schedules.EDM,
        schedules.Geometric,
        schedules.ScaledLinear,
        schedules.Betas,
        schedules.Rescaled,
    )
}
SCHEDULES["Shifted"] = schedules.ShiftedSchedule  # the name in files of the first version


CLOCKS: dict[str, type[Clock]] = {
    kind.__name__: kind
    for kind in (denoisers.Time, denoisers.Index, denoisers.CNoise, denoisers.LogSNR)
}


_PARTS = [
    kind
    for module, base in ((grids, Grid), (solvers, Solver), (noise, Stochasticity))
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, base)
]


_KINDS: dict[str, type[Any]] = {
    **{kind.__name__: kind for kind in (*_PARTS, Sampler, Output)},
    "EDMInput": schedules.EDMInput,
    **SCHEDULES,
    **CLOCKS,
}


_NAMES = {kind: name for name, kind in _KINDS.items()}


def describe(part: Any) -> Any:
    """A schedule, clock or sampler as JSON: its class and its fields. TypeError for functions."""
    if type(part) in _NAMES and dataclasses.is_dataclass(part):
        fields = {f.name: describe(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return {"type": _NAMES[type(part)], **fields}
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)
    if isinstance(part, tuple):
        return [describe(item) for item in part]
    if part is None or isinstance(part, bool | int | float | str):
        return part
    raise TypeError(
        f"{part!r} cannot be written to a file, because it is code. Use named parts "
        f"({', '.join(_KINDS)}), or keep it in Python"
    )


def restore(config: Any) -> Any:
    """The part of a description; ValueError for unknown classes or fields."""
    if isinstance(config, list):
        return tuple(restore(item) for item in config)
    if isinstance(config, str) and config in ("inf", "-inf"):
        return float(config)
    if isinstance(config, int) and abs(config) > MAX_COUNT:
        raise ValueError(
            f"config.json has the count {str(config)[:20]}; tables have at most {MAX_COUNT} rows"
        )
    if not isinstance(config, dict):
        return config
    config = _translate_first_version(config)
    fields = {key: restore(value) for key, value in config.items() if key != "type"}
    name = config.get("type")
    if not isinstance(name, str) or name not in _KINDS:
        raise unknown("part in config.json", name, _KINDS)
    try:
        return _KINDS[name](**fields)
    except Exception as error:  # constructors check little, and raise errors of any kind
        raise ValueError(f"config.json describes no {name}: {error}") from error


def _translate_first_version(config: dict[str, Any]) -> dict[str, Any]:
    """The description of a part in a file of the first version, in the words of this one.

    There `limit` was called `caution`, Langevin was a solver around a solver, and Restart a grid
    around a grid; both are noise now.
    """
    config = {{"caution": "limit"}.get(key, key): value for key, value in config.items()}
    if config.get("type") == "ProbabilityFlowEuler":
        return {"type": "EulerMaruyama"}
    solver, grid, restarts = config.get("solver"), config.get("grid"), list[dict[str, Any]]()
    if isinstance(solver, dict) and solver.get("type") == "Langevin" and "predictor" in solver:
        around = {"type": "Langevin", "noise": solver["noise"], "times": solver["times"]}
        config |= {"solver": solver["predictor"]}
        config |= {"stochasticity": {**around, "along": config.get("stochasticity")}}
    while isinstance(grid, dict) and grid.get("type") == "Restart" and "grid" in grid:
        restarts.insert(0, {key: value for key, value in grid.items() if key != "grid"})
        grid = grid["grid"]
    for restart in restarts:
        around = {**restart, "along": config.get("stochasticity")}
        config |= {"grid": grid, "stochasticity": around}
    return config


def describe_output(output: Output, schedule: Schedule) -> str | dict[str, Any]:
    """An output as JSON: its name if that defines it, else its numbers. TypeError for functions."""
    try:
        known = output_named(output.name, schedule)
    except ValueError:
        known = None
    level = schedule.at(0.4).floats()
    if known is not None and known.coefficients(level) == output.coefficients(level):
        return output.name
    if callable(output.a) or callable(output.b):
        raise TypeError(
            f"the output {output.name!r} has functions for coefficients, which are code and cannot "
            "be written to a file; use numbers or a named output"
        )
    return {"name": output.name, "a": output.a, "b": output.b}


def restore_output(config: Any) -> str | Output:
    """The output of a description, as `Denoiser` takes it."""
    if isinstance(config, str):
        return config
    if not isinstance(config, dict) or config.keys() != {"name", "a", "b"}:
        raise ValueError(f"config.json describes no output: {config!r}")
    return Output(str(config["name"]), float(config["a"]), float(config["b"]))
