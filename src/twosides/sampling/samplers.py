"""Samplers: grid x solver x stochasticity, and the names that papers gave to some of them.

A preset is a row of `samplers`. Adding one is adding it here: the command line, the documentation
and the tests read this table.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, SupportsIndex

from twosides.naming import Table, split_call, unknown
from twosides.outputs import Estimate, kappa
from twosides.sampling.grids import Grid, Karras, Restart, Uniform, UniformTime
from twosides.sampling.plan import Plan, trace
from twosides.sampling.solvers import (
    BDIA,
    DDIM,
    Adams,
    Euler,
    EulerMaruyama,
    Langevin,
    Leapfrog,
    ProbabilityFlowEuler,
    RungeKutta,
)
from twosides.sampling.steps import Solver, Step, diffuse
from twosides.sampling.stochasticity import (
    ER,
    Churn,
    DDIMEta,
    Deterministic,
    EDMChurn,
    Eta,
    FullRenoise,
    Interval,
    LargeVariance,
    Rectified,
    Stochasticity,
    Tau,
)
from twosides.schedules import Level, Schedule, schedule_named


@dataclass(frozen=True)
class Sampler:
    """Where to step, how to step, how noisily: three independent choices.

    paper: where it comes from. published: the sampler as published, where that has known errors.

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
        """Order of convergence, of the distribution where stochastic.

        EDM's churn, which comes before a call, leaves multistep solvers at order 1.

        On grids that end at zero noise a frame that is singular there (x and eps in logsnr) takes
        its last step at first order, which limits the whole to 2.
        """
        order = self.solver.convergence(self.stochastic)
        if isinstance(self.stochasticity, EDMChurn) and isinstance(self.solver, Adams):
            order = 1
        return int(min(order, self.stochasticity.accuracy))

    @property
    def nfe_per_step(self) -> int:
        """Network calls per step."""
        return self.solver.nfe

    @property
    def stochastic(self) -> bool:
        """Whether noise is injected after the initial one."""
        noisy = not isinstance(self.stochasticity, Deterministic)
        return noisy or self.solver.stochastic or self.grid.renoises

    def levels(self, schedule: Schedule, steps: SupportsIndex) -> list[Level]:
        """The nodes of a run, noise to data, in the schedule's scaling."""
        if isinstance(steps, bool | float) or operator.index(steps) < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
        logsnrs = self.grid.logsnrs(schedule, operator.index(steps))
        rising = logsnrs[1:] > logsnrs[:-1]
        if self.grid.renoises:
            rising |= logsnrs[1:] < logsnrs[:-1]
        if not bool(rising.all()):
            bad = int((~rising).nonzero()[0])
            raise ValueError(
                f"{self.grid} does not go from noise to data: logsnr {float(logsnrs[bad]):.6g} is "
                f"followed by {float(logsnrs[bad + 1]):.6g}; nodes must increase"
            )
        levels = schedule.level(logsnrs)
        columns = (value.tolist() for value in levels)
        return [Level(*values) for values in zip(*columns, strict=True)]

    def plan(
        self, schedule: Schedule, steps: SupportsIndex, name: str = "", *, encode: bool = False
    ) -> Plan:
        """The sampler as a table of coefficients.

        encode: the other way, from data (the plan's initial state, times alpha) to noise.
        """
        if not isinstance(schedule, Schedule):
            name = schedule.__name__ if isinstance(schedule, type) else repr(schedule)
            raise TypeError(f"a plan needs a Schedule, an instance such as Cosine(), got {name}")
        levels = self.levels(schedule, steps)
        start = (levels[0].alpha ** 2 + levels[0].sigma ** 2) ** 0.5
        if encode:
            if self.stochastic:
                raise ValueError(f"only deterministic samplers run backwards, {self} adds noise")
            levels = levels[::-1]
            start = levels[0].alpha

        def sampler(initial: Any, noise: Callable[[], Any]) -> Any:
            return self.steps(initial * start, schedule, levels, noise)

        title = name or type(self.solver).__name__
        title += " backwards" if encode else ""
        return trace(sampler, levels[-1], f"{title}, {len(levels) - 1} steps on {schedule}")

    def steps(
        self,
        z: Any,
        schedule: Schedule,
        levels: list[Level],
        noise: Callable[[], Any],
        past: list[Any] | None = None,
    ) -> Generator[tuple[Any, Level], Estimate, Any]:
        """The loop, over anything that adds and scales: yields (z, level), is sent estimates.

        A fall of the log-SNR is forward diffusion (Restart), unless the whole run goes backwards.
        `past` is the solver's memory of what happened before.
        """
        past = [] if past is None else past
        backwards = levels[-1].logsnr < levels[0].logsnr
        count = len(levels) - 1
        for number, (here, there) in enumerate(pairwise(levels)):
            if there.logsnr < here.logsnr and not backwards:
                z = diffuse(z, here, there, here.logsnr - there.logsnr, noise)
                past.clear()
                continue
            interval = Interval(schedule, here, there, count)
            step = Step(interval, self.stochasticity, noise, count - number)
            z = yield from self.solver.step(step.lift(z), step, past)
        return z


