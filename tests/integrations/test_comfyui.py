"""The node pack, in a ComfyUI of a few lines: what it builds, and whole runs through it."""

import math
import sys
import types

import pytest
import torch

from twosides.integrations.comfyui import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    schedule_of,
)
from twosides.oracle import GaussianMixture
from twosides.sampling.grids import GRIDS
from twosides.sampling.named import names
from twosides.schedules import Level, ScaledLinear

DATA = GaussianMixture.gaussian([0.4, 0.4], 0.25 * torch.eye(2))


class EPS:
    """x + sigma n."""

    def levels(self, sigma):
        return torch.ones_like(sigma), sigma


class CONST:
    """(1 - sigma) x + sigma n."""

    def levels(self, sigma):
        return 1 - sigma, sigma


class Discrete(EPS):
    """Stable Diffusion's table of sigmas."""

    sigmas = torch.exp(-0.5 * ScaledLinear().table).float()
    sigma_max, sigma_min = sigmas[-1], sigmas[0]


class Shifted(CONST):
    """Stable Diffusion 3: the time as shifted by 3."""

    shift = 3.0

    def percent_to_sigma(self, percent):
        t = 1 - percent
        return self.shift * t / (1 + (self.shift - 1) * t)


class Flux(CONST):
    """FLUX: the shift is mu."""

    shift = 1.15

    def percent_to_sigma(self, percent):
        return math.exp(self.shift) / (math.exp(self.shift) + 1 / (1 - percent) - 1)


class KSampler:
    """Takes what ComfyUI's takes, and calls the function as ComfyUI's does."""

    def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006
        self.function = sampler_function
        self.options = extra_options, inpaint_options

    def sample(self, guider, sigmas, noise, callback=None):
        wrapped = types.SimpleNamespace(inner_model=guider)
        model = _Denoiser(wrapped)
        return self.function(
            model, noise, sigmas, extra_args={"model_options": {}, "seed": 1, "denoise_mask": None},
            callback=callback, disable=True, **self.options[0],
        )  # fmt: skip


class _Denoiser:
    def __init__(self, inner_model):
        self.inner_model = inner_model

    def __call__(self, x, sigma, model_options, seed, denoise_mask=None):
        alpha, sigma = self.inner_model.inner_model.model_sampling.levels(sigma)
        return DATA(x, Level(2 * (alpha.log() - sigma.log()), alpha, sigma)).x


class Patcher:
    """A MODEL."""

    def __init__(self, sampling):
        self.sampling = sampling

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self.sampling


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    package, module = types.ModuleType("comfy"), types.ModuleType("comfy.samplers")
    vars(module)["KSAMPLER"] = KSampler
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", module)


def node(name, **inputs):
    """What ComfyUI does with a node: the inputs it lists, a method, a tuple."""
    kind = NODE_CLASS_MAPPINGS[name]
    listed = kind.INPUT_TYPES()["required"]
    assert set(inputs) == set(listed)
    for key, value in inputs.items():
        if isinstance(listed[key][0], list):
            assert value in listed[key][0]
    results = getattr(kind(), kind.FUNCTION)(**inputs)
    assert len(results) == len(kind.RETURN_TYPES) == 1
    return results[0]


def sigmas_of(sampling, grid="uniform-time", steps=10, denoise=1.0):
    return node(
        "TwosidesScheduler", model=Patcher(sampling), grid=grid, steps=steps, denoise=denoise
    )


def test_every_node_has_a_name_and_every_preset_is_a_choice():
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    listed = NODE_CLASS_MAPPINGS["TwosidesSampler"].INPUT_TYPES()["required"]
    assert listed["sampler"][0] == names()
    assert listed["seed"][1]["max"] == 2**64 - 1
    node("TwosidesSampler", sampler="euler-a", seed=2**64 - 1)


