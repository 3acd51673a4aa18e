"""Adaptive steps: a Runge-Kutta pair that chooses its own grid, to a tolerance.

A frame is the variable in which the probability-flow ODE has an output alone on its right-hand side
(`frames`). For an output o with constant coefficients it reads

    d(z / c) = o d(eta)

and for u both ends of the log-SNR line are ordinary points of it. Two Runge-Kutta methods that
share their stages give a step and its error, relative to the tolerance (`integrate.Adaptive`),

    error = max over samples of the rms over elements of |y - y_lower| / (atol + rtol max |y|),

where the maximum is over the two ends of the step. A step is accepted if its error is at most 1. A
PID controller makes the next step size from this error and the two before it [Soderlind 2003],

    h' / h = 0.9 error_n^(-b_1 / k) error_(n-1)^(-b_2 / k) error_(n-2)^(-b_3 / k),
    (b_1, b_2, b_3) = (P + I + D, -(P + 2 D), D),    k the order of the pair.

The whole batch takes the same steps, so that a sample depends on its batch within the tolerance.
Adaptive steps are meant for references and likelihoods: with fewer than some 40 calls, Adams on a
fixed grid is more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import Denoises, as_denoiser
from twosides.ode.integrate import Adaptive, State, integrate
from twosides.outputs import Output, output_named
from twosides.placement import check_floating
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.frames import Frame, Variable, unit
from twosides.schedules import FlowMatching, Level, Schedule, schedule_named


@dataclass(frozen=True)
class Path:
    """The part of the ODE between two levels, in the frame of an output with constant coefficients.

    frame: the frame, in which z is divided by c and the variable is eta.
    start, end: the two levels.
    """

    frame: Frame
    start: Level
    end: Level

    @classmethod
    def of(cls, output: str | Output, start: Level, end: Level) -> Path:
        """The path in the frame of an output.

        ValueError for outputs whose coefficients change with the level, and for frames that are
        singular between the two levels.
        """
        form = output_named(output, FlowMatching())
        if callable(form.a) or callable(form.b):
            raise ValueError(
                f"{form.name} has coefficients that change with the level, which leaves more than "
                "the network on the ODE's right-hand side; integrate 'u', 'kappa(k)', 'eps' or 'x'"
            )
        path = cls(Frame(form.a, form.b), start.floats(), end.floats())
        scales = np.array([path.scale(path.start), path.scale(path.end)])
        regular = np.isfinite(path.ends).all() and np.isfinite(scales).all()
        if not regular or scales[0] * scales[1] <= 0:
            raise ValueError(
                f"the frame of {form.name} is singular on the way from {path.start} to {path.end}; "
                "integrate 'u', which is finite from zero SNR to zero noise (scalings 'vp' and "
                "'flow'), or stop at levels inside"
            )
        return path

    @cached_property
    def _eta(self) -> Variable:
        return self.frame.eta

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The values of eta at the start and at the end."""
        first, last = self._eta.of(np.array([self.start.logsnr, self.end.logsnr])).tolist()
        return first, last

    def level(self, eta: float) -> Level:
        """The level at eta: the given one at an end, in between one with alpha^2 + sigma^2 = 1."""
        given = dict(zip(self.ends, (self.start, self.end), strict=True))
        if eta in given:
            return given[eta]
        logsnr = float(self._eta.logsnr(np.array([eta]))[0])
        alpha, sigma = unit(logsnr)
        return Level(logsnr, float(alpha), float(sigma))

    def scale(self, level: Level) -> float:
        """The c of a level, by which z is divided."""
        return float(self.frame.scale(level.alpha, level.sigma))


class Solved(NamedTuple):
    """The result of `solve`.

    z: the state at the end.
    calls: the number of network calls.
    rejected: how many steps were done again with a smaller size.
    levels: the levels at which accepted steps begin and end.
    """

    z: Tensor
    calls: int
    rejected: int
    levels: list[Level]


@torch.no_grad()
def solve(
    denoiser: Denoises,
    z: Tensor,
    start: Level,
    end: Level,
    adaptive: Adaptive = Adaptive(),
    *,
    output: str | Output = "u",
    record: Callable[[Level, Tensor], None] | None = None,
    **conditioning: Any,
) -> Solved:
    """Solve the probability-flow ODE from one level to another, towards data or noise.

    denoiser: the denoiser. It is asked at both ends, so that one that predicts x cannot end at zero
        noise.
    z: the state (B, ...) at `start`, in the scaling of `start` and the network's units of data; the
        result is in the scaling of `end`.
    start, end: the levels.
    adaptive: the method and the tolerances of one step, for z / c.
    output: the frame, that of an output with constant coefficients. Only u and kappa(k) reach both
        ends of the log-SNR line.
    record: a function that is called with (level, z) at each accepted node; levels between the ends
        have alpha^2 + sigma^2 = 1.
    conditioning: what else the network is told.

    ValueError for frames that are singular between the levels, RuntimeError as for `integrate`.
    """
    check_floating(z.dtype, "z")
    denoiser = as_denoiser(denoiser)
    path = Path.of(output, start, end)

    def field(eta: float, y: State) -> State:
        level = path.level(eta)
        estimate = denoiser(path.scale(level) * y[0], level, **conditioning)
        return (path.frame.output(estimate),)

    def show(eta: float, y: State) -> None:
        if record is not None:
            record(path.level(eta), path.scale(path.level(eta)) * y[0])

    first, last = path.ends
    done = integrate(field, (z / path.scale(path.start),), first, last, adaptive, record=show)
    levels = [path.level(eta) for eta in done.nodes]
    return Solved(path.scale(path.end) * done.y[0], done.calls, done.rejected, levels)


def sample_adaptive(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    schedule: str | Schedule | None = None,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **options: Any,
) -> Tensor:
    """Samples of shape (B, ...) by `solve`, from pure noise to the data end of a schedule.

    shape: the shape of the samples, that of the batch included.
    schedule: its ends are the start and the end; by default the denoiser's own.
    seed: the seed of the noise, which is the same as that of `sample`; by default a fresh one.
    dtype, device: those of the state.
    options: further arguments of `solve`, such as `adaptive`, and the conditioning.
    """
    denoiser = as_denoiser(denoiser)
    schedule = schedule_named(schedule or denoiser.schedule)
    noisy, clean = (schedule.at(t).floats() for t in (1.0, 0.0))
    count, *event = map(int, shape)
    own = PerSample(fresh_seed() if seed is None else seed, range(count))
    z = own.normal(event, dtype, device) * math.hypot(noisy.alpha, noisy.sigma)
    x = solve(denoiser, z, noisy, clean, **options).z / clean.alpha
    return denoiser.unstandardise(x)
