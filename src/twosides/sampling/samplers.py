"""Samplers: grid x solver x stochasticity, and the names that papers gave to some of them.

A preset is a row of `samplers`. Adding one is adding it here: the command line, the documentation
and the tests read this table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, SupportsIndex

from twosides.naming import Table, named
from twosides.outputs import Estimate
from twosides.sampling.grids import Grid, Karras, UniformTime
from twosides.sampling.plan import Plan, trace
from twosides.sampling.solvers import (
    DDIM,
    Euler,
    EulerMaruyama,
    ProbabilityFlowEuler,
    Solver,
    Step,
)
from twosides.sampling.stochasticity import (
    Churn,
    DDIMEta,
    Deterministic,
    Eta,
    FullRenoise,
    Interval,
    LargeVariance,
    Stochasticity,
)
from twosides.schedules import Level, Schedule, schedule_named


@dataclass(frozen=True)
class Sampler:
    """Where to step, how to step, how noisily: three independent choices.

    >>> Sampler(solver=DDIM(), stochasticity=Churn(0.3)).order
    1
    """

    grid: Grid = field(default_factory=UniformTime)
    solver: Solver = field(default_factory=DDIM)
    stochasticity: Stochasticity = field(default_factory=Deterministic)
    paper: str = ""

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
        """Order of convergence (weak order, where stochastic)."""
        return self.solver.order

    @property
    def nfe_per_step(self) -> int:
        """Network calls per step."""
        return self.solver.nfe

    @property
    def stochastic(self) -> bool:
        """Whether noise is injected after the initial one."""
        return not isinstance(self.stochasticity, Deterministic)

    def levels(self, schedule: Schedule, steps: SupportsIndex) -> list[Level]:
        """The nodes of a run, noise to data, in the schedule's scaling."""
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
        levels = schedule.level(logsnrs)
        columns = (value.tolist() for value in levels)
        return [Level(*values) for values in zip(*columns, strict=True)]

    def plan(self, schedule: Schedule, steps: SupportsIndex, name: str = "") -> Plan:
        """The sampler as a table of coefficients."""
        if isinstance(schedule, type):
            raise TypeError(f"pass an instance, {schedule.__name__}(), not the class")
        levels = self.levels(schedule, steps)
        start = (levels[0].alpha ** 2 + levels[0].sigma ** 2) ** 0.5

        def sampler(initial: Any, noise: Callable[[], Any]) -> Any:
            return self.steps(initial * start, schedule, levels, noise)

        title = name or type(self.solver).__name__
        return trace(sampler, levels[-1], f"{title}, {len(levels) - 1} steps on {schedule}")

    def steps(
        self, z: Any, schedule: Schedule, levels: list[Level], noise: Callable[[], Any]
    ) -> Generator[tuple[Any, Level], Estimate, Any]:
        """The loop, over anything that adds and scales: yields (z, level), is sent estimates."""
        past: list[Any] = []
        for here, there in pairwise(levels):
            interval = Interval(schedule, here, there, len(levels) - 1)
            kick = self.stochasticity.kick(interval)
            step = Step(interval, kick, self.stochasticity.rate, noise)
            z = yield from self.solver.step(step.lift(z), step, past)
        return z


samplers: Table[Sampler] = Table(
    "sampler",
    {
        "ddim": Sampler(solver=DDIM(), paper="Song+ 2020, arXiv 2010.02502"),
        "flow-euler": Sampler(solver=Euler("u"), paper="Lipman+ 2022, arXiv 2210.02747"),
        "pf-euler": Sampler(solver=ProbabilityFlowEuler(), paper="Song+ 2021, arXiv 2011.13456"),
        "edm-euler": Sampler(Karras(), Euler("eps"), paper="Karras+ 2022, arXiv 2206.00364"),
        "ddpm": Sampler(stochasticity=Eta(1.0), paper="Ho+ 2020, arXiv 2006.11239"),
        "ddpm-large": Sampler(stochasticity=LargeVariance(), paper="Ho+ 2020, arXiv 2006.11239"),
        "euler-ancestral": Sampler(
            Karras(),
            Euler("eps"),
            DDIMEta(1.0),
            paper="Karras+ 2022; k-diffusion's sample_euler_ancestral",
        ),
        "churn": Sampler(
            stochasticity=Churn(0.3), paper="Gao+ 2024, Diffusion Meets Flow Matching"
        ),
        "euler-maruyama": Sampler(
            solver=EulerMaruyama(), stochasticity=Eta(1.0), paper="Song+ 2021, arXiv 2011.13456"
        ),
        "consistency": Sampler(stochasticity=FullRenoise(), paper="Song+ 2023, arXiv 2303.01469"),
    },
)


def sampler_named(sampler: str | Sampler) -> Sampler:
    """A preset by name, or the Sampler itself."""
    if isinstance(sampler, Sampler):
        return sampler
    return named("sampler", sampler, samplers)


def plan(sampler: str | Sampler, schedule: str | Schedule, steps: SupportsIndex) -> Plan:
    """The plan of a sampler on a schedule, each by name if wanted.

    >>> from twosides.schedules import FlowMatching
    >>> plan("ddim", FlowMatching(), 4).nfe
    4
    """
    name = sampler if isinstance(sampler, str) else ""
    return sampler_named(sampler).plan(schedule_named(schedule), steps, name)
