"""Brownian noise: independent unit normals per run, one path over all numbers of steps."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from twosides.oracle import GaussianMixture
from twosides.outputs import Estimate
from twosides.randomness import PerSample
from twosides.sampling.brownian import Brownian, Clock, increments
from twosides.sampling.grids import UniformLogSNR
from twosides.sampling.named import plan
from twosides.sampling.noise import Eta, Langevin
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, FlowMatching

FLOAT64 = torch.float64
MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.3], [0.8, -0.5]], [[[0.3, 0], [0, 0.2]], [[0.2, 0.1], [0.1, 0.4]]]
)
NOISY = [name for name, preset in samplers.items() if preset.stochastic and name != "restart"]


def noises(made, *, seed=0, indices=range(50), event=(2,)):
    path = Brownian(made, seed, indices, event, dtype=FLOAT64)
    count = int(made.noise[:, 1:].any(0).sum())
    return torch.stack([path() for _ in range(count)])


class Held:
    """A denoiser that always says the same x."""

    schedule = FlowMatching()

    def __call__(self, z, level):
        x = torch.tensor([0.7, -1.2], dtype=FLOAT64).expand_as(z)
        return Estimate(x, (z - level.alpha * x) / level.sigma)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 12, 24, 64])
def test_noises_are_a_rotation_of_as_many_draws(steps):
    """So they are independent and of unit variance, whatever the clock."""
    clocks = [Clock(plan(f"ddpm({eta})", "cosine", steps)).shares for eta in (0.3, 1.0, 3.0)]
    for shares in (*clocks, lambda *_: (0.0, 1.0), lambda *_: (0.6, 0.8)):
        basis = iter(torch.eye(steps, dtype=FLOAT64))
        rows = torch.stack(list(increments(steps, shares, lambda _, basis=basis: next(basis))))
        assert torch.allclose(rows @ rows.T, torch.eye(steps, dtype=FLOAT64), atol=1e-14)
        assert next(basis, None) is None  # one draw per step


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [3, 4, 10])
@pytest.mark.parametrize(
    "grid", [UniformLogSNR(-30, 30), samplers["ddpm"].grid], ids=["logsnr", "time"]
)
def test_the_noises_of_n_steps_are_sums_of_those_of_more(grid, steps, eta):
    """`sqrt(c_b - c_a) n` adds up, with c = SNR^(eta^2) and nothing else of the plan."""
    sampler = Sampler(grid, stochasticity=Eta(eta))
    plans = [sampler.plan(Cosine(), count * steps) for count in (1, 2, 4)]
    coarse, *finer = map(noises, plans)
    for count, fine in zip((2, 4), finer, strict=True):
        clock = eta**2 * plans[count // 2].logsnr
        for step, noise in enumerate(coarse):
            start, *ends = clock[count * step : count * (step + 1) + 1]
            starts, end = np.array([start, *ends[:-1]]), ends[-1]
            shares = np.exp(np.array(ends) - end) * np.expm1(starts - ends) / np.expm1(start - end)
            parts = fine[count * step : count * (step + 1)]
            whole = torch.einsum("s,sbe->be", torch.from_numpy(np.sqrt(shares)), parts)
            assert torch.allclose(whole, noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ddpm", "ddpm(0.3)", "churn", "dpmpp-2m-sde", "langevin"])
def test_states_do_not_depend_on_the_number_of_steps_while_x_is_held(name):
    def states(steps):
        made = plan(name, FlowMatching(), steps)
        path = Brownian(made, 4, range(20), (2,), dtype=FLOAT64)
        record = sample(
            Held(), (20, 2), sampler=made, seed=4, noise=path, dtype=FLOAT64, trajectory=True
        )
        rows = dict(zip(made.logsnr.round(9).tolist(), record.states, strict=True))
        return [rows[logsnr] for logsnr in plan("ddim", FlowMatching(), 5).logsnr.round(9).tolist()]

    coarse, fine = states(5), states(20)
    for a, b in zip(coarse, fine, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde"])
def test_samples_converge_path_by_path(name):
    """Strong order 1; with plain noise, runs of different lengths have nothing to do."""
    sampler = replace(samplers[name], grid=UniformLogSNR(-6, 6))
    initial = PerSample(0, range(256)).normal((2,), FLOAT64)
    paths, plains = [], []
    for steps in (16, 32, 64, 128):
        made, plain = sampler.plan(Cosine(), steps), PerSample(1, range(256))
        path = Brownian(made, 7, range(256), (2,), dtype=FLOAT64)
        paths.append(run(made, MIXTURE, initial, path))
        plains.append(run(made, MIXTURE, initial, lambda own=plain: own.normal((2,), FLOAT64)))
    gap, _, last = (float((b - a).square().mean().sqrt()) for a, b in pairwise(paths))
    assert math.log2(gap / last) / 2 >= 0.8 and last < 0.05
    assert float((plains[-1] - plains[-2]).square().mean().sqrt()) > 0.5


@pytest.mark.parametrize("name", NOISY)
def test_every_presets_noise_is_standard_and_independent(name):
    drawn = noises(plan(name, Cosine(-15, 15), 7), indices=range(3000), event=(1,))[..., 0]
    covariance = drawn @ drawn.T / 3000
    assert float((covariance - torch.eye(len(drawn))).abs().max()) < 5 / math.sqrt(3000)


def test_sample_i_depends_on_seed_and_i_only():
    made = plan("ddpm", "cosine", 12)

    def drawn(seed, indices):
        path = Brownian(made, seed, indices, (3, 5))
        return torch.stack([path() for _ in range(11)], 1)

    whole = drawn(3, range(6))
    assert torch.equal(whole, torch.cat([drawn(3, [i]) for i in range(6)]))
    assert torch.equal(drawn(3, iter([5, 0])), whole[[5, 0]])
    assert not torch.equal(drawn(4, [0]), whole[:1])
    plain = PerSample(3, [0])
    assert not any(torch.equal(plain.normal((3, 5)), noise) for noise in whole[0].split(1))


def test_sample_takes_it_by_name():
    made = plan("ddpm", "cosine", 6)
    options = {"sampler": made, "seed": 5, "indices": [4, 2]}
    path = Brownian(made, 5, [4, 2], (2,))
    by_name = sample(MIXTURE, (2, 2), noise="brownian", **options)
    assert torch.equal(by_name, sample(MIXTURE, (2, 2), noise=path, **options))
    assert not torch.equal(by_name, sample(MIXTURE, (2, 2), **options))


def test_a_path_serves_one_run():
    path = Brownian(plan("ddpm", "cosine", 3), 0, [0], (1,))
    path(), path()
    with pytest.raises(ValueError, match="of its own"):
        path()
    with pytest.raises(ValueError, match="of its own"):
        Brownian(plan("ddim", "cosine", 3), 0, [0], (1,))()


@pytest.mark.parametrize(
    "sampler", ["restart", Sampler(stochasticity=Langevin(times=2)), Sampler(stochasticity=Langevin(along=Eta()))]
)  # fmt: skip
def test_several_noises_in_a_step_are_refused(sampler):
    schedule = Cosine(-9, 9)
    with pytest.raises(ValueError, match="more than once in a step"):
        Brownian(plan(sampler, schedule, 40), 0, [0], (1,))
