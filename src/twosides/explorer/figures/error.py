"""The price of accuracy: the error against network calls, for any of the samplers."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

import twosides as ts
from twosides.explorer.figure import (
    Axis,
    Choice,
    Figure,
    Many,
    Mark,
    Number,
    Panel,
    Range,
    View,
    table,
)
from twosides.explorer.names import DATA_2D, SAMPLERS

TEXT = r"""An exact network leaves only the sampler's own error. Both axes are logarithmic: a
method of order $p$ falls with slope $-p$, and the fitted slope of the last three points stands in
the table.

*End point*: the distance to the exact solution of the probability-flow ODE from the same noise
(root mean square, over that of the data). Samplers that add noise have no end point to aim at;
choose *variance* for them: the error of the variance they reach on Gaussian data of eight widths,
which follows from the plan without drawing anything.

Order is not everything: with 5 to 10 calls the curves cross. The post's remark that the output of
the network matters for higher orders is the difference between heun (on $\epsilon$) and flow-heun
(on $u$).
"""

CALLS = (4, 6, 8, 12, 16, 24, 32, 48)
SCHEDULES = (
    ("cosine(-9, 9)", "cosine, log-SNR in [-9, 9]"),
    ("edm", "EDM"),
    ("flow-matching", "flow matching"),
)
FIGURE = Figure(
    "error",
    "Error against network calls",
    TEXT,
    (
        Many("samplers", "Samplers", SAMPLERS, ("ddim", "flow-heun", "dpmpp-2m", "kab2c"), most=6),
        Choice(
            "measure", "Error of", (("end", "the end point"), ("variance", "the variance")), "end"
        ),
        Range(
            "c",
            "Churn $c$",
            0.0,
            0.9,
            0.05,
            0.0,
            when={"measure": ("variance",)},
            help="replaces the preset's noise where it is not 0",
        ),
        Choice("data", "Data", DATA_2D, "ring", when={"measure": ("end",)}),
        Choice("schedule", "Schedule", SCHEDULES, "cosine(-9, 9)"),
        Choice(
            "grid",
            "Grid",
            (
                ("uniform-time", "equal times"),
                ("own", "the sampler's own"),
                ("karras", "Karras"),
                ("uniform-logsnr", "equal log-SNRs"),
            ),
            "uniform-time",
        ),
    ),
    "twosides.explorer.figures.error:compute",
    frames={"schedule": tuple(n for n, _ in SCHEDULES), "grid": ("uniform-time", "own", "karras")},
)


def sampler(name: str, grid: str, c: float) -> Any:
    """The preset on another grid, with churn if c > 0."""
    made = ts.samplers[name]
    chosen = made.grid if grid == "own" else ts.grids.GRIDS[grid]
    return ts.Sampler(chosen, made.solver, ts.Churn(c) if c > 0 else made.stochasticity)


@functools.lru_cache(32)
def exact(data: str, schedule: str) -> tuple[Any, Any]:
    """64 initial noises, and the end of the ODE from them, by 400 steps of RK4."""
    import torch

    from twosides.explorer import problems
    from twosides.sampling.run import run

    start = ts.PerSample(0, range(64)).normal((2,), torch.float64)
    return start, run(ts.plan("rk4", schedule, 400), problems.mixture(data), start)


@functools.lru_cache(4096)
def calls_and_error(
    name: str, steps: int, grid: str, schedule: str, c: float, data: str
) -> tuple[int, float]:
    """The network calls and the error of one run; data "" is for the error of the variance."""
    from twosides.explorer import problems
    from twosides.reports.orders import reached_variance
    from twosides.sampling.run import run

    plan = ts.plan(sampler(name, grid, c), schedule, steps)
    if not data:
        return plan.nfe, sum(abs(reached_variance(plan, 0.02 * 2.0**i) - 1) for i in range(8))
    start, end = exact(data, schedule)
    gap = run(plan, problems.mixture(data), start) - end
    return plan.nfe, float((gap**2).mean().sqrt() / (end**2).mean().sqrt())


def compute(
    samplers: tuple[str, ...], measure: str, c: float, data: str, schedule: str, grid: str
) -> View:
    """The error over network calls, and the slope of the last three points, for each sampler.

    Samplers with noise have no end point and are left out there, with a note. `steps` are those
    that fit into each budget of calls.
    """
    end = measure == "end"
    c, data = (0.0, data) if end else (c, "")
    marks, rows, numbers, notes = [], [], [], []
    for i, name in enumerate(samplers):
        made = sampler(name, grid, c)
        if end and made.stochastic:
            notes.append(
                f"{name} adds noise and has no end point; choose the error of the variance"
            )
            continue
        try:
            points = [calls_and_error(name, n, grid, schedule, c, data) for n in budgets(made)]
        except ValueError as error:
            notes.append(f"{name}: {error}")
            continue
        nfe, errors = (np.array(part) for part in zip(*points, strict=True))
        order = slope(nfe, errors)
        marks.append(
            Mark(
                "line",
                name,
                i,
                {"x": nfe, "y": errors},
                {"dots": True},
                {"x": f"results[{name!r}][0]", "y": f"results[{name!r}][1]"},
            )
        )
        rows.append(
            [
                name,
                made.order,
                round(order, 2),
                made.nfe_per_step,
                float(errors[0]),
                float(errors[-1]),
            ]
        )
        numbers.append(
            Number(
                f"order_{name}", f"Fitted order, {name}", order, ".2f", f"slope(*results[{name!r}])"
            )
        )
    heads = [
        "sampler",
        "order",
        "fitted",
        "calls per step",
        "error, fewest calls",
        "error, most calls",
    ]
    y = "Relative error of the end point" if end else "Error of the variance, summed"
    return View(
        (
            Panel(
                "plot",
                "Error against network calls",
                Axis("Network calls", log=True),
                Axis(y, log=True),
                tuple(marks),
            ),
            table("Orders", heads, rows),
        ),
        tuple(numbers),
        _python(tuple(row[0] for row in rows), c, data, schedule, grid),
        notes=tuple(notes),
    )


def budgets(made: Any) -> list[int]:
    """The numbers of steps that cost about CALLS network calls."""
    return sorted({max(1, calls // made.nfe_per_step) for calls in CALLS})


def slope(nfe: Any, errors: Any) -> float:
    """Minus the slope of the last three points in logarithms; NaN if they are at rounding level."""
    if len(nfe) < 3 or min(errors[-3:]) < 1e-13:
        return math.nan
    return float(-np.polyfit(np.log(nfe[-3:]), np.log(errors[-3:]), 1)[0])


def _python(names: tuple[str, ...], c: float, data: str, schedule: str, grid: str) -> str:
    noise = f"ts.Churn({c!r})" if c > 0 else "made.stochasticity"
    nodes = "made.grid" if grid == "own" else f"ts.grids.GRIDS[{grid!r}]"
    setup = (
        f"""start = ts.PerSample(0, range(64)).normal((2,), torch.float64)
data = problems.mixture({data!r})
end = run(ts.plan("rk4", {schedule!r}, 400), data, start)


def error(plan):
    gap = run(plan, data, start) - end
    return float((gap**2).mean().sqrt() / (end**2).mean().sqrt())
"""
        if data
        else """

def error(plan):
    return sum(abs(reached_variance(plan, 0.02 * 2.0**i) - 1) for i in range(8))
"""
    )
    return f"""import numpy as np
import torch
import twosides as ts
from twosides.explorer import problems
from twosides.reports.orders import reached_variance
from twosides.sampling.run import run

{setup}

results = {{}}
for name in {names}:
    made = ts.samplers[name]
    sampler = ts.Sampler({nodes}, made.solver, {noise})
    steps = sorted({{max(1, calls // made.nfe_per_step) for calls in {CALLS}}})
    plans = [ts.plan(sampler, {schedule!r}, n) for n in steps]
    calls = np.array([plan.nfe for plan in plans])
    results[name] = calls, np.array([error(plan) for plan in plans])


def slope(nfe, errors):
    if len(nfe) < 3 or min(errors[-3:]) < 1e-13:
        return np.nan
    return -np.polyfit(np.log(nfe[-3:]), np.log(errors[-3:]), 1)[0]
"""
