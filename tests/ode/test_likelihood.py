"""Likelihoods against exact densities, at the sampler's order; the bound against its closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from twosides.denoiser import Denoiser
from twosides.ode.divergence import Exact, Hutchinson
from twosides.ode.integrate import Adaptive
from twosides.ode.inversion import encode
from twosides.ode.likelihood import bits_per_dim, dequantise, log_likelihood, variational_bound
from twosides.oracle import GaussianMixture
from twosides.outputs import OUTPUTS
from twosides.sampling.presets import samplers
from twosides.schedules import EDM, Cosine, FlowMatching, Level, VPLinear

FLOAT64 = torch.float64
CLEAN = Level(math.inf, 1.0, 0.0)


def eight():
    generator = torch.Generator().manual_seed(3)
    roots = 0.3 * torch.randn(4, 8, 8, generator=generator, dtype=FLOAT64)
    means = torch.randn(4, 8, generator=generator, dtype=FLOAT64)
    covariances = roots @ roots.mT + 0.1 * torch.eye(8, dtype=FLOAT64)
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], means, covariances)


RING = GaussianMixture.ring(8, std=0.4)
GAUSSIAN = GaussianMixture.gaussian([0.4, -0.2], [[0.30, 0.12], [0.12, 0.20]])
EIGHT = eight()
DATA = {"ring": RING, "gaussian": GAUSSIAN, "eight": EIGHT}
SCHEDULES = {"flow": FlowMatching(), "cosine": Cosine(), "vp-linear": VPLinear(), "edm": EDM()}
CASES = [
    "ring on flow",
    "ring on cosine",
    "eight on vp-linear",
    "gaussian on flow",
    "eight on flow",
]


def pick(case):
    data, schedule = case.split(" on ")
    return DATA[data], SCHEDULES[schedule]


def truth(data, x, schedule=None):
    """The exact log-density of x, of the data or with the noise that the data end of a grid has."""
    level = schedule.at(0.0).floats() if schedule else CLEAN
    return data.log_prob(level.alpha * x, level) + x[0].numel() * math.log(level.alpha)


def network(data, **standard):
    """A mixture as a network that predicts u."""

    def answer(z, t):
        estimate = data(z, FlowMatching().at(t.double()))
        return estimate.eps - estimate.x

    return Denoiser(answer, "u", FlowMatching(), **standard)


# ---------------------------------------------------------------------------- exact


@pytest.mark.parametrize("case", [*CASES, "gaussian on vp-linear"])
def test_the_exact_density(case):
    data, schedule = pick(case)
    x = data.sample(16, seed=1)
    found = log_likelihood(data, x, steps=40, schedule=schedule, prior=data.log_prob)
    assert float((found.nats - truth(data, x, schedule)).abs().max()) < 1e-4 * found.dims
    assert torch.allclose(found.per_dimension, found.nats / x.shape[1])


@pytest.mark.parametrize("schedule", [FlowMatching(), Cosine()])
def test_at_zero_snr_the_prior_is_exact(schedule):
    x = RING.sample(16, seed=1)
    found = log_likelihood(RING, x, schedule=schedule)
    assert float((found.nats - truth(RING, x)).abs().max()) < 1e-4


def test_at_finite_snr_the_prior_is_off_by_the_mean():
    x = GAUSSIAN.sample(64, seed=1)
    found = log_likelihood(GAUSSIAN, x, sampler="adaptive", schedule=VPLinear())
    alpha = float(VPLinear().alpha(1.0))
    missed = found.nats - truth(GAUSSIAN, x)
    assert 0.1 * alpha < float(missed.abs().max()) < 5 * alpha


@pytest.mark.parametrize("case", [*CASES, "ring on edm", "eight on edm"])
def test_adaptive_steps(case):
    data, schedule = pick(case)
    x = data.sample(16, seed=1)
    found = log_likelihood(data, x, sampler="adaptive", schedule=schedule, prior=data.log_prob)
    assert float((found.nats - truth(data, x, schedule)).abs().max()) < 1e-5 * found.dims


def test_the_error_falls_with_the_tolerance():
    x = RING.sample(16, seed=1)
    found = [log_likelihood(RING, x, sampler=Adaptive(t, t)).nats for t in (1e-3, 1e-5, 1e-7)]
    errors = [float((nats - truth(RING, x)).abs().max()) for nats in found]
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10, errors


@pytest.mark.parametrize("name", ["ddim", "kab2", "flow-heun", "rk4", "leapfrog"])
def test_every_sampler_has_a_likelihood_of_its_order(name):
    x = RING.sample(8, seed=1)
    steps = (20, 40, 80)
    errors = [
        float((log_likelihood(RING, x, sampler=name, steps=n).nats - truth(RING, x)).abs().mean())
        for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(samplers[name].order, abs=0.2)


@pytest.mark.parametrize("name", ["heun", "dpmpp-2m", "pf-euler"])
def test_frames_other_than_u_too(name):
    """Between levels where every frame is finite."""
    schedule = Cosine(-9, 9)
    x = RING.sample(8, seed=1)
    errors = []
    for steps in (40, 80):
        found = log_likelihood(
            RING, x, sampler=name, steps=steps, schedule=schedule, prior=RING.log_prob
        )
        errors.append(float((found.nats - truth(RING, x, schedule)).abs().mean()))
    assert errors[1] < 0.7 * errors[0] < 0.3


def test_the_noise_is_that_of_encode():
    x = RING.sample(8, seed=1)
    found = log_likelihood(RING, x, sampler="kab2", steps=12, schedule=VPLinear())
    encoded = encode(RING, x, sampler="kab2", steps=12, schedule=VPLinear())
    assert torch.allclose(found.noise, encoded.noise, atol=1e-13)


def test_the_scaling_of_the_schedule_does_not_matter():
    x = RING.sample(8, seed=1)
    ve, vp = (
        log_likelihood(RING, x, steps=12, schedule=schedule, prior=RING.log_prob).nats
        for schedule in (EDM(), EDM().with_scaling("vp"))
    )
    assert torch.allclose(ve, vp, atol=1e-9)


# ---------------------------------------------------------------------------- networks


def test_standardised_data_shift_by_the_log_of_the_scale():
    x = RING.sample(8, seed=1)
    plain = log_likelihood(network(RING), x, steps=10)
    scale = torch.tensor([2.0, 5.0], dtype=FLOAT64)
    ours = log_likelihood(network(RING, data_mean=-3.0, data_std=scale), scale * x - 3, steps=10)
    assert torch.allclose(ours.nats, plain.nats - math.log(10), atol=1e-11, rtol=0)
    same = log_likelihood(network(RING, data_mean=1.0, data_std=0.5), 0.5 * x + 1, steps=10)
    assert torch.allclose(same.nats, plain.nats + 2 * math.log(2), atol=1e-11, rtol=0)


def test_networks_are_asked_as_oracles_are():
    x = EIGHT.sample(4, seed=1).reshape(4, 2, 2, 2)
    by_network, by_oracle = (log_likelihood(d, x, steps=6).nats for d in (network(EIGHT), EIGHT))
    assert torch.allclose(by_network, by_oracle, atol=1e-10)
    assert torch.allclose(log_likelihood(EIGHT, x.reshape(4, 8), steps=6).nats, by_oracle)


class Convolutions(nn.Module):
    """Normalised, with attention, and conditioned."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(1, 8, 3, padding=1)
            self.norm = nn.GroupNorm(2, 8)
            self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, z, t, label):
        h = nn.functional.silu(self.norm(self.first(z) + t[:, None, None, None]))
        tokens = h.flatten(2).mT[:, None]
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.last(mixed[:, 0].mT.reshape(h.shape) + label[:, None, None, None])


