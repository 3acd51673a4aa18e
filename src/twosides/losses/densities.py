"""Densities p(logsnr): the distributions from which training draws noise levels.

Given the weighting w, p only changes the variance of the loss. A density draws by its inverse
distribution function, so that stratified points u in (0, 1) give stratified levels: like time, u =
0 is data and u = 1 noise.

| density          | p(logsnr)                      | recipes                                      |
|------------------|--------------------------------|----------------------------------------------|
| `FromSchedule`   | abs(dt/dlogsnr)                | uniform time: DDPM, flow matching, v-cosine  |
| `Normal`         | N(mean, std^2)                 | EDM (log-normal sigma), SD3 (logit-normal t) |
| `NormalMin`      | the least of two normal draws  | MeanFlow, where its t = r                    |
| `Uniform`        | constant on [low, high]        | VDM                                          |
| `Laplace`        | exp(-abs(logsnr - mean)/b)/2b  | Hang & Gu 2024                               |
| `Mode`           | t = u + s (u - sin^2(pi u/2))  | SD3's heavy tails                            |
| `UShape`         | exp(a t) + exp(a (1 - t))      | rectified flow ++, reflow                    |
| `ShiftedDensity` | p(logsnr + 2 log s)            | SD3 and FLUX at high resolution              |
| `Table`          | constant in bins               | a density that was measured                  |
| `Adaptive`       | the error, while training      | VDM++, InfoNoise: `losses.learned`           |

The density of flow matching's uniform time is sech^2(logsnr/4)/8, that of the cosine schedule
sech(logsnr/2)/(2 pi). SD3's cosmap is the latter, stated as a time on the flow-matching schedule
with `t/(1 - t) = tan(pi u/2)`. `truncation` has densities of the levels that a given network knows.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from twosides.schedules import Cosine, Schedule


class Density(abc.ABC):
    """A distribution of the log-SNR. Tensors are in float64."""

    @abc.abstractmethod
    def logsnr(self, u: Tensor) -> Tensor:
        """The inverse distribution function: the log-SNR at u in (0, 1)."""

    @abc.abstractmethod
    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The log-density log p(logsnr); -inf outside the support."""

    def log_divisor(self, logsnr: Tensor) -> Tensor:
        """The logarithm of what a sample's loss is divided by: p, so that p does not matter."""
        return self.log_prob(logsnr)

    def share_above(self, logsnr: float) -> float:
        """The probability of levels above `logsnr`, its u; by bisection to the last bit."""
        low, high = 0.0, 1.0
        while low < (middle := low + (high - low) / 2) < high:
            above = float(self.logsnr(torch.tensor(middle, dtype=torch.float64))) > logsnr
            low, high = (middle, high) if above else (low, middle)
        return 0.0 if high < 1e-300 else high

    def shifted(self, factor: float) -> Density:
        """The density of `logsnr - 2 log(factor)`, that of a shifted schedule; > 1 is noisier."""
        return ShiftedDensity(self, factor)


def _log_dtau(logsnr: Tensor) -> Tensor:
    """The logarithm of the slope `|dtau/dlogsnr| = tau (1 - tau) / 2`, tau = sigmoid(-logsnr/2)."""
    spread = torch.nn.functional.logsigmoid
    return spread(0.5 * logsnr) + spread(-0.5 * logsnr) - math.log(2)


@dataclass(frozen=True)
class FromSchedule(Density):
    """The density of uniform time on a schedule, `p = |dt/dlogsnr|`."""

    schedule: Schedule

    def logsnr(self, u: Tensor) -> Tensor:
        """The log-SNR of the schedule at t = u."""
        return self.schedule.logsnr(u)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log(tau (1 - tau) / 2) - log(dtau/dt)`, from logsnr itself so that tails are exact."""
        low, high = self.schedule.logsnr_min, self.schedule.logsnr_max
        rate = self.schedule.rate(self.schedule.time(logsnr.clamp(low, high)))
        inside = _log_dtau(logsnr) - rate.log()
        return torch.where((logsnr >= low) & (logsnr <= high), inside, -math.inf)

    def __str__(self) -> str:
        return f"uniform t of {self.schedule}"


@dataclass(frozen=True)
class Normal(Density):
    """A normal distribution of the log-SNR.

    mean: its mean.
    std: its standard deviation, > 0.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        """ValueError for a std that is not positive and finite."""
        if not (self.std > 0 and math.isfinite(self.mean + self.std)):
            raise ValueError(f"a normal density needs a finite mean and std > 0, got {self}")

    @classmethod
    def log_normal_sigma(cls, mean: float, std: float) -> Normal:
        """EDM's `log(sigma/alpha) ~ N(P_mean, P_std^2)` [Karras+ 2022]."""
        return cls(-2 * mean, 2 * std)

    @classmethod
    def logit_normal(cls, mean: float, std: float) -> Normal:
        """SD3's `logit(t) ~ N(mean, std^2)` on the flow-matching schedule [Esser+ 2024]."""
        return cls(-2 * mean, 2 * std)

    def logsnr(self, u: Tensor) -> Tensor:
        """`mean + std Phi^-1(1 - u)`."""
        return self.mean - self.std * torch.special.ndtri(u)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The normal log-density."""
        scaled = (logsnr - self.mean) / self.std
        return -0.5 * scaled**2 - math.log(self.std * math.sqrt(2 * math.pi))

    def __str__(self) -> str:
        return f"N({self.mean:.4g}, {self.std:.4g}^2)"


@dataclass(frozen=True)
class NormalMin(Density):
    """The smaller of two draws of a `Normal`: the later of two logit-normal times.

    MeanFlow draws two times, calls the later t and the other r, and sets r to t for most samples,
    which is flow matching at t [Geng+ 2025].

    base: the density of each draw.
    """

    base: Normal

    def logsnr(self, u: Tensor) -> Tensor:
        """The base's log-SNR at sqrt(u): both times are below t with the probability u."""
        return self.base.logsnr(u.sqrt())

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log(2 p(logsnr) P(the other draw > logsnr))`."""
        above = torch.special.log_ndtr((self.base.mean - logsnr) / self.base.std)
        return math.log(2) + self.base.log_prob(logsnr) + above

    def __str__(self) -> str:
        return f"least of 2 of {self.base}"


@dataclass(frozen=True)
class Uniform(Density):
    """A uniform distribution of the log-SNR on [low, high], both finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """ValueError unless low < high and both are finite."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"a uniform density needs finite low < high, got {self.low}, {self.high}"
            )

    def logsnr(self, u: Tensor) -> Tensor:
        """`high - u (high - low)`."""
        return self.high - u * (self.high - self.low)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`-log(high - low)` inside the interval."""
        inside = (logsnr >= self.low) & (logsnr <= self.high)
        return torch.where(
            inside, torch.full_like(logsnr, -math.log(self.high - self.low)), -math.inf
        )

    def __str__(self) -> str:
        return f"uniform on [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Laplace(Density):
    """The density `exp(-|logsnr - mean| / scale) / (2 scale)` [Hang & Gu 2024: 0 and 0.5]."""

    mean: float = 0.0
    scale: float = 0.5

    def __post_init__(self) -> None:
        """ValueError for a scale that is not positive."""
        if not (self.scale > 0 and math.isfinite(self.mean + self.scale)):
            raise ValueError(f"a Laplace density needs a finite mean and scale > 0, got {self}")

    def logsnr(self, u: Tensor) -> Tensor:
        """`mean -+ scale log(2 min(u, 1 - u))`."""
        away = -self.scale * (2 * torch.minimum(u, 1 - u)).log()
        return self.mean + torch.where(u < 0.5, away, -away)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The Laplace log-density."""
        return -(logsnr - self.mean).abs() / self.scale - math.log(2 * self.scale)

    def __str__(self) -> str:
        return f"Laplace({self.mean:.4g}, {self.scale:.4g})"


class Symmetric(Density):
    """A density of flow matching's time with `p(t) = p(1 - t)`, stated on the half near the data.

    Both halves are computed from the end that is near, so that tails are exact.
    """

    @abc.abstractmethod
    def _time(self, u: Tensor) -> Tensor:
        """The time t <= 1/2 at u <= 1/2."""

    @abc.abstractmethod
    def _log_prob(self, t: Tensor) -> Tensor:
        """The log-density log p(t) of times t <= 1/2."""

    def logsnr(self, u: Tensor) -> Tensor:
        """`2 log((1 - t) / t)` near the data, and its mirror image near the noise."""
        t = self._time(torch.minimum(u, 1 - u))
        logsnr = 2 * (torch.log1p(-t) - t.log())
        return torch.where(u < 0.5, logsnr, -logsnr)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log p(t) + log |dt/dlogsnr|`."""
        return self._log_prob(torch.sigmoid(-0.5 * logsnr.abs())) + _log_dtau(logsnr)


@dataclass(frozen=True)
class Mode(Symmetric):
    """SD3's mode sampling, `t = u + scale (u - sin^2(pi u / 2))` [Esser+ 2024].

    scale: in [-1, 2/(pi - 2)]. 0 is uniform time; more favours the middle, less the ends. The
        default, 1.29, is the paper's.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        """ValueError where the map would not be monotone."""
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"mode's scale is in [-1, 2/(pi - 2)] = [-1, 1.752], got {self.scale}")

    def _time(self, u: Tensor) -> Tensor:
        return u + self.scale * (u - (0.5 * math.pi * u).sin() ** 2)

    def _slope(self, u: Tensor) -> Tensor:
        return 1 + self.scale * (1 - 0.5 * math.pi * (math.pi * u).sin())

    def _log_prob(self, t: Tensor) -> Tensor:
        # Newton's method inverts the map, from the side on which every step stays on its side.
        u = torch.zeros_like(t) if self.scale > 0 else torch.full_like(t, 0.5)
        for _ in range(64):
            step = (t - self._time(u)) / self._slope(u)
            step = torch.where(t == self._time(u), 0.0, step)
            if bool((step.abs() <= 1e-15).all()):
                break
            u = u + step
        return -self._slope(u).log()

    def __str__(self) -> str:
        return f"mode({self.scale:.4g})"


@dataclass(frozen=True)
class UShape(Symmetric):
    """The U-shaped `p(t) = C (exp(a t) + exp(a (1 - t)))` of flow matching's time, for reflow.

        C = a / (2 (exp(a) - 1)),    sinh(a/2) - sinh(a (1/2 - t)) = 2 u sinh(a/2)

    a: how much the ends are favoured, in (0, 1400]; 0 would be uniform time. The default, 4, is
        that of Lee+ 2024.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        """ValueError for an a outside (0, 1400], where exp(a/2) overflows."""
        if not 0 < self.a <= 1400:
            raise ValueError(f"a U shape needs 0 < a <= 1400, got {self.a}; uniform is the limit 0")

    def _time(self, u: Tensor) -> Tensor:
        # asinh(p) - asinh(q) = asinh((p^2 - q^2) / (p sqrt(1 + q^2) + q sqrt(1 + p^2))),
        # divided by p^2, because p^2 overflows long before p does.
        p, left = math.sinh(0.5 * self.a), 1 - 2 * u
        rise = torch.hypot(left, left.new_tensor(1 / p)) + left / math.tanh(0.5 * self.a)
        return torch.asinh(4 * u * (1 - u) / rise) / self.a

    def _log_prob(self, t: Tensor) -> Tensor:
        peak = math.log(0.5 * self.a) - math.log(-math.expm1(-self.a))
        return peak + torch.logaddexp(-self.a * t, self.a * (t - 1))

    def __str__(self) -> str:
        return f"U shape({self.a:.4g})"


@dataclass(frozen=True)
class ShiftedDensity(Density):
    """The density `base` with every level moved by -2 log(factor), as in SD3 at high resolution.

    Shifting the levels does not shift the weighting: kappa_u stays what it was, so that the plain
    error of u has another weighting than before, and not the old one moved.

    base: the density that is moved.
    factor: the shift, > 0; a factor > 1 is noisier.
    """

    base: Density
    factor: float

    def __post_init__(self) -> None:
        """ValueError for factors that are not positive."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"a density is shifted by a positive factor, got {self.factor}")

    def logsnr(self, u: Tensor) -> Tensor:
        """The base's log-SNR less `2 log(factor)`."""
        return self.base.logsnr(u) - 2 * math.log(self.factor)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The base's log-density at `logsnr + 2 log(factor)`."""
        return self.base.log_prob(logsnr + 2 * math.log(self.factor))

    def __str__(self) -> str:
        return f"{self.base}, shifted by {self.factor:.4g}"


@dataclass(frozen=True)
class Table(Density):
    """A histogram: the density is constant inside each bin.

    edges: the edges of the bins, rising.
    masses: how much lies in each bin, >= 0, in any unit; one fewer than edges.

    >>> Table((-8.0, 0.0, 4.0), (1.0, 3.0)).log_prob(torch.tensor([-1.0, 1.0])).exp()
    tensor([0.0312, 0.1875], dtype=torch.float64)
    """

    edges: tuple[float, ...]
    masses: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError for edges that do not rise, or masses that are negative or have no sum."""
        edges, masses = (tuple(map(float, part)) for part in (self.edges, self.masses))
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "masses", masses)
        rising = len(edges) == len(masses) + 1 and all(a < b for a, b in pairwise(edges))
        total = sum(masses)
        if not (rising and all(m >= 0 for m in masses) and 0 < total < math.inf):
            raise ValueError(
                "a table needs rising edges, one more than masses >= 0 with a positive sum; got "
                f"{len(edges)} edges and {len(masses)} masses"
            )

    def _parts(self) -> tuple[Tensor, Tensor]:
        edges, masses = (torch.tensor(p, dtype=torch.float64) for p in (self.edges, self.masses))
        return edges, masses / masses.sum()

    def logsnr(self, u: Tensor) -> Tensor:
        """Linear interpolation of the distribution function, from the top edge down."""
        edges, masses = self._parts()
        below = torch.cat([masses.new_zeros(1), masses.cumsum(0)])
        target = (1 - u) * below[-1]
        first, last = masses.nonzero().flatten()[[0, -1]]
        index = (torch.searchsorted(below, target.contiguous()) - 1).clamp(first, last)
        part = (target - below[index]) / masses[index]
        return torch.lerp(edges[index], edges[index + 1], part)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log(mass / width)` of the bin, with masses that sum to 1."""
        edges, masses = self._parts()
        heights = (masses / edges.diff()).log()
        logsnr = logsnr.to(torch.float64)
        index = (torch.searchsorted(edges, logsnr.contiguous()) - 1).clamp(0, len(masses) - 1)
        inside = (logsnr >= edges[0]) & (logsnr <= edges[-1])
        return torch.where(inside, heights[index], -math.inf)

    def __str__(self) -> str:
        return f"table of {len(self.masses)} bins"


def cosmap() -> FromSchedule:
    """SD3's cosmap, which is uniform time on the cosine schedule [Esser+ 2024]."""
    return FromSchedule(Cosine())
