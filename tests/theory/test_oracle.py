import math

import numpy as np
import pytest
import torch

from twosides.oracle import Empirical, GaussianMixture
from twosides.schedules import Cosine, FlowMatching, Level

FLOAT64 = torch.float64


def mixture(dims=3, modes=4, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(modes, dims, dims))
    weights = rng.dirichlet(np.ones(modes))
    return GaussianMixture(
        weights, rng.normal(size=(modes, dims)), roots @ roots.swapaxes(1, 2) / 4
    )


def brute_force(data, z, level, draws=400_000):
    """E[x|z] by importance sampling from the data."""
    x = data.sample(draws, seed=5)
    logits = -((z - level.alpha * x) ** 2).sum(1) / (2 * level.sigma**2)
    return (torch.softmax(logits, 0)[:, None] * x).sum(0)


def test_posterior_mean_against_importance_sampling():
    data, level = mixture(2), FlowMatching().at(0.6).floats()
    z = data.sample(4, seed=1, level=level)
    for row, x in zip(z, data(z, level).x, strict=True):
        assert torch.allclose(brute_force(data, row, level), x, atol=0.02)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.9, 1.0])
def test_score_is_the_gradient_of_the_log_density(t):
    data, level = mixture(), Cosine().at(t).floats()
    z = data.sample(6, seed=2, level=level).requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(z, level).sum(), z)
    assert torch.allclose(data.score(z.detach(), level), gradient, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_pair_is_consistent_at_both_ends(t):
    data, level = mixture(), FlowMatching().at(t)
    z = data.sample(7, seed=3, level=level)
    assert torch.allclose(level.mix(*data(z, level)), z, atol=1e-12)
    if t == 1.0:
        assert torch.allclose(data(z, level).x, data.mean.expand(7, 3), atol=1e-12)


def test_density_integrates_to_one_and_moments_are_exact():
    data = mixture(1)
    grid = torch.linspace(-12, 12, 20_001, dtype=FLOAT64)[:, None]
    density = data.log_prob(grid, FlowMatching().at(0.0)).exp()
    x = grid[:, 0]
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-9)
    mean = float(torch.trapezoid(x * density, x))
    assert mean == pytest.approx(float(data.mean), abs=1e-9)
    spread = float(torch.trapezoid((x - mean) ** 2 * density, x))
    assert spread == pytest.approx(float(data.covariance), abs=1e-8)


def test_samples_have_the_moments_of_their_level():
    data, level = mixture(), Cosine().at(0.3).floats()
    z = data.sample(200_000, seed=4, level=level)
    expected = level.alpha**2 * data.covariance + level.sigma**2 * torch.eye(3, dtype=FLOAT64)
    assert torch.allclose(z.mean(0), level.alpha * data.mean, atol=0.02)
    assert torch.allclose(z.T.cov(), expected, atol=0.05)


def test_batched_levels_equal_single_ones():
    data = mixture()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=FLOAT64)
    z = data.sample(3, seed=6)
    batched = data(z, FlowMatching().at(t))
    for i in range(3):
        single = data(z[i : i + 1], FlowMatching().at(t[i]))
        assert torch.allclose(batched.x[i], single.x[0], atol=1e-13)
        assert torch.allclose(batched.eps[i], single.eps[0], atol=1e-13)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_empirical_is_the_mixture_of_points(chunk):
    points = np.random.default_rng(0).normal(size=(23, 2, 2))
    flat = torch.tensor(points.reshape(23, 4))
    exact = GaussianMixture(np.full(23, 1 / 23), flat, torch.zeros(23, 4, 4, dtype=FLOAT64))
    data = Empirical(points, chunk=chunk)
    for t in (0.02, 0.5, 1.0):
        level = FlowMatching().at(t)
        z = exact.sample(5, seed=0, level=level.floats())
        ours, truth = data(z.reshape(5, 2, 2), level), exact(z, level)
        assert torch.allclose(ours.x.reshape(5, 4), truth.x, atol=1e-10)
        assert torch.allclose(ours.eps.reshape(5, 4), truth.eps, atol=1e-8)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="sum to"):
        GaussianMixture([0.5, 0.6], torch.zeros(2, 1), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match="means"):
        GaussianMixture([1.0], torch.zeros(2, 1), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match="positive semi-definite"):
        GaussianMixture([1.0], torch.zeros(1, 1), -torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="dimensions"):
        mixture()(torch.zeros(1, 2, dtype=FLOAT64), FlowMatching().at(0.5))
    with pytest.raises(ValueError, match="undefined at sigma = 0"):
        Empirical(torch.zeros(3, 2))(torch.zeros(1, 2), FlowMatching().at(0.0))
    with pytest.raises(TypeError):
        mixture()(torch.zeros(1, 3, dtype=FLOAT64), FlowMatching().at(0.5), labels=3)


def test_covariances_of_low_rank():
    rng = np.random.default_rng(0)
    for _ in range(30):
        root = rng.normal(size=(1, 4, 2))
        data = GaussianMixture([1.0], np.zeros((1, 4)), root @ root.swapaxes(1, 2))
        level = FlowMatching().at(0.3)
        z = data.sample(3, seed=0, level=level.floats())
        assert torch.allclose(level.mix(*data(z, level)), z)
    point = GaussianMixture([1.0], np.zeros((1, 2)), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="a component of variance 0"):
        point(torch.zeros(1, 2, dtype=FLOAT64), FlowMatching().at(0.0))


A, Y = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]], dtype=FLOAT64), [0.25, -0.5]


@pytest.mark.parametrize("noise", [0.3, [0.1, 0.7]])
def test_the_posterior_is_bayes_rule(noise):
    """log p(x) + log p(y | x) - log p(y) at random points, by densities that know no posterior."""
    data, here = mixture(), Level(math.inf, 1.0, 0.0)
    x = data.sample(50, seed=1)
    std = torch.as_tensor(noise, dtype=FLOAT64).expand(2)
    likelihood = torch.distributions.Normal(x @ A.T, std).log_prob(torch.tensor(Y)).sum(1)
    want = data.log_prob(x, here) + likelihood - data.log_evidence(A, Y, noise)
    got = data.condition(A, Y, noise).log_prob(x, here)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-8)


def test_a_measurement_without_noise_is_met():
    drawn = mixture().condition(A, Y).sample(100, seed=0)
    assert torch.allclose(drawn @ A.T, torch.tensor(Y, dtype=FLOAT64), atol=1e-6)
    flat = GaussianMixture.gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="without noise"):
        flat.condition([[0.0, 1.0]], [0.5])
    with pytest.raises(ValueError, match="got"):
        flat.condition([[0.0, 1.0, 2.0]], [0.5], 0.1)
