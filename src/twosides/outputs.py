"""What a network predicts: every output is a linear form `o = a x + b eps`.

One 2 x 2 solve turns any output into the currency of the library, the pair (x, eps) with
`z = alpha x + sigma eps`, which does not depend on the schedule's scaling:

    det = alpha b - sigma a,    x = (b z - sigma o) / det,    eps = (alpha o - a z) / det

and gives the ratio of the squared errors, whatever is predicted:

    |o_hat - o|^2 = kappa |eps_hat - eps|^2,    kappa = (det / alpha)^2 = (b - a sigma / alpha)^2

| name       | a           | b          | det             | predicted by                      |
|------------|-------------|------------|-----------------|-----------------------------------|
| `x`        | 1           | 0          | -sigma          | denoising autoencoders, JiT       |
| `eps`      | 0           | 1          | alpha           | DDPM, Stable Diffusion            |
| `v`        | -sigma      | alpha      | alpha^2+sigma^2 | Salimans & Ho 2022                |
| `u`        | -1          | 1          | alpha + sigma   | flow matching, SD3, FLUX          |
| `score`    | 0           | -1/sigma   | -alpha/sigma    | score matching                    |
| `F(s)`     | sigma/(s n) | -s alpha/n | -n/s            | EDM; n^2 = s^2 alpha^2 + sigma^2  |
| `kappa(k)` | -k          | 1          | alpha + k sigma | none: frames between eps and x    |
| `velocity` | dalpha/dt   | dsigma/dt  |                 | stochastic interpolants, SiT      |

A leading minus flips the sign: `-u` is data minus noise. A new output is one row of `OUTPUTS`.

    >>> from twosides.schedules.schedule import FlowMatching
    >>> OUTPUTS["u"].coefficients(FlowMatching().at(0.5))
    (-1.0, 1.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twosides.naming import split_call, unknown
from twosides.schedules import Level, Scalar, Schedule, along_batch

Coefficient = float | Callable[[Level], Scalar]


class Estimate(NamedTuple):
    """What a denoiser knows of z: `z = alpha x + sigma eps`."""

    x: Any
    eps: Any


class Solution(NamedTuple):
    """The pair from the network's input and output: `x = x_z z + x_o o`, `eps = eps_z z + ...`."""

    x_z: Scalar
    x_o: Scalar
    eps_z: Scalar
    eps_o: Scalar

    def apply(self, z: Any, o: Any) -> Estimate:
        """The estimate; coefficients of shape (B,) act along the first axis of z."""
        x_z, x_o, eps_z, eps_o = (along_batch(value, z) for value in self)
        return Estimate(x_z * z + x_o * o, eps_z * z + eps_o * o)


@dataclass(frozen=True)
class Output:
    """The linear form `o = a x + b eps`; a and b are numbers or functions of the Level."""

    name: str
    a: Coefficient
    b: Coefficient

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        """(a, b) at a level."""
        a = self.a(level) if callable(self.a) else self.a
        b = self.b(level) if callable(self.b) else self.b
        return a, b

    def of(self, x: Any, eps: Any, level: Level) -> Any:
        """The output itself, `a x + b eps`."""
        a, b = self.coefficients(level)
        self._require(level, a, b)
        return along_batch(a, x) * x + along_batch(b, x) * eps

    def solve(self, level: Level) -> Solution:
        """The 2 x 2 solve at a level; ValueError where the output does not determine (x, eps)."""
        a, b = self.coefficients(level)
        self._require(level, a, b)
        det = level.alpha * b - level.sigma * a
        if _any(det == 0):
            raise ValueError(
                f"a network that predicts {self.name} says nothing about the data at "
                f"{_where(level, det == 0)}: z and {self.name} are the same thing there. Start the "
                "grid at a finite log-SNR (UniformTime(start=0.999), a schedule with a finite "
                "logsnr_min), or use a network that predicts u, v or x"
                if self.name != "x"
                else f"a network that predicts x says nothing about the noise at "
                f"{_where(level, det == 0)}: z is alpha x there. End the grid before zero noise "
                f"(UniformTime(end=0.01), a finite logsnr_max)"
            )
        return Solution(b / det, -level.sigma / det, -a / det, level.alpha / det)

    def estimate(self, z: Any, o: Any, level: Level) -> Estimate:
        """(x, eps) from the noisy z and the output o at a level."""
        return self.solve(level).apply(z, o)

    def kappa(self, level: Level) -> Scalar:
        """`|o_hat - o|^2 / |eps_hat - eps|^2 = (b - a sigma / alpha)^2`."""
        a, b = self.coefficients(level)
        return (b - a * (level.sigma / level.alpha)) ** 2

    def log_kappa(self, level: Level) -> Tensor:
        """`log kappa` of tensors, where kappa itself would overflow."""
        like = torch.as_tensor(level.logsnr, dtype=torch.float64)
        a, b = (torch.as_tensor(c, dtype=torch.float64) for c in self.coefficients(level))
        noise, data = b.abs().log(), torch.where(a == 0, -math.inf, a.abs().log() - 0.5 * like)
        high, low = torch.maximum(noise, data), torch.minimum(noise, data)
        ratio = torch.where(torch.isneginf(low), 0.0, (low - high).exp())
        return 2 * (high + torch.log1p(torch.where(a * b > 0, -ratio, ratio)))

    def __neg__(self) -> Output:
        """The same form with the other sign."""
        a, b = self.a, self.b
        return Output(
            self.name.removeprefix("-") if self.name.startswith("-") else f"-{self.name}",
            _Negative.of(a) if callable(a) else -a,
            _Negative.of(b) if callable(b) else -b,
        )

    def _require(self, level: Level, a: Scalar, b: Scalar) -> None:
        total = abs(a) + abs(b) + level.alpha + level.sigma
        if _any((total - total) != 0):
            raise ValueError(
                f"{self.name} is not finite at {_where(level, (total - total) != 0)} "
                "with this scaling; use a level inside, or with_scaling('vp')"
            )


