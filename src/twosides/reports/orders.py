"""The orders of the samplers, measured.

Deterministic samplers: the error of the end point against the exact probability-flow ODE of a
Gaussian mixture. Stochastic ones: the error of the variance they reach on Gaussian data, which
follows exactly from their plan (weak order). Both fall like steps^-order.

The grid is uniform in the schedule's time, its first step cut into halves so short that how a
multistep solver starts does not count, and it lies inside logsnr [-3, 5]: at zero SNR and zero
noise frames that are singular there take one step at first order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from twosides.display import tables
from twosides.oracle import GaussianMixture
from twosides.outputs import Output
from twosides.sampling.grids import Given, UniformTime
from twosides.sampling.noise import Deterministic
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
STEPS, NOISY_STEPS = (80, 160, 320), (160, 320, 640)
_DATA = GaussianMixture.ring(5, std=0.45)
_VARIANCES = tuple(0.02 * 2.0**power for power in range(8))


def measured_order(sampler: Sampler, schedule: Schedule) -> float:
    """The slope of log error against log steps; the sampler's own grid is replaced."""
    noisy = not isinstance(sampler.stochasticity, Deterministic)
    measure, counts = (_variance_error, NOISY_STEPS) if noisy else (_end_error, STEPS)
    errors = [measure(sampler, schedule, steps) for steps in counts]
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def _times(schedule: Schedule) -> tuple[float, float]:
    low, high = (float(schedule.time(value)) for value in RANGE)
    return low, high


def graded(schedule: Schedule, steps: int) -> Given:
    """Uniform in time within RANGE, the first step cut into halves down to 1 / steps of it."""
    cuts = math.ceil(math.log2(steps))
    first = np.exp2(-np.arange(cuts, 0.0, -1.0)) / steps
    fractions = np.concatenate([[0.0], first, np.arange(1, steps + 1) / steps])
    start, end = _times(schedule)
    return Given.times(schedule, (start + (end - start) * fractions).tolist())


@functools.cache
def _noise() -> Tensor:
    return _DATA.sample(32, seed=1).flip(1) + 0.5


@functools.cache
def _exact(schedule: Schedule) -> Tensor:
    start, end = _times(schedule)
    fine = replace(samplers["rk4"], grid=UniformTime(start=start, end=end))
    return run(fine.plan(schedule, 800), _DATA, _noise())


def _end_error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    grid = graded(schedule, steps)
    plan = replace(sampler, grid=grid).plan(schedule, len(grid.values) - 1)
    return float((run(plan, _DATA, _noise()) - _exact(schedule)).abs().mean())


def _variance_error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    start, end = _times(schedule)
    grid = UniformTime(start=start, end=end)
    plan = replace(sampler, grid=grid).plan(schedule, steps)
    return sum(abs(reached_variance(plan, each) - 1) for each in _VARIANCES)


def reached_variance(plan: Plan, variance: float) -> float:
    """Variance of the plan's result over the exact one, for centred Gaussian data.

    Started with the exact variance. Estimates are linear in the state there, so every state is a
    known combination of the initial and the injected noises.
    """
    calls = plan.nfe
    total = plan.alpha**2 * variance + plan.sigma**2
    states = np.zeros((calls + 1, plan.noise.shape[1]))
    for i in range(calls + 1):
        gain = plan.x[i, :i] * plan.alpha[:i] * variance + plan.eps[i, :i] * plan.sigma[:i]
        states[i] = plan.noise[i] + (gain / total[:i]) @ states[:i]
    spread = states[-1] ** 2
    spread[0] *= total[0] / plan.noise[0, 0] ** 2
    return float(spread.sum() / total[-1])


# ---------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """What there is to know of a preset."""

    name: str
    frame: str
    variable: str
    order: int
    measured: dict[str, float]
    nfe_per_step: int
    stochastic: bool
    paper: str


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
        measured,
        sampler.nfe_per_step,
        sampler.stochastic,
        sampler.paper,
    )


def rows(
    measure: bool = False, progress: Callable[[int, int], None] | None = None
) -> Iterable[Row]:
    """One row per preset, other names for it included; with measured orders if wanted."""
    names = {id(sampler): name for name, sampler in reversed(samplers.items())}
    for done, name in enumerate(sorted(names.values(), key=list(samplers).index)):
        sampler = samplers[name]
        wanted = SCHEDULES if measure and sampler.order else {}
        yield row(name, {key: measured_order(sampler, each) for key, each in wanted.items()})
        if progress is not None:
            progress(done + 1, len(names))


HEADS = ("name", "frame", "variable", "order", "measured", "calls", "noise", "source")


def cells(table: Iterable[Row]) -> list[tuple[str, ...]]:
    """The rows as text; measured orders are those on flow matching, cosine, EDM."""
    made = []
    for each in table:
        found = ", ".join(f"{value:.2f}" for value in each.measured.values())
        noise = "yes" if each.stochastic else ""
        parts = (each.name, each.frame, each.variable, each.order, found, each.nfe_per_step, noise)
        made.append((*map(str, parts), each.paper))
    return made


def markdown(table: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    return tables.markdown([HEADS, *cells(table)])


def text(table: Iterable[Row]) -> str:
    """The rows in columns, for a terminal."""
    return tables.text([HEADS, *cells(table)])