def test_the_trace_of_a_real_network_in_any_chunks():
    denoiser = Denoiser(Convolutions().double(), "v", Cosine(-8, 8))
    generator = torch.Generator().manual_seed(1)
    x, label = torch.randn(2, 1, 4, 4, generator=generator, dtype=FLOAT64), torch.ones(2).double()
    found = [
        log_likelihood(denoiser, x, steps=2, divergence=Exact(chunk=n), label=label).nats
        for n in (1, 5, 64)
    ]
    assert torch.allclose(found[0], found[1], atol=1e-10)
    assert torch.allclose(found[0], found[2], atol=1e-10)
    single = log_likelihood(denoiser.float(), x.float(), steps=2, label=label.float()).nats
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), found[0], rtol=1e-4)
    assert all(p.grad is None for p in denoiser.parameters())


def test_progress_counts_network_calls():
    seen = []
    log_likelihood(
        RING, torch.zeros(1, 2), steps=3, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(k, 12) for k in range(1, 13)]


# ---------------------------------------------------------------------------- Hutchinson


def test_random_probes_are_exact_where_the_derivative_is_isotropic():
    data = GaussianMixture.gaussian([0.4, -0.2, 0.1], 0.3 * torch.eye(3))
    x = data.sample(8, seed=1)
    exact = log_likelihood(data, x, steps=10).nats
    random = log_likelihood(data, x, steps=10, divergence=Hutchinson(seed=5)).nats
    assert torch.allclose(exact, random, atol=1e-12)