def kappa_adams(
    kappa_value: float = 1.0, shift: float = 1.0, *, order: int = 2, corrector: int = 0
) -> Sampler:
    """kappa-shift Adams: `eps - kappa x` is the polynomial, the grid is flow matching's shifted.

    kappa = shift = 1 is Adams on flow matching's velocity with uniform t, kappa = 0 DEIS-rhoAB. The
    grid is uniform in `sigma / (shift alpha + sigma)`, between the ends of any schedule.
    """
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift is a finite number > 0, got {shift}")
    solver = Adams(order, kappa(kappa_value), corrector=corrector, caution=math.inf)
    return Sampler(Uniform(kappa(1 / shift)), solver, paper="twosides: the post's equation, Adams")


def _middle(t: float) -> float:
    """SA-Solver's tau: 1 in the middle of the schedule."""
    return 1.0 if 0.2 <= t <= 0.8 else 0.0


_DPM = "Lu+ 2022, arXiv 2206.00927"
_DPMPP = "Lu+ 2022, arXiv 2211.01095"
_EDM = "Karras+ 2022, arXiv 2206.00364"
_DEIS = "Zhang & Chen 2022, arXiv 2204.13902"
_RES = "Zhang+ 2023, arXiv 2308.02157"
_UNIPC = "Zhao+ 2023, arXiv 2302.04867"


def _careful(
    solver: Adams | RungeKutta,
    paper: str,
    noise: Stochasticity | None = None,
    grid: Grid | None = None,
    **published: Any,
) -> Sampler:
    """A preset of higher order; published: without care for long steps and starts, and more."""
    plain: dict[str, Any] = {"caution": math.inf}
    if isinstance(solver, Adams):
        plain["corrected_start"] = False
    ours = Sampler(grid or UniformTime(), solver, noise or Deterministic(), paper)
    theirs = replace(ours, solver=replace(solver, **{**plain, **published}))
    return replace(ours, published=theirs)


