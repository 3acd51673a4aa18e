"""Straight paths: which scaling has them depends on the data (the post's second figure)."""

from __future__ import annotations

import math

import numpy as np

from twosides.explorer.figure import Axis, Choice, Figure, Mark, Number, Panel, Range, View
from twosides.explorer.names import DATA_1D

TEXT = r"""The left panel is variance preserving, the right one flow matching: the same model in two
scalings.

"Flow matching has straight paths" is true of one data point: move the variance down. With one
Gaussian of variance 1, the paths of the *variance preserving* side are straight, and flow
matching's are not. Straightness is a property of a scaling *and* of the data; real data are neither
case.

The meter is how far the speed of a path is from constant, $\int E\,|z'_t - (z_1 - z_0)|^2\,dt$
over $E\,|z_1|^2$ [Liu+ 2022], taken over the paths that are drawn: 0 is straight.
"""

FIGURE = Figure(
    "straightness",
    "Straight paths depend on the data",
    TEXT,
    (
        Range("variance", "Variance of the data", 0.01, 2.0, 0.01, 0.1, log=True),
        Range("steps", "Steps", 1, 20, 1, 5, integer=True),
        Choice("data", "Data", DATA_1D, "gaussian"),
    ),
    "twosides.explorer.figures.straightness:compute",
    frames={
        "variance": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
        "steps": (1, 2, 5, 10),
        "data": ("gaussian", "two-modes"),
    },
)

PARTICLES = 6


def bend(z: np.ndarray) -> float:
    """The bend `int E|z' - (z_0 - z_1)|^2 ds / E|z_1|^2` of paths, with s in [0, 1].

    z: the paths (k, n + 1), noise to data.
    """
    steps = z.shape[1] - 1
    speed, whole = np.diff(z, axis=1) * steps, z[:, -1:] - z[:, :1]
    return float(((speed - whole) ** 2).mean() / (z[:, 0] ** 2).mean())


def compute(variance: float, steps: int, data: str) -> View:
    """Exact paths (32 steps of kab3c), DDIM and Euler on the PF-ODE, under VP and flow scaling."""
    from twosides.explorer.figures._paths import PYTHON, exact, nodes, path

    panels, numbers, limit = [], [], max(2.2, 2.1 * math.sqrt(variance))
    for side, k, title in (("vp", 1.0, "Variance preserving"), ("flow", 0.0, "Flow matching")):
        runs = {
            "exact": exact(data, variance, k, PARTICLES),
            "ddim": path(data, variance, "ddim", k, steps, PARTICLES),
            "euler": path(data, variance, "pf-euler", k, steps, PARTICLES),
        }
        styles = (
            ("exact", None, {"width": 1}),
            ("ddim", 0, {"dots": True}),
            ("euler", 1, {"dots": True, "dash": True}),
        )
        marks = tuple(
            Mark(
                "paths",
                _LABELS[key],
                group,
                {"x": nodes(runs[key].shape[1] - 1, PARTICLES), "y": runs[key]},
                style,
                {"y": f"{side}[{key!r}]"},
            )
            for key, group, style in styles
        )
        panels.append(
            Panel("plot", title, Axis("$1 - t$", 0, 1), Axis("$z$", -limit, limit), marks)
        )
        straight, name = runs["exact"], "VP" if side == "vp" else "flow"
        code = f"bend({side}['exact'])"
        numbers.append(Number(f"bend_{side}", f"Bend of {name}", bend(straight), ".4f", code))
        for key in ("ddim", "euler"):
            gap = float(np.abs(runs[key][:, -1] - straight[:, -1]).max())
            numbers.append(
                Number(
                    f"{key}_{side}",
                    f"{_LABELS[key]}'s error, {name}",
                    gap,
                    ".3f",
                    f"error({side}, {key!r})",
                )
            )
    python = PYTHON.format(name=data, variance=variance, particles=PARTICLES) + _python(steps)
    return View(tuple(panels), tuple(numbers), python)


_LABELS = {"exact": "exact", "ddim": "DDIM", "euler": "Euler on the PF-ODE"}


def _python(steps: int) -> str:
    return f"""
def side(k):
    return {{"exact": path("kab3c", k, 32), "ddim": path("ddim", k, {steps}),
            "euler": path("pf-euler", k, {steps})}}


def bend(z):  # 0 is straight
    speed, whole = (z[:, 1:] - z[:, :-1]) * (z.shape[1] - 1), z[:, -1:] - z[:, :1]
    return ((speed - whole)**2).mean() / (z[:, 0]**2).mean()


def error(side, sampler):
    return abs(side[sampler] - side["exact"][:, -1:])[:, -1].max()


vp, flow = side(1.0), side(0.0)
"""
