"""The problems of the figures: data whose denoisers are known exactly, and a schedule."""

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
    """The scaling of flow matching times `S = 1 + k (1 / sqrt((1 - t)^2 + t^2) - 1)`.

    It is flow matching's own at k = 0, variance preserving at k = 1, and linear in the factor as in
    the post.
    """

    k: float

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """The (alpha, sigma) of a log-SNR."""
        alpha, sigma = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        scale = 1 + self.k * (1 / torch.hypot(alpha, sigma) - 1)
        return scale * alpha, scale * sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of (alpha, sigma) in t."""
        alpha, sigma = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        length = torch.hypot(alpha, sigma)
        scale = 1 + self.k * (1 / length - 1)
        slope = self.k * (alpha - sigma) / length**3
        return slope * alpha - scale, slope * sigma + scale


@dataclass(frozen=True)
class ScaledFlow(FlowMatching):
    """Flow matching's time in a scaling between its own (k = 0) and VP (k = 1).

    k: the factor of the post, in [0, 1].

    >>> level = ScaledFlow(1.0).at(0.5)
    >>> round(float(level.alpha**2 + level.sigma**2), 12)
    1.0
    """

    k: float

    @property
    def scaling(self) -> Scaling:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The scaling between the two."""
        return Between(self.k)


def mixture(name: str, variance: float | None = None) -> GaussianMixture:
    """A mixture of Gaussians by name.

    name: "gaussian" or "two-modes" in 1-D; "ring", "moons" or "gaussian-2d" in 2-D.
    variance: scale the mixture about 0 so that the variance of the data, averaged over the axes, is
        this one.

    >>> round(float(mixture("moons", 0.25).covariance.trace()) / 2, 12)
    0.25
    """
    makers = {
        "gaussian": lambda: GaussianMixture.gaussian([0.0], [[0.25]]),
        "two-modes": lambda: _round_modes(np.array([[-0.6], [0.6]]), 0.2),
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
    """Two interleaved half circles, centred on 0.

    modes: the number of Gaussians along each.
    std: their standard deviation.
    """
    angles = math.pi * (np.arange(modes) + 0.5) / modes
    upper = np.stack([np.cos(angles) - 0.5, np.sin(angles) - 0.25], 1)
    return _round_modes(np.concatenate([upper, -upper]), std)


def points(count: int = 12) -> Empirical:
    """The denoiser that has memorised some points on a spiral."""
    turn = np.linspace(0.5, 2.5, count) * math.pi
    radius = np.linspace(0.3, 1.2, count)
    return Empirical(np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1))


def _round_modes(means: np.ndarray, std: float) -> GaussianMixture:
    modes, dims = means.shape
    covariances = np.broadcast_to(std**2 * np.eye(dims), (modes, dims, dims)).copy()
    return GaussianMixture(np.full(modes, 1 / modes), means, covariances)
