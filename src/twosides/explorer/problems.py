"""What the figures are about: small problems whose denoisers are known exactly, and a schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.oracle import Empirical, GaussianMixture
from twosides.schedules import FlowMatching, Scaling


@dataclass(frozen=True)
class Between(Scaling):
    """Flow matching's (alpha, sigma) times `S = 1 + k (1 / sqrt((1 - t)^2 + t^2) - 1)`.

    Flow scaling at k = 0, variance preserving at k = 1, linear in the factor as in the post.
    """

    k: float

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma)."""
        alpha, sigma = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        scale = 1 + self.k * (1 / torch.hypot(alpha, sigma) - 1)
        return scale * alpha, scale * sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives in t."""
        alpha, sigma = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        length = torch.hypot(alpha, sigma)
        scale = 1 + self.k * (1 / length - 1)
        slope = self.k * (alpha - sigma) / length**3
        return slope * alpha - scale, slope * sigma + scale


@dataclass(frozen=True)
class ScaledFlow(FlowMatching):
    """Flow matching's time in a scaling between its own (k = 0) and VP (k = 1).

    >>> level = ScaledFlow(1.0).at(0.5)
    >>> round(float(level.alpha**2 + level.sigma**2), 12)
    1.0
    """

    k: float

    @property
    def scaling(self) -> Scaling:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Between the two."""
        return Between(self.k)


def named(name: str, variance: float | None = None) -> GaussianMixture:
    """A mixture by name: "gaussian" and "two-modes" in 1-D; "ring", "moons", "gaussian-2d" in 2-D.

    variance: scale it about 0 so that the mean over axes of the data's variance is this one.

    >>> round(float(named("moons", 0.25).covariance.trace()) / 2, 12)
    0.25
    """
    makers = {
        "gaussian": lambda: GaussianMixture.gaussian([0.0], [[0.25]]),
        "two-modes": lambda: _mixture(np.array([[-0.6], [0.6]]), 0.2),
        "ring": lambda: GaussianMixture.ring(8),
        "moons": moons,
        "gaussian-2d": lambda: GaussianMixture.gaussian([0.3, -0.2], [[0.5, 0.3], [0.3, 0.4]]),
    }
    if name not in makers:
        raise unknown("problem", name, makers)
    made = makers[name]()
    if variance is None:
        return made
    own = float(made.covariance.trace()) / made.means.shape[1]
    factor = math.sqrt(variance / own)
    return GaussianMixture(made.weights, factor * made.means, factor**2 * made.covariances)


def moons(modes: int = 12, std: float = 0.08) -> GaussianMixture:
    """Two interleaved half circles, `modes` Gaussians along each, centred on 0."""
    angles = math.pi * (np.arange(modes) + 0.5) / modes
    upper = np.stack([np.cos(angles) - 0.5, np.sin(angles) - 0.25], 1)
    return _mixture(np.concatenate([upper, -upper]), std)


def points(count: int = 12) -> Empirical:
    """Points on a spiral, and the denoiser that has memorised them."""
    turn = np.linspace(0.5, 2.5, count) * math.pi
    radius = np.linspace(0.3, 1.2, count)
    return Empirical(np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1))


def _mixture(means: np.ndarray, std: float) -> GaussianMixture:
    modes, dims = means.shape
    covariances = np.broadcast_to(std**2 * np.eye(dims), (modes, dims, dims)).copy()
    return GaussianMixture(np.full(modes, 1 / modes), means, covariances)
