"""Grids of equal steps in a variable that a formula gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.outputs import Output
from twosides.sampling.frames import Variable, variable_named
from twosides.sampling.grids.grid import Even, Grid, check_steps
from twosides.schedules import FlowMatching, Schedule


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equal steps in the time t of a schedule, from `start` (noise) to `end` (data).

    `schedule` is the clock, by default the one that is sampled on: the same grid can be walked in
    any scaling, and a cosine grid can be walked on a flow-matching model.
    """

    schedule: Schedule | None = None
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        """ValueError for times that do not fall inside [0, 1]."""
        if not isinstance(self.schedule, Schedule | None):
            raise TypeError(f"UniformTime's schedule is a Schedule, got {self.schedule!r}")
        if not 1 >= self.start > self.end >= 0:
            raise ValueError(f"UniformTime runs from start to end, 1 >= start > end >= 0: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """logsnr at start ... end."""
        check_steps(steps)
        part = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
        return (self.schedule or schedule).logsnr(self.end + (self.start - self.end) * part)


@dataclass(frozen=True)
class Uniform(Even):
    """Equal steps in "t", "logsnr", "angle" = arctan(r), or the eta of an output.

    The output has constant coefficients (`sampling.frames`): "u" is the flow-matching time, "eps"
    is r itself, and "kappa(1/s)" is flow matching's grid shifted by s.

        >>> Uniform("kappa(0.5)").logsnrs(FlowMatching().shifted(2), 2).exp()
        tensor([0.0000, 0.2500,    inf], dtype=torch.float64)
    """

    variable: str | Output = "u"
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for an empty range, or an output that is no variable."""
        super().__post_init__()
        if not isinstance(self.variable, str | Output):
            raise TypeError(f"a variable is a name such as 'u' or 'logsnr', got {self.variable!r}")
        variable_named(self.variable, FlowMatching())

    def axis(self, schedule: Schedule) -> Variable:
        """The one named."""
        return variable_named(self.variable, schedule)


@dataclass(frozen=True)
class UniformLogSNR(Even):
    """Equal steps in logsnr.

    logsnr_min, logsnr_max: finite ends; by default those of the schedule, if they are finite.
    """

    logsnr_min: float | None = None
    logsnr_max: float | None = None

    @property
    def start(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The noise end."""
        return self.logsnr_min

    @property
    def end(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The data end."""
        return self.logsnr_max

    def axis(self, schedule: Schedule) -> Variable:
        """logsnr."""
        return variable_named("logsnr", schedule)


@dataclass(frozen=True)
class Arctan(Even):
    """The optimal grid for data N(0, c^2) [Sabour+ 2024, arXiv 2404.14507, theorem 3.1].

        r = c tan(angle),  equal steps in the angle

    It brings DDIM's standard deviation closest to c in any number of steps. c = 1 is the cosine
    schedule, "kl_optimal" elsewhere; c is the data's standard deviation in the network's units.
    """

    c: float = 1.0
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for a c that is no standard deviation, or an empty range."""
        super().__post_init__()
        if not 0 < self.c < math.inf:
            raise ValueError(f"Arctan's c is the data's standard deviation, > 0 and finite: {self}")

    def axis(self, schedule: Schedule) -> Variable:
        """arctan(r / c)."""
        return variable_named("angle", schedule).moved(2 * math.log(self.c))
