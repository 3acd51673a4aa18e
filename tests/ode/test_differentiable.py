"""Gradients of samples and densities, against closed forms and finite differences."""

import pytest
import torch
from torch import nn

from twosides.denoiser import Denoiser
from twosides.ode.integrate import Adaptive
from twosides.ode.likelihood import log_likelihood
from twosides.oracle import GaussianMixture
from twosides.sampling.sample import sample
from twosides.schedules import Cosine, FlowMatching

FLOAT64 = torch.float64


class Gaussian(nn.Module):
    """The network of N(mean + told, std^2) in every dimension, which predicts u."""

    def __init__(self, mean=0.3, std=0.5):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=FLOAT64))
        self.std = nn.Parameter(torch.tensor(std, dtype=FLOAT64))

    def forward(self, z, time, told=0.0):
        t = time.to(z).reshape(-1, *[1] * (z.ndim - 1))
        mean, variance = (1 - t) * (self.mean + told), (1 - t) ** 2 * self.std**2 + t**2
        eps = t * (z - mean) / variance
        x = self.mean + told + (1 - t) * self.std**2 * (z - mean) / variance
        return eps - x


class Curved(nn.Module):
    """A small network of no closed form."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("first", "second"):
            weights = 0.5 * torch.randn(3, 3, generator=generator, dtype=FLOAT64)
            setattr(self, name, nn.Parameter(weights))

    def forward(self, z, time):
        return torch.tanh(z @ self.first + time.to(z)[:, None]) @ self.second


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)


def slopes(function, leaves, step=1e-5):
    """Central differences of a number with respect to each element of the leaves."""
    found = []
    for leaf in leaves:
        flat = leaf.data.view(-1)
        each = []
        for i in range(len(flat)):
            kept, values = float(flat[i]), []
            for moved in (kept + step, kept - step):
                flat[i] = moved
                values.append(float(function()))
            flat[i] = kept
            each.append((values[0] - values[1]) / (2 * step))
        found.append(torch.tensor(each, dtype=FLOAT64).reshape(leaf.shape))
    return found


def test_the_gradient_of_samples_is_that_of_the_exact_map():
    """The ODE takes noise n to mean + std n; its slopes in mean, std, told and n are known."""
    network, n = Gaussian(), noise(5, 2).requires_grad_()
    told = torch.zeros(5, 1, dtype=FLOAT64, requires_grad=True)
    x = sample(
        Denoiser(network), (5, 2), sampler="rk4", steps=40, init=n, dtype=FLOAT64,
        differentiable=True, told=told,
    )  # fmt: skip
    assert torch.allclose(x, 0.3 + 0.5 * n, atol=1e-6)
    mean, std, of_told, of_n = torch.autograd.grad(x.sum(), [network.mean, network.std, told, n])
    assert float(mean) == pytest.approx(10, abs=1e-5)
    assert float(std) == pytest.approx(float(n.detach().sum()), abs=1e-5)
    assert torch.allclose(of_told, torch.full((5, 1), 2.0, dtype=FLOAT64), atol=1e-6)
    assert torch.allclose(of_n, torch.full((5, 2), 0.5, dtype=FLOAT64), atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "unipc", "heun", "ddpm", "edm", "dpmpp-2m-sde"])
def test_the_gradient_of_any_sampler_is_that_of_differences(sampler):
    network, n = Curved(), noise(2, 3).requires_grad_()
    schedule = Cosine(-8, 8)

    def total(differentiable=False):
        x = sample(
            Denoiser(network, "v", schedule), (2, 3), sampler=sampler, steps=5, init=n, seed=0,
            dtype=FLOAT64, differentiable=differentiable,
        )  # fmt: skip
        return (x**3).sum()

    leaves = [n, *network.parameters()]
    found = torch.autograd.grad(total(differentiable=True), leaves)
    for a, b in zip(found, slopes(total, leaves), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_states_on_the_way_are_recorded_too():
    network = Curved()
    run = sample(
        Denoiser(network), (2, 3), steps=3, seed=0, dtype=FLOAT64, trajectory=True,
        differentiable=True,
    )  # fmt: skip
    assert run.sample.requires_grad and run.states[-1].requires_grad
    assert all(estimate.x.requires_grad for estimate in run.predictions)


def test_nothing_is_recorded_unasked():
    network, n = Curved(), noise(2, 3).requires_grad_()
    run = sample(Denoiser(network), (2, 3), steps=3, init=n, dtype=FLOAT64, trajectory=True)
    assert not any(each.requires_grad for each in [run.sample, *run.states[1:]])
    assert not any(part.requires_grad for pair in run.predictions for part in pair)
    found = log_likelihood(Denoiser(network), n, steps=2)
    assert not found.nats.requires_grad and not found.noise.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", ["rk4", "adaptive"])
def test_the_gradient_of_log_densities_is_the_closed_form(sampler):
    """d log p of N(mean, std^2), and in x the score."""
    network, x = Gaussian(), noise(4, 2).requires_grad_()
    options = {"steps": 40}
    sampler = Adaptive(rtol=1e-9, atol=1e-9) if sampler == "adaptive" else sampler
    told = torch.zeros(4, 1, dtype=FLOAT64, requires_grad=True)
    nats = log_likelihood(
        Denoiser(network), x, sampler=sampler, differentiable=True, told=told, **options
    ).nats
    found = torch.autograd.grad(nats.sum(), [network.mean, network.std, x, told])
    off = (x.detach() - 0.3) / 0.5
    of_std = ((off**2 - 1) / 0.5).sum()
    score = -off / 0.5
    for a, b in zip(found, [-score.sum(), of_std, score, -score.sum(1, True)], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_score_of_a_mixture():
    """The slope of log p is the mixture's own score, exact at the data."""
    ring = GaussianMixture.ring(8, std=0.4)
    x = ring.sample(6, seed=0).requires_grad_()
    nats = log_likelihood(ring, x, sampler=Adaptive(rtol=1e-8, atol=1e-8), differentiable=True).nats
    (found,) = torch.autograd.grad(nats.sum(), [x])
    clean = FlowMatching().at(0.0).floats()
    (wanted,) = torch.autograd.grad(ring.log_prob(x, clean).sum(), [x])
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_gradient_of_any_log_density_is_that_of_differences(divergence):
    network, x = Curved(), noise(2, 3).requires_grad_()

    def total(differentiable=False):
        found = log_likelihood(
            Denoiser(network), x, sampler="heun", steps=1, divergence=divergence,
            differentiable=differentiable,
        )  # fmt: skip
        return found.nats.sum() + found.noise.pow(3).sum()

    leaves = [x, *network.parameters()]
    found = torch.autograd.grad(total(differentiable=True), leaves)
    for a, b in zip(found, slopes(total, leaves), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
