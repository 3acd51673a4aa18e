"""Which conditions are exact for which data: the estimate beside that of the exact posterior."""

import math

import pytest
import torch

import twosides as ts
from twosides.oracle import GaussianMixture
from twosides.posteriors.limits import near_noise
from twosides.schedules import FlowMatching, Level

FLOAT64 = torch.float64
D, M = 8, 3
LOGSNRS = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
G = torch.Generator().manual_seed(1)


def randn(*shape):
    return torch.randn(*shape, generator=G, dtype=FLOAT64)


def spread(ridge=0.05):
    root = randn(D, D)
    return root @ root.T / D + ridge * torch.eye(D, dtype=FLOAT64)


A, MEAN, FULL, NOISE = randn(M, D), randn(D), spread(), randn(M)
MIXTURE = GaussianMixture(
    torch.softmax(randn(5), 0), 1.5 * randn(5, D), 0.2 * torch.stack([spread() for _ in range(5)])
)


def at(logsnr, schedule=None):
    return (schedule or FlowMatching()).level(torch.tensor(logsnr, dtype=FLOAT64)).floats()


def problem(prior, noise):
    y = A @ prior.sample(1, seed=3)[0] + noise * NOISE
    return ts.Measurement(lambda x: x @ A.T, y[None], noise), prior.condition(A, y, noise)


def error(conditioned, truth, logsnr):
    """In posterior standard deviations, of both parts of the pair, where a run would ask."""
    level = at(logsnr)
    z = truth.sample(32, seed=5, level=level)
    got, want = conditioned(z, level), truth(z, level)
    assert torch.allclose(level.mix(*got), z, rtol=0, atol=1e-12 * float(z.abs().max()))
    scale = float(truth.covariance.trace().sqrt())
    eps = float((got.eps - want.eps).norm(dim=1).max()) / math.sqrt(D)
    return max(float((got.x - want.x).norm(dim=1).max()) / scale, eps)


@pytest.mark.parametrize("noise", [0.3, 0.01])
@pytest.mark.parametrize("method", ["mmps", "gaussian", "pigdm", "diffpir"])
@pytest.mark.parametrize("covariance", ["isotropic", "full"])
def test_gaussian_data(method, covariance, noise):
    """Test 1: mmps is exact for all, gaussian for the covariance that it is told, ..."""
    matrix = 0.3 * torch.eye(D, dtype=FLOAT64) if covariance == "isotropic" else FULL
    prior = GaussianMixture.gaussian(MEAN, matrix)
    measurement, truth = problem(prior, noise)
    told = dict(trust=-math.inf, tolerance=1e-14, most=9)
    conditioned = ts.posterior(prior, measurement, method, covariance=matrix, **told)
    errors = [error(conditioned, truth, logsnr) for logsnr in LOGSNRS]
    if covariance == "isotropic" or method in ("mmps", "gaussian"):
        assert max(errors) < 1e-12
    else:
        assert max(errors) > 0.1  # ... and the isotropic two are not for others


def test_no_method_but_the_measure_of_it_is_exact_for_a_mixture():
    measurement, truth = problem(MIXTURE, 0.3)
    conditioned = ts.posterior(MIXTURE, measurement, trust=-math.inf, tolerance=1e-14)
    assert error(conditioned, truth, -2.0) > 0.1
    assert error(conditioned, truth, 4.0) < 1e-9  # once the component is decided


def tilted(prior, b):
    """The mixture p(x) exp(b . x)."""
    quadratic = 0.5 * torch.einsum("i,kij,j->k", b, prior.covariances, b)
    logits = prior.weights.log() + prior.means @ b + quadratic
    return GaussianMixture(
        torch.softmax(logits, 0), prior.means + prior.covariances @ b, prior.covariances
    )


@pytest.mark.parametrize("logsnr", [-10.0, -4.0, 0.0, 4.0, 10.0])
def test_a_tilt_is_exact_for_every_prior(logsnr):
    b = 2 * torch.linspace(-1, 1, D, dtype=FLOAT64)
    assert error(ts.tilt(MIXTURE, b), tilted(MIXTURE, b), logsnr) < 1e-9


@pytest.mark.parametrize("logsnr", [-math.inf, -10.0, -4.0, 0.0, 4.0, 10.0])
def test_scaled_orthogonal_measurements_are_exact_for_every_prior(logsnr):
    turn, _ = torch.linalg.qr(spread())
    c, s = 0.7, 0.5
    y = c * turn @ MIXTURE.sample(1, seed=2)[0] + s * torch.linspace(-1, 1, D, dtype=FLOAT64)
    seen = ts.Measurement(lambda x: c * x @ turn.T, y[None], s)
    truth = MIXTURE.condition(c * turn, y, s)
    assert error(ts.posterior(MIXTURE, seen, "level"), truth, logsnr) < 1e-12