samplers: Table[Sampler] = Table(
    "sampler",
    {
        # First order: DDIM and its noise.
        "ddim": Sampler(solver=DDIM(), paper="Song+ 2020, arXiv 2010.02502"),
        "flow-euler": Sampler(solver=Euler("u"), paper="Lipman+ 2022, arXiv 2210.02747"),
        "pf-euler": Sampler(solver=ProbabilityFlowEuler(), paper="Song+ 2021, arXiv 2011.13456"),
        "edm-euler": Sampler(Karras(), Euler("eps"), paper=_EDM),
        "ddpm": Sampler(stochasticity=Eta(1.0), paper="Ho+ 2020, arXiv 2006.11239"),
        "ddpm-large": Sampler(stochasticity=LargeVariance(), paper="Ho+ 2020, arXiv 2006.11239"),
        "euler-a": Sampler(
            Karras(), Euler("eps"), DDIMEta(1.0), f"k-diffusion's ancestral Euler; {_EDM}"
        ),
        "euler-a-rf": Sampler(
            solver=Euler("u"),
            stochasticity=DDIMEta(1.0),
            paper="ComfyUI's ancestral Euler for rectified flow; published: not DDPM's noise",
            published=Sampler(solver=Euler("u"), stochasticity=Rectified(1.0)),
        ),
        "churn": Sampler(
            stochasticity=Churn(0.3), paper="Gao+ 2024, Diffusion Meets Flow Matching"
        ),
        "euler-maruyama": Sampler(
            solver=EulerMaruyama(), stochasticity=Eta(1.0), paper="Song+ 2021, arXiv 2011.13456"
        ),
        "langevin": Sampler(solver=Langevin(), paper="Song+ 2021, arXiv 2011.13456"),
        "consistency": Sampler(stochasticity=FullRenoise(), paper="Song+ 2023, arXiv 2303.01469"),
        # Multistep: one call per step, earlier calls used again.
        "kab2": kappa_adams(),
        "kab2c": kappa_adams(order=2, corrector=3),
        "kab3c": kappa_adams(order=3, corrector=4),
        "kab2c-sde": replace(kappa_adams(order=2, corrector=3), stochasticity=Eta(1.0)),
        "dpm-2m": _careful(Adams(2, "eps", "logsnr", rule="midpoint"), _DPM),
        "dpmpp-2m": _careful(Adams(2, "x", "logsnr", rule="midpoint"), _DPMPP),
        "dpmpp-3m": _careful(
            Adams(3, "x", "logsnr"),
            f"{_DPMPP}; published: half of the quadratic term, order 2",
            rule="published",
            lower_order_final=True,
        ),
        "res-2m": _careful(Adams(2, "x", "logsnr"), _RES),
        "unipc": _careful(
            Adams(2, "x", "logsnr", 3, rule="midpoint"), _UNIPC, lower_order_final=True
        ),
        "unipc-3": _careful(
            Adams(3, "x", "logsnr", 4, rule="midpoint"), _UNIPC, lower_order_final=True
        ),
        "deis": _careful(Adams(3, "eps", "logsnr"), _DEIS, lower_order_final=True),
        "deis-tab": _careful(Adams(3, "eps", "t", caution=2.0), _DEIS),
        "lms": _careful(
            Adams(4, "eps", caution=2.0), f"k-diffusion's LMS, DEIS-rhoAB, iPNDM_v; {_DEIS}"
        ),
        "ipndm": _careful(Adams(4, "eps", "index"), f"Liu+ 2022, arXiv 2202.09778; {_DEIS}"),
        "dpmpp-2m-sde": _careful(Adams(2, "x", "logsnr", rule="midpoint"), _DPMPP, Eta(1.0)),
        "dpmpp-3m-sde": _careful(
            Adams(3, "x", "logsnr"),
            f"k-diffusion; {_DPMPP}; published: half of the quadratic term",
            Eta(1.0),
            rule="published",
        ),
        "sa-solver": _careful(
            Adams(3, "x", "logsnr", 3), "Xue+ 2023, arXiv 2309.05019", Tau(_middle)
        ),
        "er-sde": _careful(Adams(3, "x", "eps"), "Cui+ 2023, arXiv 2309.06169", ER()),
        # Runge-Kutta: several calls per step.
        "heun": _careful(RungeKutta("heun", "eps"), _EDM, grid=Karras()),
        "edm": _careful(RungeKutta("heun", "eps"), _EDM, EDMChurn(40.0, 0.05), Karras()),
        "flow-heun": _careful(RungeKutta("heun", "u"), "Heun 1900, on u"),
        "midpoint": _careful(RungeKutta("midpoint", "u"), "Runge 1895, on u"),
        "rk4": _careful(RungeKutta("rk4", "u"), "Kutta 1901, on u"),
        "dpm-2": _careful(RungeKutta("midpoint", "eps", "logsnr"), _DPM),
        "dpm-3": _careful(RungeKutta("collocation-3", "eps", "logsnr"), _DPM),
        "dpmpp-2s": _careful(RungeKutta("midpoint", "x", "logsnr"), _DPMPP),
        "res-2s": _careful(RungeKutta("collocation-2", "x", "logsnr"), _RES),
        "dpm-2-a": _careful(
            RungeKutta("midpoint", "eps", "logsnr"),
            f"k-diffusion's ancestral DPM-Solver-2; {_DPM}",
            DDIMEta(1.0),
            Karras(),
        ),
        "dpmpp-2s-a": _careful(
            RungeKutta("midpoint", "x", "logsnr"),
            f"k-diffusion's ancestral DPM-Solver++(2S); {_DPMPP}",
            DDIMEta(1.0),
            Karras(),
        ),
        "restart": _careful(
            RungeKutta("heun", "eps"), "Xu+ 2023, arXiv 2306.14878", grid=Restart()
        ),
        # Exactly invertible; equal steps in eta do not amplify rounding.
        "leapfrog": Sampler(
            Uniform("u"), Leapfrog("u"), paper="Wang+ 2024, arXiv 2410.07273, on u"
        ),
        "bdia": Sampler(Uniform("u"), BDIA(), paper="Zhang+ 2023, arXiv 2307.10829"),
    },
)