def _any(condition: Any) -> bool:
    # On an accelerator the question would stall the queue; levels are made on the CPU.
    if isinstance(condition, Tensor):
        return condition.device.type == "cpu" and bool(condition.any())
    return bool(condition)


def _where(level: Level, condition: Any) -> str:
    logsnr = level.logsnr
    if isinstance(condition, Tensor) and isinstance(logsnr, Tensor):
        logsnr = logsnr.expand(condition.shape)[condition].reshape(-1)[0]
    value = float(logsnr)
    name = {-math.inf: "zero SNR", math.inf: "zero noise"}.get(value, "this level")
    return f"{name} (logsnr {value:.4g})"


def F(sigma_data: float = 0.5) -> Output:
    """EDM's network output: `F = (sigma x / s - s alpha eps) / n`, `n^2 = s^2 alpha^2 + sigma^2`.

    With this, `x = c_skip z + c_out F` is the preconditioning of Karras et al. 2022 (Table 1) in
    any scaling; F is -v for unit-variance data (s = 1).
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data is the data's standard deviation, > 0, got {sigma_data}")
    name = f"F({float(sigma_data)!r})"
    return Output(name, _EDMData(float(sigma_data)), _EDMNoise(float(sigma_data)))


def kappa(value: float) -> Output:
    """`eps - kappa x`: eps at 0, u at 1, towards -x for large kappa; a frame for solvers.

    `c = alpha + kappa sigma` vanishes at neither end of the log-SNR line.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"kappa is a finite number >= 0, got {value}; infinity is the output x")
    return Output(f"kappa({float(value)!r})", -float(value), 1.0)


def velocity(schedule: Schedule) -> Output:
    """The schedule's own velocity, `dz/dt = (dalpha/dt) x + (dsigma/dt) eps`.

    It equals u for flow matching, and depends on the schedule otherwise.
    """

    return Output("velocity", _Slope(schedule, "alpha"), _Slope(schedule, "sigma"))


# Coefficients that depend on the level are functions and classes of this module, not lambdas: they
# can be pickled, sent to other processes, and compared.


def _alpha(level: Level) -> Scalar:
    return level.alpha


def _minus_sigma(level: Level) -> Scalar:
    return -level.sigma


def _minus_inverse_sigma(level: Level) -> Scalar:
    zero = not isinstance(level.sigma, Tensor) and level.sigma == 0
    return -math.inf if zero else -1 / level.sigma


@dataclass(frozen=True)
class _Negative:
    function: Callable[[Level], Scalar]

    @staticmethod
    def of(function: Callable[[Level], Scalar]) -> Callable[[Level], Scalar]:
        return function.function if isinstance(function, _Negative) else _Negative(function)

    def __call__(self, level: Level) -> Scalar:
        return -self.function(level)


@dataclass(frozen=True)
class _EDMData:
    sigma_data: float

    def __call__(self, level: Level) -> Scalar:
        return level.sigma / (self.sigma_data * _edm_norm(self.sigma_data, level))


@dataclass(frozen=True)
class _EDMNoise:
    sigma_data: float

    def __call__(self, level: Level) -> Scalar:
        return -self.sigma_data * level.alpha / _edm_norm(self.sigma_data, level)


def _edm_norm(sigma_data: float, level: Level) -> Scalar:
    return ((sigma_data * level.alpha) ** 2 + level.sigma**2) ** 0.5


@dataclass(frozen=True)
class _Slope:
    """The derivative in time of "alpha" or "sigma" on a schedule."""

    schedule: Schedule
    of: str

    def __call__(self, level: Level) -> Scalar:
        slope = self.schedule.dalpha if self.of == "alpha" else self.schedule.dsigma
        value = slope(self.schedule.time(level.logsnr))
        return value if isinstance(level.logsnr, Tensor) else float(value)


OUTPUTS: dict[str, Output] = {
    "x": Output("x", 1.0, 0.0),
    "eps": Output("eps", 0.0, 1.0),
    "v": Output("v", _minus_sigma, _alpha),
    "u": Output("u", -1.0, 1.0),
    "score": Output("score", 0.0, _minus_inverse_sigma),
    "F": F(),
}


def output_named(name: str | Output, schedule: Schedule) -> Output:
    """The output of this name: "u", "velocity", "F(0.5)", "kappa(2)", any of them with a minus."""
    if isinstance(name, Output):
        return name
    if name.startswith("-"):
        return -output_named(name[1:], schedule)
    if name == "velocity":
        return velocity(schedule)
    base, numbers = split_call(name)
    makers = {"F": F, "kappa": kappa}
    if base in makers and len(numbers) == 1:
        return makers[base](numbers[0])
    if base in OUTPUTS and not numbers:
        return OUTPUTS[base]
    raise unknown("output", name, [*OUTPUTS, "velocity", "kappa(1)"])
