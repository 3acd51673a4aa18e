"""Denoisers of azula's, and for azula: two names for the same function.

    posterior = denoiser(x_t, t)          its mean is x; t = 0 data, 1 noise
    alpha_t, sigma_t = denoiser.schedule(t)

Nothing of azula is imported: what has these two calls is a denoiser of azula's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twosides.denoiser import Denoiser, Denoises, as_denoiser
from twosides.schedules import FromFunctions


def from_azula(denoiser: Any) -> Denoiser:
    """A denoiser of azula's as a Denoiser, on its own schedule."""

    def mean(z: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        posterior = denoiser(z, t, **conditioning)
        return (
            getattr(posterior, "mean", posterior) if not torch.is_tensor(posterior) else posterior
        )

    schedule = FromFunctions(lambda t: denoiser.schedule(t)[0], lambda t: denoiser.schedule(t)[1])
    return Denoiser(mean, output="x", schedule=schedule, time="t")


class Posterior(NamedTuple):
    """What azula's samplers read of an answer: the mean of the data."""

    mean: Tensor


class ForAzula(nn.Module):
    """Any denoiser as azula's samplers call theirs."""

    def __init__(self, denoiser: Denoises) -> None:
        """TypeError for what is no denoiser."""
        super().__init__()
        self.denoiser, self.levels = denoiser, as_denoiser(denoiser).schedule

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t, in t's dtype."""
        level = self.levels.at(t.double())
        return level.alpha.to(t), level.sigma.to(t)

    def forward(self, z: Tensor, t: Tensor, **conditioning: Any) -> Posterior:
        """The mean of the data, given z at t, one time or one per sample."""
        return Posterior(self.denoiser(z, self.levels.at(t.double()), **conditioning).x)
