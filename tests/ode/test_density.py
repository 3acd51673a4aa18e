"""Samples and their densities by one run: exact on mixtures, equal to the way back."""

import math

import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.ode.density import sample_with_density
from twosides.ode.divergence import Hutchinson
from twosides.ode.likelihood import log_likelihood
from twosides.oracle import GaussianMixture
from twosides.sampling.sample import sample
from twosides.schedules import EDM, Cosine, FlowMatching

FLOAT64 = torch.float64
RING = GaussianMixture.ring(8, std=0.4)
SKEW = GaussianMixture.gaussian([0.4, -0.2], [[0.30, 0.12], [0.12, 0.20]])


def noise(count=16, dims=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dims, generator=generator, dtype=FLOAT64)


def truth(data, x):
    return data.log_prob(x, FlowMatching().at(0.0).floats())


@pytest.mark.parametrize("data", [RING, SKEW], ids=["ring", "skew"])
@pytest.mark.parametrize("schedule", [FlowMatching(), Cosine()], ids=["flow", "cosine"])
def test_the_density_of_samples_is_the_mixtures(data, schedule):
    x, nats = sample_with_density(data, (16, 2), steps=30, schedule=schedule, init=noise())
    assert torch.allclose(nats, truth(data, x), atol=2e-3)
    assert torch.equal(x, sample(data, (16, 2), sampler="rk4", steps=30, schedule=schedule,
                                 init=noise(), dtype=FLOAT64))  # fmt: skip


def test_it_converges_at_the_samplers_order():
    errors = []
    for steps in (40, 80):
        x, nats = sample_with_density(SKEW, (4, 2), sampler="flow-heun", steps=steps, init=noise(4))
        errors.append(float((nats - truth(SKEW, x)).abs().mean()))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.4, errors


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "unipc"])
def test_it_is_the_density_of_the_way_back(sampler):
    """`log_likelihood` of the samples walks back: the same up to the error of both ways."""
    distances = []
    for steps in (20, 80):
        x, nats = sample_with_density(SKEW, (4, 2), sampler=sampler, steps=steps, init=noise(4))
        back = log_likelihood(SKEW, x, sampler="rk4", steps=40).nats
        distances.append(float((nats - back).abs().max()))
    assert distances[1] < 0.4 * distances[0], distances


def test_data_with_units():
    """Standardised data stretch the density."""
    inner = GaussianMixture.gaussian([0.0, 0.0], [[1.0, 0.3], [0.3, 0.5]])

    def network(z, t):
        estimate = inner(z, FlowMatching().at(t.double()))
        return estimate.eps - estimate.x

    denoiser = Denoiser(network, data_mean=2.0, data_std=torch.tensor([3.0, 0.5]))
    x, nats = sample_with_density(denoiser, (16, 2), steps=60, init=noise())
    scale = torch.tensor([3.0, 0.5], dtype=FLOAT64)
    law = torch.distributions.MultivariateNormal(
        torch.full((2,), 2.0, dtype=FLOAT64),
        torch.diag(scale)
        @ torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=FLOAT64)
        @ torch.diag(scale),
    )
    assert torch.allclose(nats, law.log_prob(x), atol=1e-4)


def test_networks_with_finite_ends():
    """EDM's grid ends at sigma 0.002, at the density of the noisy data; at 80 the noise is not all
    of it, which leaves the prior off by alpha |x| / sigma."""
    x, nats = sample_with_density(SKEW, (16, 2), steps=80, schedule=EDM(), init=noise())
    level = EDM().at(0.0).floats()
    wanted = SKEW.log_prob(level.alpha * x, level) + 2 * math.log(level.alpha)
    assert torch.allclose(nats, wanted, atol=2e-2)


def test_random_probes_are_unbiased_and_belong_to_their_sample():
    x, exact = sample_with_density(RING, (512, 2), steps=12, seed=3)
    same, nats = sample_with_density(
        RING, (512, 2), steps=12, seed=3, divergence=Hutchinson(seed=3)
    )
    assert torch.equal(x, same)
    off = nats - exact
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(512) + 1e-6
    assert float(off.std()) > 1e-3, "probes are random"
    few = sample_with_density(RING, (5, 2), steps=12, seed=3, divergence=Hutchinson(seed=3))
    assert torch.allclose(few.nats, nats[:5], atol=1e-5)


def test_the_gradient_is_the_closed_form():
    """x = m + s n and log p = -n^2 / 2 - log s: in one dimension nothing else."""
    n = noise(6, 1).requires_grad_()
    data = GaussianMixture.gaussian([0.4], [[0.25]])
    x, nats = sample_with_density(data, (6, 1), steps=40, init=n, differentiable=True)
    (of_x,) = torch.autograd.grad(x.sum(), [n], retain_graph=True)
    (of_nats,) = torch.autograd.grad(nats.sum(), [n])
    assert torch.allclose(of_x, torch.full_like(n, 0.5), atol=1e-5)
    assert torch.allclose(of_nats, -n, atol=1e-4)
    x, nats = sample_with_density(data, (6, 1), steps=2, init=n)
    assert not x.requires_grad and not nats.requires_grad


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "ddpm"}, "injects noise.*rollout"),
        ({"init": torch.zeros(3, 2)}, "init has shape"),
        ({"init": torch.full((2, 2), math.nan)}, "NaN"),
    ],
)
def test_what_has_no_density_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        sample_with_density(RING, (2, 2), **{"steps": 2, **options})
