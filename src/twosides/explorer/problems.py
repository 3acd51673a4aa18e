"""The data of the figures: small problems whose denoisers are known exactly, by name."""

from __future__ import annotations

import math

import numpy as np

from twosides.naming import unknown
from twosides.oracle import Empirical, GaussianMixture


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
