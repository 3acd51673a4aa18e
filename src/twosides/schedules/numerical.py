"""Schedules that are given by functions of time, and inverted by iteration."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules.level import _VP, Scaling, derivative
from twosides.schedules.schedule import Schedule


class _Numerical(Schedule):
    """A schedule given by functions of time; its inverse is found by iteration."""

    @abc.abstractmethod
    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t."""

    @abc.abstractmethod
    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dt, dsigma/dt) at t."""

    @property
    def scaling(self) -> Scaling:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The functions' own."""
        return _Own(self)

    def _time(self, logsnr: Tensor) -> Tensor:
        # Secant steps in logit(t), where logsnr is nearly straight up to both ends, kept in a
        # bracket that is bisected whenever a step leaves it.
        inside = logsnr.clamp(-1400, 1400)
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        t, before = torch.sigmoid(-0.5 * inside), torch.sigmoid(-0.5 * inside - 0.1)
        miss_before = self._logsnr(before) - inside
        for _ in range(80):
            miss = self._logsnr(t) - inside
            low, high = torch.where(miss < 0, low, t), torch.where(miss < 0, t, high)
            slope = (miss - miss_before) / (torch.logit(t) - torch.logit(before))
            step = torch.sigmoid(torch.logit(t) - miss / slope)
            step = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
            before, miss_before = t, miss
            t = torch.where(miss == 0, t, step)
            if t.device.type == "cpu" and bool(((t - before).abs() <= 1e-16 * t).all()):
                break
        found = torch.where(logsnr <= self.logsnr_min, torch.ones_like(t), t)
        return torch.where(logsnr >= self.logsnr_max, torch.zeros_like(t), found)

    def _rate(self, t: Tensor) -> Tensor:
        (alpha, sigma), (dalpha, dsigma) = self.values(t), self.slopes(t)
        return (alpha * dsigma - sigma * dalpha) / (alpha + sigma) ** 2

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.slopes(t)


@dataclass(frozen=True)
class _Own(Scaling):
    """The scaling of a schedule that is stated as (alpha, sigma)(t).

    Beyond the schedule's range, where a sampler may overshoot, the norm of its end is held.
    """

    schedule: _Numerical

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        reached = logsnr.clamp(self.schedule.logsnr_min, self.schedule.logsnr_max)
        own = self.schedule.values(self.schedule.time(reached))
        beyond = torch.hypot(*own) * torch.stack(_VP().levels(logsnr))
        alpha, sigma = torch.where(reached == logsnr, torch.stack(own), beyond)
        return alpha, sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        t = self.schedule.time(logsnr)
        return self.schedule.dalpha(t) / self.schedule.rate(t), self.schedule.dsigma(
            t
        ) / self.schedule.rate(t)


@dataclass(frozen=True)
class FromFunctions(_Numerical):
    """A schedule from `alpha(t)` and `sigma(t)`, torch functions with alpha/sigma decreasing.

    Derivatives by automatic differentiation, `time` by iteration to float64.

        >>> import torch
        >>> ours = FromFunctions(lambda t: 1 - t**2, lambda t: t)
        >>> round(float(ours.time(ours.logsnr(0.3))), 12)
        0.3
    """

    alpha_function: Callable[[Tensor], Tensor]
    sigma_function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        """Refuse pairs whose signal-to-noise ratio does not fall."""
        logsnr = self._logsnr(torch.linspace(0, 1, 129, dtype=torch.float64))
        if not bool((logsnr.diff() < 0).all()):
            raise ValueError(
                "alpha(t)/sigma(t) must fall strictly from t = 0 (data) to t = 1 (noise), with "
                "alpha, sigma >= 0; at 129 equally spaced times it does not. Is time reversed?"
            )

    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t."""
        made = (self.alpha_function(t), self.sigma_function(t))
        alpha, sigma = (torch.as_tensor(value, dtype=t.dtype).expand(t.shape) for value in made)
        return alpha, sigma

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dt, dsigma/dt) at t."""
        return derivative(self.alpha_function, t), derivative(self.sigma_function, t)

    def _logsnr(self, t: Tensor) -> Tensor:
        alpha, sigma = self.values(t)
        return 2 * (alpha.log() - sigma.log())
