"""Clocks: how a network is told the noise level."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.schedules import (
    Level,
    Schedule,
)


class Clock(abc.ABC):
    """How a network is told the noise level; frozen dataclasses with the two directions."""

    @abc.abstractmethod
    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The network's time at a logsnr, float64."""

    @abc.abstractmethod
    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """The logsnr at the network's time, float64."""


@dataclass(frozen=True)
class Time(Clock):
    """`scale t` of the network's schedule, or `scale (1 - t)` if reversed (data at 1).

    `clamp=True` holds the time at its end when a level lies outside the schedule's range;
    otherwise that is an error.
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
        t = _snapped(time / self.scale)
        return schedule.logsnr((1 - t) if self.reversed else t)


@dataclass(frozen=True)
class Index(Clock):
    """A discrete model's index 0 ... count - 1, `t (count - 1)`: fractional, or the nearest one.

    A nearest index only tells the network; the conversion always uses the true level.
    """

    count: int = 1000
    nearest: bool = False
    clamp: bool = False

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """`t (count - 1)`, rounded if `nearest`."""
        t = schedule.time(_clamped(logsnr, schedule) if self.clamp else logsnr)
        index = t * (self.count - 1)
        return index.round() if self.nearest else index

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """Its inverse (of the fractional index)."""
        return schedule.logsnr(_snapped(time / (self.count - 1)))


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


def _snapped(t: Tensor) -> Tensor:
    """Times that float32 rounded past an end, put back on it."""
    return torch.where((t - 0.5).abs() <= 0.5 + 1e-6, t.clamp(0, 1), t)


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
    """The clock called `time`: a key of CLOCKS, "1000t" or "1000(1-t)", a Clock or a function."""
    if isinstance(time, Clock):
        return time
    if callable(time):
        return Function(time)
    if time in CLOCKS:
        return CLOCKS[time]
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(?:t|(\(1-t\)))", time):
        return Time(float(match[1]), reversed=match[2] is not None)
    raise unknown("time convention", time, [*CLOCKS, "1000t"])
