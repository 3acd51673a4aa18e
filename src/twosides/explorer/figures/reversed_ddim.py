"""Data carried to noise by reversed DDIM, beside data that are diffused: the same marginals."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import twosides as ts
from twosides.explorer.figure import Axis, Choice, Figure, Mark, Number, Panel, Range, View
from twosides.explorer.names import DATA_2D

TEXT = r"""Left, the forward process: every point is mixed with its own noise, $z_t = \alpha_t x +
\sigma_t\epsilon$. Right, DDIM run backwards: the same points carried along the ODE, without any
noise.

Drag $t$ from 0 to 1. Behind both is the exact density at that level: at every $t$ the two clouds
are samples of the same distribution, though no point goes to the same place. On the
right no two points are ever in one place at one time; on the left each goes where its own noise
sends it, past all others.

The post shows this as a film; with few steps you see that DDIM's cloud lags behind the density.
"""

NODES = 40
FIGURE = Figure(
    "reversed",
    "Reversed DDIM and forward diffusion",
    TEXT,
    (
        Range("t", "Time $t$", 0.0, 1.0, 1 / NODES, 0.5),
        Choice("data", "Data", DATA_2D, "moons"),
        Choice(
            "steps", "Steps of DDIM", (("40", "40"), ("20", "20"), ("10", "10"), ("5", "5")), "40"
        ),
        Choice(
            "schedule",
            "Schedule",
            (("flow-matching", "flow matching"), ("cosine", "cosine")),
            "flow-matching",
        ),
        Range("particles", "Points", 10, 500, 10, 200, integer=True),
    ),
    "twosides.explorer.figures.reversed_ddim:compute",
    frames={"t": tuple(round(i / 20, 2) for i in range(21)), "data": ("moons", "ring")},
)
REACH, SIDE, PATHS = 2.6, 48, 24


@functools.lru_cache(32)
def runs(data: str, schedule: str, steps: int, particles: int) -> tuple[Any, Any, Any]:
    """Points and noise (particles, 2); DDIM's states, data to noise (steps + 1, particles, 2)."""
    from twosides.explorer import problems

    exact = problems.mixture(data)
    x = exact.sample(particles, seed=0)
    noise = ts.PerSample(0, range(particles)).normal((2,), x.dtype)
    states: list[Any] = []
    made = ts.plan("ddim", schedule, steps, encode=True)
    from twosides.sampling.run import run

    last = run(made, exact, x, watch=lambda visit: states.append(visit.z))
    return x.numpy(), noise.numpy(), np.stack([*(s.numpy() for s in states), last.numpy()])


@functools.lru_cache(256)
def density(data: str, schedule: str, t: float) -> Any:
    """The density p(z) at t on SIDE^2 points over [-REACH, REACH]^2, row 0 at the bottom."""
    import torch

    from twosides.explorer import problems
    from twosides.schedules import schedule_named

    axis = torch.linspace(-REACH, REACH, SIDE, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis).flip(1)
    return (
        problems.mixture(data)
        .log_prob(z, schedule_named(schedule).at(t))
        .exp()
        .reshape(SIDE, SIDE)
        .numpy()
    )


def compute(t: float, data: str, steps: str, schedule: str, particles: int) -> View:
    """The two clouds at the state of DDIM nearest to t, over the exact density there."""
    from twosides.schedules import schedule_named

    count = int(steps)
    node = round(t * count)
    x, noise, states = runs(data, schedule, count, particles)
    level = schedule_named(schedule).at(node / count).floats()
    forward, carried = level.alpha * x + level.sigma * noise, states[node]
    behind = Mark(
        "field",
        "",
        None,
        {"v": density(data, schedule, node / count)},
        {"extent": [-REACH, REACH, -REACH, REACH]},
        {"v": "density"},
    )
    past = states[: node + 1, :PATHS]
    paths = Mark(
        "paths",
        "",
        1,
        {"x": past[:, :, 0].T, "y": past[:, :, 1].T},
        {"width": 1, "opacity": 0.5, "side": "flow"},
        {"x": f"states[:{node + 1}, :{PATHS}, 0].T", "y": f"states[:{node + 1}, :{PATHS}, 1].T"},
    )
    clouds = (
        ("forward", "Forward diffusion", 0, forward, ()),
        ("states[node]", "DDIM, reversed", 1, carried, (paths,)),
    )
    panels = tuple(
        Panel(
            "plot",
            title,
            Axis("$z_1$", -REACH, REACH),
            Axis("$z_2$", -REACH, REACH),
            (
                behind,
                *more,
                Mark(
                    "points",
                    "",
                    group,
                    {"x": z[:, 0], "y": z[:, 1]},
                    {"size": 3},
                    {"x": f"{code}[:, 0]", "y": f"{code}[:, 1]"},
                ),
            ),
        )
        for code, title, group, z, more in clouds
    )
    spread = {"forward": forward, "states[node]": carried}
    return View(
        panels,
        (
            Number("t", "Time $t$", node / count, ".3f", "node / steps"),
            Number("logsnr", r"log-SNR $\lambda$", level.logsnr, ".3f", "float(level.logsnr)"),
            *(
                Number(
                    name,
                    f"Mean square, {label}",
                    float((spread[code] ** 2).mean()),
                    ".3f",
                    f"({code}**2).mean()",
                )
                for name, label, code in (
                    ("forward", "diffused", "forward"),
                    ("carried", "carried", "states[node]"),
                )
            ),
            Number("exact", "Mean square, exact", _mean_square(data, level), ".3f", "exact"),
        ),
        _python(data, schedule, count, node, particles),
    )


def _mean_square(data: str, level: Any) -> float:
    from twosides.explorer import problems

    made = problems.mixture(data)
    second = float((made.covariance.trace() + made.mean @ made.mean) / 2)
    return level.alpha**2 * second + level.sigma**2


def _python(data: str, schedule: str, steps: int, node: int, particles: int) -> str:
    return f"""import torch
import twosides as ts
from twosides.explorer import problems
from twosides.sampling.run import run
from twosides.schedules import schedule_named

data, schedule = problems.mixture({data!r}), schedule_named({schedule!r})
steps, node = {steps}, {node}
x = data.sample({particles}, seed=0)
noise = ts.PerSample(0, range({particles})).normal((2,), torch.float64)
level = schedule.at(node / steps).floats()
forward = level.mix(x, noise).numpy()

states = []
plan = ts.plan("ddim", schedule, steps, encode=True)  # from data to noise
last = run(plan, data, x, watch=lambda visit: states.append(visit.z))
states = torch.stack([*states, last]).numpy()

axis = torch.linspace({-REACH}, {REACH}, {SIDE}, dtype=torch.float64)
z = torch.cartesian_prod(axis, axis).flip(1)
density = data.log_prob(z, level).exp().reshape({SIDE}, {SIDE}).numpy()
exact = level.alpha**2 * float(data.covariance.trace() + data.mean @ data.mean) / 2 + level.sigma**2
"""
