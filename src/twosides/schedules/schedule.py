"""Noise schedules: a time warp t <-> logsnr and a scaling convention, nothing else.

A Gaussian diffusion or flow model sees `z = alpha x + sigma eps`, with t = 0 data and t = 1 noise.
All that matters of a schedule is

    logsnr(t) = log(alpha^2 / sigma^2)        the time warp, decreasing in t
    c = the common scale of (alpha, sigma)    the scaling convention, a function of logsnr

because two schedules with the same logsnr differ by a rescaling of z. The conventions are

    "vp"    alpha^2 + sigma^2 = 1   alpha = sqrt(sigmoid(logsnr)),  sigma = sqrt(sigmoid(-logsnr))
    "flow"  alpha + sigma = 1       alpha = sigmoid(logsnr / 2),    sigma = sigmoid(-logsnr / 2)
    "ve"    alpha = 1               sigma = exp(-logsnr / 2)

Everything is computed in float64 from logsnr by forms that stay exact at both ends: logsnr = -inf
(alpha = 0) and logsnr = +inf (sigma = 0) are ordinary values, and nothing is clamped.

Derivatives in time go through the flow time `tau = sigma / (alpha + sigma)` in [0, 1], whose rate
dtau/dt stays finite where dlogsnr/dt is infinite.

    >>> from twosides.schedules import FlowMatching
    >>> FlowMatching().at(0.25)
    Level(logsnr=2.1972, alpha=0.75, sigma=0.25)
    >>> FlowMatching().shifted(3.0).at(1.0)
    Level(logsnr=-inf, alpha=0, sigma=1)
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules.level import SCALINGS, Level, Scalar, Scaling, _Custom, _float64


def with_limits(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """`function(t)`, with its one-sided limit where a product 0 * inf makes it NaN at t = 0 or 1.

    At 0 the limit is read off at t = 1e-100; at 1, where floats are 1e-16 apart, it is
    extrapolated from 1 - 2^-20 and 1 - 2^-21.
    """
    value = function(t)
    missing = torch.isnan(value)
    if t.device.type == "cpu" and not bool(missing.any()):
        return value
    near, nearer = (function(torch.full_like(t, 1 - 2.0**-power)) for power in (20, 21))
    limit = torch.where(t == 0, function(torch.full_like(t, 1e-100)), 2 * nearer - near)
    return torch.where(missing & ((t == 0) | (t == 1)), limit, value)


class Schedule(abc.ABC):
    """A noise schedule: a subclass states the time warp, and levels and derivatives follow.

    A new schedule is a frozen dataclass with `scaling` and three formulas on float64 tensors:
    `_logsnr(t)`, its inverse `_time(logsnr)`, and `_rate(t) = dtau/dt`. Times are in [0, 1].

    It is not to be confused with the levels at which a sampler calls a network,
    nor with the density from which training draws levels, nor with diffusers' schedulers.
    """

    scaling: Scaling | str

    @abc.abstractmethod
    def _logsnr(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _time(self, logsnr: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _rate(self, t: Tensor) -> Tensor: ...

    def logsnr(self, t: Scalar) -> Tensor:
        """`log(alpha^2 / sigma^2)` at t in [0, 1], decreasing; ValueError outside."""
        return self._logsnr(self._checked_time(t))

    def time(self, logsnr: Scalar) -> Tensor:
        """The t in [0, 1] with the given logsnr; ValueError outside the schedule's range."""
        logsnr = _float64(logsnr)
        low, high = self.logsnr_min, self.logsnr_max
        if logsnr.device.type == "cpu" and not bool((inside := self.covers(logsnr)).all()):
            bad = logsnr[~inside].reshape(-1)[0].item()
            raise ValueError(
                f"logsnr {bad:.6g} was asked of {self}, which covers [{low:.6g}, {high:.6g}]; "
                "choose a grid inside this range, or a schedule that reaches further"
            )
        return self._time(logsnr.clamp(low, high)).clamp(0, 1)

    def covers(self, logsnr: Scalar) -> Tensor:
        """Whether the schedule reaches a log-SNR, but for what rounding to float32 may add."""
        logsnr = _float64(logsnr)
        # An infinite level must be meant.
        slack = torch.where(logsnr.isinf(), 0.0, 1e-6 * (1 + logsnr.abs()))
        return (logsnr >= self.logsnr_min - slack) & (logsnr <= self.logsnr_max + slack)

    def rate(self, t: Scalar) -> Tensor:
        """dtau/dt of the flow time tau = sigma / (alpha + sigma)."""
        return with_limits(self._rate, self._checked_time(t))

    def level(self, logsnr: Scalar) -> Level:
        """The level with this log-SNR in this schedule's scaling; +-inf are legal."""
        logsnr = _float64(logsnr)
        return Level(logsnr, *self._scaling.levels(logsnr))

    def at(self, t: Scalar) -> Level:
        """The level at time t."""
        return self.level(self.logsnr(t))

    def alpha(self, t: Scalar) -> Tensor:
        """Weight of the data at time t."""
        return self.at(t).alpha

    def sigma(self, t: Scalar) -> Tensor:
        """Weight of the noise at time t."""
        return self.at(t).sigma

    def dlogsnr(self, t: Scalar) -> Tensor:
        """dlogsnr/dt = -2 (dtau/dt) / (tau (1 - tau)); negative, -inf where logsnr is infinite."""
        logsnr = self.logsnr(t)
        slope = -2 * self.rate(t) / (torch.sigmoid(0.5 * logsnr) * torch.sigmoid(-0.5 * logsnr))
        return torch.where(logsnr.isinf(), -math.inf, slope)

    def dalpha(self, t: Scalar) -> Tensor:
        """dalpha/dt."""
        return with_limits(lambda t: self._slopes(t)[0], self._checked_time(t))

    def dsigma(self, t: Scalar) -> Tensor:
        """dsigma/dt."""
        return with_limits(lambda t: self._slopes(t)[1], self._checked_time(t))

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        dalpha, dsigma = self._scaling.slopes(self._logsnr(t))
        rate = self._rate(t)
        return dalpha * rate, dsigma * rate

    @functools.cached_property
    def logsnr_min(self) -> float:
        """log-SNR at t = 1 (noise); -inf if alpha(1) = 0."""
        return float(self._logsnr(_float64(1.0)))

    @functools.cached_property
    def logsnr_max(self) -> float:
        """log-SNR at t = 0 (data); +inf if sigma(0) = 0."""
        return float(self._logsnr(_float64(0.0)))

    def shifted(self, factor: float) -> Schedule:
        """The schedule of `logsnr - 2 log(factor)`; a factor above 1 is noisier (SD3, FLUX)."""
        return ShiftedSchedule(self, factor)

    def with_scaling(self, scaling: str | Callable[[Tensor], Tensor]) -> Schedule:
        """The same time warp in another scaling convention.

        scaling: "vp", "flow", "ve", or a torch function of logsnr that states the norm,
            `sqrt(alpha^2 + sigma^2) = scaling(logsnr)`. dalpha/dt and dsigma/dt come by automatic
            differentiation. To be asked at infinite logsnr, too, the function has a method
            `slope(logsnr)`, its derivative in tau with the limits at both ends.
        """
        return Rescaled(self, scaling)

    @property
    def _scaling(self) -> Scaling:
        return SCALINGS[self.scaling] if isinstance(self.scaling, str) else self.scaling

    def _checked_time(self, t: Scalar) -> Tensor:
        t = _float64(t)
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            bad = t[~((t >= 0) & (t <= 1))].reshape(-1)[0].item()
            raise ValueError(f"time {bad} was asked of {self}; t runs from 0 (data) to 1 (noise)")
        return t


