"""The weights of every prediction and every noise in the final sample: the post's churn figure."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import twosides as ts
from twosides.explorer.figure import Axis, Choice, Figure, Mark, Number, Panel, Range, View
from twosides.explorer.names import OUTPUTS, SAMPLERS, SCHEDULES

TEXT = r"""Every sampler on a fixed grid is linear in the network's answers, so its result is $z_0 =
w\,\epsilon + \sum_t h_t\,o_t + \sum_t c_t\,n_t$ for every network: the weights are the sampler.

Move the *churn* away from 0. Each step goes too far along the ODE and is noised back: early
predictions are forgotten, fresh noise takes the place of the initial one, and the weights bend
towards the last steps. Churn $c$ is the reverse SDE with $\eta^2 = c/(1-c)$; at $c = 1/2$ it is
DDPM.

The post says that DDIM weighs all $v$-predictions equally; it does to 1.2 % (0.015506 to 0.015696
at 100 steps). It plots $-h_t$, because $v$ and $u$ point towards the noise; so does this figure.
"""

FIGURE = Figure(
    "churn",
    "Churn: what each prediction weighs",
    TEXT,
    (
        Range("c", "Churn $c$", 0.0, 0.9, 0.01, 0.3, help=r"$\eta^2 = c/(1-c)$; $1/2$ is DDPM"),
        Choice("sampler", "Sampler", SAMPLERS, "ddim", help="its noise is replaced where $c > 0$"),
        Choice("output", "The network predicts", OUTPUTS, "v"),
        Choice("schedule", "Schedule", SCHEDULES, "cosine(-15, 15)"),
        Range("steps", "Steps", 1, 100, 1, 100, integer=True),
    ),
    "twosides.explorer.figures.churn:compute",
    frames={"c": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "steps": (20, 100)},
)

SIGNS = {"v": -1.0, "u": -1.0}  # outputs that point towards the noise are drawn upwards


@functools.lru_cache(64)
def plan(sampler: str, c: float, schedule: str, steps: int) -> Any:
    """The plan, with the preset's own noise at c = 0."""
    made = ts.samplers[sampler]
    if c > 0:
        made = ts.Sampler(made.grid, made.solver, ts.Churn(c))
    return ts.plan(made, schedule, steps)


def compute(c: float, sampler: str, output: str, schedule: str, steps: int) -> View:
    """The weights h_t of the outputs and c_t of the noises in the result, and the whole matrix.

    The curves are over the number of the call; `Sum h`, the weight of z_1 (the initial noise, times
    the state's scale at the start) and the variance of the injected noise are numbers.
    """
    made = plan(sampler, c, schedule, steps)
    weights, matrix = made.weights(output), made.matrix(output)
    sign = SIGNS.get(output, 1.0)
    weight = "$-h_t$" if sign < 0 else "$h_t$"
    call = np.arange(1, made.nfe + 1)
    noises = weights.noises
    h = Mark(
        "line",
        weight,
        0,
        {"x": call, "y": sign * weights.predictions},
        {"dots": made.nfe <= 40},
        {"y": f"{sign:g} * weights.predictions"},
    )
    stems = Mark(
        "stems",
        "$c_t$",
        1,
        {"x": np.arange(1, noises.size + 1), "y": noises},
        {},
        {"y": "weights.noises"},
    )
    injected = Panel(
        "plot",
        "Weights of the injected noises",
        Axis("Noise, in order"),
        Axis(""),
        (stems,),
    )
    heat = Mark("heat", "", None, {"v": matrix}, {"diverging": True}, {"v": "matrix"})
    name = f"{weight}, weight of {dict(OUTPUTS)[output]}"
    return View(
        (
            Panel(
                "plot",
                "Weights of the predictions",
                Axis("Network call, noise to data"),
                Axis(name, 0.0 if (sign * weights.predictions >= 0).all() else None),
                (h,),
            ),
            *((injected,) if noises.size else ()),
            Panel(
                "heat",
                "All states over noise, predictions and injected noises",
                Axis("Initial noise, predictions, injected noises"),
                Axis("State"),
                (heat,),
                "Row $i$ is the input of call $i$, the last row the result.",
            ),
        ),
        (
            Number(
                "sum",
                r"$\sum_t h_t$" if sign > 0 else r"$-\sum_t h_t$",
                sign * float(weights.predictions.sum()),
                ".4f",
                f"{sign:g} * weights.predictions.sum()",
            ),
            Number(
                "initial",
                "Weight of the initial noise, $w$",
                weights.initial,
                ".4f",
                "weights.initial",
            ),
            Number(
                "noise",
                r"Variance of injected noise, $\sum_t c_t^2$",
                float((noises**2).sum()),
                ".4f",
                "(weights.noises**2).sum()",
            ),
            Number(
                "smallest",
                f"Smallest {weight}",
                float((sign * weights.predictions).min()),
                ".6f",
                f"({sign:g} * weights.predictions).min()",
            ),
            Number(
                "largest",
                f"Largest {weight}",
                float((sign * weights.predictions).max()),
                ".6f",
                f"({sign:g} * weights.predictions).max()",
            ),
        ),
        _python(c, sampler, output, schedule, steps),
    )


def _python(c: float, sampler: str, output: str, schedule: str, steps: int) -> str:
    noise = (
        f"""
sampler = ts.Sampler(sampler.grid, sampler.solver, ts.Churn({c!r}))"""
        if c > 0
        else ""
    )
    return f"""import twosides as ts

sampler = ts.samplers[{sampler!r}]{noise}
plan = ts.plan(sampler, {schedule!r}, {steps})
weights = plan.weights({output!r})   # .initial, .predictions, .noises
matrix = plan.matrix({output!r})
"""