def test_level_refuses_what_it_cannot_do():
    z, level, y = randn(4, D), at(0.0), torch.zeros(1, M, dtype=FLOAT64)
    with pytest.raises(ValueError, match="A\\^T A = c\\^2 I"):
        ts.posterior(MIXTURE, ts.Measurement(lambda x: x @ A.T, y, 0.1), "level")(z, level)
    with pytest.raises(ValueError, match="linear"):
        bent = ts.Measurement(lambda x: x + 0.2 * x**2, torch.zeros(1, D, dtype=FLOAT64), 0.1)
        ts.posterior(MIXTURE, bent, "level")(z, level)
    with pytest.raises(ValueError, match="a state of zeros"):
        plain = ts.Measurement(lambda x: x, torch.zeros(1, D, dtype=FLOAT64), 0.1)
        ts.posterior(MIXTURE, plain, "level")(0 * z, level)
    with pytest.raises(ValueError, match="one number"):
        ts.posterior(MIXTURE, ts.Measurement(lambda x: x, torch.zeros(1, D), 0.0), "level")


@pytest.mark.parametrize("logsnr", [-math.inf, -30.0, -16.0])
def test_near_pure_noise_the_limits_are_met(logsnr):
    """sigma^2 / alpha is infinite there; what is left out is e^-14 = 8e-7 of a spread."""
    prior = GaussianMixture.gaussian(MEAN, FULL)
    measurement, truth = problem(prior, 0.3)
    conditioned = ts.posterior(prior, measurement, trust=-math.inf, tolerance=1e-14)
    assert error(conditioned, truth, logsnr) < 1e-5
    b = torch.linspace(-1, 1, D, dtype=FLOAT64)
    assert error(ts.tilt(MIXTURE, b), tilted(MIXTURE, b), logsnr) < 1e-5


def test_what_is_asked_near_noise_is_linear_in_the_signal():
    """Each sample has its level here; those above the floor are asked where they are."""
    logsnr = torch.tensor([-math.inf, -20.0, -15.0, -3.0], dtype=FLOAT64)
    level, z = FlowMatching().level(logsnr), MIXTURE.sample(4, seed=1)
    (x,) = near_noise(lambda z, level: (MIXTURE(z, level).x,), z, level)
    want = MIXTURE(z, level).x
    assert torch.allclose(x[:3], want[:3], atol=1e-4) and torch.allclose(x[3], want[3])
    assert not torch.allclose(want[2], want[0], atol=2e-4)  # and the part in alpha is not nothing


def test_levels_of_each_sample_trust_included():
    measurement, _ = problem(MIXTURE, 0.3)
    conditioned = ts.posterior(MIXTURE, measurement, trust=-1.0, tolerance=1e-12, covariance=FULL)
    logsnr = torch.tensor([-14.0, -3.0, 0.5, 3.0], dtype=FLOAT64)
    z = randn(4, D)
    together = conditioned(z, FlowMatching().level(logsnr))
    for row in range(4):
        alone = conditioned(z[row : row + 1], at(float(logsnr[row])))
        assert torch.allclose(together.x[row], alone.x[0], atol=1e-10)
        assert torch.allclose(together.eps[row], alone.eps[0], atol=1e-10)


def test_below_the_trusted_level_the_network_is_not_differentiated():
    measurement, _ = problem(MIXTURE, 0.3)
    conditioned = ts.posterior(MIXTURE, measurement, trust=-4.0, covariance=FULL)
    given = ts.posterior(MIXTURE, measurement, "gaussian", covariance=FULL)
    z = randn(4, D)
    for level in (at(-5.0), at(-math.inf), Level(-5.0, 1.0, math.exp(2.5))):
        assert torch.equal(conditioned(z, level).x, given(z, level).x)
    assert conditioned.products == 0
    conditioned(z, at(-3.0))
    assert conditioned.products > 0


def test_at_the_data_a_measurement_changes_nothing():
    measurement, _ = problem(MIXTURE, 0.0)
    z, level = MIXTURE.sample(4, seed=0), at(math.inf)
    for method in ("mmps", "gaussian", "pigdm", "diffpir", "dps"):
        got = ts.posterior(MIXTURE, measurement, method)(z, level)
        assert torch.allclose(got.x, z) and bool(got.eps.isfinite().all())
