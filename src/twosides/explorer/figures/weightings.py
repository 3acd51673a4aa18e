"""The weightings and densities of the published recipes over one axis: what losses optimise."""

from __future__ import annotations

import functools
import itertools
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
    Switch,
    View,
    table,
)
from twosides.explorer.names import RECIPES

TEXT = r"""Every published loss is $\int w(\lambda)\,E\,|\hat\epsilon - \epsilon|^2\,d\lambda$,
whatever the network predicts and whichever schedule it is trained on. Two recipes train the same
model when their $w$ are proportional; the density $p$ of the levels they draw only changes the
variance of the estimate.

Look for curves that lie on each other: flow matching's is $v$-prediction's on the cosine schedule,
times $\pi/2$. The table computes what is equal, and how far apart the rest is.

Weightings made for other data are compared where these data are equally noisy: EDM's images have
standard deviation 0.5, and the other *deviation* moves the other recipes.

The post's loss lacks a sign: over time it needs $-d\lambda/dt$, which is positive.
"""

FIGURE = Figure(
    "weightings",
    "Weightings and levels",
    TEXT,
    (
        Many("recipes", "Recipes", RECIPES, ("flow-matching", "v-cosine", "sd3", "edm"), most=6),
        Choice(
            "normalise",
            "Scale of $w$",
            (("max", "largest value 1"), ("area", "area 1"), ("none", "as published")),
            "max",
        ),
        Switch("log", "Logarithmic", False),
        Range(
            "edm_std",
            "Deviation of EDM's data",
            0.1,
            2.0,
            0.05,
            0.5,
            help="of the recipes that predict $F$, made for 0.5",
        ),
        Range("std", "Deviation of the others' data", 0.1, 2.0, 0.05, 1.0),
    ),
    "twosides.explorer.figures.weightings:compute",
    frames={"log": (False, True), "normalise": ("max", "area", "none"), "edm_std": (0.5, 1.0)},
)


@functools.lru_cache(512)
def curves(name: str, data_std: float) -> tuple[Any, Any]:
    """The log w and log p of a recipe on 601 log-SNRs of unit-variance data in [-15, 15]."""
    from twosides import comparison

    log_w, log_p = comparison.curves(ts.recipes[name], _grid(), data_std)
    return log_w.numpy(), log_p.numpy()


def _grid() -> Any:
    import torch

    return torch.linspace(-15, 15, 601, dtype=torch.float64)


@functools.lru_cache(2048)
def verdict(a: str, b: str, stds: tuple[float, float]) -> str:
    """The verdict of `compare` on two recipes."""
    return str(ts.compare(ts.recipes[a], ts.recipes[b], data_std=stds))


def scale(log_w: Any, normalise: str) -> Any:
    """The weighting `exp(log w)`, divided by its maximum or its area on the grid."""
    w = np.exp(log_w - (log_w.max() if normalise != "none" else 0.0))
    if normalise == "area":
        w = w / np.trapezoid(w, np.linspace(-15, 15, w.size))
    return w


def _peaks(w: np.ndarray) -> bool:
    """Whether the largest weight is inside the range and not one of many equal ones."""
    return 0 < int(np.argmax(w)) < len(w) - 1 and int((w >= w.max() * (1 - 1e-9)).sum()) <= 2


def compute(
    recipes: tuple[str, ...], normalise: str, log: bool, edm_std: float, std: float
) -> View:
    """The curves w and p over the log-SNR of unit-variance data, and the verdicts on all pairs."""
    stds = {n: edm_std if ts.recipes[n].output.startswith("F") else std for n in recipes}
    found = {name: curves(name, stds[name]) for name in recipes}
    grid = _grid().numpy()
    w = tuple(
        Mark(
            "line",
            name,
            i,
            {"x": grid, "y": scale(found[name][0], normalise)},
            {},
            {"x": "grid", "y": f"w[{name!r}]"},
        )
        for i, name in enumerate(recipes)
    )
    p = tuple(
        Mark("line", name, i, {"x": grid, "y": np.exp(found[name][1])}, {}, {"y": f"p[{name!r}]"})
        for i, name in enumerate(recipes)
    )
    rows = [
        [n, ts.recipes[n].output, str(ts.recipes[n].weighting), str(ts.recipes[n].density)]
        for n in recipes
    ]
    pairs = [
        [a, b, verdict(a, b, (stds[a], stds[b]))] for a, b in itertools.combinations(recipes, 2)
    ]
    axis = Axis(r"log-SNR $\lambda$ of unit-variance data", -15, 15)
    low = 1e-5 if log else None
    return View(
        (
            Panel("plot", r"Weighting $w(\lambda)$", axis, Axis("$w$", low, log=log), w),
            Panel(
                "plot",
                r"Density $p(\lambda)$ of the levels that are drawn",
                axis,
                Axis("$p$", low, log=log),
                p,
            ),
            table("What equals what", ["recipe", "and", "weightings"], pairs),
            table("The recipes", ["recipe", "predicts", "$w$", "$p$"], rows),
        ),
        tuple(
            Number(
                f"peak_{n}",
                f"Peak of $w$, {n}",
                float(grid[np.argmax(found[n][0])]),
                ".2f",
                f"float(grid[w[{n!r}].argmax()])",
            )
            for n in recipes
            if _peaks(found[n][0])
        ),
        _python(recipes, normalise, stds),
        cli=_command(recipes, stds),
    )


def _command(recipes: tuple[str, ...], stds: dict[str, float]) -> str:
    if len(recipes) != 2:
        return ""
    a, b = recipes
    return f"twosides compare {a} {b} --data-std {stds[a]:g} {stds[b]:g} --plot weightings.png"


def _python(recipes: tuple[str, ...], normalise: str, stds: dict[str, float]) -> str:
    scale = {
        "max": "w = {name: each / each.max() for name, each in w.items()}\n",
        "area": "w = {name: each / np.trapezoid(each, grid) for name, each in w.items()}\n",
        "none": "",
    }[normalise]
    return f"""import numpy as np
import torch
import twosides as ts
from twosides.comparison import curves

grid = np.linspace(-15, 15, 601)
stds = {stds}
logs = {{n: curves(ts.recipes[n], torch.from_numpy(grid), std) for n, std in stds.items()}}
w = {{name: log_w.exp().numpy() for name, (log_w, log_p) in logs.items()}}
p = {{name: log_p.exp().numpy() for name, (log_w, log_p) in logs.items()}}
{scale}"""
