"""Conversions between denoisers of azula and those of this library.

    posterior = denoiser(x_t, t)          its mean is x; t = 0 data, 1 noise
    alpha_t, sigma_t = denoiser.schedule(t)

Nothing of azula is imported: any object with these two calls is a denoiser of azula's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twosides.denoiser import Denoiser, Denoises, as_denoiser
from twosides.schedules import FromFunctions


class FromAzula(nn.Module):
    """The mean that a denoiser of azula gives, as a network that predicts x.

    It holds the denoiser, so that its weights are moved, listed and trained as any network's. The
    network is not cast for, because azula's denoisers cast their input themselves.
    """

    any_dtype = True

    def __init__(self, denoiser: Any) -> None:
        """Any object that is called as azula's denoisers are."""
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """The mean, given z at t, one time per sample."""
        posterior = self.denoiser(z, t, **conditioning)
        return posterior if torch.is_tensor(posterior) else posterior.mean


def from_azula(denoiser: Any) -> Denoiser:
    """A denoiser of azula as a Denoiser, on its own schedule."""
    alpha, sigma = (partial(_scale, denoiser.schedule, place) for place in (0, 1))
    schedule = FromFunctions(alpha, sigma)
    return Denoiser(FromAzula(denoiser), output="x", schedule=schedule, time="t")


def _scale(schedule: Any, place: int, t: Tensor) -> Tensor:
    return schedule(t)[place]


class Posterior(NamedTuple):
    """The part of an answer that azula's samplers read: the mean of the data."""

    mean: Tensor


class ForAzula(nn.Module):
    """Any denoiser in the form that azula's samplers call.

    azula's own schedules end at alpha and sigma of 0.001, and most of its samplers divide by one of
    them: all but DDPM, DDIM, vAB and PC give NaN at pure noise or pure data. On a schedule that
    reaches these, as `FlowMatching()` does, run them from `start=0.999` to `stop=0.001`.
    """

    def __init__(self, denoiser: Denoises) -> None:
        """TypeError for an object that is no denoiser."""
        super().__init__()
        self.denoiser, self.levels = denoiser, as_denoiser(denoiser).schedule

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (alpha, sigma) at t, in t's dtype."""
        level = self.levels.at(t)
        return level.alpha.to(t), level.sigma.to(t)

    def forward(self, z: Tensor, t: Tensor, **conditioning: Any) -> Posterior:
        """The mean of the data, given z at t, one time or one per sample."""
        return Posterior(self.denoiser(z, self.levels.at(t), **conditioning).x)
