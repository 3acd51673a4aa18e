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

v, that of Salimans and Ho, is not to be confused with u, which papers on flow matching call v.

    >>> from twosides.schedules import FlowMatching
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
    """What a denoiser estimates of z: the pair with `z = alpha x + sigma eps`."""

    x: Any
    eps: Any


class Solution(NamedTuple):
    """How the pair follows from input and output: `x = x_z z + x_o o, eps = eps_z z + eps_o o`."""

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
    """The linear form `o = a x + b eps`.

    a, b: the coefficients, numbers or functions of the Level.
    """

    name: str
    a: Coefficient
    b: Coefficient

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        """(a, b) at a level of floats or tensors, and of that kind."""
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
        """`log kappa`, finite where kappa itself would overflow; a float64 tensor."""
        like = torch.as_tensor(level.logsnr, dtype=torch.float64)
        a, b = (torch.as_tensor(c, dtype=torch.float64) for c in self.coefficients(level))
        noise, data = b.abs().log(), torch.where(a == 0, -math.inf, a.abs().log() - 0.5 * like)
        high, low = torch.maximum(noise, data), torch.minimum(noise, data)
        ratio = torch.where(torch.isneginf(low), 0.0, (low - high).exp())
        return 2 * (high + torch.log1p(torch.where(a * b > 0, -ratio, ratio)))

    def __neg__(self) -> Output:
        """The same form with the other sign."""
        name = self.name[1:] if self.name.startswith("-") else f"-{self.name}"
        return Output(name, _negative(self.a), _negative(self.b))

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
    any scaling; F is -v for data of unit variance (s = 1). sigma_data: s, the data's deviation.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data is the data's standard deviation, > 0, got {sigma_data}")
    s = float(sigma_data)
    return Output(f"F({s!r})", _EDM(s, "x"), _EDM(s, "eps"))


def kappa(value: float) -> Output:
    """`eps - kappa x`: an output between eps (kappa = 0), u (kappa = 1) and -x (large kappa).

    Solvers integrate it: it is the derivative of z / (alpha + kappa sigma), finite at both ends.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"kappa is a finite number >= 0, got {value}; infinity is the output x")
    return Output(f"kappa({float(value)!r})", -float(value), 1.0)


def velocity(schedule: Schedule) -> Output:
    """The schedule's own velocity, `dz/dt = (dalpha/dt) x + (dsigma/dt) eps`.

    It equals u for flow matching, and depends on the schedule otherwise.
    """

    return Output("velocity", _Slope(schedule, "dalpha"), _Slope(schedule, "dsigma"))


# Coefficients are no lambdas, so that they can be pickled and compared.
def _alpha(level: Level) -> Scalar:
    return level.alpha


def _minus_sigma(level: Level) -> Scalar:
    return -level.sigma


def _minus_inverse_sigma(level: Level) -> Scalar:
    return -1 / level.sigma if isinstance(level.sigma, Tensor) or level.sigma else -math.inf


@dataclass(frozen=True)
class _Negative:
    function: Callable[[Level], Scalar]

    def __call__(self, level: Level) -> Scalar:
        return -self.function(level)


def _negative(c: Coefficient) -> Coefficient:
    if isinstance(c, _Negative):
        return c.function
    return _Negative(c) if callable(c) else -c


@dataclass(frozen=True)
class _EDM:
    """The coefficient of "x" or "eps" in F."""

    sigma_data: float
    of: str

    def __call__(self, level: Level) -> Scalar:
        s = self.sigma_data
        norm = ((s * level.alpha) ** 2 + level.sigma**2) ** 0.5
        return level.sigma / (s * norm) if self.of == "x" else -s * level.alpha / norm


@dataclass(frozen=True)
class _Slope:
    """A schedule's "dalpha" or "dsigma"."""

    schedule: Schedule
    of: str

    def __call__(self, level: Level) -> Scalar:
        value = getattr(self.schedule, self.of)(self.schedule.time(level.logsnr))
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
    """The output of this name; an Output is returned as it is.

    name: a key of `OUTPUTS`, "velocity", "F(0.5)" or "kappa(2)" with any number; any with a minus.
    schedule: the schedule whose velocity "velocity" means.
    """
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
