"""Stochastic steps and their densities, against exact Gaussians and finite differences."""

import numpy as np
import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.oracle import GaussianMixture
from twosides.sampling.named import plan
from twosides.sampling.noise import Epsilon
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.transitions import log_probs, rollout, transitions
from twosides.schedules import Cosine
from twosides.storage.plans import of_arrays

FLOAT64 = torch.float64
FINITE = Cosine(-8, 8)
NAMES = ["ddpm", "dpmpp-2m-sde", "sa-solver", "dpm-2-a", "langevin", "restart", "edm"]
NOISY = [name for name, preset in samplers.items() if preset.stochastic]


class Network(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mixing = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=FLOAT64))
        self.shift = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=FLOAT64))
        self.calls = 0

    def forward(self, z, t, push=0.0):
        self.calls += 1
        return torch.tanh(z @ self.mixing + self.shift * t[:, None] + push)


def drawn(name, denoiser, **options):
    return rollout(
        denoiser, (5, 3), sampler=plan(name, FINITE, 8), seed=1, dtype=FLOAT64, **options
    )


@pytest.mark.parametrize("name", NOISY)
def test_a_rollout_is_the_sample_of_that_seed(name):
    denoiser = Denoiser(Network(), "v", FINITE, data_mean=0.5, data_std=2.0)
    made = drawn(name, denoiser, push=0.1)
    record = sample(denoiser, (5, 3), sampler=made.plan, seed=1, dtype=FLOAT64, push=0.1,
                    trajectory=True)  # fmt: skip
    assert torch.allclose(made.sample, record.sample, rtol=1e-9)
    for state, other in zip(made.states, record.states, strict=True):
        assert torch.allclose(state, other, rtol=1e-9)
    again = log_probs(denoiser, record.states, record.plan, push=0.1)
    assert torch.allclose(again, made.log_probs, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_the_normal_law(name):
    denoiser = Denoiser(Network(), "v", FINITE)
    made = drawn(name, denoiser)
    steps = list(transitions(denoiser, made.states, made.plan))
    assert [step.number for step in steps] == list(range(1, made.plan.nfe + 1))
    noisy = [step for step in steps if step.log_prob is not None]
    assert [step.number for step in noisy] == (
        np.flatnonzero(made.plan.noise[1:].any(1)) + 1
    ).tolist()
    for step, stored in zip(noisy, made.log_probs.T, strict=True):
        law = torch.distributions.Normal(step.mean, step.std)
        assert torch.allclose(step.log_prob, law.log_prob(step.state).sum(1), rtol=1e-12)
        assert step.level == made.plan.levels[step.number]
        assert torch.equal(step.log_prob, stored)  # the ratio under the same parameters is 1
    for step in steps:
        assert step.log_prob is not None or (step.std == 0 and step.state is step.mean)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpm-2-a", "churn"])
def test_log_probs_add_up_to_the_density_of_the_path(name):
    """The states of a Gaussian oracle's chain are jointly Gaussian: `states = offset + map n`."""
    oracle = GaussianMixture.gaussian([0.4], [[0.3]])
    made_plan = plan(name, FINITE, 6)
    count = made_plan.noise.shape[1]

    def states(noises):  # (B, count) -> (B, states reached with noise)
        draws, seen = iter(noises.T[1:, :, None]), []
        last = run(made_plan, oracle, noises[:, :1], lambda: next(draws),
                   edit=lambda _, z, level: seen.append(z))  # fmt: skip
        return torch.cat([*seen, last], 1)[:, made_plan.noise.any(1)]

    offset = states(torch.zeros(1, count, dtype=FLOAT64))
    columns = states(torch.eye(count, dtype=FLOAT64)) - offset
    made = rollout(oracle, (50, 1), sampler=made_plan, seed=0, dtype=FLOAT64)
    path = torch.cat(made.states, 1)[:, made_plan.noise.any(1)]
    law = torch.distributions.MultivariateNormal(offset[0], columns.T @ columns)
    start = torch.distributions.Normal(0.0, float(made_plan.noise[0, 0])).log_prob(path[:, 0])
    assert torch.allclose(made.log_probs.sum(1), law.log_prob(path) - start, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    """Histories, stages and stretches without noise included."""
    network = Network()
    denoiser = Denoiser(network, "v", FINITE)
    made = drawn(name, denoiser)
    direction = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=FLOAT64)
    total = log_probs(denoiser, made.states, made.plan).sum()
    slope = float((torch.autograd.grad(total, network.mixing)[0] * direction).sum())
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            network.mixing += step * direction
            values.append(float(log_probs(denoiser, made.states, made.plan).sum()))
            network.mixing -= step * direction
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_ratios_of_importance_average_to_one():
    """E_old[new / old] = 1, step by step and over the path, and the moments are the target's."""
    target = GaussianMixture.gaussian([0.3, -0.2], [[0.5, 0.1], [0.1, 0.4]])
    other = GaussianMixture.gaussian([0.35, -0.2], [[0.5, 0.1], [0.1, 0.42]])
    made = rollout(target, (8000, 2), sampler=plan("ddpm", FINITE, 20), seed=3, dtype=FLOAT64)
    new = log_probs(other, made.states, made.plan)
    ratios = torch.cat([new - made.log_probs, (new - made.log_probs).sum(1, keepdim=True)], 1).exp()
    error = ratios.std(0) / len(ratios) ** 0.5
    assert bool(((ratios.mean(0) - 1).abs() < 4 * error).all()) and float(error.max()) < 0.02
    for step in transitions(target, made.states, made.plan):
        if step.std:
            noise = (step.state - step.mean) / step.std
            assert float(noise.mean().abs()) < 0.03 and float(noise.var()) == pytest.approx(
                1, abs=0.05
            )
    assert torch.allclose(made.sample.mean(0), target.mean, atol=0.03)


def test_flow_grpo_improves_a_reward():
    """Flow matching with constant diffusion, normalised advantages, clipped ratios."""
    network = Network(seed=2)
    policy = Denoiser(network, "u")
    noise = Sampler(stochasticity=Epsilon(0.7))
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    rewards = []
    for seed in range(16):
        made = rollout(policy, (100, 3), sampler=noise, steps=6, seed=seed, dtype=FLOAT64)
        reward = -(made.sample - 1).square().sum(1)
        advantage = ((reward - reward.mean()) / reward.std())[:, None]
        ratio = (log_probs(policy, made.states, made.plan) - made.log_probs).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()
        optimiser.zero_grad()
        (-gain).backward()
        optimiser.step()
        rewards.append(float(reward.mean()))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 1


def test_no_call_is_made_after_the_last_noise():
    network = Network()
    denoiser = Denoiser(network, "v", Cosine())
    made = rollout(denoiser, (2, 3), sampler="ddpm", steps=8, seed=0)
    assert network.calls == 8 and made.log_probs.shape == (2, 7)
    log_probs(denoiser, made.states, made.plan)
    assert network.calls == 8 + 7
    next(transitions(denoiser, made.states, made.plan))
    assert network.calls == 8 + 7 + 1


def test_what_has_no_density_is_refused():
    denoiser = Denoiser(Network(), "v", FINITE)
    with pytest.raises(ValueError, match="use a stochastic sampler"):
        rollout(denoiser, (2, 3), sampler="ddim")
    with pytest.raises(ValueError, match="1 indices"):
        rollout(denoiser, (2, 3), indices=[4])
    made = drawn("ddpm", denoiser)
    with pytest.raises(ValueError, match="9 states"):
        list(transitions(denoiser, made.states[1:], made.plan))
    noise = made.plan.noise.copy()
    noise[4, 1] = 0.1
    levels = [getattr(made.plan, part) for part in ("logsnr", "alpha", "sigma")]
    twice = of_arrays(levels, made.plan.x, made.plan.eps, noise)
    with pytest.raises(ValueError, match="several rows"):
        log_probs(denoiser, made.states, twice)
