"""Frames and variables: what a solver of higher order integrates, and what it is a polynomial in.

A *frame* belongs to an output `o = a x + b eps` with constant a and b. It turns the
probability-flow ODE into one whose right-hand side is the network alone (the reparametrisation of
the post, for any output):

    d(z / c) = o d(eta),    c = b alpha - a sigma
    eta_s - eta_t = (sigma_s alpha_t - sigma_t alpha_s) / (c_s c_t)

| output           | c                   | eta                           | finite at              |
|------------------|---------------------|-------------------------------|------------------------|
| `x`              | -sigma              | -alpha / sigma                | the noise end          |
| `eps`            | alpha               | sigma / alpha                 | the data end           |
| `u`              | alpha + sigma       | sigma / (alpha + sigma)       | both                   |
| `kappa(k)`       | alpha + k sigma     | sigma / (alpha + k sigma)     | both                   |

The a and b of some outputs, such as v, change with the level. For the length of a step such an
output has the frame of the values that a and b take at the start of the step; the frame of v is
then that of kappa(sigma / alpha), which is finite at both ends.

A *variable* is a monotone function of the log-SNR. If o is held constant over a step, every frame
gives DDIM. The solvers of higher order hold it to be a polynomial instead, and differ in the output
and in the variable of that polynomial: eta, the log-SNR, the time t of the schedule, the number of
the step, or the eta of another output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from twosides.outputs import Estimate, Output, output_named
from twosides.schedules import FlowMatching, Level, Schedule

Array = NDArray[np.float64]


class Variable(NamedTuple):
    """A monotone function of logsnr and its inverse, on float64 arrays."""

    of: Callable[[Array], Array]
    logsnr: Callable[[Array], Array]

    def moved(self, by: float) -> Variable:
        """The same function of `logsnr + by`."""
        return Variable(lambda logsnr: self.of(logsnr + by), lambda value: self.logsnr(value) - by)


class Frame(NamedTuple):
    """The frame of the output `a x + b eps`."""

    a: float
    b: float

    @classmethod
    def regular(cls, output: str | Output, level: Level, schedule: Schedule) -> Frame | None:
        """The frame of an output at a level; None where it is singular.

        There c is 0, or a or b infinite, and only the step that holds the estimate is finite.
        """
        a, b = (float(value) for value in output_named(output, schedule).coefficients(level))
        frame = cls(a, b)
        finite = np.isfinite(a) and np.isfinite(b)
        return frame if finite and frame.scale(level.alpha, level.sigma) != 0 else None

    def output(self, estimate: Estimate) -> Any:
        """`a x + b eps`."""
        if self.a == 0:
            return self.b * estimate.eps
        if self.b == 0:
            return self.a * estimate.x
        return self.a * estimate.x + self.b * estimate.eps

    def scale(self, alpha: Any, sigma: Any) -> Any:
        """c, which z is divided by."""
        return self.b * alpha - self.a * sigma

    def gap(self, start: Level, logsnr: Any) -> Any:
        """`eta(logsnr) - eta(start)` for log-SNRs as numbers or arrays, in any scaling."""
        alpha, sigma = unit(logsnr)
        moved = sigma * start.alpha - start.sigma * alpha
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return moved / (self.scale(alpha, sigma) * self.scale(start.alpha, start.sigma))

    @property
    def eta(self) -> Variable:
        """eta as a variable: `r / (b (b - a r))` with r = sigma / alpha, or `-1 / (a^2 r)`."""
        return Variable(partial(_eta, self), partial(_logsnr_of_eta, self))


def _eta(frame: Frame, logsnr: Array) -> Array:
    alpha, sigma = unit(logsnr)
    with np.errstate(divide="ignore"):
        if frame.b == 0:
            return -alpha / (sigma * frame.a**2)
        return sigma / (frame.b * frame.scale(alpha, sigma))


def _logsnr_of_eta(frame: Frame, eta: Array) -> Array:
    a, b = frame
    with np.errstate(divide="ignore"):
        if b == 0:
            return 2 * np.log(-eta * a * a)
        # r = b^2 eta / (1 + a b eta); two logarithms keep both ends exact.
        return 2 * ((np.log1p(a * b * eta) if a else 0.0) - np.log(b * b * eta))


def unit(logsnr: Any) -> tuple[Any, Any]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1, for numbers or arrays, +-inf included."""
    logsnr = np.asarray(logsnr, dtype=np.float64)
    return np.exp(-0.5 * np.logaddexp(0, -logsnr)), np.exp(-0.5 * np.logaddexp(0, logsnr))


def variable_named(name: str | Output, schedule: Schedule) -> Variable:
    """The variable of a name.

    name: "logsnr", "t" (the time of `schedule`), "angle" (the time of the cosine schedule, whatever
        `schedule` is), or an output, whose eta it is. The a and b of that output must not change
        with the level: "u", "eps", "kappa(2)" will do, "v" is a ValueError.
    """
    if name == "logsnr":
        return Variable(lambda logsnr: logsnr, lambda logsnr: logsnr)
    if name == "t":
        return Variable(
            lambda logsnr: _time(schedule, logsnr),
            lambda t: schedule.logsnr(torch.as_tensor(t).clamp(0, 1)).numpy(),
        )
    if name == "angle":
        return Variable(_angle, _logsnr_of_angle)
    output = output_named(name, schedule)
    if callable(output.a) or callable(output.b):
        raise ValueError(
            f"{output.name} is no variable: its coefficients change with the level; use 'logsnr', "
            "'t', 'angle' or the name of an output with constant ones, such as 'u' or 'eps'"
        )
    return Frame(output.a, output.b).eta


def variable_of(name: str | Output | None, frame: Frame, schedule: Schedule) -> Variable | None:
    """The variable of a solver: by default (None) the eta of its frame.

    None is the answer for "index": the polynomial is then one in the number of the step.
    """
    if name == "index":
        return None
    return frame.eta if name is None else variable_named(name, schedule)


def check(output: str | Output, variable: str | Output | None = None, limit: float = 0.0) -> None:
    """ValueError for the parameters of a solver that no run could use."""
    output_named(output, FlowMatching())
    if variable not in (None, "index"):
        variable_named(variable, FlowMatching())
    if not limit >= 0:
        raise ValueError(f"limit is a number >= 0, infinity for none, got {limit}")


def power(rho: float) -> Variable:
    """`r^(1 / rho)` with r = sigma / alpha, the variable of Karras's grid."""
    return Variable(
        lambda logsnr: np.exp(-0.5 * logsnr / rho), lambda root: -2 * rho * np.log(root)
    )


def _time(schedule: Schedule, logsnr: Array) -> Array:
    """The schedule's t. Outside its range it is infinite, as singular variables are at an end."""
    low, high = schedule.logsnr_min, schedule.logsnr_max
    t = schedule.time(torch.as_tensor(np.clip(logsnr, low, high))).numpy()
    slack = 1e-6 * (1 + np.abs(logsnr))
    with np.errstate(invalid="ignore"):
        return np.where((logsnr < low - slack) | (logsnr > high + slack), np.inf, t)


def _angle(logsnr: Array) -> Array:
    return np.arctan(np.exp(-0.5 * logsnr)) * (2 / np.pi)


def _logsnr_of_angle(angle: Array) -> Array:
    with np.errstate(divide="ignore"):
        quarter = 0.5 * np.pi
        return 2 * (np.log(np.sin(quarter * (1 - angle))) - np.log(np.sin(quarter * angle)))


# The nodes at which a polynomial is integrated against d(eta): exact for eta itself, and to 1e-14
# for steps of up to 30 in log-SNR.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
NODES, WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS
