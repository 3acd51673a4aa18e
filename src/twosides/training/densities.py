"""Which noise levels are trained on: densities p(logsnr).

A density draws by its inverse distribution function, so that stratified points u in (0, 1) give
stratified levels. Given the weighting w, p only changes the variance of the loss.

| density        | p(logsnr)               | recipes                                      |
|----------------|-------------------------|----------------------------------------------|
| `FromSchedule` | abs(dt/dlogsnr)         | uniform time: DDPM, flow matching, v-cosine  |
| `Normal`       | N(mean, std^2)          | EDM (log-normal sigma), SD3 (logit-normal t) |
| `Uniform`      | constant on [low, high] | VDM                                          |

Flow matching's uniform time is sech^2(logsnr/4)/8, the cosine's sech(logsnr/2)/(2 pi).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules import Schedule


class Density(abc.ABC):
    """A distribution of log-SNR."""

    @abc.abstractmethod
    def logsnr(self, u: Tensor) -> Tensor:
        """The logsnr at u in (0, 1): uniform u gives this density. float64."""

    @abc.abstractmethod
    def log_prob(self, logsnr: Tensor) -> Tensor:
        """log p(logsnr); -inf outside the support."""


@dataclass(frozen=True)
class FromSchedule(Density):
    """Uniform time on a schedule, `p = |dt/dlogsnr|`."""

    schedule: Schedule

    def logsnr(self, u: Tensor) -> Tensor:
        """The schedule's at t = u."""
        return self.schedule.logsnr(u)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log(tau (1 - tau) / 2) - log(dtau/dt)`, from logsnr itself so that tails are exact."""
        low, high = self.schedule.logsnr_min, self.schedule.logsnr_max
        rate = self.schedule.rate(self.schedule.time(logsnr.clamp(low, high)))
        spread = torch.nn.functional.logsigmoid
        inside = spread(0.5 * logsnr) + spread(-0.5 * logsnr) - math.log(2) - rate.log()
        return torch.where((logsnr >= low) & (logsnr <= high), inside, -math.inf)


@dataclass(frozen=True)
class Normal(Density):
    """Normal logsnr."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        """ValueError for a std that is not positive."""
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
        """`mean + std Phi^-1(1 - u)`: like time, u = 0 is data and u = 1 noise."""
        return self.mean - self.std * torch.special.ndtri(u)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The normal log-density."""
        scaled = (logsnr - self.mean) / self.std
        return -0.5 * scaled**2 - math.log(self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Uniform(Density):
    """Uniform logsnr on [low, high]."""

    low: float
    high: float

    def logsnr(self, u: Tensor) -> Tensor:
        """`high - u (high - low)`."""
        return self.high - u * (self.high - self.low)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`-log(high - low)` inside."""
        inside = (logsnr >= self.low) & (logsnr <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -math.inf).to(logsnr.dtype)
