"""Adaptive steps: against fine fixed grids, both ways, in every frame, with every call counted."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.ode.adaptive import Path, sample_adaptive, solve
from twosides.ode.integrate import PAIRS, Adaptive, integrate
from twosides.ode.inversion import encode
from twosides.oracle import GaussianMixture
from twosides.outputs import Estimate, Output
from twosides.sampling.sample import sample
from twosides.schedules import EDM, Cosine, FlowMatching, Level, VPLinear

FLOAT64 = torch.float64
DATA = GaussianMixture.ring(8, std=0.3)
NOISE = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
NOISY, CLEAN = (FlowMatching().at(t).floats() for t in (1.0, 0.0))


class Counting:
    """A denoiser that counts."""

    schedule = FlowMatching()

    def __init__(self, answer=DATA):
        self.answer, self.levels = answer, []

    def __call__(self, z, level):
        self.levels.append(level)
        return self.answer(z, level)


@pytest.fixture(scope="module")
def fine():
    """The same noise by 100 steps of fixed Runge-Kutta."""
    return sample(DATA, (32, 2), sampler="rk4", steps=100, init=NOISE, dtype=FLOAT64)


# ---------------------------------------------------------------------------- the pairs


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_pairs_satisfy_the_quadrature_conditions(pair):
    nodes = np.array([0.0, *pair.nodes])
    for node, row in zip(pair.nodes, pair.rows, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    weights = np.array([*pair.rows[-1], 0.0])
    lower = weights - pair.error
    for power in range(pair.order):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-14)
        if power < pair.order - 1:
            assert lower @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-14)
    assert abs(lower @ nodes ** (pair.order - 1) - 1 / pair.order) > 1e-4


@pytest.mark.parametrize("method", PAIRS)
def test_order_as_the_tolerance_falls(method):
    """Two turns of an oscillator: the error against the calls, and against the tolerance."""
    start, span = (torch.tensor([[1.0, 0.0]], dtype=FLOAT64),), 4 * math.pi
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=FLOAT64)
    tolerances = (1e-4, 1e-6, 1e-8)
    runs = [
        integrate(lambda eta, y: (y[0] @ turn,), start, 0.0, span, Adaptive(tol, tol, method))
        for tol in tolerances
    ]
    errors = [float((run.y[0] - start[0]).norm()) for run in runs]
    slope = -np.polyfit(np.log([run.calls for run in runs]), np.log(errors), 1)[0]
    assert slope == pytest.approx(PAIRS[method].order, abs=0.5)
    for error, tolerance in zip(errors, tolerances, strict=True):
        assert error < 100 * tolerance


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
@pytest.mark.parametrize("method", PAIRS)
def test_the_error_is_of_the_size_of_the_tolerance(method, tolerance, fine):
    run = solve(DATA, NOISE, NOISY, CLEAN, Adaptive(tolerance, tolerance, method))
    assert float((run.z - fine).square().mean().sqrt()) < 3 * tolerance


def test_a_solution_in_closed_form_with_components_of_any_shape():
    def field(eta, y):
        position, speed, clock = y
        return speed, -position, torch.ones_like(clock)

    start = (torch.zeros(3, 2, dtype=FLOAT64), torch.ones(3, 2, dtype=FLOAT64), torch.zeros(3))
    there = integrate(field, start, 0.0, 2.0, Adaptive(1e-9, 1e-9))
    assert torch.allclose(there.y[0], torch.full((3, 2), math.sin(2.0), dtype=FLOAT64), atol=1e-8)
    assert torch.allclose(there.y[2], torch.full((3,), 2.0))
    assert there.nodes[0] == 0 and there.nodes[-1] == 2
    back = integrate(field, there.y, 2.0, 0.0, Adaptive(1e-9, 1e-9))
    assert float(back.y[0].abs().max()) < 1e-8


def test_a_field_of_zeros_is_one_step():
    done = integrate(lambda eta, y: (0 * y[0],), (torch.ones(2, 3),), 0.0, 5.0)
    assert torch.equal(done.y[0], torch.ones(2, 3))
    assert done.calls == 8 and done.nodes == [0.0, 5.0]


# ---------------------------------------------------------------------------- denoisers


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("output", ["u", "kappa(0.5)", "kappa(3)", "-u"])
def test_noise_to_data_from_zero_snr_to_zero_noise(output, method, fine):
    run = solve(DATA, NOISE, NOISY, CLEAN, Adaptive(1e-5, 1e-5, method), output=output)
    assert float((run.z - fine).abs().max()) < 1e-4
    assert run.levels[0] == NOISY and run.levels[-1] == CLEAN


def test_data_to_noise_and_back():
    x = DATA.sample(32, seed=1)
    there = solve(DATA, x, CLEAN, NOISY, Adaptive(1e-7, 1e-7))
    fixed = encode(DATA, x, sampler="rk4", steps=100).noise
    assert float((there.z - fixed).abs().max()) < 1e-5
    back = solve(DATA, there.z, NOISY, CLEAN, Adaptive(1e-7, 1e-7))
    assert float((back.z - x).abs().max()) < 1e-5


@pytest.mark.parametrize("output", ["u", "eps", "x"])
def test_every_frame_between_levels_inside(output):
    noisy, clean = (Cosine().level(logsnr).floats() for logsnr in (-6.0, 7.0))
    runs = [solve(DATA, NOISE, noisy, clean, output=o) for o in (output, "u")]
    assert float((runs[0].z - runs[1].z).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("output", "noisy", "clean"), [("eps", -5.0, math.inf), ("x", -math.inf, 5.0)]
)
def test_singular_frames_reach_the_end_where_they_are_finite(output, noisy, clean):
    start, end = (VPLinear().level(logsnr).floats() for logsnr in (noisy, clean))
    runs = [solve(DATA, NOISE, start, end, output=o) for o in (output, "u")]
    assert float((runs[0].z - runs[1].z).abs().max()) < 1e-4


def test_the_scaling_of_the_ends_is_only_a_scaling():
    ends = [tuple(s.at(t).floats() for t in (1.0, 0.0)) for s in (EDM(), EDM().with_scaling("vp"))]
    (ve_noisy, ve_clean), (vp_noisy, vp_clean) = ends
    ve = solve(DATA, NOISE * ve_noisy.scale, ve_noisy, ve_clean).z / ve_clean.scale
    vp = solve(DATA, NOISE * vp_noisy.scale, vp_noisy, vp_clean).z / vp_clean.scale
    assert torch.allclose(ve, vp, atol=1e-9)


def test_calls_are_counted_and_the_last_stage_is_used_again():
    asked = Counting()
    seen = []
    run = solve(asked, NOISE, NOISY, CLEAN, record=lambda level, z: seen.append((level, z)))
    assert run.calls == len(asked.levels) == 2 + 6 * (len(run.levels) - 1 + run.rejected)
    assert [level for level, _ in seen] == run.levels
    assert torch.equal(seen[0][1], NOISE) and torch.equal(seen[-1][1], run.z)
    assert all(here.logsnr < there.logsnr for here, there in pairwise(run.levels))
    for level, z in seen[1:-1]:
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
        rest = solve(DATA, z, level, CLEAN)
        assert float((rest.z - run.z).abs().max()) < 3e-5


def test_conditioning_reaches_the_network_and_samples_are_restored():
    network = Denoiser(lambda z, t, shift: z - shift, "u", data_mean=3.0, data_std=2.0)
    shape, shift = (5, 2), torch.ones(5, 1, dtype=FLOAT64)
    ours = sample_adaptive(
        network, shape, seed=4, dtype=FLOAT64, adaptive=Adaptive(1e-9, 1e-9), shift=shift
    )
    theirs = sample(network, shape, seed=4, dtype=FLOAT64, sampler="rk4", steps=60, shift=shift)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_nothing_of_it_is_differentiated():
    run = solve(DATA, NOISE.clone().requires_grad_(), NOISY, CLEAN, Adaptive(1e-2, 1e-2))
    assert not run.z.requires_grad


# ---------------------------------------------------------------------------- refusals


def test_too_many_calls_are_refused():
    asked = Counting()
    with pytest.raises(RuntimeError, match="max_calls=40 .* loosen rtol"):
        solve(asked, NOISE, NOISY, CLEAN, Adaptive(max_calls=40))
    assert len(asked.levels) == 40


def test_a_singular_field_is_refused():
    def explodes(eta, y):
        return (1 / (1 - eta) ** 2 * torch.ones_like(y[0]),)

    with pytest.raises(RuntimeError, match="the step has shrunk"):
        integrate(explodes, (torch.zeros(1, 1, dtype=FLOAT64),), 0.0, 2.0)


@pytest.mark.parametrize("bad_from", [1, 2, 6])
def test_nan_is_refused_where_it_appears(bad_from):
    def answer(z, level):
        x, eps = DATA(z, level)
        return Estimate(x * math.nan if len(asked.levels) >= bad_from else x, eps)

    asked = Counting(answer)
    with pytest.raises(RuntimeError, match="not finite between eta"):
        solve(asked, NOISE, NOISY, CLEAN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "v"}, "v has coefficients that change"),
        ({"output": "eps"}, "singular on the way"),
        ({"output": "x"}, "singular on the way"),
        ({"output": Output("sum", 1.0, 1.0)}, "singular on the way"),
        ({"end": NOISY}, "different finite ends"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        solve(DATA, NOISE, NOISY, options.pop("end", CLEAN), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk45"}, "unknown method 'rk45'"),
        ({"rtol": -1.0}, "rtol >= 0.*rtol=-1.0"),
        ({"atol": 0.0}, "atol > 0"),
        ({"max_calls": 0}, "max_calls must be at least 1, got 0"),
    ],
)
def test_impossible_tolerances_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**options)


def test_a_network_that_says_nothing_at_an_end_is_refused():
    network = Denoiser(lambda z, t: z, "x", FlowMatching())
    with pytest.raises(ValueError, match="says nothing about the noise at zero noise"):
        solve(network, NOISE, NOISY, CLEAN)
    assert solve(network, NOISE, NOISY, FlowMatching().at(0.01)).z.isfinite().all()


def test_levels_of_a_path_are_exact_at_both_ends():
    path = Path.of("kappa(3)", Level(-math.inf, 0.0, 2.0), Level(math.inf, 5.0, 0.0))
    assert path.level(path.ends[0]) == path.start and path.level(path.ends[1]) == path.end
    middle = path.level(0.5 * sum(path.ends))
    assert middle.logsnr == pytest.approx(-2 * math.log(1 / 3), abs=1e-12)
