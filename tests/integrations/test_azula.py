"""The adapters to and from azula, by what azula's denoisers and samplers call."""

import pickle
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import nn

from twosides.denoiser import Denoiser
from twosides.integrations.azula import ForAzula, from_azula
from twosides.oracle import GaussianMixture
from twosides.sampling.sample import sample
from twosides.schedules import Cosine, FlowMatching

DATA = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], torch.eye(2).expand(2, 2, 2) * 0.1)


class Azulas(nn.Module):
    """A denoiser with azula's two calls: the exact one of the mixture, on a rectified schedule."""

    def schedule(self, t):
        return 1 - t, t

    def forward(self, x_t, t):
        level = FlowMatching().at(t.double())
        return SimpleNamespace(mean=DATA(x_t, level).x.to(x_t))


def test_a_denoiser_of_azulas_is_sampled_as_the_exact_one():
    options = {"sampler": "dpmpp-2m", "steps": 12, "seed": 0, "dtype": torch.float64}
    got = sample(from_azula(Azulas()), (8, 2), schedule=FlowMatching(), **options)
    exact = Denoiser(lambda z, t: DATA(z, FlowMatching().at(t)).x, "x", FlowMatching())
    assert torch.allclose(got, sample(exact, (8, 2), **options), atol=1e-9)


def test_a_denoiser_for_azulas_ddim():
    """Its sampler's step, `x_s = alpha_s x + sigma_s / sigma_t (x_t - alpha_t x)`, is our DDIM."""
    schedule = Cosine(-12, 12)
    denoiser = Denoiser(lambda z, t: torch.tanh(z) * (1 + t[:, None]), "v", schedule)
    theirs, init = ForAzula(denoiser), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    x_t = init.double()
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = theirs.schedule(t), theirs.schedule(s)
        x = theirs(x_t, t).mean
        x_t = alpha_s * x + sigma_s / sigma_t * (x_t - alpha_t * x)
    options = {"sampler": "ddim", "steps": 8, "init": init.double(), "dtype": torch.float64}
    got = sample(denoiser, (8, 2), **options)
    assert torch.allclose(got * theirs.schedule(times[-1])[0], x_t, atol=1e-9)


class Scales:
    """A schedule of azula's: a callable."""

    def __call__(self, t):
        return 1 - 0.999 * t, 0.001 + 0.999 * t


class Casts(nn.Module):
    """A denoiser of azula's around a network in bfloat16, which it casts for."""

    schedule = Scales()

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2, dtype=torch.bfloat16)

    def forward(self, x_t, t):
        return SimpleNamespace(mean=self.backbone(x_t.bfloat16()).to(x_t))


def test_a_denoiser_of_azulas_is_held_with_its_weights():
    """Listed, moved, sent to another process, and asked in the dtype of the state."""
    with torch.random.fork_rng(devices=[]):
        denoiser = from_azula(Casts())
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
    z, level = torch.ones(3, 2), denoiser.schedule.at(0.5)
    estimate, sent = denoiser(z, level), pickle.loads(pickle.dumps(denoiser))
    assert estimate.x.dtype == torch.float32
    assert torch.equal(sent(z, level).x, estimate.x)
    assert denoiser.to("meta")(z.to("meta"), level).x.device.type == "meta"
