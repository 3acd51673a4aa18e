"""Particles against exact posteriors: samples, masses of components, the evidence."""

import math

import pytest
import torch

import twosides as ts
from priors import masses, problem
from twosides.oracle import GaussianMixture

FLOAT64 = torch.float64
EXACT = dict(trust=-math.inf, tolerance=1e-6)
TWO = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], [[[0.2, 0.1], [0.1, 0.3]]] * 2)


def variance(prior):
    return float(prior.covariance.trace()) / len(prior.mean)


def evidence(drawn):
    """The groups' estimates are unbiased, their mean is a better one."""
    return float(torch.logsumexp(drawn.log_evidence, 0) - math.log(len(drawn.log_evidence)))


@pytest.mark.parametrize(
    ("name", "method", "noise", "groups", "wrong", "right"),
    [("mix8", "mmps", 0.3, 1, 0.01, 0.005), ("lattice25", "pigdm", 0.1, 1, 0.5, 0.02)],
)
def test_particles_put_the_masses_right_where_guidance_does_not(
    name, method, noise, groups, wrong, right
):
    """Test 5, and the evidence within 0.1 nat."""
    prior, seen, truth, log_evidence = problem(name, noise)
    guided = ts.posterior(prior, seen, method, covariance=variance(prior), **EXACT)
    alone = ts.sample(guided, (200, 8), sampler="ddpm", steps=50, seed=0, dtype=FLOAT64)
    assert masses(alone, truth) > wrong
    drawn = ts.steer(guided, (groups, 8), particles=1000, sampler="ddpm", steps=50, seed=0)
    weights = drawn.weights.flatten() / groups
    assert masses(drawn.particles.flatten(0, 1), truth, weights) < right
    assert evidence(drawn) == pytest.approx(log_evidence, abs=0.1)


@pytest.mark.parametrize("sampler", ["ddpm", "kab2c-sde"])
@pytest.mark.parametrize("proposal", [None, "mmps"])
def test_the_moments_of_the_exact_posterior(sampler, proposal):
    """Multistep plans, with a proposal and without; groups count by their evidence."""
    A, y = torch.tensor([[0.2, 1.0]], dtype=FLOAT64), [0.8]
    seen = ts.Measurement(lambda x: x @ A.T, torch.tensor([y], dtype=FLOAT64), 0.5)
    truth = TWO.condition(A, y, 0.5)
    guide = ts.posterior(TWO, seen, covariance=2.0, **EXACT) if proposal else None
    drawn = ts.steer(
        TWO, (20, 2), seen, particles=200, proposal=guide, sampler=sampler, steps=25, seed=1
    )
    weights = (torch.softmax(drawn.log_evidence, 0)[:, None] * drawn.weights).flatten()
    x = drawn.particles.flatten(0, 1)
    mean = weights @ x
    spread = (weights[:, None] * (x - mean)).T @ (x - mean)
    assert float((mean - truth.mean).norm()) < 0.1 * float(truth.covariance.trace().sqrt())
    assert float((spread - truth.covariance).norm()) < 0.1 * float(truth.covariance.norm())
    assert evidence(drawn) == pytest.approx(TWO.log_evidence(A, y, 0.5), abs=0.1)


def test_a_linear_reward_is_the_tilt():
    b = torch.tensor([0.4, 0.7], dtype=FLOAT64)
    exact = ts.sample(ts.tilt(TWO, b), (4000, 2), sampler="kab2c", steps=20, seed=0, dtype=FLOAT64)
    drawn = ts.steer(TWO, (600, 2), reward=lambda x: x.double() @ b, particles=16, steps=20, seed=0)
    assert torch.allclose(drawn.sample.double().mean(0), exact.mean(0), atol=0.15)
    assert float(exact.mean(0)[0]) > 1  # which is not the prior's, 0
    quadratic = 0.5 * torch.einsum("i,kij,j->k", b, TWO.covariances, b)
    logits = TWO.weights.log() + TWO.means @ b + quadratic
    assert evidence(drawn) == pytest.approx(float(torch.logsumexp(logits, 0)), abs=0.1)


def test_a_log_likelihood_is_a_measurement_too():
    """The same condition said in two ways: only the guesses on the way differ."""
    A, y = torch.tensor([[1.0, 0.0]], dtype=FLOAT64), torch.tensor([[1.5]], dtype=FLOAT64)
    said = ts.Measurement(lambda x: x @ A.to(x).T, y, 0.5)
    bare = ts.Measurement(log_likelihood=lambda x: said.log_density(x))
    exact = TWO.condition(A, y[0], 0.5)
    for seen in (said, bare):
        drawn = ts.steer(TWO, (600, 2), seen, particles=16, steps=20, seed=2)
        assert torch.allclose(drawn.sample.double().mean(0), exact.mean, atol=0.1)


def test_a_sample_depends_on_its_number_only_and_conditioning_goes_with_it():
    class Labelled:
        schedule = ts.FlowMatching()

        def __call__(self, z, level, *, shift):
            moved = TWO(z - level.alpha * shift[:, None], level)
            return moved._replace(x=moved.x + shift[:, None])

    shift = torch.tensor([0.0, 30.0, 60.0])
    told = dict(reward=lambda x: -x[:, 0].abs() / 50, particles=8, steps=6, seed=4)
    three = ts.steer(Labelled(), (3, 2), shift=shift, **told)
    one = ts.steer(Labelled(), (1, 2), shift=shift[:1], **told)
    assert torch.allclose(three.sample[0], one.sample[0], atol=1e-5)
    assert ((three.particles[..., 0].mean(1) - shift).abs() < 4).all()
    assert three.particles.shape == (3, 8, 2) and three.ess.shape == (7, 3)
    assert torch.allclose(three.weights.sum(1), torch.ones(3, dtype=FLOAT64))


def test_duplicates_are_counted():
    """All but one of the particles are hopeless at the end, when no noise parts them any more."""
    drawn = ts.steer(TWO, (4, 2), reward=lambda x: -1e4 * (x[:, 0] - 2) ** 2, particles=8, seed=0)
    for group in range(4):
        states = {tuple(row) for row in drawn.particles[group].tolist()}
        assert len(states) == int(drawn.distinct[group])
        assert len(set(drawn.ancestors[group].tolist())) <= len(states)
    assert int(drawn.distinct.min()) < 8


def test_refusals():
    seen = ts.Measurement(lambda x: x, torch.zeros(1, 2), 0.0)
    with pytest.raises(ValueError, match="stochastic sampler"):
        ts.steer(TWO, (1, 2), reward=lambda x: x[:, 0], sampler="ddim")
    given = ts.posterior(TWO, ts.Measurement(lambda x: x, torch.zeros(1, 2), 0.1))
    with pytest.raises(ValueError, match="would count twice"):
        ts.steer(given, (1, 2), given.measurement)
    with pytest.raises(ValueError, match="needs a condition"):
        ts.steer(TWO, (1, 2))
    with pytest.raises(ValueError, match="noise > 0"):
        ts.steer(TWO, (1, 2), seen, steps=2)
    with pytest.raises(ValueError, match="one number for each"):
        ts.steer(TWO, (1, 2), reward=lambda x: x)
    with pytest.raises(ValueError, match="at least 2"):
        ts.steer(TWO, (1, 2), seen, particles=1)