@dataclass(frozen=True)
class ShiftedSchedule(Schedule):
    """`base` with logsnr moved by -2 log(factor), in the same scaling convention.

    For flow matching t becomes s t / (1 + (s - 1) t), the shift of SD3 and FLUX.
    """

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        """Refuse factors that are not positive."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"a schedule is shifted by a positive factor, got {self.factor}")

    @property
    def scaling(self) -> Scaling | str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base's."""
        return self.base.scaling

    def _logsnr(self, t: Tensor) -> Tensor:
        return self.base.logsnr(t) - 2 * math.log(self.factor)

    def _time(self, logsnr: Tensor) -> Tensor:
        return self.base.time(logsnr + 2 * math.log(self.factor))

    def _rate(self, t: Tensor) -> Tensor:
        tau = torch.sigmoid(-0.5 * self.base.logsnr(t))
        return self.base.rate(t) * self.factor / (1 + (self.factor - 1) * tau) ** 2


@dataclass(frozen=True)
class Rescaled(Schedule):
    """`base` in the scaling convention `to`; see `Schedule.with_scaling`."""

    base: Schedule
    to: str | Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        """Refuse unknown conventions."""
        if isinstance(self.to, str) and self.to not in SCALINGS:
            raise ValueError(
                f"unknown scaling {self.to!r}; choose one of {sorted(SCALINGS)}, or pass "
                "sqrt(alpha^2 + sigma^2) as a function of logsnr"
            )

    @property
    def scaling(self) -> Scaling | str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The convention `to`."""
        return self.to if isinstance(self.to, str) else _Custom(self.to)

    def _logsnr(self, t: Tensor) -> Tensor:
        return self.base.logsnr(t)

    def _time(self, logsnr: Tensor) -> Tensor:
        return self.base.time(logsnr)

    def _rate(self, t: Tensor) -> Tensor:
        return self.base.rate(t)
