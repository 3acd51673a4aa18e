"""Grids of levels that are followed by the data: ramps of sigma, and the Beta law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from twosides.outputs import Output
from twosides.sampling.frames import Variable, power, variable_named
from twosides.sampling.grids.beta import beta_cdf, beta_quantiles
from twosides.sampling.grids.even import Uniform
from twosides.sampling.grids.grid import Even
from twosides.schedules import Schedule


class Ramp(Even):
    """Levels stated by sigma_max and sigma_min, in units of alpha, then the data.

    Ends that are not given are the schedule's where finite, else EDM's 0.002 and 80.
    """

    rho: float
    sigma_min: float | None
    sigma_max: float | None
    then_data = True

    def __post_init__(self) -> None:
        """ValueError for values that are not positive, or fall the wrong way."""
        name, values = type(self).__name__, (self.rho, self.sigma_min, self.sigma_max)
        if not all(value is None or 0 < value < math.inf for value in values):
            raise ValueError(f"{name} needs rho, sigma_min, sigma_max > 0; 0 is added last: {self}")
        if self.sigma_min and self.sigma_max and not self.sigma_min < self.sigma_max:
            raise ValueError(f"{name} goes from noise to data, sigma_max > sigma_min: {self}")

    def ends(self, schedule: Schedule) -> tuple[float, float]:
        """-2 log of sigma_max and sigma_min."""
        given = (
            (self.sigma_max, schedule.logsnr_min, 80.0),
            (self.sigma_min, schedule.logsnr_max, 0.002),
        )
        first, last = (
            own if sigma is None and math.isfinite(own) else -2 * math.log(sigma or default)
            for sigma, own, default in given
        )
        return first, last


@dataclass(frozen=True)
class Karras(Ramp):
    """Karras et al. 2022 (eq. 5): equal steps in (sigma/alpha)^(1/rho), then sigma = 0."""

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def axis(self, schedule: Schedule) -> Variable:
        """r^(1 / rho)."""
        return power(self.rho)


@dataclass(frozen=True)
class Exponential(Ramp):
    """Equal steps in log(sigma/alpha), then sigma = 0: k-diffusion's get_sigmas_exponential.

        log sigma = log(sigma_min) + ramp^rho (log(sigma_max) - log(sigma_min)),  ramp = 1 ... 0

    rho other than 1 is its get_sigmas_polyexponential.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 1.0

    def axis(self, schedule: Schedule) -> Variable:
        """ramp, which is log r between the ends to the power 1 / rho."""
        first, last = self.ends(schedule)
        return Variable(
            lambda logsnr: ((logsnr - last) / (first - last)) ** (1 / self.rho),
            lambda ramp: last + ramp**self.rho * (first - last),
        )


@dataclass(frozen=True)
class Beta(Even):
    """Quantiles of a Beta(a, b) law in a variable, denser at both ends [Lee+ 2024, 2407.12173].

        variable = end + I^-1(1 - i / (n - 1); a, b) (start - end),   i = 0 ... n - 1,  then data

    The paper spaces time; diffusers and A1111 space r (variable="eps") on Stable Diffusion, t on
    flow models. ComfyUI rounds quantiles of the time to indices and drops repeats; this does not.
    """

    a: float = 0.6
    b: float = 0.6
    variable: str | Output = "t"
    start: float | None = None
    end: float | None = None
    then_data = True

    def __post_init__(self) -> None:
        """ValueError for a law that is none, an empty range, or an output that is no variable."""
        Uniform(self.variable, self.start, self.end)
        if not (0 < self.a <= 100 and 0 < self.b <= 100):
            raise ValueError(f"a Beta law needs a, b > 0, at most 100 here: {self}")

    def axis(self, schedule: Schedule) -> Variable:
        """I(part of the way from end to start; a, b)."""
        inner = variable_named(self.variable, schedule)
        first, last = inner.of(np.array(self.ends(schedule)))
        return Variable(
            lambda logsnr: beta_cdf(self.a, self.b, (inner.of(logsnr) - last) / (first - last)),
            lambda p: inner.logsnr(last + beta_quantiles(self.a, self.b, p) * (first - last)),
        )
