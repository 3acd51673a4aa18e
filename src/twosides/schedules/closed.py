"""Schedules in closed form whose z keeps its size: flow matching and variance-preserving ones."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules.level import _float64
from twosides.schedules.schedule import Schedule


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Rectified flow / flow matching [Lipman+ 2022, Liu+ 2022].

    alpha = 1 - t,  sigma = t,  logsnr = 2 log((1 - t) / t)
    """

    scaling = "flow"

    def _logsnr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())

    def _time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * logsnr)

    def _rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """The cosine schedule [Nichol & Dhariwal 2021], optionally truncated and with their offset.

        alpha = cos(pi t / 2),  sigma = sin(pi t / 2)                                  offset = 0
        alpha = cos(psi) / cos(psi_0),  psi = (pi / 2) (t + s) / (1 + s)               offset = s

    With finite `logsnr_min`, `logsnr_max` time is stretched (affinely) so that [0, 1] covers that
    range: logsnr = -2 log tan(a + t (b - a)) with a, b the angles of the ends (VDM, the post's
    churn figure: [-15, 15]). iDDPM's discrete model has s = 0.008 and covers [-19.84, 10.10].

        >>> Cosine(-15, 15).at(1.0).logsnr
        tensor(-15., dtype=torch.float64)
    """

    logsnr_min: float = -math.inf  # pyright: ignore[reportIncompatibleVariableOverride]
    logsnr_max: float = math.inf  # pyright: ignore[reportIncompatibleVariableOverride]
    offset: float = 0.0

    scaling = "vp"

    def __post_init__(self) -> None:
        """Refuse empty ranges and negative offsets."""
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"Cosine covers [logsnr_min, logsnr_max], but got [{self.logsnr_min}, "
                f"{self.logsnr_max}]; the minimum (noise) must be the smaller"
            )
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"Cosine's offset is a small number >= 0 (0.008), got {self.offset}")

    @property
    def _quarter(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self._quarter * self.offset

    @functools.cached_property
    def _ends(self) -> tuple[float, float, float]:
        """Time before the range, after it, and inside it, on the untruncated clock."""
        before = float(self._from_data(_float64(self.logsnr_max)))
        after = float(self._to_noise(_float64(self.logsnr_min)))
        return before, after, 1 - before - after

    def _from_data(self, logsnr: Tensor) -> Tensor:
        """Untruncated t, accurate near 0: tan(delta) from sin(d) sin(d + 2 psi_0) = k."""
        k = math.cos(self._start) ** 2 * torch.sigmoid(-logsnr)
        sine, cosine = math.sin(2 * self._start), math.cos(2 * self._start)
        tangent = 2 * k / (sine + (sine**2 + 4 * k * (cosine - k)).clamp(min=0).sqrt())
        return torch.where(k == 0, k, torch.atan(tangent)) / self._quarter

    def _to_noise(self, logsnr: Tensor) -> Tensor:
        """Untruncated 1 - t, accurate near 0: sin(pi/2 - psi) = cos(psi_0) alpha."""
        alpha = (0.5 * torch.nn.functional.logsigmoid(logsnr)).exp()
        return torch.asin(math.cos(self._start) * alpha) / self._quarter

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(psi - psi_0, pi/2 - psi), each accurate near its own zero."""
        before, after, inside = self._ends
        return self._quarter * (before + t * inside), self._quarter * (after + (1 - t) * inside)

    def _logsnr(self, t: Tensor) -> Tensor:
        done, left = self._angles(t)
        noise = done.sin().log() + (done + 2 * self._start).sin().log()
        return 2 * left.sin().log() - noise

    def _time(self, logsnr: Tensor) -> Tensor:
        before, after, inside = self._ends
        near_data = (self._from_data(logsnr) - before) / inside
        near_noise = 1 - (self._to_noise(logsnr) - after) / inside
        return torch.where(logsnr > 0, near_data, near_noise)

    def _rate(self, t: Tensor) -> Tensor:
        # tau = s / (a + s) with a = cos(psi) and s^2 = sin(d) sin(d + 2 psi_0) = a_0^2 - a^2.
        done, left = self._angles(t)
        a, s = left.sin(), (done.sin() * (done + 2 * self._start).sin()).sqrt()
        speed = self._quarter * self._ends[2]
        if self.offset == 0:
            return speed / (a + s) ** 2
        return speed * math.cos(self._start) ** 2 * left.cos() / (s * (a + s) ** 2)


@dataclass(frozen=True)
class VPLinear(Schedule):
    """The VP-SDE with linear beta(t) [Song+ 2021]; DDPM's schedule in continuous time.

    alpha^2 = exp(-B),  B = beta_min t + (beta_max - beta_min) t^2 / 2,  sigma^2 = 1 - alpha^2
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    scaling = "vp"

    def __post_init__(self) -> None:
        """Refuse rates that do not grow from a positive value."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"VPLinear needs 0 < beta_min <= beta_max, got {self}")

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _logsnr(self, t: Tensor) -> Tensor:
        total = self._integral(t)
        return -total - (-torch.expm1(-total)).log()

    def _time(self, logsnr: Tensor) -> Tensor:
        total = -torch.nn.functional.logsigmoid(logsnr)
        growth = 2 * (self.beta_max - self.beta_min)
        return 2 * total / (self.beta_min + (self.beta_min**2 + growth * total).sqrt())

    def _rate(self, t: Tensor) -> Tensor:
        total = self._integral(t)
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        a, s = (-0.5 * total).exp(), (-torch.expm1(-total)).sqrt()
        return 0.5 * beta * a / (s * (a + s) ** 2)
