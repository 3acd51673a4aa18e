"""The dictionary between (f, g, eta) of the SDE and (alpha, sigma, epsilon) of the flow."""

from __future__ import annotations

import functools
import math
from typing import Any

import twosides as ts
from twosides.explorer import expressions
from twosides.explorer.figure import (
    Axis,
    Choice,
    Figure,
    Invalid,
    Mark,
    Number,
    Panel,
    Range,
    Text,
    View,
    table,
)
from twosides.explorer.names import SCHEDULES

TEXT = r"""A diffusion model is given by its forward process $dz = f z\,dt + g\,dW$ and the noise
$\eta$ of its reversal; flow matching by $z = \alpha x + \sigma\epsilon$ and $\varepsilon_t$. They
translate exactly:

$$f = \frac{d\log\alpha}{dt},\quad g^2 = -\sigma^2\frac{d\lambda}{dt},\quad \varepsilon_t =
\eta\,g,\qquad \alpha = e^{\int f},\quad \sigma^2 = \alpha^2\int g^2/\alpha^2$$

The post prints $\sigma$ without the factor $\alpha$; for VP-linear at $t = 0.9$ that makes it 58.84
times too large. Type $f$ and $g$ of your own, or choose a schedule; the readout goes there and
back.

The table states the noise of one step in the coordinates of every paper: the post's churn, EDM's,
DDIM's $\eta$, SA-Solver's $\tau$, SiT's diffusion coefficient. All are one quantity.
"""

FIGURE = Figure(
    "dictionary",
    "The SDE and ODE dictionary",
    TEXT,
    (
        Choice("given", "Given", (("schedule", "a schedule"), ("sde", "$f$ and $g$")), "schedule"),
        Choice("schedule", "Schedule", SCHEDULES, "vp-linear", when={"given": ("schedule",)}),
        Text(
            "f",
            "$f(t)$",
            "-0.5*(0.1 + 19.9*t)",
            80,
            "numbers, t, + - * / **, sqrt, exp, log, sin, ...",
            when={"given": ("sde",)},
        ),
        Text("g", "$g(t)$", "sqrt(0.1 + 19.9*t)", 80, "", when={"given": ("sde",)}),
        Text("eta", r"$\eta(t)$: 0 the ODE, 1 DDPM", "1", 80),
        Range("t", "Time $t$ of the step", 0.05, 0.95, 0.01, 0.5),
        Range("steps", "Steps of the run", 2, 1000, 1, 20, integer=True, log=True),
    ),
    "twosides.explorer.figures.dictionary:compute",
    frames={
        "schedule": tuple(n for n, _ in SCHEDULES),
        "t": (0.1, 0.3, 0.5, 0.7, 0.9),
        "steps": (5, 20, 100),
    },
)

COORDINATES = (
    "Eta",
    "Churn",
    "DDIMEta",
    "Tau",
    "Epsilon",
    "Diffusion",
    "EDMChurn",
    "Overshoot",
    "Rectified",
)
WORDS = {
    "Eta": r"$\eta$ of the reverse SDE",
    "Churn": "Churn $c$ of the post",
    "DDIMEta": r"DDIM's $\eta$, Euler ancestral",
    "Tau": r"SA-Solver's $\tau$",
    "Epsilon": r"$\varepsilon_t$ of flow matching",
    "Diffusion": "SiT's $D$",
    "EDMChurn": r"EDM's $S_\mathrm{churn}$",
    "Overshoot": "Overshoot, in log-SNR",
    "Rectified": "Rectified-flow ancestral",
}

LETTERS = {
    "f": "$f$",
    "g": "$g$",
    "eta": r"$\eta$",
    "epsilon": r"$\varepsilon$",
    "alpha": r"$\alpha$",
    "sigma": r"$\sigma$",
    "logsnr": r"log-SNR $\lambda$",
}


@functools.lru_cache(64)
def process(given: str, schedule: str, f: str, g: str, eta: str) -> tuple[Any, Any]:
    """The dynamics and the schedule, from f and g by quadrature; ValueError if there are none."""
    import torch

    from twosides.schedules import schedule_named

    noise = expressions.parse(eta, "eta")[0]
    inside = noise(torch.linspace(0.001, 0.999, 99, dtype=torch.float64))
    if not bool((torch.isfinite(inside) & (inside >= 0)).all()):
        raise Invalid("eta must be finite and not negative inside (0, 1)", "eta")
    if given == "schedule":
        made = schedule_named(schedule)
        return ts.dynamics.Dynamics.of(made, eta=noise), made
    drift, diffusion = expressions.parse(f, "f")[0], expressions.parse(g, "g")[0]
    times = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    values = torch.stack([drift(times), diffusion(times)])
    if not bool(torch.isfinite(values).all()) or not bool((values[1] > 0).all()):
        raise Invalid("f and g must be finite, and g > 0, inside (0, 1)", "f")
    if float(values.abs().max()) > 1e4:
        raise Invalid("f and g must stay below 10,000 inside (0, 1)", "f")
    made = ts.dynamics.FromSDE(drift, diffusion)
    reached = torch.stack([*made.values(times), made.logsnr(times)])
    fine = bool(torch.isfinite(reached).all()) and bool((reached[2].diff() < 0).all())
    if not fine or math.isnan(made.logsnr_max + abs(made.logsnr_min)):
        raise Invalid(
            "f and g make no schedule in floating point: the integral of f must be finite up to "
            "t < 1, and log-SNR fall. A pole of f may be at t = 1 only",
            "f",
        )
    return ts.dynamics.Dynamics(drift, diffusion, noise), made


