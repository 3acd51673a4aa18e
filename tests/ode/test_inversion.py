"""Data to noise and back: exactly with two-step rules, at the sampler's order with the others."""

import math

import numpy as np
import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.guidance import classifier_free
from twosides.ode.adaptive import solve
from twosides.ode.integrate import Adaptive
from twosides.ode.inversion import decode, encode
from twosides.oracle import Empirical, GaussianMixture
from twosides.sampling.grids import Uniform, UniformTime
from twosides.sampling.presets import samplers
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import BDIA, Adams, Leapfrog
from twosides.schedules import EDM, Cosine, FlowMatching, VPLinear

FLOAT64 = torch.float64
DATA = GaussianMixture.ring(8, std=0.3)
X = DATA.sample(16, seed=1)
SCHEDULES = {
    "flow": FlowMatching(),
    "cosine": Cosine(),
    "vp-linear": VPLinear(),
    "edm": EDM(),
}


def network(seed, dim=2, width=16):
    """Three random layers, smooth and in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((dim + 1, width), (width, width), (width, dim))
    layers = [
        torch.randn(shape, generator=generator, dtype=FLOAT64) / shape[0] ** 0.5 for shape in sizes
    ]

    def answer(z, t):
        h = torch.cat([z, t[:, None]], 1)
        for layer in layers[:-1]:
            h = torch.tanh(h @ layer)
        return h @ layers[-1]

    return answer


EXACT = {"leapfrog": Sampler(Uniform("u"), Leapfrog()), "bdia": Sampler(Uniform("u"), BDIA())}
DENOISERS = {
    "mixture": DATA,
    "u-network": Denoiser(network(0), "u", FlowMatching()),
    "eps-network": Denoiser(network(1), "eps", Cosine(-6, 6)),
    "standardised": Denoiser(network(2), "v", Cosine(-9, 9), data_mean=0.5, data_std=2.0),
}


def back(denoiser, x, sampler, steps, schedule=None):
    """What a round trip does to x, at most."""
    encoded = encode(denoiser, x, sampler=sampler, steps=steps, schedule=schedule)
    return float((decode(denoiser, encoded) - x).abs().max())


@pytest.mark.parametrize("steps", [2, 20, 80, 320])
@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
@pytest.mark.parametrize("sampler", EXACT.values(), ids=EXACT)
def test_two_step_rules_come_back_exactly(sampler, denoiser, steps):
    assert back(denoiser, X, sampler, steps) < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["leapfrog", "bdia", "leapfrog-v"])
def test_exact_on_every_schedule_whatever_its_range(name, schedule):
    sampler = EXACT.get(name) or Sampler(Uniform("u"), Leapfrog("v"))
    denoiser = Denoiser(network(0), "u", FlowMatching())
    assert back(denoiser, X, sampler, 80, schedule) < 1e-12
    assert back(DATA, X, sampler, 80, schedule) < 1e-12


def test_presets_are_exact_and_float32_keeps_float32():
    for name in ("leapfrog", "bdia"):
        encoded = encode(DATA, X.float(), sampler=name)
        assert encoded.noise.dtype == torch.float32 and encoded.before is not None
        assert float((decode(DATA, encoded) - X.float()).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["ddim", "kab2", "flow-heun", "rk4"])
def test_other_samplers_come_back_at_their_order(name):
    """Rules that are symmetric to leading order gain one more."""
    steps = (15, 30, 60)
    lost = [back(DATA, X, name, n) for n in steps]
    order = -np.polyfit(np.log(steps), np.log(lost), 1)[0]
    assert samplers[name].order - 0.2 < order < samplers[name].order + 1.2


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_noise_is_that_of_the_ode(schedule):
    data, noisy = (schedule.at(t).floats() for t in (0.0, 1.0))
    exact = solve(DATA, data.alpha * X, data, noisy, Adaptive(1e-8, 1e-8)).z
    exact = exact / math.hypot(noisy.alpha, noisy.sigma)
    sampler = Sampler(Uniform("u"), Leapfrog())
    errors = [
        float(
            (encode(DATA, X, sampler=sampler, steps=n, schedule=schedule).noise - exact)
            .abs()
            .mean()
        )
        for n in (40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] < 1e-3


def test_data_that_the_denoiser_knows_become_standard_normal():
    noise = encode(DATA, DATA.sample(4000, seed=2), steps=40).noise
    assert float(noise.mean(0).abs().max()) < 4 / math.sqrt(4000)
    assert float((noise.T.cov() - torch.eye(2)).abs().max()) < 6 / math.sqrt(4000)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.3)


def test_the_noise_is_what_sample_starts_from():
    encoded = encode(DATA, X, sampler="rk4", steps=20)
    again = sample(DATA, X.shape, sampler="rk4", steps=20, init=encoded.noise, dtype=FLOAT64)
    assert torch.equal(again, decode(DATA, encoded))
    assert float((again - X).abs().max()) < 1e-4


def test_conditioning_is_passed_both_ways_and_may_change():
    mean = {"left": -1.0, "right": 1.0}

    def answer(z, t, label):
        return z / t[:, None].clamp(min=0.1) - label

    denoiser = Denoiser(answer, "u", FlowMatching())
    labels = {name: torch.full((16, 1), value, dtype=FLOAT64) for name, value in mean.items()}
    encoded = encode(denoiser, X, label=labels["left"])
    assert float((decode(denoiser, encoded, label=labels["left"]) - X).abs().max()) < 1e-12
    assert float((decode(denoiser, encoded, label=labels["right"]) - X).abs().min()) > 0.1


def test_guided_denoisers_standardise_too():
    inner = Denoiser(lambda z, t, label: z * label, "u", data_mean=1.0, data_std=3.0)
    guided = classifier_free(inner, 1.5, null={"label": 0.0})
    encoded = encode(guided, X, label=torch.ones(16, 1, dtype=FLOAT64))
    restored = decode(guided, encoded, label=torch.ones(16, 1, dtype=FLOAT64))
    assert torch.allclose(restored, X, atol=1e-12)


# ---------------------------------------------------------------------------- refusals


def test_networks_that_predict_x_say_nothing_at_zero_noise():
    denoiser = Denoiser(network(3), "x", FlowMatching())
    with pytest.raises(ValueError, match="says nothing about the noise at zero noise"):
        encode(denoiser, X)
    inside = Sampler(UniformTime(end=0.05), Leapfrog())
    assert back(denoiser, X, inside, 20) < 1e-12


def test_networks_are_not_asked_beyond_their_range():
    with pytest.raises(ValueError, match="choose a grid inside this range"):
        encode(DENOISERS["eps-network"], X, schedule=FlowMatching())


def test_memorised_data_have_no_noise():
    with pytest.raises(ValueError, match="undefined at sigma = 0"):
        encode(Empirical(X), X)


@pytest.mark.parametrize("name", ["ddpm", "edm", "euler-a", "restart", "langevin"])
def test_samplers_with_noise_are_refused(name):
    with pytest.raises(ValueError, match="only deterministic samplers run backwards"):
        encode(DATA, X, sampler=name)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Sampler(solver=Leapfrog("eps")), "is not its own inverse"),
        (Sampler(solver=Leapfrog("x")), "is not its own inverse"),
    ],
)
def test_frames_that_are_infinite_on_the_grid_are_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        encode(DATA, X, sampler=sampler)
    inside = Sampler(Uniform("eps", start=-3, end=5), Leapfrog("eps"))
    assert back(DATA, X, inside, 20) < 1e-11


def test_a_two_step_rule_needs_two_steps():
    with pytest.raises(ValueError, match="steps >= 2"):
        encode(DATA, X, steps=1)


def test_only_gamma_one_is_exact():
    encoded = encode(DATA, X, sampler=Sampler(solver=BDIA(0.5)))
    assert encoded.before is None
    assert float((decode(DATA, encoded) - X).abs().max()) < 0.5
    assert encode(DATA, X, sampler=Sampler(solver=Adams())).before is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), "floating-point"),
        (torch.zeros(4), "shape"),
        (torch.tensor([[math.nan, 0.0]]), "NaN"),
    ],
)
def test_what_is_no_data_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        encode(DATA, x)
