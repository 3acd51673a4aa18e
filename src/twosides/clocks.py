"""Clocks: how a network is told the noise level.

A clock turns the log-SNR into the number that the network takes beside z, and back:

| name      | the network is told              | by convention of                    |
|-----------|----------------------------------|-------------------------------------|
| `t`       | t in [0, 1], 0 is data           | flow matching; "1000t" in diffusers |
| `1-t`     | 1 - t, so that 1 is data         | rectified flow, SiT's own code      |
| `index`   | t (N - 1), an index of N levels  | DDPM, Stable Diffusion              |
| `c_noise` | log(sigma / alpha) / 4           | EDM                                 |
| `logsnr`  | log(alpha^2 / sigma^2)           | VDM                                 |

A clock is not to be confused with a schedule, which says what level a time means: one network may
be told the t of its schedule or the index of a table of it. A new clock is a frozen dataclass with
the two directions, and a row of `CLOCKS`.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.schedules import Level, Schedule


class Clock(abc.ABC):
    """How a network is told the noise level."""

    @abc.abstractmethod
    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The network's time at a logsnr, float64."""

    @abc.abstractmethod
    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """The logsnr at the network's time, float64."""


@dataclass(frozen=True)
class Time(Clock):
    """`scale t` of the network's schedule, or `scale (1 - t)`.

    scale: the network's time at noise; 1000 for most of diffusers' models.
    reversed: whether the network's time runs from 0 at noise to `scale` at data.
    clamp: whether the time is held at its end for a level outside of the schedule's range. By
        default such a level is an error, since the network was not trained there.
    """

    scale: float = 1.0
    reversed: bool = False
    clamp: bool = False

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """`scale t` or `scale (1 - t)`."""
        t = schedule.time(_clamped(logsnr, schedule) if self.clamp else logsnr)
        return self.scale * ((1 - t) if self.reversed else t)

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """Its inverse."""
        t = _snap(time / self.scale)
        return schedule.logsnr((1 - t) if self.reversed else t)


@dataclass(frozen=True)
class Index(Clock):
    """A discrete model's index in 0 ... count - 1: `Time(count - 1)`, rounded if wanted.

    count: the number of levels of the model, N.
    nearest: whether the network is told the nearest whole index, as a table of embeddings needs it.
        Only the network is: z is converted at the true level.
    clamp: as in `Time`.
    """

    count: int = 1000
    nearest: bool = False
    clamp: bool = False

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """`t (count - 1)`, rounded if `nearest`."""
        index = self._time.read(logsnr, schedule)
        return index.round() if self.nearest else index

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """Its inverse (of the fractional index)."""
        return self._time.logsnr(time, schedule)

    @property
    def _time(self) -> Time:
        return Time(self.count - 1, clamp=self.clamp)


@dataclass(frozen=True)
class CNoise(Clock):
    """EDM's `c_noise = log(sigma / alpha) / 4`."""

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """`-logsnr / 8`."""
        return -logsnr / 8

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """Its inverse."""
        return -8 * time


@dataclass(frozen=True)
class LogSNR(Clock):
    """The log-SNR itself."""

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The log-SNR."""
        return logsnr

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """The log-SNR."""
        return time


@dataclass(frozen=True)
class Function(Clock):
    """Any function of the network's own Level, such as `lambda level: level.sigma`."""

    function: Callable[[Level], Tensor]

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The function's value."""
        return self.function(schedule.level(logsnr))

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """Refused: a function has no known inverse."""
        raise ValueError(
            "a time convention given as a function tells the level to a network but cannot be read "
            "back; use t, 1-t, index, c_noise or logsnr, or write a Clock with both directions"
        )


def _snap(t: Tensor) -> Tensor:
    """The times, where those that float32 has rounded past 0 or 1 are put back on it."""
    few_ulps = 4 * torch.finfo(torch.float32).eps  # callers step through time in float32
    return torch.where((t >= -few_ulps) & (t <= 1 + few_ulps), t.clamp(0, 1), t)


def _clamped(logsnr: Tensor, schedule: Schedule) -> Tensor:
    return logsnr.clamp(schedule.logsnr_min, schedule.logsnr_max)


CLOCKS: dict[str, Clock] = {
    "t": Time(),
    "1-t": Time(reversed=True),
    "index": Index(),
    "c_noise": CNoise(),
    "logsnr": LogSNR(),
}


def clock_named(time: str | Clock | Callable[[Level], Tensor]) -> Clock:
    """The clock of this name; a Clock is returned as it is.

    time: a key of `CLOCKS`, "1000t" or "1000(1-t)" with any number, a Clock, or a function of the
        network's own Level.
    """
    if isinstance(time, Clock):
        return time
    if callable(time):
        return Function(time)
    if time in CLOCKS:
        return CLOCKS[time]
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(?:t|(\(1-t\)))", time):
        return Time(float(match[1]), reversed=match[2] is not None)
    raise unknown("time convention", time, [*CLOCKS, "1000t"])
