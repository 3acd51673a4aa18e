"""The orders of the samplers, measured.

Deterministic samplers: the error of the end point against the exact probability-flow ODE of a
Gaussian mixture, on the sampler's own grid, from its own start. Grids whose last step leads from a
fixed level to the data, such as Karras's, have an error there that more steps do not cure. It is
not counted: the exact solution takes the same last step. Stochastic samplers: the error of the
variance that they reach on Gaussian data, which follows exactly from their plan (weak order),
inside logsnr [-3, 5]. Both fall like steps^-order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from twosides.display import tables
from twosides.oracle import GaussianMixture
from twosides.outputs import Output
from twosides.sampling.grids import Even, Uniform, UniformTime
from twosides.sampling.plan import Plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import BDIA, DDIM
from twosides.schedules import EDM, Cosine, FlowMatching, Schedule

SCHEDULES: dict[str, Schedule] = {
    "flow-matching": FlowMatching(),
    "cosine": Cosine(),
    "edm": EDM(),
}
RANGE = (-3.0, 5.0)
STEPS, NOISY_STEPS = (160, 320, 640), (160, 320, 640)
_DATA = GaussianMixture.ring(5, std=0.45)
_VARIANCES = tuple(0.02 * 2.0**power for power in range(8))


def measured_order(sampler: Sampler, schedule: Schedule) -> float:
    """The order of a sampler: the slope of log error against log steps, on its own grid."""
    measure = _variance_error if sampler.stochastic else _end_error
    counts = NOISY_STEPS if sampler.stochastic else STEPS
    if sampler.order >= 4:  # rounding shows earlier
        counts = tuple(steps // 4 for steps in counts)
    errors = [measure(sampler, schedule, steps) for steps in counts]
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def inside(schedule: Schedule) -> UniformTime:
    """The grid that is uniform in the schedule's time between the log-SNRs of RANGE."""
    start, end = (float(schedule.time(value)) for value in RANGE)
    return UniformTime(start=start, end=end)


@functools.cache
def _noise() -> Tensor:
    return _DATA.sample(16, seed=1).flip(1) + 0.5


@functools.cache
def _exact(schedule: Schedule, first: float, last: float, jump: bool) -> Tensor:
    """The end of the exact ODE, started at the test's noise, over alpha.

    schedule: the schedule.
    first, last: the log-SNRs of the start and of the end.
    jump: whether a last step leads from `last` to the data, as DDIM's does.
    """
    fine = replace(samplers["rk4"], grid=Uniform("u", first, last)).plan(schedule, 1200)
    z = run(fine, _DATA, _noise())
    return _DATA(z, fine.levels[-1]).x if jump else z / fine.alpha[-1]


def _end_error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    plan, grid = sampler.plan(schedule, steps), sampler.grid
    jump = isinstance(grid, Even) and grid.then_data and grid.ends(schedule)[1] < math.inf
    levels = sampler.levels(schedule, steps)
    last = levels[-2 if jump else -1].logsnr
    exact = _exact(schedule, levels[0].logsnr, last, jump)
    return float((run(plan, _DATA, _noise()) / plan.alpha[-1] - exact).abs().mean())


def _variance_error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    plan = replace(sampler, grid=inside(schedule)).plan(schedule, steps)
    return sum(abs(reached_variance(plan, each) - 1) for each in _VARIANCES)


def reached_variance(plan: Plan, variance: float) -> float:
    """The variance of the plan's result over the exact one, for centred Gaussian data.

    The run is started with the exact variance. Estimates are linear in the state, so that every
    state is a known combination of the initial and the injected noises.

    plan: the plan.
    variance: the variance of the data.
    """
    total = plan.alpha**2 * variance + plan.sigma**2
    states = np.zeros((plan.nfe + 1, 1 + plan.noises))
    for i, row in enumerate(plan.rows):
        for (kind, k), value in row.items():
            if kind == "noise":
                states[i, k] += value
                continue
            level = plan.levels[k]
            gain = level.alpha * variance if kind == "x" else level.sigma
            states[i] += value * gain / total[k] * states[k]
    spread = states[-1] ** 2
    spread[0] *= total[0] / plan.rows[0]["noise", 0] ** 2
    return float(spread.sum() / total[-1])