@pytest.mark.parametrize("sampling", [Discrete(), Shifted(), Flux()])
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "kab2", "heun", "dpmpp-2m-sde"])
def test_a_workflow_reaches_the_data(sampling, name):
    """Deterministic samplers reach the ODE's end, which is known; all of them the data's moments."""
    sampler = node("TwosidesSampler", sampler=name, seed=5)
    sigmas = sigmas_of(sampling, steps=60)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 2, generator=generator) * sigmas[0]
    guider = types.SimpleNamespace(model_sampling=sampling)
    steps = []
    got = sampler.sample(guider, sigmas, noise, lambda told: steps.append(told["i"]))
    assert sorted(set(steps)) == list(range(60))
    assert torch.allclose(got.mean(0), torch.full((2,), 0.4), atol=0.05)
    assert torch.allclose(got.T.cov(), 0.25 * torch.eye(2), atol=0.05)
    if name != "dpmpp-2m-sde":
        alpha, sigma = sampling.levels(sigmas[0])
        z = noise - alpha * 0.4
        exact = 0.4 + z * 0.5 / math.sqrt(0.25 * alpha**2 + sigma**2)
        assert torch.allclose(got, exact, atol=0.15 if name == "ddim" else 0.05)


def test_seed_and_published_forms_are_used():
    guider = types.SimpleNamespace(model_sampling=Discrete())
    noise, sigmas = torch.ones(2, 2), sigmas_of(Discrete(), "karras")

    def run(sampler, seed):
        made = node("TwosidesSampler", sampler=sampler, seed=seed)
        return made.sample(guider, sigmas, noise)

    assert not torch.allclose(run("ddpm", 0), run("ddpm", 1), atol=1e-3)
    first, again = (run("dpmpp-3m", seed) for seed in (0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, run("dpmpp-3m-published", 0), atol=1e-5)


def test_brownian_noise_is_an_option_of_the_node():
    kind = NODE_CLASS_MAPPINGS["TwosidesSampler"]
    assert kind.INPUT_TYPES()["optional"]["noise"][0] == ["independent", "brownian"]
    guider = types.SimpleNamespace(model_sampling=Discrete())
    sigmas, start = sigmas_of(Discrete(), "karras"), torch.ones(2, 2)

    def run(**options):
        (made,) = kind().sampler("ddpm", 0, **options)
        return made.sample(guider, sigmas, start)

    assert torch.equal(run(), run(noise="independent"))
    assert torch.equal(run(noise="brownian"), run(noise="brownian"))
    assert not torch.allclose(run(), run(noise="brownian"), atol=1e-3)


# ---------------------------------------------------------------------------- levels


def refused(sampling, grid):
    """Indices need a table, equal steps in logsnr finite ends, SVD's table SVD's noise."""
    if isinstance(sampling, CONST):
        return grid in ("leading", "trailing", "linspace", "uniform-logsnr")
    return grid == "ays-svd"


@pytest.mark.parametrize("sampling", [Discrete(), Shifted(), Flux()])
@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("steps", [1, 10])
def test_levels_fall_to_zero(sampling, grid, steps):
    if refused(sampling, grid):
        with pytest.raises(ValueError, match="indices|finite|covers"):
            sigmas_of(sampling, grid, steps)
        return
    sigmas = sigmas_of(sampling, grid, steps)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert bool((sigmas.diff() < 0).all()) and sigmas[-1] == 0
    assert sigmas[0] <= (sampling.sigma_max if isinstance(sampling, EPS) else 1.0)


def test_levels_are_the_models_own():
    """Uniform time is the table of a discrete model, and the shifted time of a flow model."""
    picked = sigmas_of(Discrete(), steps=1000)
    assert torch.equal(picked[:-1], Discrete.sigmas.flip(0))
    for sampling in (Shifted(), Flux()):
        expected = [sampling.percent_to_sigma(i / 8) if i < 8 else 0.0 for i in range(9)]
        assert torch.allclose(sigmas_of(sampling, steps=8), torch.tensor(expected), atol=1e-7)


def test_tables_with_repeated_levels_are_read():
    sampling = Discrete()
    sampling.sigmas = torch.cat([sampling.sigmas[:1], sampling.sigmas])
    assert schedule_of(sampling).logsnr_min == pytest.approx(ScaledLinear().logsnr_min, abs=1e-5)


def test_denoise_keeps_the_end_of_a_longer_run():
    for sampling in (Discrete(), Shifted()):
        part, whole = sigmas_of(sampling, steps=10, denoise=0.4), sigmas_of(sampling, steps=25)
        assert torch.equal(part, whole[-11:])
        assert len(sigmas_of(sampling, denoise=0.0)) == 0


def test_restart_is_no_scheduler():
    listed = NODE_CLASS_MAPPINGS["TwosidesScheduler"].INPUT_TYPES()["required"]["grid"][0]
    assert "restart" not in listed and "karras" in listed
