"""One run in two notations: that of diffusion, and that of flow matching."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

import twosides as ts
from twosides.explorer.figure import Axis, Choice, Figure, Mark, Number, Panel, Range, View, table
from twosides.explorer.names import DATA_1D, DATA_2D, OUTPUTS, POINTS, SCHEDULES

TEXT = r"""Left, a diffusion model: a variance-preserving schedule, a network that predicts what
you choose, noise given as $\eta$ of the reverse SDE. Right, flow matching: $z = (1-\tau)\,x +
\tau\,\epsilon$, a velocity $u$, noise given as the diffusion $\varepsilon_\tau$. Both start from
the same numbers and ask *the same network*; the right one sees it through a change of notation.

The readout is the largest difference between the two runs, at any step, in the same units. Change
anything you like: it stays at the rounding of float64.

The post states this of DDIM and Euler; it holds for every pair offered here, with any noise. Where
a network cannot answer ($\epsilon$ at zero SNR, at $t = 1$ of flow matching and cosine) a message
says so.
"""


class Pair(NamedTuple):
    """A sampler under two names, with the code of the solver on either side."""

    label: str
    diffusion: str
    flow: str


PAIRS = {
    "first": Pair("DDIM, DDPM | flow Euler", "DDIM()", "Euler('u')"),
    "heun": Pair(
        "Heun on EDM's ODE | the same in flow time",
        "RungeKutta('heun', 'eps')",
        "RungeKutta('heun', 'eps')",
    ),
    "flow-heun": Pair(
        "Heun in the frame of $u$ | flow Heun", "RungeKutta('heun', 'u')", "RungeKutta('heun', 'u')"
    ),
    "dpmpp-2m": Pair(
        "DPM-Solver++(2M) | the same on a flow",
        "Adams(2, 'x', 'logsnr')",
        "Adams(2, 'x', 'logsnr')",
    ),
    "adams": Pair(
        "Adams in the frame of $u$ | two-step Adams on $u$", "Adams(2, 'u')", "Adams(2, 'u')"
    ),
}

FIGURE = Figure(
    "two-sides",
    "Two sides of the same coin",
    TEXT,
    (
        Choice("data", "Data", (*DATA_2D, *DATA_1D, *POINTS), "moons"),
        Choice("schedule", "Schedule", SCHEDULES, "cosine(-15, 15)"),
        Choice("output", "The diffusion network predicts", OUTPUTS, "eps"),
        Choice("pair", "Sampler", tuple((key, pair.label) for key, pair in PAIRS.items()), "first"),
        Range("eta", r"Noise $\eta$", 0.0, 1.5, 0.05, 0.0, help="0 is the ODE, 1 DDPM"),
        Range("steps", "Steps", 1, 50, 1, 10, integer=True),
        Range("particles", "Particles", 1, 100, 1, 40, integer=True),
        Range("seed", "Seed", 0, 99, 1, 0, integer=True),
    ),
    "twosides.explorer.figures.two_sides:compute",
    frames={
        "eta": (0.0, 0.5, 1.0),
        "steps": (1, 5, 10, 20, 50),
        "pair": ("first", "dpmpp-2m"),
        "data": ("moons", "two-modes"),
    },
)


def solver(code: str) -> Any:
    """A solver of PAIRS from its code."""
    name, _, numbers = code.partition("(")
    parts = [part.strip() for part in numbers.rstrip(")").split(",") if part.strip()]
    arguments = [int(part) if part.isdigit() else part.strip("'") for part in parts]
    return getattr(ts.solvers, name)(*arguments)


@functools.lru_cache(32)
def models(data: str, schedule: str, output: str) -> tuple[Any, Any]:
    """The two denoisers: one network in two notations."""
    from twosides.explorer import problems
    from twosides.schedules import schedule_named

    exact = problems.points() if data == "points" else problems.mixture(data)
    diffusion = schedule_named(schedule).with_scaling("vp")
    flow = diffusion.with_scaling("flow")
    left = ts.Denoiser(ts.convert(exact, output, diffusion), output, diffusion)
    return left, ts.Denoiser(ts.convert(left, "u", flow), "u", flow)


@functools.lru_cache(64)
def plans(schedule: str, pair: str, eta: float, steps: int) -> tuple[Any, Any]:
    """The plans of the two sides: the noise is eta on one, the same noise as churn on the other."""
    left, right = models("ring", schedule, "u")
    both = PAIRS[pair]
    noises = (
        (ts.Eta(eta), ts.Churn(eta**2 / (1 + eta**2))) if eta else (ts.noise.Deterministic(),) * 2
    )
    names = (both.diffusion, both.flow)
    samplers = [
        ts.Sampler(solver=solver(n), stochasticity=s) for n, s in zip(names, noises, strict=True)
    ]
    return ts.plan(samplers[0], left.schedule, steps), ts.plan(samplers[1], right.schedule, steps)


def compute(
    data: str,
    schedule: str,
    output: str,
    pair: str,
    eta: float,
    steps: int,
    particles: int,
    seed: int,
) -> View:
    """The states of both runs in their own units, and the largest difference in common units.

    Two-dimensional runs are drawn over samples of the data, one-dimensional ones over time.
    """
    import torch

    sides = models(data, schedule, output)
    dims = 1 if data in dict(DATA_1D) else 2
    runs = [
        ts.sample(
            side, (particles, dims), sampler=plan, seed=seed, dtype=torch.float64, trajectory=True
        )
        for side, plan in zip(sides, plans(schedule, pair, eta, steps), strict=True)
    ]
    left, right = (torch.stack(run.states).numpy() for run in runs)
    factors = [np.array([level.scale for level in run.levels])[:, None, None] for run in runs]
    worst = float(np.abs(left / factors[0] - right / factors[1]).max())
    ends = float((runs[0].sample - runs[1].sample).abs().max())
    logsnr = runs[0].plan.logsnr
    times = (sides[0].schedule.time(logsnr).numpy(), runs[1].plan.sigma)
    panels = tuple(
        _panel(states, time, side, dims, _behind(data))
        for states, time, side in ((left, times[0], "diffusion"), (right, times[1], "flow"))
    )
    return View(
        (
            *panels,
            table(
                "Two vocabularies",
                ["", "diffusion", "flow matching"],
                _words(sides, output, pair, eta, runs),
            ),
        ),
        (
            Number("difference", "Largest |difference| of the runs", worst, ".1e", "difference"),
            Number("samples", "Largest |difference| of the samples", ends, ".1e", "ends"),
            Number("calls", "Network calls", runs[0].plan.nfe, ".0f", "a.plan.nfe"),
        ),
        _python(data, schedule, output, pair, eta, steps, (particles, dims), seed),
        cli=_command(pair, steps, schedule) if not eta else "",
    )


@functools.lru_cache(16)
def _behind(data: str) -> np.ndarray | None:
    from twosides.explorer import problems

    if data in dict(DATA_1D):
        return None
    if data == "points":
        return np.asarray(problems.points().data)
    return problems.mixture(data).sample(300, seed=0).numpy()


def _panel(states: np.ndarray, time: np.ndarray, side: str, dims: int, behind: Any) -> Panel:
    group, name = (0, "a") if side == "diffusion" else (1, "b")
    style = {"side": side, "width": 1, "opacity": 0.6}
    title = "Diffusion: $z$, variance preserving" if side == "diffusion" else "Flow matching: $z$"
    code = f"states({name})"
    if dims == 1:
        arrays = {"x": np.repeat(time[None], states.shape[1], 0), "y": states[:, :, 0].T}
        marks = (Mark("paths", "", group, arrays, style, {"y": f"{code}[:, :, 0].T"}),)
        label = "$t$" if side == "diffusion" else r"Flow time $\tau$"
        return Panel("plot", title, Axis(label, 0, 1, reverse=True), Axis("$z$"), marks)
    x, y = states[:, :, 0].T, states[:, :, 1].T
    codes = {"x": f"{code}[:, :, 0].T", "y": f"{code}[:, :, 1].T"}
    last = {"x": x[:, -1], "y": y[:, -1]}
    marks = (
        Mark(
            "points",
            "data",
            None,
            {"x": behind[:, 0], "y": behind[:, 1]},
            {"size": 2, "opacity": 0.4},
        ),
        Mark("paths", "", group, {"x": x, "y": y}, style, codes),
        Mark(
            "points",
            "samples",
            group,
            last,
            {"size": 4, "side": side},
            {"x": f"{code}[-1, :, 0]", "y": f"{code}[-1, :, 1]"},
        ),
    )
    return Panel("plot", title, Axis("$z_1$", -3, 3), Axis("$z_2$", -3, 3), marks)


STATE = r"$z = \alpha x + \sigma\epsilon$, $\alpha^2 + \sigma^2 = 1$"


def _words(sides: Any, output: str, pair: str, eta: float, runs: Any) -> list[list[Any]]:
    middle = runs[0].plan.levels[runs[0].plan.nfe // 2]
    own = [run.plan.levels[run.plan.nfe // 2] for run in runs]
    time = float(sides[0].schedule.time(middle.logsnr))
    infinite = math.inf if eta else 0.0
    epsilon = eta * math.sqrt(2 * own[1].sigma / own[1].alpha) if own[1].alpha else infinite
    labels = PAIRS[pair].label.split(" | ")
    return [
        ["the state", STATE, r"$z = (1 - \tau) x + \tau\epsilon$"],
        ["the network predicts", dict(OUTPUTS)[output], dict(OUTPUTS)["u"]],
        ["sampler", *labels],
        [
            "noise",
            rf"$\eta = {eta:g}$",
            rf"$\varepsilon = \eta g$: {epsilon:.4g} in the middle of the run",
        ],
        ["time in the middle", round(time, 5), round(own[1].sigma, 5)],
        [r"$\alpha$, $\sigma$ there", *(f"{o.alpha:.4f}, {o.sigma:.4f}" for o in own)],
        [r"log-SNR $\lambda$ there", *(round(o.logsnr, 4) for o in own)],
    ]


def _command(pair: str, steps: int, schedule: str) -> str:
    named = {"first": ("ddim", "flow-euler")}.get(pair)
    return (
        f"twosides compare {named[0]} {named[1]} --steps {steps} --schedule '{schedule}'"
        if named
        else ""
    )


def _python(
    data: str,
    schedule: str,
    output: str,
    pair: str,
    eta: float,
    steps: int,
    shape: tuple[int, int],
    seed: int,
) -> str:
    both = PAIRS[pair]
    exact = "problems.points()" if data == "points" else f"problems.mixture({data!r})"
    noises = (
        f", stochasticity=ts.Eta({eta!r})",
        f", stochasticity=ts.Churn({eta!r}**2 / (1 + {eta!r}**2))",
    )
    noises = noises if eta else ("", "")
    return f"""import numpy as np
import torch
import twosides as ts
from twosides.explorer import problems
from twosides.schedules import schedule_named

diffusion = schedule_named({schedule!r}).with_scaling("vp")
flow = diffusion.with_scaling("flow")
network = ts.convert({exact}, {output!r}, diffusion)  # network(z, t)
left = ts.Denoiser(network, {output!r}, diffusion)
right = ts.Denoiser(ts.convert(left, "u", flow), "u", flow)

options = dict(steps={steps}, seed={seed}, dtype=torch.float64, trajectory=True)
here = ts.Sampler(solver=ts.solvers.{both.diffusion}{noises[0]})
there = ts.Sampler(solver=ts.solvers.{both.flow}{noises[1]})
a = ts.sample(left, {shape}, sampler=here, **options)
b = ts.sample(right, {shape}, sampler=there, **options)


def states(run):
    return torch.stack(run.states).numpy()


def unscaled(run):
    return states(run) / np.array([level.scale for level in run.levels])[:, None, None]


difference = abs(unscaled(a) - unscaled(b)).max()
ends = (a.sample - b.sample).abs().max()
"""