# Other names for the same.
samplers |= {
    "euler-ancestral": samplers["euler-a"],
    "lcm": samplers["consistency"],
    "ipndm-v": samplers["lms"],
}

# Names that take numbers, "kab2(0.7, 2)": the preset with other parameters.
FAMILIES: dict[str, Callable[..., Sampler]] = {
    "ddim": lambda eta: Sampler(stochasticity=DDIMEta(eta)),
    "ddpm": lambda eta: Sampler(stochasticity=Eta(eta)),
    "churn": lambda churn: Sampler(stochasticity=Churn(churn)),
    "edm": lambda churn: replace(samplers["edm"], stochasticity=EDMChurn(churn, 0.05)),
    "kab2": kappa_adams,
    "kab2c": partial(kappa_adams, order=2, corrector=3),
    "kab3c": partial(kappa_adams, order=3, corrector=4),
}


def sampler_named(sampler: str | Sampler, compat: str | None = None) -> Sampler:
    """A preset by name, with numbers if it takes some, or the Sampler itself.

    compat="published" is the preset as its authors' code has it, known errors included, where that
    differs.

        >>> sampler_named("kab2(0.5, 3)").order
        2
    """
    if compat not in (None, "published"):
        raise ValueError(f"compat is None (corrected) or 'published', got {compat!r}")
    if isinstance(sampler, str):
        name, numbers = split_call(sampler)
        if name not in samplers:
            raise unknown("sampler", name, samplers)
        if numbers and name not in FAMILIES:
            raise ValueError(f"{name} takes no numbers; these do: {', '.join(FAMILIES)}")
        try:
            sampler = FAMILIES[name](*numbers) if numbers else samplers[name]
        except TypeError:
            raise ValueError(f"sampler {sampler!r}: {name} takes fewer numbers") from None
    if isinstance(sampler, type):
        raise TypeError(f"{sampler.__name__} is a class; pass {sampler.__name__}()")
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "a sampler is a preset's name or a Sampler(grid, solver, stochasticity), "
            f"got {sampler!r}"
        )
    return sampler.published or sampler if compat else sampler


def plan(
    sampler: str | Sampler,
    schedule: str | Schedule,
    steps: SupportsIndex,
    *,
    compat: str | None = None,
    encode: bool = False,
) -> Plan:
    """The plan of a sampler on a schedule, each by name if wanted.

    compat: see `sampler_named`. encode: from data to noise.

    >>> from twosides.schedules.schedule import FlowMatching
    >>> plan("ddim", FlowMatching(), 4).nfe
    4
    """
    name = sampler if isinstance(sampler, str) else ""
    made = sampler_named(sampler, compat)
    return made.plan(schedule_named(schedule), steps, name, encode=encode)
