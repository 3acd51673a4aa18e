"""Grids by ComfyUI's names: the levels that its functions return, and what is said of them."""

import itertools
import math

import numpy as np
import pytest
import torch

from twosides.naming import named
from twosides.oracle import GaussianMixture
from twosides.sampling.grids import AYS, GRIDS, Arctan, Beta, ComfyUI, ThenData, UniformTime
from twosides.sampling.named import sampler_named
from twosides.sampling.sample import sample
from twosides.schedules import FlowMatching, ScaledLinear

MU = math.exp(1.15)
MODELS = {
    "sd": (ScaledLinear(), 1000),
    "sd3": (FlowMatching().shifted(3), 1000),
    "flux": (FlowMatching().shifted(MU), 10_000),
}
# In 7 steps, from comfy/samplers.py and RES4LYF's sigmas.py, run on the tables of these models with
# torch's float32 (bong_tangent times the model's largest sigma).
THEIRS = {
}  # fmt: skip


def levels(name, model, steps):
    """In ComfyUI's unit: r of a discrete model, the time of a flow model."""
    schedule, count = MODELS[model]
    nodes = ComfyUI(name, count).logsnrs(schedule, steps)
    return (torch.exp(-nodes / 2) if model == "sd" else torch.sigmoid(-nodes / 2)).tolist()


@pytest.mark.parametrize(("model", "name"), THEIRS)
def test_levels_are_those_of_comfyui(model, name):
    found, wanted = levels(name, model, 7), THEIRS[model, name]
    rounding = 1e-5 if name == "kl_optimal" else 1e-6  # of arctan and tan in float32
    assert len(found) == len(wanted)
    assert np.allclose(found, wanted, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", sorted({name for _, name in THEIRS}))
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 28, 50])
def test_levels_fall_from_the_noise_to_the_data(model, name, steps):
    found = levels(name, model, steps)
    assert found[-1] == 0 and all(a > b for a, b in itertools.pairwise(found))
    schedule = MODELS[model][0]
    if name != "ddim_uniform":
        assert len(found) == steps + 1
        first = float(ComfyUI(name).logsnrs(schedule, steps)[0])
        assert first == schedule.logsnr_min, "exactly, or the network would be asked beyond"


def test_what_they_are_in_words():
    """Identities with the library's own grids, where there are such."""
    sd, steps = MODELS["sd"][0], 10
    cases = [
        (ComfyUI("normal"), ThenData(UniformTime())),
        (ComfyUI("kl_optimal"), ThenData(Arctan())),
    ]
    for theirs, ours in cases:
        assert torch.allclose(theirs.logsnrs(sd, steps), ours.logsnrs(sd, steps), atol=1e-9)
    sgm = ComfyUI("sgm_uniform").logsnrs(sd, steps)
    assert torch.allclose(sgm[:-1], UniformTime().logsnrs(sd, steps)[:-1], atol=1e-9)
    flow = MODELS["sd3"][0]
    simple = ComfyUI("simple").logsnrs(flow, steps)
    assert torch.allclose(simple, UniformTime().logsnrs(flow, steps), atol=1e-9)
    exact = Beta(0.5, 0.7).logsnrs(sd, 20)
    rounded = ComfyUI("beta57").logsnrs(sd, 21)
    assert len(rounded) == 22 and float(exact[0]) == float(rounded[0])


def test_the_parabola_of_mochi():
    """Even steps, then constant second differences, one slope where they meet."""
    q = 1 - np.array(levels("linear_quadratic", "sd3", 20))
    assert np.allclose(np.diff(q)[:10], 0.0025, atol=1e-12)
    bends = np.diff(q, 2)
    assert np.allclose(bends[:9], 0, atol=1e-12)
    assert np.allclose(bends[10:], bends[10], atol=1e-12) and bends[10] > 0
    assert bends[9] == pytest.approx(bends[10] / 2), "the parabola begins with the line's slope"


def test_names_are_rows_and_samplers_take_them():
    for name in ("simple", "normal", "sgm_uniform", "ddim_uniform", "beta57", "kl_optimal",
                 "linear_quadratic", "bong_tangent", "ays-svd"):  # fmt: skip
        assert name in GRIDS
    data = GaussianMixture.gaussian([0.3], [[0.25]])
    for name in ("simple", "bong_tangent", "ddim_uniform"):
        sampler = sampler_named("heun", grid=name)
        x = sample(data, (512, 1), sampler=sampler, steps=30, seed=0)
        assert float(x.mean()) == pytest.approx(0.3, abs=0.1)
        assert float(x.std()) == pytest.approx(0.5, abs=0.05)
    assert named("grid", "ays-svd", GRIDS) == AYS("svd")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ComfyUI("simpel"), "did you mean 'simple'"),
        (lambda: ComfyUI("simple", 1), "at least two levels"),
        (lambda: ComfyUI("simple").logsnrs(ScaledLinear(), 1001), "1 ... 1000 steps"),
        (lambda: ComfyUI("simple").logsnrs(ScaledLinear(), 0), ">= 1"),
        (
            lambda: ComfyUI("kl_optimal").logsnrs(ScaledLinear(zero_terminal_snr=True), 5),
            "largest sigma, which is infinite",
        ),
        (lambda: ComfyUI("bong_tangent").logsnrs(ScaledLinear(), 900), "was asked of"),
    ],
)
def test_what_is_none_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