def compute(given: str, schedule: str, f: str, g: str, eta: str, t: float, steps: int) -> View:
    """Both sides over time, the error of going there and back, and the noise of one step.

    The step runs from t down to t - 1/steps, at least to t/2.
    """
    import torch

    from twosides.sampling.noise import Step

    dynamics, made = process(given, schedule, f, g, eta)
    times = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    arrays = {
        "f": dynamics.f(times),
        "g": dynamics.g(times),
        "eta": dynamics.eta(times),
        "epsilon": dynamics.epsilon(times),
        "alpha": made.alpha(times),
        "sigma": made.sigma(times),
        "logsnr": made.logsnr(times),
    }
    step = Step.between(made, t, max(t - 1 / steps, 0.5 * t), steps)
    found = {
        name: coordinate(name, float(dynamics.eta(torch.tensor(t, dtype=torch.float64))), step)
        for name in COORDINATES
    }
    gap = _round_trip(given, schedule, f, g)
    return View(
        (
            _plot(r"The diffusion's side: $f$, $g$, $\eta$", times, arrays, ("f", "g", "eta")),
            _plot(
                r"The flow's side: $\alpha$, $\sigma$, $\varepsilon$",
                times,
                arrays,
                ("alpha", "sigma", "epsilon"),
            ),
            _plot("log-SNR", times, arrays, ("logsnr",)),
            table(
                "The noise of one step, in every paper's words",
                ["words", "class", "value"],
                [[WORDS[name], name, value] for name, value in found.items()],
                f"From $t = {t:g}$ to {max(t - 1 / steps, 0.5 * t):.4g}, one of {steps} steps.",
            ),
        ),
        (
            Number("gap", "There and back, largest relative error", gap, ".1e", "gap"),
            *(
                Number(name, WORDS[name], value, ".6g", f"coordinates[{name!r}]")
                for name, value in found.items()
                if not math.isnan(value)
            ),
        ),
        _python(given, schedule, f, g, eta, t, steps),
    )


def coordinate(name: str, eta: float, step: Any) -> float:
    """The coordinate of class `name` for the noise eta on a step; NaN if there is none."""
    from twosides.sampling import noise

    try:
        return float(noise.convert(ts.Eta(eta), getattr(noise, name), step).value)
    except ValueError:
        return math.nan


@functools.lru_cache(64)
def _round_trip(given: str, schedule: str, f: str, g: str) -> float:
    """The largest relative error of translating there and back."""
    import torch

    dynamics, made = process(given, schedule, f, g, "0")
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    if given == "sde":
        pairs = ((ts.dynamics.f(made, t), dynamics.f(t)), (ts.dynamics.g(made, t), dynamics.g(t)))
        return max(float(((a - b) / b.abs().clamp(min=1e-9)).abs().max()) for a, b in pairs)
    start = made.at(0.0)
    back = dynamics.schedule(float(start.alpha), float(start.sigma))
    pairs = ((back.alpha(t), made.alpha(t)), (back.sigma(t), made.sigma(t)))
    return max(float((a / b - 1).abs().max()) for a, b in pairs)


def _plot(title: str, times: Any, arrays: dict[str, Any], names: tuple[str, ...]) -> Panel:
    marks = tuple(
        Mark(
            "line",
            LETTERS[name],
            i,
            {"x": times.numpy(), "y": arrays[name].numpy()},
            {},
            {"x": "times", "y": f"arrays[{name!r}]"},
        )
        for i, name in enumerate(names)
    )
    return Panel("plot", title, Axis("$t$, data to noise", 0, 1), Axis(""), marks)


def _python(given: str, schedule: str, f: str, g: str, eta: str, t: float, steps: int) -> str:
    noise = expressions.parse(eta, "eta")[1]
    if given == "schedule":
        setup = f"""schedule = schedule_named({schedule!r})
process = ts.dynamics.Dynamics.of(schedule, eta=lambda t: {noise})   # alpha, sigma -> f, g
start = schedule.at(0.0)
back = process.schedule(float(start.alpha), float(start.sigma))   # f, g -> alpha, sigma"""
        gap = """max(float((a / b - 1).abs().max()) for a, b in (
    (back.alpha(times), schedule.alpha(times)), (back.sigma(times), schedule.sigma(times))
))"""
    else:
        drift, diffusion = expressions.parse(f, "f")[1], expressions.parse(g, "g")[1]
        setup = f"""process = ts.dynamics.Dynamics(
    lambda t: {drift}, lambda t: {diffusion}, lambda t: {noise}
)
schedule = process.schedule()   # f, g -> alpha, sigma"""
        gap = """max(float(((a - b) / b.abs().clamp(min=1e-9)).abs().max()) for a, b in (
    (ts.dynamics.f(schedule, times), process.f(times)),
    (ts.dynamics.g(schedule, times), process.g(times)),
))"""
    return f"""import torch
import twosides as ts
from twosides.sampling import noise
from twosides.schedules import schedule_named

{setup}
times = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
arrays = dict(
    f=process.f(times), g=process.g(times), eta=process.eta(times), epsilon=process.epsilon(times),
    alpha=schedule.alpha(times), sigma=schedule.sigma(times), logsnr=schedule.logsnr(times),
)
gap = {gap}

step = noise.Step.between(schedule, {t!r}, {max(t - 1 / steps, 0.5 * t)!r}, {steps})
eta = ts.Eta(float(process.eta(torch.tensor({t!r}, dtype=torch.float64))))
coordinates = {{}}
for name in {COORDINATES}:
    try:
        coordinates[name] = noise.convert(eta, getattr(noise, name), step).value
    except ValueError:
        pass   # this coordinate has no value for it
"""
