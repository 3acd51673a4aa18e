"""Densities of the levels that a given network knows, for training it further.

`Levels(schedule)` are the N levels of a discrete model, as DDPM draws them; `Truncated(base, low,
high)` is any density on [low, high] only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.losses.densities import Density, FromSchedule
from twosides.schedules import Tabulated


@dataclass(frozen=True)
class Levels(Density):
    """The N levels of a discrete model, equally likely: whole indices, as DDPM draws them.

    The log-density is that of `FromSchedule`, where an index may lie between two whole ones.

    schedule: the table of the levels.
    """

    schedule: Tabulated

    def logsnr(self, u: Tensor) -> Tensor:
        """The level of index `floor(N u)`."""
        table = self.schedule.table.to(u.device)
        return table[(u * len(table)).long().clamp(0, len(table) - 1)]

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """`log |dt/dlogsnr|` with t = index / (N - 1)."""
        return FromSchedule(self.schedule).log_prob(logsnr)

    def __str__(self) -> str:
        return f"the {self.schedule.count} levels of {self.schedule}"


@dataclass(frozen=True)
class Truncated(Density):
    """The density `base` on [low, high] only, normalised there.

    Points u are mapped into the part of (0, 1) from which `base` draws such levels. The ends of
    this part are found once, by bisection to the last bit of `base.logsnr`, so that any density can
    be truncated.

    base: the density that is cut off.
    low, high: the ends, which may be infinite, low < high.

        >>> from twosides.losses.densities import Uniform
        >>> Truncated(Uniform(-10, 10), -5, 15).logsnr(torch.tensor([0.0, 0.5, 1.0]))
        tensor([10.0000,  2.5000, -5.0000], dtype=torch.float64)
    """

    base: Density
    low: float
    high: float

    def __post_init__(self) -> None:
        """ValueError for ends in the wrong order, or between which `base` hardly ever draws."""
        if not self.low < self.high:
            raise ValueError(f"a density is kept on [low, high], got [{self.low}, {self.high}]")
        if not self._part[1] > 1e-6:
            raise ValueError(
                f"{self.base} draws from [{self.low:.4g}, {self.high:.4g}] with probability "
                f"{self._part[1]:.1g} only; use a density of these levels"
            )

    @functools.cached_property
    def _part(self) -> tuple[float, float]:
        """The beginning of that part of (0, 1), and its length: the probability of [low, high]."""
        first, last = self.base.share_above(self.high), self.base.share_above(self.low)
        return first, last - first

    def logsnr(self, u: Tensor) -> Tensor:
        """The base's log-SNR at `first + u length`."""
        first, length = self._part
        place = (first + u.to(torch.float64) * length).clamp(0, 1)
        return self.base.logsnr(place).clamp(self.low, self.high)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The base's log-density less log(length), inside the interval."""
        inside = (logsnr >= self.low) & (logsnr <= self.high)
        kept = self.base.log_prob(logsnr.clamp(self.low, self.high)) - math.log(self._part[1])
        return torch.where(inside, kept, -math.inf)

    def __str__(self) -> str:
        return f"{self.base} on [{self.low:.4g}, {self.high:.4g}]"