# ---------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """The row of a preset in the table.

    name: its names.
    frame, variable: the output that the solver takes for a polynomial, and in which variable.
    order, infinite: its order between finite levels, and on flow matching, which ends at infinite
        ones.
    measured: its measured orders, by schedule.
    limited: in how many of 20 steps on flow matching the solver's `limit` acts.
    nfe_per_step: the network calls per step.
    stochastic: whether it injects noise.
    paper: where it comes from.
    """

    name: str
    frame: str
    variable: str
    order: int
    infinite: int
    measured: dict[str, float]
    limited: int
    nfe_per_step: int
    stochastic: bool
    paper: str


def limited_steps(sampler: Sampler, schedule: Schedule, steps: int) -> int:
    """The number of steps of a run in which the solver's `limit` changes the coefficients."""
    solver: Any = sampler.solver
    if getattr(solver, "limit", math.inf) == math.inf:
        return 0
    free = replace(sampler, solver=replace(solver, limit=math.inf)).plan(schedule, steps)
    ours = sampler.plan(schedule, steps)
    if ours.nfe < free.nfe:  # a Runge-Kutta step may be replaced by DDIM's, with a single call
        return (free.nfe - ours.nfe) // (solver.nfe - 1)
    pairs = zip(ours.rows, free.rows, strict=True)
    return sum(
        any(abs(a.get(key, 0.0) - b.get(key, 0.0)) > 1e-12 for key in a.keys() | b.keys())
        for a, b in pairs
    )


def _label(value: str | Output | None, default: str) -> str:
    return value.name if isinstance(value, Output) else value or default


def row(name: str, measured: dict[str, float]) -> Row:
    """The row of a preset."""
    sampler = samplers[name]
    solver = sampler.solver
    held = isinstance(solver, DDIM | BDIA)
    frame = "any" if held else _label(getattr(solver, "output", None), "z")
    variable = _label(getattr(solver, "variable", None), "eta" if frame != "z" else "t")
    others = [other for other in samplers if samplers[other] is sampler and other != name]
    return Row(
        ", ".join([name, *others]),
        frame,
        "" if held else variable,
        sampler.order,
        sampler.order_on(FlowMatching()),
        measured,
        limited_steps(sampler, FlowMatching(), 20),
        sampler.nfe_per_step,
        sampler.stochastic,
        sampler.paper,
    )


def rows(
    measure: bool = False, progress: Callable[[int, int], None] | None = None
) -> Iterable[Row]:
    """The rows of all presets, each once with its other names.

    measure: whether to measure the orders.
    progress: a function that is called with (done, total).
    """
    names = {id(sampler): name for name, sampler in reversed(samplers.items())}
    for done, name in enumerate(sorted(names.values(), key=list(samplers).index)):
        sampler = samplers[name]
        wanted = SCHEDULES if measure and sampler.order else {}
        yield row(name, {key: measured_order(sampler, each) for key, each in wanted.items()})
        if progress is not None:
            progress(done + 1, len(names))


HEADS = (
    "name", "frame", "variable", "order", "measured", "calls", "limited", "noise", "source"
)  # fmt: skip


def cells(table: Iterable[Row]) -> list[tuple[str, ...]]:
    """The rows as text; measured orders are those on flow matching, cosine, EDM."""
    made = []
    for each in table:
        found = ", ".join(f"{value:.2f}" for value in each.measured.values())
        noise = "yes" if each.stochastic else ""
        order = f"{each.order} ({each.infinite})" if each.infinite < each.order else str(each.order)
        calls, limited = str(each.nfe_per_step), str(each.limited or "")
        parts = (each.name, each.frame, each.variable, order, found, calls, limited, noise)
        made.append((*parts, each.paper))
    return made


def markdown(table: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    return tables.markdown([HEADS, *cells(table)])


def text(table: Iterable[Row]) -> str:
    """The rows in columns, for a terminal."""
    return tables.text([HEADS, *cells(table)])
