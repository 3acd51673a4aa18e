"""Schedules in closed form whose noise grows beside the data: variance-exploding ones, and EDM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules.schedule import Schedule


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


@dataclass(frozen=True)
class EDMInput:
    """The scaling in which EDM's networks see z, `c_in = 1 / sqrt(sigma^2 + sigma_data^2)`.

    It is a norm for `with_scaling`: that of x + sigma n, which is `sqrt(1 + sigma^2)`, times c_in.

    sigma_data: the standard deviation of the data, as the network was trained on it.
    gain: a constant factor. With a gain of sigma_data, alpha is 1 at the data.

        >>> from twosides.schedules import EDM
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

    def slope(self, logsnr: Tensor) -> Tensor:
        """Its derivative in the flow time tau = sigma / (alpha + sigma), 0 at both ends."""
        data, noise = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)  # 1 - tau, tau
        growth = 2 * data * noise / (data**2 + noise**2) ** 2  # of sigma^2 / (1 + sigma^2)
        return -0.5 * (1 - self.sigma_data**2) * growth * self(logsnr) ** 3 / self.gain**2
