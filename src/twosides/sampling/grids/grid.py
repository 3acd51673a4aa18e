"""Where a sampler steps: the levels of a run, from noise to data.

Nearly every grid takes equal steps in some variable, a monotone function of the log-SNR (`frames`),
between two ends. So a grid is a variable and two ends. With r = sigma / alpha = exp(-logsnr / 2):

| grid                      | equal steps in                              | known from             |
|---------------------------|---------------------------------------------|------------------------|
| `UniformTime`             | the time t of a schedule                    | DDIM, flow matching    |
| `UniformLogSNR`           | logsnr                                      | DPM-Solver             |
| `Uniform(variable)`       | t, logsnr, angle, or the eta of an output   | the post, `frames`     |
| `Arctan(c)`               | arctan(r / c)                               | Align Your Steps       |
| `Karras(rho)`             | r^(1 / rho), then r = 0                     | EDM                    |
| `Exponential(rho)`        | (log r)^(1 / rho), then r = 0               | k-diffusion            |
| `Beta(a, b)`              | the Beta law of a variable, then r = 0      | Beta Sampling          |
| `Quantiles`               | the distribution of a density of logsnr     | measured ones          |
| `Entropic`                | information, from denoising errors          | Stancevic+ 2025        |
| `AYS(model)`              | the index into an optimised table           | Align Your Steps       |
| `Indices(spacing)`        | the whole indices of a discrete model       | DDPM, Stable Diffusion |
| `Given`                   | nothing: the levels are listed              | yours                  |
| `ShiftedGrid(grid, s)`    | another grid's, moved by -2 log(s)          | SD3, FLUX              |
| `ThenData(grid)`          | another grid's, one step less, then r = 0   | diffusers              |

An end that is not given is that of the schedule. Infinite log-SNRs are ordinary ends.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from twosides.sampling.frames import Variable
from twosides.schedules import Schedule


class Grid(abc.ABC):
    """A rule for the levels of a run."""

    @abc.abstractmethod
    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The levels, increasing (noise to data), float64 (steps + 1,); +-inf are legal ends."""


class Even(Grid):
    """Equal steps in a variable, from logsnr `start` (noise) to `end` (data).

    A grid of this kind states its variable, by `axis`.

    then_data: whether the last step leads from `end` to r = 0, where `end` is not there already.
    """

    start: float | None
    end: float | None
    then_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """ValueError for an empty range."""
        start = -math.inf if self.start is None else self.start
        if not start < (math.inf if self.end is None else self.end):
            raise ValueError(f"a grid goes from noise to data, logsnr start < end: {self}")

    @abc.abstractmethod
    def axis(self, schedule: Schedule) -> Variable:
        """The variable in which steps are equal."""

    def ends(self, schedule: Schedule) -> tuple[float, float]:
        """The first and the last log-SNR, by default those of the schedule."""
        start = schedule.logsnr_min if self.start is None else self.start
        return float(start), float(schedule.logsnr_max if self.end is None else self.end)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The levels; ValueError where the variable is infinite at an end."""
        check_steps(steps)
        ends = self.ends(schedule)
        more = self.then_data and ends[1] < math.inf
        nodes = step_evenly(self, self.axis(schedule), ends, steps - 1 if more else steps)
        return append_data(nodes) if more else nodes


def step_evenly(grid: Grid, variable: Variable, ends: tuple[float, float], steps: int) -> Tensor:
    """The log-SNRs at equal steps of a variable, ends exact; of no steps, the start.

    grid: stands in the errors.
    """
    if not ends[0] < ends[1]:
        raise ValueError(
            f"{grid} does not go from noise to data: it would start at logsnr {ends[0]:.6g} and "
            f"end at {ends[1]:.6g}; the end must be the larger"
        )
    with np.errstate(all="ignore"):
        values = variable.of(np.array(ends, dtype=np.float64))
    for value, at, remedy in zip(values, ends, ("min (start=-10)", "max (end=10)"), strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"the variable of {grid} is infinite at its end, logsnr {at:.6g}; state a finite "
                f"logsnr_{remedy} inside the schedule, or a variable that is finite there ('u')"
            )
    part = 1 - np.arange(steps + 1) / max(steps, 1)
    with np.errstate(divide="ignore"):
        nodes = variable.logsnr(values[1] + part * (values[0] - values[1]))
    exact = np.where(part == 1, ends[0], np.where(part == 0, ends[1], nodes))
    return torch.from_numpy(exact if steps else exact[:1])


def check_steps(steps: int) -> None:
    """ValueError for a number of steps that makes no grid."""
    if steps < 1:
        raise ValueError(f"a grid has a whole number of steps >= 1, got {steps}")


def append_data(levels: Tensor) -> Tensor:
    """The levels, and zero noise."""
    return torch.cat([levels, levels.new_full((1,), math.inf)])


def check_covered(nodes: Tensor, schedule: Schedule) -> Tensor:
    """The nodes; ValueError where the network would be asked outside the schedule's range."""
    schedule.time(nodes[:-1])
    return nodes


@dataclass(frozen=True)
class Given(Grid):
    """Levels given as log-SNRs, increasing; `steps` must be their number minus one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError for NaN."""
        if any(math.isnan(value) for value in self.values):
            raise ValueError(f"nodes are log-SNRs from noise to data, but one is NaN: {self}")

    @classmethod
    def times(cls, schedule: Schedule, times: list[float]) -> Given:
        """Levels given as times of a schedule, from noise to data."""
        return cls(tuple(schedule.logsnr(torch.tensor(times, dtype=torch.float64)).tolist()))

    @classmethod
    def sigmas(cls, sigmas: list[float]) -> Given:
        """Levels given as sigma/alpha, from noise to data (0 is the data)."""
        if not all(value >= 0 for value in sigmas):
            raise ValueError(f"sigma/alpha is a number >= 0 (0 is the data), got {sigmas}")
        return cls(tuple(math.inf if value == 0 else -2 * math.log(value) for value in sigmas))

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The values."""
        if steps != len(self.values) - 1:
            raise ValueError(
                f"this grid has {len(self.values)} nodes, that is {len(self.values) - 1} steps, "
                f"but {steps} steps were asked"
            )
        return torch.tensor(self.values, dtype=torch.float64)
