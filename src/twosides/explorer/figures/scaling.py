"""The sampling paths while the scaling goes from flow matching to VP: the post's first figure."""

from __future__ import annotations

import numpy as np

from twosides.explorer.figure import Axis, Choice, Figure, Mark, Number, Panel, Range, View
from twosides.explorer.names import DATA_1D

TEXT = r"""One schedule, written in every scaling between flow matching ($\alpha = 1-t$, $\sigma
= t$) and variance preserving: both are multiplied by $S = 1 + k\,(1/\sqrt{(1-t)^2+t^2} - 1)$.

Move $k$ and watch the right ends. The *paths* bend, because $z$ is measured in another unit at
each time. *DDIM's end points stand still*: its steps are the same in every scaling, and on $k =
0$ they are flow matching's Euler steps. Plain Euler on the probability-flow ODE is another method
on each scaling, and its end points move.

In the post the factor is printed without the square root, and the five steps are called six; the
data are one Gaussian, of variance 0.25.
"""

FIGURE = Figure(
    "scaling",
    "Paths bend, end points stand still",
    TEXT,
    (
        Range(
            "k", "Scaling $k$", 0.0, 1.0, 0.01, 0.0, help="0 flow matching, 1 variance preserving"
        ),
        Range("steps", "Steps", 1, 20, 1, 5, integer=True),
        Choice("data", "Data", DATA_1D, "gaussian"),
        Range("particles", "Particles", 2, 12, 1, 6, integer=True),
    ),
    "twosides.explorer.figures.scaling:compute",
    frames={"k": tuple(round(0.05 * i, 2) for i in range(21)), "steps": (5, 10)},
)

VARIANCE = 0.25


def compute(k: float, steps: int, data: str, particles: int) -> View:
    """DDIM, Euler on the PF-ODE and the exact paths (32 steps of kab3c), from linspace(-2, 2).

    The numbers are how far the end points have moved from those at k = 0, at most over the
    particles.
    """
    from twosides.explorer.figures._paths import FINE, PYTHON, exact, nodes, path

    about = (data, VARIANCE)
    ddim, euler = (path(*about, s, k, steps, particles) for s in ("ddim", "pf-euler"))
    still = path(*about, "ddim", 0.0, steps, particles)
    moved = [float(np.abs(each - still)[:, -1].max()) for each in (ddim, euler)]
    x, fine = nodes(steps, particles), nodes(FINE, particles)
    marks = (
        Mark(
            "paths",
            "exact",
            None,
            {"x": fine, "y": exact(*about, k, particles)},
            {"width": 1},
            {"y": "exact"},
        ),
        Mark("paths", "DDIM", 0, {"x": x, "y": ddim}, {"dots": True}, {"y": "ddim"}),
        Mark(
            "paths",
            "Euler on the PF-ODE",
            1,
            {"x": x, "y": euler},
            {"dots": True, "dash": True},
            {"y": "euler"},
        ),
    )
    python = PYTHON.format(name=data, variance=VARIANCE, particles=particles) + _python(k, steps)
    return View(
        (Panel("plot", "Noise to data", Axis("$1 - t$", 0, 1), Axis("$z$"), marks),),
        (
            Number("ddim", "DDIM's end points moved by", moved[0], ".1e", "moved(ddim)"),
            Number("euler", "Euler's end points moved by", moved[1], ".3f", "moved(euler)"),
        ),
        python,
    )


def _python(k: float, steps: int) -> str:
    return f"""
ddim, euler = path("ddim", {k!r}, {steps}), path("pf-euler", {k!r}, {steps})
exact = path("kab3c", {k!r}, 32)


def moved(z):
    return abs(z - path("ddim", 0.0, {steps}))[:, -1].max()
"""
