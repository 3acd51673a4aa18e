"""Conversions between denoisers of azula and those of this library.

    posterior = denoiser(x_t, t)          its mean is x; t = 0 data, 1 noise
    alpha_t, sigma_t = denoiser.schedule(t)

Nothing of azula is imported: any object with these two calls is a denoiser of azula's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twosides.denoiser import Denoiser, Denoises, as_denoiser
from twosides.schedules import FromFunctions


def from_azula(denoiser: Any) -> Denoiser:
    """A denoiser of azula as a Denoiser, on its own schedule."""

    def mean(z: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        posterior = denoiser(z, t, **conditioning)
        return (
            getattr(posterior, "mean", posterior) if not torch.is_tensor(posterior) else posterior
        )

    schedule = FromFunctions(lambda t: denoiser.schedule(t)[0], lambda t: denoiser.schedule(t)[1])
    return Denoiser(mean, output="x", schedule=schedule, time="t")


class Posterior(NamedTuple):
    """The part of an answer that azula's samplers read: the mean of the data."""

    mean: Tensor


class ForAzula(nn.Module):
    """Any denoiser in the form that azula's samplers call."""

    def __init__(self, denoiser: Denoises) -> None:
        """TypeError for an object that is no denoiser."""
        super().__init__()
        self.denoiser, self.levels = denoiser, as_denoiser(denoiser).schedule

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (alpha, sigma) at t, in t's dtype."""
        level = self.levels.at(t.double())
        return level.alpha.to(t), level.sigma.to(t)

    def forward(self, z: Tensor, t: Tensor, **conditioning: Any) -> Posterior:
        """The mean of the data, given z at t, one time or one per sample."""
        return Posterior(self.denoiser(z, self.levels.at(t.double()), **conditioning).x)
