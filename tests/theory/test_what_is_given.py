"""Tensors that are none of the kind that is asked: every public function says so, in words.

Integers (a picture as uint8, indices for noise), complex numbers, other shapes and NaN must not
come out as samples.
"""

import math

import pytest
import torch

import twosides as ts
from twosides.losses.learned import measure_entropic
from twosides.ode import (
    decode,
    encode,
    log_likelihood,
    sample_adaptive,
    sample_with_density,
    solve,
    variational_bound,
)
from twosides.ode.likelihood import dequantise
from twosides.sampling.transitions import rollout

DENOISER = ts.Denoiser(lambda z, t: torch.tanh(z))
SHAPE, RUN = (2, 3), {"steps": 2, "seed": 0}
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
CODE = encode(DENOISER, X, steps=3)
NOISY, CLEAN = (DENOISER.schedule.at(t).floats() for t in (1.0, 0.0))


def given_noise(noise):
    return ts.sample(DENOISER, SHAPE, sampler="ddpm", noise=lambda: noise, **RUN)


TAKES = {
    "denoiser": lambda x: DENOISER(x, NOISY),
    "convert": lambda x: ts.convert(DENOISER, "v")(x, torch.tensor([0.5, 0.5])),
    "sample init": lambda x: ts.sample(DENOISER, SHAPE, init=x, **RUN),
    "sample noise": given_noise,
    "sample_with_density": lambda x: sample_with_density(DENOISER, SHAPE, init=x, **RUN),
    "encode": lambda x: encode(DENOISER, x, steps=2),
    "decode": lambda x: decode(DENOISER, CODE._replace(noise=x)),
    "decode, the state before": lambda x: decode(DENOISER, CODE._replace(before=x)),
    "log_likelihood": lambda x: log_likelihood(DENOISER, x, steps=2),
    "variational_bound": lambda x: variational_bound(DENOISER, x, schedule="cosine(-5, 5)"),
    "solve": lambda x: solve(DENOISER, x, NOISY, CLEAN),
    "objective": lambda x: ts.recipes["sd3"].objective()(DENOISER, x),
    "measure_entropic": lambda x: measure_entropic(DENOISER, x),
}
OF_SHAPE = ("sample init", "sample noise", "sample_with_density", "decode, the state before")
# What only computes hands NaN on, where everybody sees it.
COMPUTES = ("denoiser", "convert", "objective")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", TAKES)
def test_integers_are_no_data_and_no_noise(name, dtype):
    # Where tensors are annotated, the tests' own checks of types come first.
    said = "floating.point.*(int64|uint8|bool|complex)|Type-check error"
    with pytest.raises((TypeError, ValueError), match=said):
        TAKES[name](torch.ones(SHAPE, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, 2), (3,), (2, 3, 1)])
@pytest.mark.parametrize("name", OF_SHAPE)
def test_noise_of_another_shape_is_not_broadcast(name, shape):
    with pytest.raises(ValueError, match="has shape .* but shape=\\(2, 3\\) was asked"):
        TAKES[name](torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in TAKES if name not in COMPUTES])
def test_what_is_not_finite_is_found(name, value):
    broken = X.clone()
    broken[1, 2] = value
    with pytest.raises((ValueError, RuntimeError), match="NaN|finite"):
        TAKES[name](broken)


@pytest.mark.parametrize("name", COMPUTES)
def test_nan_comes_out_as_nan(name):
    answer = TAKES[name](torch.full(SHAPE, math.nan))
    answer = answer.x if isinstance(answer, tuple) else answer
    assert bool(answer.isnan().all())


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: ts.sample(DENOISER, SHAPE, dtype=dtype, **RUN),
        lambda dtype: rollout(DENOISER, SHAPE, dtype=dtype, **RUN),
        lambda dtype: sample_adaptive(DENOISER, SHAPE, dtype=dtype),
        lambda dtype: dequantise(torch.ones(2, 3), seed=0, dtype=dtype),
    ],
)
def test_integers_are_no_dtype_of_a_run(make):
    with pytest.raises(TypeError, match="floating-point numbers, got torch.int64"):
        make(torch.int64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ts.sample(DENOISER, SHAPE, edit=lambda k, z, level: z[:1], **RUN),
            r"shape \(1, 3\) of one of \(2, 3\)",
        ),
        (lambda: ts.Denoiser(torch.nn.Identity(), data_std=math.nan), "data_std must be positive"),
        (lambda: ts.Denoiser(torch.nn.Identity(), data_std=torch.tensor([1.0, 0.0])), "data_std"),
        (lambda: ts.Denoiser(torch.nn.Identity(), data_mean=math.inf), "data_mean must be finite"),
        (lambda: ts.oracle.GaussianMixture([1.0], [[math.nan]], [[[1.0]]]), "finite numbers"),
        (lambda: ts.FlowMatching().at(math.nan), "time nan"),
    ],
)
def test_other_things_that_are_none(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_the_noise_of_a_caller_is_moved_to_the_state():
    """float64 noise for a state in float32 does not change the dtype of what comes out."""
    assert given_noise(X.double()).dtype == torch.float32
    assert torch.equal(given_noise(X.double()), given_noise(X))
