"""Samplers: grid x solver x stochasticity, three independent choices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np

from twosides.sampling.frames import Frame, variable_of
from twosides.sampling.grids import Grid, UniformTime
from twosides.sampling.noise import Deterministic, Stochasticity
from twosides.sampling.plan import Plan, trace
from twosides.sampling.solvers import DDIM, Solver, walk
from twosides.schedules import Level, Schedule


@dataclass(frozen=True)
class Sampler:
    """Where to step, how to step, how noisily.

    grid: the levels of a run.
    solver: how a step uses the network.
    stochasticity: how much noise it injects.
    paper: where the sampler comes from.
    published: the sampler as published, where that has errors that are known.

    >>> from twosides.sampling.noise import Churn
    >>> Sampler(solver=DDIM(), stochasticity=Churn(0.3)).order
    1
    """

    grid: Grid = field(default_factory=UniformTime)
    solver: Solver = field(default_factory=DDIM)
    stochasticity: Stochasticity = field(default_factory=Deterministic)
    paper: str = ""
    published: Sampler | None = None

    def __post_init__(self) -> None:
        """TypeError for a class passed instead of an instance, or the wrong kind of part."""
        for name, kind in (("grid", Grid), ("solver", Solver), ("stochasticity", Stochasticity)):
            part = getattr(self, name)
            if isinstance(part, type):
                raise TypeError(f"{name}={part.__name__} is a class; pass {part.__name__}()")
            if not isinstance(part, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {part!r}")

    @property
    def order(self) -> int:
        """Order of convergence between finite levels; of the distribution where noise is injected.

        It is the power of the number of steps with which the error falls in the limit, from the
        sampler's own start. See `order_on` for grids that reach zero SNR or zero noise.
        """
        return int(min(self.solver.convergence(self.stochastic), self.stochasticity.accuracy))

    def order_on(self, schedule: Schedule) -> int:
        """Order of convergence on the sampler's own grid on a schedule.

        Where the grid reaches an infinite level at which the frame of the solver or its variable is
        singular (x and eps, or logsnr), the step there holds the estimate, or past calls are left
        out, which limits the whole to 2, up to a logarithm of the number of steps.
        """
        solver, levels = self.solver, self.levels(schedule, 2)
        output, variable = (getattr(solver, name, None) for name in ("output", "variable"))
        if output is None:
            return self.order
        for level in (level for level in (levels[0], levels[-1]) if math.isinf(level.logsnr)):
            frame = Frame.regular(output, level, schedule)
            axis = variable_of(variable, frame, schedule) if frame else None
            ends = axis.of(np.array([level.logsnr])) if axis else np.zeros(1)
            if frame is None or not np.isfinite(ends).all():
                return min(self.order, 2)
        return self.order

    @property
    def nfe_per_step(self) -> int:
        """Network calls per step."""
        return self.solver.nfe + self.stochasticity.extra

    @property
    def stochastic(self) -> bool:
        """Whether noise is injected after the initial one."""
        return not isinstance(self.stochasticity, Deterministic)

    def levels(self, schedule: Schedule, steps: SupportsIndex) -> list[Level]:
        """The levels of the grid, noise to data, in the scaling of the schedule."""
        if isinstance(steps, bool | float) or operator.index(steps) < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
        logsnrs = self.grid.logsnrs(schedule, operator.index(steps))
        rising = logsnrs[1:] > logsnrs[:-1]
        if not bool(rising.all()):
            bad = int((~rising).nonzero()[0])
            raise ValueError(
                f"{self.grid} does not go from noise to data: logsnr {float(logsnrs[bad]):.6g} is "
                f"followed by {float(logsnrs[bad + 1]):.6g}; nodes must increase"
            )
        columns = (value.tolist() for value in schedule.level(logsnrs))
        return [Level(*values) for values in zip(*columns, strict=True)]

    def plan(
        self, schedule: Schedule, steps: SupportsIndex, name: str = "", *, encode: bool = False
    ) -> Plan:
        """The sampler as a table of coefficients.

        schedule: where to sample.
        steps: the number of steps, >= 1.
        name: of the plan, by default that of the solver.
        encode: whether to go the other way, from data (the plan's initial state, times alpha) to
            noise.
        """
        if not isinstance(schedule, Schedule):
            name = schedule.__name__ if isinstance(schedule, type) else repr(schedule)
            raise TypeError(f"a plan needs a Schedule, an instance such as Cosine(), got {name}")
        levels = self.levels(schedule, steps)
        start = math.hypot(levels[0].alpha, levels[0].sigma)
        if encode:
            if self.stochastic:
                raise ValueError(f"only deterministic samplers run backwards, {self} adds noise")
            levels, start = levels[::-1], levels[-1].alpha
        route = self.stochasticity.route(schedule, levels)

        def run(initial: Any, noise: Callable[[], Any]) -> Any:
            return walk(self.solver, initial * start, route, (levels[0], levels[-1]), noise)

        title = (name or type(self.solver).__name__) + (" backwards" if encode else "")
        return trace(run, levels[-1], f"{title}, {len(levels) - 1} steps on {schedule}")
