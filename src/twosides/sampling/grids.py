"""Where a sampler steps: log-SNRs from noise to data, `steps + 1` of them.

A grid is a frozen dataclass with `logsnrs(schedule, steps)`; adding one is adding it here.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules import Schedule


class Grid(abc.ABC):
    """A rule for the nodes of a run."""

    @abc.abstractmethod
    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The nodes, increasing (noise to data), float64 (steps + 1,); +-inf are legal ends."""


def _fractions(steps: int) -> Tensor:
    """1, 1 - 1/n, ..., 0."""
    return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps


def _finite_end(value: float | None, fallback: float, what: str, grid: str) -> float:
    end = fallback if value is None else value
    if math.isfinite(end):
        return end
    raise ValueError(
        f"{grid} needs a finite {what}, and the schedule's own is {end}; state it: "
        f"{grid}({what}={'-10' if end < 0 else '10'})"
    )


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equal steps in the time t of a schedule, from `start` (noise) to `end` (data).

    `schedule` is the clock, by default the one that is sampled on: the same grid can be walked in
    any scaling, and a cosine grid can be walked on a flow-matching model.
    """

    schedule: Schedule | None = None
    start: float = 1.0
    end: float = 0.0

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """logsnr at start ... end."""
        if not 1 >= self.start > self.end >= 0:
            raise ValueError(f"UniformTime runs from start to end, 1 >= start > end >= 0: {self}")
        times = self.end + (self.start - self.end) * _fractions(steps)
        return (self.schedule or schedule).logsnr(times)


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """Equal steps in logsnr; ends by default the schedule's, which must then be finite."""

    logsnr_min: float | None = None
    logsnr_max: float | None = None

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """logsnr_min ... logsnr_max."""
        low = _finite_end(self.logsnr_min, schedule.logsnr_min, "logsnr_min", "UniformLogSNR")
        high = _finite_end(self.logsnr_max, schedule.logsnr_max, "logsnr_max", "UniformLogSNR")
        return high + (low - high) * _fractions(steps)


@dataclass(frozen=True)
class Karras(Grid):
    """Karras et al. 2022 (eq. 5): equal steps in (sigma/alpha)^(1/rho), then sigma = 0.

    `steps` levels from sigma_max to sigma_min and the data. Ends that are not given are the
    schedule's where finite, else EDM's 0.002 and 80.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        """ValueError for values that are not positive."""
        values = (self.rho, self.sigma_min or 1.0, self.sigma_max or 1.0)
        if self.sigma_min == 0 or not all(0 < value < math.inf for value in values):
            raise ValueError(f"Karras needs rho, sigma_min, sigma_max > 0; 0 is added last: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """-2 log sigma of the ramp, and +inf."""
        low = self._end(self.sigma_min, schedule.logsnr_max, 0.002)
        high = self._end(self.sigma_max, schedule.logsnr_min, 80.0)
        ramp = _fractions(max(steps - 1, 1))[:steps]
        roots = low ** (1 / self.rho), high ** (1 / self.rho)
        logs = (roots[0] + ramp * (roots[1] - roots[0])).log()
        return torch.cat([-2 * self.rho * logs, torch.full((1,), math.inf, dtype=torch.float64)])

    @staticmethod
    def _end(sigma: float | None, logsnr: float, default: float) -> float:
        if sigma is not None:
            return sigma
        return math.exp(-0.5 * logsnr) if math.isfinite(logsnr) else default


@dataclass(frozen=True)
class Given(Grid):
    """Nodes given as log-SNRs, increasing; `steps` must be their number minus one."""

    values: tuple[float, ...]

    @classmethod
    def times(cls, schedule: Schedule, times: list[float]) -> Given:
        """Nodes given as times of a schedule, from noise to data."""
        return cls(tuple(schedule.logsnr(torch.tensor(times, dtype=torch.float64)).tolist()))

    @classmethod
    def sigmas(cls, sigmas: list[float]) -> Given:
        """Nodes given as sigma/alpha, from noise to data (0 is the data)."""
        return cls(tuple(math.inf if value == 0 else -2 * math.log(value) for value in sigmas))

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The values."""
        if steps != len(self.values) - 1:
            raise ValueError(
                f"this grid has {len(self.values)} nodes, that is {len(self.values) - 1} steps, "
                f"but {steps} steps were asked"
            )
        return torch.tensor(self.values, dtype=torch.float64)


GRIDS: dict[str, Grid] = {
    "uniform-time": UniformTime(),
    "uniform-logsnr": UniformLogSNR(),
    "karras": Karras(),
}
