"""Stated orders are measured: on exact mixtures, by the slope of the error, within 0.2."""

import itertools
import math

import numpy as np
import pytest
import torch

from twosides.oracle import GaussianMixture
from twosides.sampling.grids import UniformTime
from twosides.sampling.plan import Plan
from twosides.sampling.sample import sample
from twosides.sampling.samplers import Sampler, samplers
from twosides.sampling.solvers import SOLVERS, Euler, EulerMaruyama
from twosides.sampling.stochasticity import (
    Churn,
    DDIMEta,
    Diffusion,
    Epsilon,
    Eta,
    LargeVariance,
    Tau,
)
from twosides.schedules import Cosine, FlowMatching, VPLinear

FLOAT64 = torch.float64
DATA = GaussianMixture.ring(5, std=0.45)
GRID = UniformTime(start=0.98, end=0.02)  # inside, where every frame and derivative is smooth
SCHEDULES = {"flow": FlowMatching(), "cosine": Cosine(), "vp-linear": VPLinear()}


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_deterministic_order(solver, schedule):
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    sampler = Sampler(GRID, solver)

    def end(steps):
        return sample(
            DATA,
            (64, 2),
            sampler=sampler,
            steps=steps,
            schedule=schedule,
            init=noise,
            dtype=FLOAT64,
        )

    steps = (40, 80, 160)
    ends = [end(n) for n in (*steps, 320)]
    # Differences of successive results fall like the error, and need no reference solution.
    gaps = [float((a - b).abs().mean()) for a, b in itertools.pairwise(ends)]
    assert slope(steps, gaps) == pytest.approx(solver.order, abs=0.2)


def recursion(made: Plan, data: GaussianMixture):
    """Exact mean and covariance of a plan's result for Gaussian data: estimates are affine in z.

    In the data's principal axes everything is diagonal: mean and variance per axis.
    """
    spectrum, axes = torch.linalg.eigh(data.covariance)
    centre = axes.T @ data.mean
    mean, variance = torch.zeros_like(centre), torch.full_like(centre, float(made.noise[0, 0] ** 2))
    for k, level in enumerate(made.levels[:-1]):
        total = level.alpha**2 * spectrum + level.sigma**2
        # x = centre + gain_x (z - alpha centre), eps = gain_e (z - alpha centre)
        x, eps = level.alpha * spectrum / total, level.sigma / total
        a, b = made.x[k + 1, k], made.eps[k + 1, k]
        gain = a * x + b * eps
        mean = a * centre + gain * (mean - level.alpha * centre)
        variance = gain**2 * variance + float((made.noise[k + 1, 1:] ** 2).sum())
    return mean, variance, centre, spectrum


GAUSSIAN = GaussianMixture.gaussian([0.4, -0.2], [[0.30, 0.12], [0.12, 0.20]])
NOISES = {
    "ddpm": Eta(1.0), "eta-0.5": Eta(0.5), "churn": Churn(0.3), "ddim-eta": DDIMEta(0.7), "tau": Tau(1.2),
    "epsilon": Epsilon(1.0), "epsilon-t": Epsilon(lambda t: t), "diffusion": Diffusion(0.3),
    "large": LargeVariance(),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_stochastic_samplers_reach_the_moments_at_their_order(noise, schedule):
    # A constant epsilon is stiff at the data, where g vanishes and eta = epsilon / g does not.
    stiff = isinstance(noise, Epsilon | Diffusion) and not callable(noise.value)
    grid = UniformTime(end=0.15) if stiff else UniformTime()
    check_moments(Sampler(grid, stochasticity=noise), schedule)


@pytest.mark.parametrize("schedule", [Cosine(-14, 14), VPLinear()])
def test_euler_maruyama_reaches_the_moments_too(schedule):
    check_moments(Sampler(solver=EulerMaruyama(), stochasticity=Eta(1.0)), schedule)


@pytest.mark.parametrize("name", [name for name in samplers if name != "consistency"])
def test_presets_reach_the_moments(name):
    check_moments(samplers[name], VPLinear())


def check_moments(sampler, schedule):
    errors, steps = [], (200, 400, 800)
    for n in steps:
        made = sampler.plan(schedule, n)
        mean, variance, centre, spectrum = recursion(made, GAUSSIAN)
        scale = made.alpha[-1]
        variance = variance - made.sigma[-1] ** 2  # what the last level keeps of the noise
        errors.append(
            float(
                (mean / scale - centre).abs().max() + (variance / scale**2 - spectrum).abs().max()
            )
        )
    start = made.alpha[0]  # the prior's own error, N(0, alpha^2 + sigma^2) for N(alpha m, ...)
    assert errors[-1] < 0.04 + 2 * start
    limit = 2 * errors[-1] - errors[-2]
    assert abs(limit) < 2e-3 + 2 * start
    if start < 1e-3:
        assert slope(steps, errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["ddpm", "churn", "euler-ancestral", "ddpm-large"])
def test_mixture_modes_are_found_in_proportion(name):
    """Masses of the modes and the spread within them, at the sampling floor."""
    weights = [0.1, 0.2, 0.3, 0.4]
    angles = torch.arange(4) * math.pi / 2
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1).double()
    data = GaussianMixture(weights, means, 0.09 * torch.eye(2, dtype=FLOAT64).expand(4, 2, 2))
    count = 4000
    x = sample(data, (count, 2), sampler=name, steps=150, seed=0, dtype=FLOAT64)
    nearest = torch.cdist(x, means).argmin(1)
    masses = torch.bincount(nearest, minlength=4) / count
    for mass, weight in zip(masses.tolist(), weights, strict=True):
        assert mass == pytest.approx(weight, abs=5 * math.sqrt(weight * (1 - weight) / count))
    for mode in range(4):
        inner = x[nearest == mode] - means[mode]
        floor = 0.3 * 5 / math.sqrt(2 * len(inner))
        assert float(inner.std()) == pytest.approx(0.3, abs=floor + 0.02)


def test_consistency_sampling_restarts_from_the_data_estimate():
    """Full renoise: the state depends on the last estimate only."""
    made = samplers["consistency"].plan(FlowMatching(), 5)
    assert not np.abs(made.eps).max() > 1e-15
    assert np.allclose(np.diag(made.x, -1), made.alpha[1:])


def test_an_euler_frame_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="zero SNR"):
        Sampler(solver=Euler("eps")).plan(FlowMatching(), 3)