def test_random_probes_are_unbiased():
    """One sample 3000 times, each with a probe of its own; and with several, closer."""
    x = EIGHT.sample(1, seed=1)
    exact = float(log_likelihood(EIGHT, x, steps=5).nats)
    single = log_likelihood(EIGHT, x.expand(3000, -1), steps=5, divergence="hutchinson").nats
    assert float(single.mean()) == pytest.approx(exact, abs=4 * float(single.std()) / 3000**0.5)
    sixteen = Hutchinson(16, chunk=6)
    several = log_likelihood(EIGHT, x.expand(300, -1), steps=5, divergence=sixteen).nats
    assert float(several.std()) == pytest.approx(float(single.std()) / 4, rel=0.25)


def test_probes_belong_to_their_sample():
    x = EIGHT.sample(5, seed=1)

    def nats(x, **options):
        return log_likelihood(EIGHT, x, steps=3, divergence=Hutchinson(2, **options)).nats

    assert torch.allclose(nats(x, seed=8)[3:4], nats(x[3:4], seed=8, indices=[3]), atol=1e-12)
    assert not torch.allclose(nats(x, seed=8), nats(x, seed=9))


# ---------------------------------------------------------------------------- bits


def test_bits_of_values_that_are_all_as_likely():
    """Uniform on [-1, 1]: 8 bits with 256 values, 1 with two, -1 as a density."""
    nats = torch.full((3,), -12 * math.log(2))
    assert torch.allclose(bits_per_dim(nats, 12), torch.full((3,), 8.0))
    assert torch.allclose(bits_per_dim(nats, 12, bins=2), torch.full((3,), 1.0))
    assert torch.allclose(bits_per_dim(nats, 12, bins=1, width=1.0), torch.full((3,), 1.0))
    assert torch.allclose(bits_per_dim(0 * nats, 12, width=1.0), torch.full((3,), 8.0))


def test_bits_of_a_likelihood():
    x = RING.sample(4, seed=1)
    found = log_likelihood(RING, x, steps=3)
    assert torch.equal(found.bits_per_dim(16, 4.0), bits_per_dim(found.nats, 2, 16, 4.0))
    bound = variational_bound(RING, x, schedule="cosine(-9, 9)", points=2)
    assert torch.equal(bound.bits_per_dim(), bits_per_dim(bound.nats, 2))
    assert torch.equal(bound.per_dimension, bound.nats / 2)


def test_dequantised_values_fill_their_bins():
    values = torch.arange(256).repeat(40, 1)
    x = dequantise(values, seed=3, dtype=FLOAT64)
    assert torch.equal(((x + 1) * 128).floor().long(), values)
    inside = (x + 1) * 128 - values
    assert float(inside.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * x.numel()))
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.05)
    assert torch.equal(dequantise(values[7:8], seed=3, indices=[7], dtype=FLOAT64), x[7:8])
    assert dequantise(torch.tensor([[0, 3]]), seed=0, bins=4).abs().max() < 1


# ---------------------------------------------------------------------------- the bound


def expected_bound(data, low, high):
    """E[-bound] of the exact denoiser of a Gaussian, in closed form per principal axis.

    E|eps - eps_hat|^2 = s e^l / (1 + s e^l), the posterior variance, whose integral is a logarithm.
    """
    spectrum = torch.linalg.eigvalsh(data.covariance)
    alpha2 = 1 / (1 + math.exp(-low))
    second = spectrum.sum() + data.mean.square().sum()
    dims = len(spectrum)
    prior = 0.5 * (alpha2 * (second - dims) - dims * math.log1p(-alpha2))
    ratio = (1 + spectrum * math.exp(high)) / (1 + spectrum * math.exp(low))
    reconstruction = 0.5 * dims * (1 + math.log(2 * math.pi) - high)
    return float(prior + 0.5 * ratio.log().sum() + reconstruction)


@pytest.mark.parametrize("span", [(-3, 3), (-8, 6)])
def test_the_bound_of_an_exact_denoiser_is_its_closed_form(span):
    x = GAUSSIAN.sample(4000, seed=1)
    bound = variational_bound(GAUSSIAN, x, schedule=Cosine(*span), points=24, seed=2)
    noise = float(bound.nats.std()) / math.sqrt(4000)
    assert -float(bound.nats.mean()) == pytest.approx(
        expected_bound(GAUSSIAN, *span), abs=4 * noise
    )
    assert noise < 0.04


