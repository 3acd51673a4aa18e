"""Rounding: networks in half precision, and plans on random grids."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instances import CLOSED
from twosides.denoiser import Denoiser
from twosides.outputs import kappa
from twosides.sampling.grids import Given
from twosides.sampling.named import plan
from twosides.sampling.noise import Churn, DDIMEta, Deterministic, EDMChurn, Epsilon, Eta, Overshoot
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, TABLEAUS, Adams, RungeKutta
from twosides.schedules import Cosine

FLOAT64 = torch.float64
FINITE = Cosine(-9, 9)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rise = torch.nn.Parameter(torch.randn(4, 16, generator=generator, dtype=FLOAT64) / 2)
        self.fall = torch.nn.Parameter(torch.randn(16, 4, generator=generator, dtype=FLOAT64) / 4)

    def forward(self, z, t):
        assert z.dtype == self.rise.dtype and t.dtype in (torch.float32, FLOAT64)
        return torch.tanh(z @ self.rise + t[:, None].to(z.dtype)) @ self.fall


class Spy(torch.nn.Module):
    """A network in half precision, and what it would say exactly."""

    def __init__(self, exact, dtype):
        super().__init__()
        self.low, self.exact = copy.deepcopy(exact).to(dtype), [exact]
        self.rounded, self.right = [], []

    def forward(self, z, t):
        self.right.append(self.exact[0](z.double(), t.double()))
        self.rounded.append(self.low(z, t))
        return self.rounded[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", samplers)
@torch.no_grad()
def test_half_precision_costs_the_networks_own_rounding(name, dtype):
    """A float64 run with the network's exact answers differs by `sum_k |w_k| |rounding of o_k|`.

    The state is float32: its rounding, of the same sum in units of 2^-24, is nothing beside it.
    """
    made = plan(name, FINITE, 9)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(made.noise.shape[1], 32, 4, generator=generator, dtype=FLOAT64)
    for output in ("u", "v", "x", "eps"):
        spy, draws = Spy(Network(), dtype), iter(noise[1:].float())
        low = run(made, Denoiser(spy, output, FINITE), noise[0].float(), lambda it=draws: next(it))
        rounded, right = spy.rounded, spy.right
        draws, answers = iter(noise[1:]), iter(right)
        replay = Denoiser(lambda z, t, it=answers: next(it), output, FINITE)
        high = run(made, replay, noise[0], lambda it=draws: next(it))
        weights = made.weights(output)
        parts = torch.stack([noise[0], *right, *noise[1:]]).abs()
        errors = torch.stack([a.double() - b for a, b in zip(rounded, right, strict=True)]).abs()
        shares = [weights.initial, *weights.predictions, *weights.noises]
        size = torch.einsum("k,kbe->be", torch.tensor(shares, dtype=FLOAT64).abs(), parts)
        bound = torch.einsum("k,kbe->be", torch.from_numpy(weights.predictions).abs(), errors)
        assert bool(((high - low.double()).abs() <= bound + 2**-20 * size).all()), output
        assert float(bound.max()) > 2 ** (-13 if dtype == torch.float16 else -10)


# ---------------------------------------------------------------------------- random plans

TIMES = st.lists(st.integers(0, 4096), min_size=2, max_size=14, unique=True)
FRAMES = st.sampled_from(["x", "eps", "u", "v"]) | st.floats(1e-3, 20).map(kappa)
SOLVERS = st.one_of(
    st.just(DDIM),
    st.builds(
        partial,
        st.just(Adams),
        st.integers(1, 4),
        FRAMES,
        st.sampled_from([None, "logsnr", "t", "index", "angle"]),
        st.sampled_from([0, 2, 3, 4, 5]),
        st.sampled_from(["exact", "midpoint"]),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        partial,
        st.just(RungeKutta),
        st.sampled_from(sorted(TABLEAUS)),
        FRAMES,
        st.sampled_from([None, "logsnr", "t"]),
    ),
)
NOISES = st.one_of(
    st.just(Deterministic()),
    st.builds(Eta, st.floats(0, 20)),
    st.builds(Churn, st.floats(0, 0.99)),
    st.builds(DDIMEta, st.floats(0, 1)),
    st.builds(EDMChurn, st.floats(0, 100)),
    st.builds(Epsilon, st.floats(0, 2)),
    st.builds(Overshoot, st.floats(0)),
)


@settings(max_examples=120)
@given(st.sampled_from(sorted(CLOSED)), TIMES, SOLVERS, NOISES)
def test_every_row_of_every_plan_keeps_a_constant_estimate(name, ticks, solver, noise):
    """Where the network always says (x, eps), states are `alpha x + sigma eps` or as noisy.

    Grids are any times of any schedule, zero SNR and zero noise included.
    """
    schedule = CLOSED[name]
    grid = Given.times(schedule, [tick / 4096 for tick in sorted(ticks, reverse=True)])
    made = Sampler(grid, solver(), noise).plan(schedule, len(ticks) - 1)
    alpha, sigma = made.alpha[1:], made.sigma[1:]
    size = np.abs(made.x[1:]).sum(1) + np.abs(made.eps[1:]).sum(1) + alpha + sigma
    assert (np.abs(made.x[1:].sum(1) - alpha) <= 1e-9 * size).all()
    spread = np.hypot(made.eps[1:].sum(1), np.linalg.norm(made.noise[1:], axis=1))
    assert (np.abs(spread - sigma) <= 1e-9 * size).all()
    unit = np.hypot(made.alpha[0], made.sigma[0])  # the state of unit-variance data
    assert abs(np.linalg.norm(made.noise[0]) - unit) <= 1e-9 * unit
