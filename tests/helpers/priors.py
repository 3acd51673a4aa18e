"""Mixtures and measurements with known posteriors, for tests and for benchmarks/posteriors.py."""

import itertools
import math

import torch

from twosides.oracle import GaussianMixture
from twosides.posteriors.measurement import Measurement
from twosides.schedules import Level

FLOAT64 = torch.float64
# Which one of each: those of the last two rows are hard for methods without particles.
SEEDS = {"gauss8": 0, "mix64": 0, "ring": 0, "mix8": 1, "lattice25": 13}


def prior(name, draw):
    """The data p(x), and what is measured of them, A (M, D)."""

    def spread(dims, count):
        roots = draw(count, dims, dims)
        return roots @ roots.mT / dims + 0.05 * torch.eye(dims, dtype=FLOAT64)

    if name == "ring":
        return GaussianMixture.ring(8, std=0.15), draw(1, 2)
    if name == "lattice25":  # 25 Gaussians, 8 apart in two axes, repeated in all 8 [Cardoso+ 2023]
        steps = torch.tensor([-16.0, -8.0, 0.0, 8.0, 16.0], dtype=FLOAT64)
        means = torch.tensor(list(itertools.product(steps, steps)), dtype=FLOAT64).repeat(1, 4)
        weights = draw(25).square()
        return GaussianMixture(
            weights / weights.sum(), means, torch.eye(8, dtype=FLOAT64).expand(25, 8, 8)
        ), draw(1, 8)
    modes, dims, rows = {"gauss8": (1, 8, 3), "mix8": (5, 8, 3), "mix64": (4, 64, 6)}[name]
    covariances = (1.0 if modes == 1 else 0.2) * spread(dims, modes)
    weights = torch.softmax(draw(modes), 0)
    return GaussianMixture(weights, 1.5 * draw(modes, dims), covariances), draw(rows, dims)


def problem(name, noise):
    """(prior, measurement, posterior, log p(y)), always the same."""
    seed = SEEDS[name]
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=FLOAT64)

    data, A = prior(name, draw)
    y = A @ data.sample(1, seed=seed + 3)[0] + noise * draw(len(A))
    seen = Measurement(lambda x: x @ A.T, y[None], noise)
    return data, seen, data.condition(A, y, noise), data.log_evidence(A, y, noise)


def masses(x, truth, weights=None):
    """Half the L1 distance of the components' masses of samples from the true ones, in [0, 1].

    Each sample is shared by its exact responsibilities, and counts by its weight.
    """
    shares = truth.responsibilities(x.double(), Level(math.inf, 1.0, 0.0))
    mean = shares.mean(0) if weights is None else weights.double() @ shares
    return 0.5 * float((mean - truth.weights).abs().sum())