def test_the_closed_form_is_tight_on_a_wide_range_and_a_bound_on_every():
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * GAUSSIAN.covariance))
    gaps = [expected_bound(GAUSSIAN, -span, span) - entropy for span in (3, 6, 9, 12, 15)]
    assert all(gap > 0 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5


@pytest.mark.parametrize("data", [RING, EIGHT])
def test_the_bound_is_a_bound_and_close_on_a_wide_range(data):
    x = data.sample(1000, seed=1)
    exact = truth(data, x)
    narrow, wide = (
        exact - variational_bound(data, x, schedule=Cosine(-span, span), points=16).nats
        for span in (2, 9)
    )
    noise = float(wide.std()) / math.sqrt(1000)
    assert abs(float(wide.mean())) < 4 * noise + 0.005
    assert float(narrow.mean()) > 4 * float(narrow.std()) / math.sqrt(1000)


def test_a_worse_denoiser_has_a_worse_bound():
    x = RING.sample(500, seed=1)
    worse = GaussianMixture.ring(8, std=0.7)
    bounds = [variational_bound(d, x, schedule=Cosine(-9, 9), seed=1).nats for d in (RING, worse)]
    assert float((bounds[0] - bounds[1]).mean()) > 0.1


def test_only_the_range_of_the_schedule_matters():
    x = RING.sample(200, seed=1)
    options = {"points": 32, "seed": 1}
    vp = variational_bound(RING, x, schedule=Cosine(-9, 9), **options)
    flow = variational_bound(RING, x, schedule=Cosine(-9, 9).with_scaling("flow"), **options)
    assert torch.allclose(vp.nats, flow.nats, atol=1e-10)


def test_the_bound_of_networks_of_any_output_and_standardisation():
    x = RING.sample(8, seed=1)
    options = {"schedule": Cosine(-9, 9), "points": 4, "seed": 1}
    plain = variational_bound(network(RING), x, **options)
    scaled = variational_bound(network(RING, data_mean=1.0, data_std=3.0), 3 * x + 1, **options)
    assert torch.allclose(scaled.nats, plain.nats - 2 * math.log(3), atol=1e-11, rtol=0)

    def answer(z, t):
        return OUTPUTS["x"].of(*RING(z, Cosine(-9, 9).at(t.double())), Level(0.0, 1.0, 1.0))

    of_x = variational_bound(Denoiser(answer, "x", Cosine(-9, 9)), x, **options)
    assert torch.allclose(of_x.nats, plain.nats, atol=1e-8)


def test_points_belong_to_their_sample():
    x = RING.sample(5, seed=1)
    options = {"schedule": Cosine(-9, 9), "points": 4, "seed": 1}
    whole = variational_bound(RING, x, **options).nats
    assert torch.allclose(whole[3:4], variational_bound(RING, x[3:4], indices=[3], **options).nats)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["ddpm", "edm", "churn", "langevin", "restart"])
def test_samplers_with_noise_have_no_likelihood(name):
    with pytest.raises(ValueError, match="only deterministic samplers run backwards"):
        log_likelihood(RING, torch.zeros(1, 2), sampler=name)


def test_a_network_without_derivative_is_refused():
    silent = Denoiser(torch.no_grad()(lambda z, t: 2 * z), "u", FlowMatching())
    with pytest.raises(ValueError, match="has no derivative with respect to z"):
        log_likelihood(silent, torch.zeros(1, 2))
    assert variational_bound(silent, torch.zeros(1, 2), schedule="cosine(-9, 9)").nats.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "hutchison"}, "did you mean 'hutchinson'"),
        ({"divergence": Hutchinson(indices=(0, 1))}, "2 indices"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(RING, torch.zeros(1, 2), **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Exact, {"chunk": 0}), (Hutchinson, {"chunk": 0}), (Hutchinson, {"probes": 0})],
)
def test_no_probes_and_no_chunks_are_refused(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, got 0"):
        kind(**options)


@pytest.mark.parametrize("schedule", [None, FlowMatching(), "cosine"])
def test_a_bound_over_an_infinite_range_is_refused(schedule):
    with pytest.raises(ValueError, match="finite range of logsnr.*cosine\\(-12, 12\\)"):
        variational_bound(RING, torch.zeros(1, 2), schedule=schedule)


def test_networks_that_predict_x_have_no_likelihood_of_clean_data():
    denoiser = Denoiser(lambda z, t: z, "x", FlowMatching())
    with pytest.raises(ValueError, match="says nothing about the noise at zero noise"):
        log_likelihood(denoiser, torch.zeros(1, 2))
