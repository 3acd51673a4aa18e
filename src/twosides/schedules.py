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
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twosides.naming import named

Scalar = Any  # a float or a float64 tensor: the formulas below use operators only


class Level(NamedTuple):
    """A noise level of `z = alpha x + sigma eps`: floats (sampling) or (B,) tensors (training)."""

    logsnr: Scalar
    alpha: Scalar
    sigma: Scalar

    @property
    def scale(self) -> Scalar:
        """`alpha + sigma`: what z must be divided by to lose its scaling convention."""
        return self.alpha + self.sigma

    def mix(self, x: Any, eps: Any) -> Any:
        """`alpha x + sigma eps`, with levels of shape (B,) applied along the first axis."""
        return along_batch(self.alpha, x) * x + along_batch(self.sigma, x) * eps

    def floats(self) -> Level:
        """The same level as Python floats (for levels of one element)."""
        return Level(*(float(value) for value in self))

    def __repr__(self) -> str:
        """Short form, for people."""
        values = zip(self._fields, self, strict=True)
        return f"Level({', '.join(f'{name}={_short(value)}' for name, value in values)})"


def _short(value: Scalar) -> str:
    single = not isinstance(value, Tensor) or value.ndim == 0
    return f"{float(value):.5g}" if single else repr(value)


def along_batch(value: Scalar, like: Any) -> Any:
    """A level's (B,) tensor with the dtype, device and number of axes of `like`; floats as is."""
    if not isinstance(value, Tensor) or not isinstance(like, Tensor):
        return value
    value = value.to(like.device, like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


def _float64(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


# ---------------------------------------------------------------------------- scalings


class Scaling(abc.ABC):
    """(alpha, sigma) as functions of logsnr, and their derivatives in the flow time tau."""

    @abc.abstractmethod
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at logsnr."""

    @abc.abstractmethod
    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dtau, dsigma/dtau) at logsnr, tau = sigma / (alpha + sigma)."""


class _VP(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        logsigmoid = torch.nn.functional.logsigmoid
        return (0.5 * logsigmoid(logsnr)).exp(), (0.5 * logsigmoid(-logsnr)).exp()

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        data, noise = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        norm = torch.hypot(data, noise) ** 3
        return -noise / norm, data / norm


class _Flow(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(logsnr)
        return -one, one


class _VE(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(logsnr), (-0.5 * logsnr).exp()

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(logsnr), torch.sigmoid(0.5 * logsnr) ** -2


@dataclass(frozen=True)
class _Custom(Scaling):
    """`sqrt(alpha^2 + sigma^2) = norm(logsnr)`; its slope at infinite logsnr is the limit."""

    norm: Callable[[Tensor], Tensor]

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        norm, (alpha, sigma) = self.norm(logsnr), _VP().levels(logsnr)
        return norm * alpha, norm * sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        vp, vp_slopes = _VP().levels(logsnr), _VP().slopes(logsnr)
        at_noise, at_data = self._at_ends
        slope = self._slope(logsnr)
        slope = torch.where(logsnr == -torch.inf, at_noise, slope)
        slope = torch.where(logsnr == torch.inf, at_data, slope)
        norm = self.norm(logsnr)
        return norm * vp_slopes[0] + slope * vp[0], norm * vp_slopes[1] + slope * vp[1]

    @functools.cached_property
    def _at_ends(self) -> tuple[float, float]:
        return self._slope_at_end(-1), self._slope_at_end(1)

    def _slope(self, logsnr: Tensor) -> Tensor:
        """dnorm/dtau."""
        stretch = -2 / (torch.sigmoid(0.5 * logsnr) * torch.sigmoid(-0.5 * logsnr))
        slope = derivative(self.norm, logsnr)
        return torch.where(slope == 0, slope, slope * stretch)

    def _slope_at_end(self, end: int) -> float:
        """At logsnr = end * inf: of the polynomial in the distance to it, or 0, or infinite.

        A norm that is smooth in tau has a slope that Neville's scheme extrapolates to rounding. Of
        others, such as tanh(logsnr / 3), it falls or grows like a power.
        """
        away = 2.0 ** -torch.arange(8, 14, dtype=torch.float64)
        values = self._slope(end * 2 * torch.logit(1 - away))
        before, found = values, values
        for order in range(1, len(away)):
            left, right = away[:-order], away[order:]
            before, found = found, (left * found[1:] - right * found[:-1]) / (left - right)
        size = float(values.abs().max()) + 1.0
        if float((found - before[-1]).abs()) < 1e-9 * size:
            return float(found) if abs(float(found)) > 1e-11 * size else 0.0
        falls = bool((values[1:].abs() <= values[:-1].abs()).all())
        return 0.0 if falls else math.copysign(math.inf, float(values[-1]))


SCALINGS: dict[str, Scaling] = {"vp": _VP(), "flow": _Flow(), "ve": _VE()}


def derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """d function / d at, elementwise, by automatic differentiation (zero for constants)."""
    with torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        value = function(point)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return torch.zeros_like(at)
        return torch.autograd.grad(value.sum(), point)[0]


def with_limits(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """`function(t)`, with its one-sided limit where a product 0 * inf has none at t = 0 or 1.

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


# ---------------------------------------------------------------------------- schedules


class Schedule(abc.ABC):
    """A noise schedule. Subclasses state the time warp; levels and derivatives follow.

    A new schedule is a frozen dataclass with `scaling` and three formulas on float64 tensors:
    `_logsnr(t)`, its inverse `_time(logsnr)`, and `_rate(t) = dtau/dt`. Times are in [0, 1].
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
        """Whether a log-SNR is within the schedule's range, rounding to float32 forgiven."""
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
        """`logsnr - 2 log(factor)`: the SD3/FLUX and resolution shift; factor > 1 is noisier."""
        return Shifted(self, factor)

    def with_scaling(self, scaling: str | Callable[[Tensor], Tensor]) -> Schedule:
        """The same time warp with scaling "vp", "flow", "ve", or a function of logsnr.

        A function states the norm: `sqrt(alpha^2 + sigma^2) = scaling(logsnr)` (1 is "vp").
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
class FlowMatching(Schedule):
    """Rectified flow / flow matching [Lipman+ 2022, Liu+ 2022].

    alpha = 1 - t,  sigma = t,  logsnr = 2 log((1 - t) / t)
    """

    scaling = "flow"

    def _logsnr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())

    def _time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * logsnr)

    def _rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule [Nichol & Dhariwal 2021], optionally truncated and with their offset.

        alpha = cos(pi t / 2),  sigma = sin(pi t / 2)                                  offset = 0
        alpha = cos(psi) / cos(psi_0),  psi = (pi / 2) (t + s) / (1 + s)               offset = s

    With finite `logsnr_min`, `logsnr_max` time is stretched (affinely) so that [0, 1] covers that
    range: logsnr = -2 log tan(a + t (b - a)) with a, b the angles of the ends (VDM, the post's
    churn figure: [-15, 15]). iDDPM's discrete model has s = 0.008 and covers [-19.84, 10.10].

        >>> Cosine(-15, 15).at(1.0).logsnr
        tensor(-15., dtype=torch.float64)
    """

    logsnr_min: float = -math.inf  # pyright: ignore[reportIncompatibleVariableOverride]
    logsnr_max: float = math.inf  # pyright: ignore[reportIncompatibleVariableOverride]
    offset: float = 0.0

    scaling = "vp"

    def __post_init__(self) -> None:
        """Refuse empty ranges and negative offsets."""
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"Cosine covers [logsnr_min, logsnr_max], but got [{self.logsnr_min}, "
                f"{self.logsnr_max}]; the minimum (noise) must be the smaller"
            )
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"Cosine's offset is a small number >= 0 (0.008), got {self.offset}")

    @property
    def _quarter(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self._quarter * self.offset

    @functools.cached_property
    def _ends(self) -> tuple[float, float, float]:
        """Time before the range, after it, and inside it, on the untruncated clock."""
        before = float(self._from_data(_float64(self.logsnr_max)))
        after = float(self._to_noise(_float64(self.logsnr_min)))
        return before, after, 1 - before - after

    def _from_data(self, logsnr: Tensor) -> Tensor:
        """Untruncated t, accurate near 0: tan(delta) from sin(d) sin(d + 2 psi_0) = k."""
        k = math.cos(self._start) ** 2 * torch.sigmoid(-logsnr)
        sine, cosine = math.sin(2 * self._start), math.cos(2 * self._start)
        tangent = 2 * k / (sine + (sine**2 + 4 * k * (cosine - k)).clamp(min=0).sqrt())
        return torch.where(k == 0, k, torch.atan(tangent)) / self._quarter

    def _to_noise(self, logsnr: Tensor) -> Tensor:
        """Untruncated 1 - t, accurate near 0: sin(pi/2 - psi) = cos(psi_0) alpha."""
        alpha = (0.5 * torch.nn.functional.logsigmoid(logsnr)).exp()
        return torch.asin(math.cos(self._start) * alpha) / self._quarter

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(psi - psi_0, pi/2 - psi), each accurate near its own zero."""
        before, after, inside = self._ends
        return self._quarter * (before + t * inside), self._quarter * (after + (1 - t) * inside)

    def _logsnr(self, t: Tensor) -> Tensor:
        done, left = self._angles(t)
        noise = done.sin().log() + (done + 2 * self._start).sin().log()
        return 2 * left.sin().log() - noise

    def _time(self, logsnr: Tensor) -> Tensor:
        before, after, inside = self._ends
        near_data = (self._from_data(logsnr) - before) / inside
        near_noise = 1 - (self._to_noise(logsnr) - after) / inside
        return torch.where(logsnr > 0, near_data, near_noise)

    def _rate(self, t: Tensor) -> Tensor:
        # tau = s / (a + s) with a = cos(psi) and s^2 = sin(d) sin(d + 2 psi_0) = a_0^2 - a^2.
        done, left = self._angles(t)
        a, s = left.sin(), (done.sin() * (done + 2 * self._start).sin()).sqrt()
        speed = self._quarter * self._ends[2]
        if self.offset == 0:
            return speed / (a + s) ** 2
        return speed * math.cos(self._start) ** 2 * left.cos() / (s * (a + s) ** 2)


@dataclass(frozen=True)
class VPLinear(Schedule):
    """The VP-SDE with linear beta(t) [Song+ 2021]; DDPM's schedule in continuous time.

    alpha^2 = exp(-B),  B = beta_min t + (beta_max - beta_min) t^2 / 2,  sigma^2 = 1 - alpha^2
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    scaling = "vp"

    def __post_init__(self) -> None:
        """Refuse rates that do not grow from a positive value."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"VPLinear needs 0 < beta_min <= beta_max, got {self}")

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _logsnr(self, t: Tensor) -> Tensor:
        total = self._integral(t)
        return -total - (-torch.expm1(-total)).log()

    def _time(self, logsnr: Tensor) -> Tensor:
        total = -torch.nn.functional.logsigmoid(logsnr)
        growth = 2 * (self.beta_max - self.beta_min)
        return 2 * total / (self.beta_min + (self.beta_min**2 + growth * total).sqrt())

    def _rate(self, t: Tensor) -> Tensor:
        total = self._integral(t)
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        a, s = (-0.5 * total).exp(), (-torch.expm1(-total)).sqrt()
        return 0.5 * beta * a / (s * (a + s) ** 2)


@dataclass(frozen=True)
class EDM(Schedule):
    """Karras et al. 2022: alpha = 1 and sigma from sigma_min to sigma_max by a power of time.

    sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    scaling = "ve"

    def __post_init__(self) -> None:
        """Refuse empty ranges."""
        if not (0 <= self.sigma_min < self.sigma_max < math.inf and self.rho > 0):
            raise ValueError(f"EDM needs 0 <= sigma_min < sigma_max and rho > 0, got {self}")

    @property
    def _roots(self) -> tuple[float, float]:
        low = self.sigma_min ** (1 / self.rho)
        return low, self.sigma_max ** (1 / self.rho) - low

    def _logsnr(self, t: Tensor) -> Tensor:
        low, width = self._roots
        return -2 * self.rho * (low + width * t).log()

    def _time(self, logsnr: Tensor) -> Tensor:
        low, width = self._roots
        return ((-0.5 * logsnr / self.rho).exp() - low) / width

    def _rate(self, t: Tensor) -> Tensor:
        low, width = self._roots
        root = low + width * t
        return self.rho * width * root ** (self.rho - 1) / (1 + root**self.rho) ** 2


@dataclass(frozen=True)
class Geometric(Schedule):
    """The VE-SDE [Song+ 2021]: alpha = 1, log sigma (and so logsnr) linear in time."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    scaling = "ve"

    def __post_init__(self) -> None:
        """Refuse empty ranges."""
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"Geometric needs 0 < sigma_min < sigma_max, got {self}")

    @property
    def _logs(self) -> tuple[float, float]:
        low = math.log(self.sigma_min)
        return low, math.log(self.sigma_max) - low

    def _logsnr(self, t: Tensor) -> Tensor:
        low, width = self._logs
        return -2 * (low + width * t)

    def _time(self, logsnr: Tensor) -> Tensor:
        low, width = self._logs
        return (-0.5 * logsnr - low) / width

    def _rate(self, t: Tensor) -> Tensor:
        sigma = (-0.5 * self._logsnr(t)).exp()
        return self._logs[1] * sigma / (1 + sigma) ** 2


# ---------------------------------------------------------------------------- discrete tables


class Tabulated(Schedule):
    """A discrete model's N levels as a continuous schedule: index k is time k / (N - 1).

    logsnr is interpolated linearly in the index, so `time` recovers fractional indices exactly.
    Where one end of an interval is infinite (zero terminal SNR), the flow time tau is interpolated
    instead: alpha then goes to zero linearly.
    """

    scaling = "vp"
    zero_terminal_snr: bool

    @abc.abstractmethod
    def _betas(self) -> Tensor: ...

    @functools.cached_property
    def table(self) -> Tensor:
        """logsnr of the N levels, strictly decreasing, float64 (N,)."""
        return logsnr_of_betas(self._betas(), zero_terminal_snr=self.zero_terminal_snr)

    @property
    def count(self) -> int:
        """N."""
        return len(self.table)

    def _segment(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self.table.to(device)
        return table[index], table[index + 1]

    def _logsnr(self, t: Tensor) -> Tensor:
        position = t * (self.count - 1)
        index = position.floor().clamp(0, self.count - 2).long()
        high, low = self._segment(index, t.device)
        part = position - index
        tau_high, tau_low = torch.sigmoid(-0.5 * high), torch.sigmoid(-0.5 * low)
        tau = tau_high + part * (tau_low - tau_high)
        data = (1 - tau_low) + (1 - part) * (tau_low - tau_high)
        curved = 2 * (data.log() - tau.log())
        straight = high + part * (low - high)
        return torch.where(torch.isfinite(high) & torch.isfinite(low), straight, curved)

    def _time(self, logsnr: Tensor) -> Tensor:
        ascending = self.table.flip(0).to(logsnr.device)
        index = self.count - torch.searchsorted(ascending, logsnr.contiguous(), right=False) - 1
        index = index.clamp(0, self.count - 2)
        high, low = self._segment(index, logsnr.device)
        straight = (high - logsnr) / (high - low)
        tau, tau_high, tau_low = (torch.sigmoid(-0.5 * value) for value in (logsnr, high, low))
        curved = (tau - tau_high) / (tau_low - tau_high)
        part = torch.where(torch.isfinite(high) & torch.isfinite(low), straight, curved)
        return (index + part) / (self.count - 1)

    def _rate(self, t: Tensor) -> Tensor:
        index = (t * (self.count - 1)).floor().clamp(0, self.count - 2).long()
        high, low = self._segment(index, t.device)
        logsnr = self._logsnr(t)
        tau = torch.sigmoid(-0.5 * logsnr)
        straight = 0.5 * (high - low) * tau * torch.sigmoid(0.5 * logsnr)
        curved = torch.sigmoid(-0.5 * low) - torch.sigmoid(-0.5 * high)
        finite = torch.isfinite(high) & torch.isfinite(low)
        return torch.where(finite, straight, curved) * (self.count - 1)


def logsnr_of_betas(betas: Tensor, *, zero_terminal_snr: bool = False) -> Tensor:
    """logsnr of `alpha_bar_k = prod(1 - beta)`, by sums of log1p and expm1; float64 (N,).

    `zero_terminal_snr` applies the rescaling of Lin et al. 2023 (Algorithm 1): sqrt(alpha_bar) is
    moved and stretched affinely so that the last is 0 and the first stays.
    """
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("betas must be at least two numbers in (0, 1), one per step")
    log_alpha_bar = torch.log1p(-betas.to(torch.float64)).cumsum(0)
    if not zero_terminal_snr:
        return log_alpha_bar - (-torch.expm1(log_alpha_bar)).log()
    root = (0.5 * log_alpha_bar).exp()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return 2 * root.log() - torch.log1p(-(root**2))


@dataclass(frozen=True)
class Betas(Tabulated):
    """Any discrete model, from its betas (one per step)."""

    betas: tuple[float, ...]
    zero_terminal_snr: bool = False

    @classmethod
    def squared_cosine(cls, steps: int = 1000) -> Betas:
        """iDDPM's, diffusers' "squaredcos_cap_v2" [Nichol & Dhariwal 2021, eq. 17].

        alpha_bar = cos^2(pi/2 (t + 0.008) / 1.008), with betas of at most 0.999.
        """
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        kept = torch.cos(0.5 * math.pi * (t + 0.008) / 1.008) ** 2
        return cls(tuple((1 - kept[1:] / kept[:-1]).clamp(max=0.999).tolist()))

    def __post_init__(self) -> None:
        """ValueError for betas that are not probabilities; lists become tuples."""
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        logsnr_of_betas(self._betas())

    def _betas(self) -> Tensor:
        return torch.tensor(self.betas, dtype=torch.float64)

    def __repr__(self) -> str:
        """Without the whole table."""
        ends = f"{self.betas[0]:.4g} ... {self.betas[-1]:.4g}"
        return f"Betas({len(self.betas)} steps, {ends}, zero_terminal_snr={self.zero_terminal_snr})"


@dataclass(frozen=True)
class ScaledLinear(Tabulated):
    """Stable Diffusion's 1000 steps: sqrt(beta) linear in the index (`power=2`).

    `power=1` with beta_start=1e-4, beta_end=0.02 is DDPM's table [Ho+ 2020]. SD's covers
    logsnr in [-5.364, 7.069]; `zero_terminal_snr` as in Lin et al. 2023.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    power: float = 2.0
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """ValueError for betas that do not grow inside (0, 1)."""
        object.__setattr__(self, "steps", int(self.steps))
        if not (0 < self.beta_start < self.beta_end < 1 and self.steps >= 2 and self.power > 0):
            raise ValueError(
                f"ScaledLinear needs 0 < beta_start < beta_end < 1, steps >= 2, power > 0: {self}"
            )

    def _betas(self) -> Tensor:
        ends = self.beta_start ** (1 / self.power), self.beta_end ** (1 / self.power)
        return torch.linspace(*ends, self.steps, dtype=torch.float64) ** self.power


# ---------------------------------------------------------------------------- wrappers


@dataclass(frozen=True)
class Shifted(Schedule):
    """`base` with logsnr moved by -2 log(factor); keeps the scaling convention.

    For flow matching t becomes s t / (1 + (s - 1) t), the SD3 / FLUX shift.
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
    """`base` in another scaling convention: "vp", "flow", "ve" or the norm as a function."""

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
        """The one asked for."""
        return self.to if isinstance(self.to, str) else _Custom(self.to)

    def _logsnr(self, t: Tensor) -> Tensor:
        return self.base.logsnr(t)

    def _time(self, logsnr: Tensor) -> Tensor:
        return self.base.time(logsnr)

    def _rate(self, t: Tensor) -> Tensor:
        return self.base.rate(t)


@dataclass(frozen=True)
class EDMInput:
    """The scaling in which EDM's networks see z, `c_in = 1 / sqrt(sigma^2 + sigma_data^2)`.

    For `with_scaling`: the norm is that of x + sigma n, times `gain`. With a gain of sigma_data
    alpha is 1 at the data.

        >>> import torch
        >>> level = EDM().with_scaling(EDMInput(0.5)).level(0.0)
        >>> round(float(level.alpha) * 1.25**0.5, 12)
        1.0
    """

    sigma_data: float = 0.5
    gain: float = 1.0

    def __call__(self, logsnr: Tensor) -> Tensor:
        """`sqrt(alpha^2 + sigma^2)` at a log-SNR."""
        noise = torch.sigmoid(-logsnr)  # sigma^2 / (1 + sigma^2)
        return self.gain * (noise + self.sigma_data**2 * (1 - noise)) ** -0.5


# ---------------------------------------------------------------------------- from functions


class _Numerical(Schedule):
    """A schedule given by functions of time; its inverse is found by iteration."""

    @abc.abstractmethod
    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t."""

    @abc.abstractmethod
    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dt, dsigma/dt) at t."""

    @property
    def scaling(self) -> Scaling:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The functions' own."""
        return _Own(self)

    def _time(self, logsnr: Tensor) -> Tensor:
        # Secant steps in logit(t), where logsnr is nearly straight up to both ends, kept in a
        # bracket that is bisected whenever a step leaves it.
        inside = logsnr.clamp(-1400, 1400)
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        t, before = torch.sigmoid(-0.5 * inside), torch.sigmoid(-0.5 * inside - 0.1)
        miss_before = self._logsnr(before) - inside
        for _ in range(80):
            miss = self._logsnr(t) - inside
            low, high = torch.where(miss < 0, low, t), torch.where(miss < 0, t, high)
            slope = (miss - miss_before) / (torch.logit(t) - torch.logit(before))
            step = torch.sigmoid(torch.logit(t) - miss / slope)
            step = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
            before, miss_before = t, miss
            t = torch.where(miss == 0, t, step)
            if t.device.type == "cpu" and bool(((t - before).abs() <= 1e-16 * t).all()):
                break
        found = torch.where(logsnr <= self.logsnr_min, torch.ones_like(t), t)
        return torch.where(logsnr >= self.logsnr_max, torch.zeros_like(t), found)

    def _rate(self, t: Tensor) -> Tensor:
        (alpha, sigma), (dalpha, dsigma) = self.values(t), self.slopes(t)
        return (alpha * dsigma - sigma * dalpha) / (alpha + sigma) ** 2

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.slopes(t)


@dataclass(frozen=True)
class _Own(Scaling):
    """The scaling of a schedule that is stated as (alpha, sigma)(t).

    Beyond the schedule's range, where a sampler may overshoot, the norm of its end is held.
    """

    schedule: _Numerical

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        reached = logsnr.clamp(self.schedule.logsnr_min, self.schedule.logsnr_max)
        own = self.schedule.values(self.schedule.time(reached))
        beyond = torch.hypot(*own) * torch.stack(_VP().levels(logsnr))
        alpha, sigma = torch.where(reached == logsnr, torch.stack(own), beyond)
        return alpha, sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        t = self.schedule.time(logsnr)
        return self.schedule.dalpha(t) / self.schedule.rate(t), self.schedule.dsigma(
            t
        ) / self.schedule.rate(t)


@dataclass(frozen=True)
class FromFunctions(_Numerical):
    """A schedule from `alpha(t)` and `sigma(t)`, torch functions with alpha/sigma decreasing.

    Derivatives by automatic differentiation, `time` by iteration to float64.

        >>> import torch
        >>> ours = FromFunctions(lambda t: 1 - t**2, lambda t: t)
        >>> round(float(ours.time(ours.logsnr(0.3))), 12)
        0.3
    """

    alpha_function: Callable[[Tensor], Tensor]
    sigma_function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        """Refuse pairs whose signal-to-noise ratio does not fall."""
        logsnr = self._logsnr(torch.linspace(0, 1, 129, dtype=torch.float64))
        if not bool((logsnr.diff() < 0).all()):
            raise ValueError(
                "alpha(t)/sigma(t) must fall strictly from t = 0 (data) to t = 1 (noise), with "
                "alpha, sigma >= 0; at 129 equally spaced times it does not. Is time reversed?"
            )

    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t."""
        return self.alpha_function(t), self.sigma_function(t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dt, dsigma/dt) at t."""
        return derivative(self.alpha_function, t), derivative(self.sigma_function, t)

    def _logsnr(self, t: Tensor) -> Tensor:
        alpha, sigma = self.values(t)
        return 2 * (alpha.log() - sigma.log())


@dataclass(frozen=True)
class FromSDE(_Numerical):
    """A schedule from its forward process `dz = f(t) z dt + g(t) dW`.

        alpha_t   = alpha_0 exp(int_0^t f)
        sigma_t^2 = alpha_t^2 (sigma_0^2 / alpha_0^2 + int_0^t g^2 / alpha^2)

    (the post prints sigma_t without the factor alpha_t). Integrals by Gauss-Legendre rules on
    panels that shrink towards both ends, so poles of f and g at t = 0 or 1 keep their accuracy;
    where f(1) is infinite alpha(1) is 0.
    """

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    alpha_0: float = 1.0
    sigma_0: float = 0.0

    @functools.cached_property
    def _panels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Panel edges, and the integrals of f and of g^2/alpha^2 up to each edge."""
        halves = 2.0 ** -np.arange(1, 50)
        edges = np.unique(np.concatenate([[0.0, 1.0], halves, 1 - halves]))
        fine = [np.linspace(a, b, 5)[:-1] for a, b in pairwise(edges[:-1])]
        edges = _float64(np.concatenate([*fine, edges[-2:-1]]))
        growth = torch.cat([edges.new_zeros(1), self._integral(self.f, edges[:-1], edges[1:])])
        growth = growth.cumsum(0)
        energy = self._energy(edges[:-1], edges[1:], growth[:-1])
        return edges, growth, torch.cat([edges.new_zeros(1), energy]).cumsum(0)

    @staticmethod
    def _integral(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
        nodes, weights = (_float64(part) for part in np.polynomial.legendre.leggauss(8))
        half = 0.5 * (high - low)[..., None]
        return (function(low[..., None] + half * (nodes + 1)) * weights * half).sum(-1)

    def _energy(self, low: Tensor, high: Tensor, growth: Tensor) -> Tensor:
        def integrand(t: Tensor) -> Tensor:
            inner = self._integral(self.f, low[..., None].expand_as(t), t)
            return self.g(t) ** 2 * (-2 * (growth[..., None] + inner)).exp()

        return self._integral(integrand, low, high) / self.alpha_0**2

    def _growth_energy(self, t: Tensor) -> tuple[Tensor, Tensor]:
        edges, growth, energy = self._panels
        panel = (torch.searchsorted(edges, t.contiguous(), right=True) - 1).clamp(min=0)
        low = edges[panel]
        inside = growth[panel] + self._integral(self.f, low, t)
        total = energy[panel] + self._energy(low, t, growth[panel])
        ended = (t == 1) & ~torch.isfinite(self.f(t))
        infinite = torch.full_like(t, math.inf)
        return torch.where(ended, -infinite, inside), torch.where(ended, infinite, total)

    def _logsnr(self, t: Tensor) -> Tensor:
        return -(self._growth_energy(t)[1] + (self.sigma_0 / self.alpha_0) ** 2).log()

    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t; sigma(1) is the limit at t -> 1 where f(1) is infinite."""
        growth, _ = self._growth_energy(t)
        return self.alpha_0 * growth.exp(), with_limits(self._noise, t)

    def _noise(self, t: Tensor) -> Tensor:
        growth, energy = self._growth_energy(t)
        return self.alpha_0 * growth.exp() * (energy + (self.sigma_0 / self.alpha_0) ** 2).sqrt()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """dalpha/dt = f alpha and dsigma/dt = f sigma + g^2 / (2 sigma)."""
        alpha, sigma = self.values(t)
        return self.f(t) * alpha, self.f(t) * sigma + self.g(t) ** 2 / (2 * sigma)

    def _rate(self, t: Tensor) -> Tensor:
        alpha, sigma = self.values(t)
        return alpha * self.g(t) ** 2 / (2 * sigma * (alpha + sigma) ** 2)


SCHEDULES: dict[str, Schedule] = {
    "flow-matching": FlowMatching(),
    "cosine": Cosine(),
    "vp-linear": VPLinear(),
    "edm": EDM(),
    "geometric": Geometric(),
    "scaled-linear": ScaledLinear(),
}


def schedule_named(name: str | Schedule) -> Schedule:
    """A schedule by name, with its numbers if wanted.

    >>> schedule_named("cosine(-15, 15)").logsnr_max
    15.0
    """
    return name if isinstance(name, Schedule) else named("schedule", name, SCHEDULES)
