import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instances import CLOSED, NUMERICAL, SCHEDULES
from twosides.sampling.named import plan
from twosides.schedules import (
    Betas,
    Cosine,
    EDMInput,
    FlowMatching,
    FromFunctions,
    ScaledLinear,
    VPLinear,
    derivative,
    logsnr_of_betas,
)

INSIDE = torch.linspace(0.003, 0.997, 83, dtype=torch.float64)
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
closed = pytest.mark.parametrize("schedule", CLOSED.values(), ids=CLOSED)


@every
def test_time_inverts_logsnr_with_both_ends(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(schedule.time(schedule.logsnr(t)), t, rtol=0, atol=1e-12)


@every
def test_ends_are_finite_or_exactly_infinite(schedule):
    for t in (0.0, 1.0):
        level = schedule.at(t)
        assert not any(math.isnan(float(value)) for value in level)
        for name in ("dalpha", "dsigma", "rate", "dlogsnr"):
            assert not math.isnan(float(getattr(schedule, name)(t))), name
    low, high = schedule.logsnr_min, schedule.logsnr_max
    if schedule.scaling != "ve" and low == -math.inf:
        assert float(schedule.alpha(1.0)) == 0.0
    if high == math.inf:
        assert float(schedule.sigma(0.0)) == 0.0


@every
def test_logsnr_is_that_of_alpha_and_sigma_and_falls(schedule):
    level = schedule.at(INSIDE)
    assert torch.allclose(2 * (level.alpha / level.sigma).log(), level.logsnr, atol=1e-11)
    assert bool((level.logsnr.diff() < 0).all())


@closed
def test_derivatives_are_those_of_autograd(schedule):
    t = INSIDE + 1e-4

    def by_autograd(part):
        return derivative(lambda t: schedule._scaling.levels(schedule._logsnr(t))[part], t)

    for exact, ours in ((by_autograd(0), schedule.dalpha(t)), (by_autograd(1), schedule.dsigma(t))):
        assert torch.allclose(ours, exact, rtol=1e-11, atol=1e-12)
    assert torch.allclose(schedule.dlogsnr(t), derivative(schedule._logsnr, t), rtol=1e-11)


def test_derivatives_at_the_ends_are_the_limits():
    assert [float(FlowMatching().dalpha(t)) for t in (0.0, 1.0)] == [-1.0, -1.0]
    assert float(Cosine().dsigma(0.0)) == pytest.approx(math.pi / 2, abs=1e-15)
    assert float(VPLinear().dalpha(0.0)) == pytest.approx(-0.05, rel=1e-12)  # -beta_min / 2
    assert float(VPLinear().dsigma(0.0)) == math.inf


def test_closed_forms_agree_with_textbook_formulas():
    t = INSIDE
    angle = 0.5 * math.pi * t
    assert torch.allclose(Cosine().alpha(t), angle.cos(), rtol=1e-13)
    assert torch.allclose(Cosine().sigma(t), angle.sin(), rtol=1e-13)
    s = 0.008
    bar = (
        torch.cos(0.5 * math.pi * (t + s) / (1 + s)) / math.cos(0.5 * math.pi * s / (1 + s))
    ) ** 2
    assert torch.allclose(Cosine(offset=s).alpha(t) ** 2, bar, rtol=1e-12)
    assert torch.allclose(FlowMatching().sigma(t), t, rtol=1e-14)
    assert torch.allclose(VPLinear().alpha(t), (-0.25 * t**2 * 19.9 - 0.05 * t).exp(), rtol=1e-13)


@pytest.mark.parametrize("name", ["functions", "sde-flow", "sde-vp"])
def test_schedules_from_functions_agree_with_closed_forms(name):
    exact = {"functions": Cosine(), "sde-flow": FlowMatching(), "sde-vp": VPLinear()}[name]
    for part in ("alpha", "sigma", "dalpha", "dsigma", "dlogsnr"):
        ours, truth = getattr(NUMERICAL[name], part)(INSIDE), getattr(exact, part)(INSIDE)
        assert torch.allclose(ours, truth, rtol=1e-11, atol=1e-12), part


def test_stable_diffusion_table_and_its_zero_terminal_version():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    schedule = ScaledLinear()
    t = torch.arange(1000, dtype=torch.float64) / 999
    assert torch.allclose(schedule.logsnr(t), (bar / (1 - bar)).log(), rtol=0, atol=1e-9)
    assert schedule.logsnr_min == pytest.approx(-5.364, abs=1e-3)
    assert schedule.logsnr_max == pytest.approx(7.069, abs=1e-3)
    middle = schedule.logsnr((t[:-1] + t[1:]) / 2)
    assert torch.allclose(middle, (schedule.table[:-1] + schedule.table[1:]) / 2, rtol=1e-12)
    zero = ScaledLinear(zero_terminal_snr=True)
    assert float(zero.alpha(1.0)) == 0.0
    assert float(zero.logsnr(998 / 999)) == pytest.approx(-15.4, abs=0.05)
    assert zero.logsnr_max == pytest.approx(schedule.logsnr_max, abs=1e-12)
    last = zero.at(torch.linspace(998 / 999, 1, 9, dtype=torch.float64))
    assert bool((last.logsnr.diff() < 0).all())


@given(st.lists(st.floats(1e-5, 0.7), min_size=2, max_size=40))
def test_any_betas_make_an_invertible_schedule(betas):
    schedule = Betas(tuple(betas))
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert torch.allclose(schedule.time(schedule.logsnr(t)), t, atol=1e-9)


def test_shift_adds_a_constant_and_keeps_the_scaling():
    for base in (FlowMatching(), Cosine(), VPLinear()):
        shifted = base.shifted(2.5)
        gap = shifted.logsnr(INSIDE) - base.logsnr(INSIDE)
        assert torch.allclose(gap, torch.full_like(gap, -2 * math.log(2.5)), atol=1e-12)
        assert torch.allclose(shifted.alpha(INSIDE) ** 2 + shifted.sigma(INSIDE) ** 2,
                              base.level(shifted.logsnr(INSIDE)).alpha ** 2
                              + base.level(shifted.logsnr(INSIDE)).sigma ** 2)  # fmt: skip


@closed
def test_scalings_keep_logsnr(schedule):
    for to, norm in (
        ("vp", lambda a, s: a**2 + s**2),
        ("flow", lambda a, s: a + s),
        ("ve", lambda a, s: a),
    ):
        level = schedule.with_scaling(to).at(INSIDE)
        assert torch.allclose(level.logsnr, schedule.logsnr(INSIDE), atol=1e-13)
        one = norm(level.alpha, level.sigma)
        assert torch.allclose(one, torch.ones_like(one), rtol=1e-13)


def flow_norm(logsnr):
    return torch.hypot(torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr))


class FlowNorm:
    """The same with its slope, that of hypot(tau, 1 - tau)."""

    __call__ = staticmethod(flow_norm)

    def slope(self, logsnr):
        tau = torch.sigmoid(-0.5 * logsnr)
        return (tau - torch.sigmoid(0.5 * logsnr)) / flow_norm(logsnr)


def test_a_norm_by_function_has_its_slope_inside_and_where_it_states_it():
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    for base in (FlowMatching(), Cosine()):
        given, flow = base.with_scaling(FlowNorm()), base.with_scaling("flow")
        for ours, known in ((given.dalpha, flow.dalpha), (given.dsigma, flow.dsigma)):
            assert torch.allclose(ours(times), known(times), rtol=1e-13, atol=1e-13)
        for name in ("dalpha", "dsigma"):
            inside = getattr(base.with_scaling(flow_norm), name)(times[1])
            assert torch.allclose(inside, getattr(flow, name)(times[1]), rtol=1e-13)


@pytest.mark.parametrize(("t", "end"), [(0.0, "inf"), (1.0, "-inf")])
def test_a_norm_that_states_no_limit_is_refused_where_its_slope_is_asked(t, end):
    """Whether it has a finite limit (flow_norm, tanh(s / 3)) or none (tanh(s / 10))."""
    for norm in (flow_norm, *(lambda s, k=k: 2 + torch.tanh(s / k) for k in (3, 10))):
        schedule = FlowMatching().with_scaling(norm)
        assert float(schedule.at(t).scale) > 0
        for slope in (schedule.dalpha, schedule.dsigma):
            with pytest.raises(ValueError, match=f"logsnr {end} is not known.*slope"):
                slope(torch.tensor([0.5, t], dtype=torch.float64))
    assert np.isfinite(plan("ddim", schedule, 5).x).all()
    with pytest.raises(ValueError, match="derivative"):
        plan("pf-euler", schedule, 5)


@pytest.mark.parametrize("data_std", [0.25, 0.5, 1.0])
def test_edms_input_has_exact_slopes_at_both_ends(data_std):
    """z = c_in (x + s n) with s = t / (1 - t): derivatives of alpha and sigma worked out by hand."""
    schedule = FlowMatching().with_scaling(EDMInput(data_std))
    t = torch.tensor([0.0, 1e-9, 0.4, 1 - 1e-9, 1.0], dtype=torch.float64)
    cube = (t**2 + data_std**2 * (1 - t) ** 2) ** 1.5  # alpha, sigma = (1 - t, t) / cube^(1/3)
    assert torch.allclose(schedule.dalpha(t), -t / cube, rtol=1e-12, atol=1e-15)
    assert torch.allclose(schedule.dsigma(t), data_std**2 * (1 - t) / cube, rtol=1e-12, atol=1e-15)


def test_alpha_does_not_underflow_or_cancel_in_the_tails():
    level = Cosine().level(torch.tensor([-200.0, 200.0], dtype=torch.float64))
    assert level.alpha[0].item() == pytest.approx(math.exp(-100), rel=1e-12)
    assert level.sigma[1].item() == pytest.approx(math.exp(-100), rel=1e-12)
    tiny = 1e-12
    assert float(FlowMatching().logsnr(tiny)) == pytest.approx(-2 * math.log(tiny), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowMatching().logsnr(1.2), "1.2"),
        (lambda: FlowMatching().logsnr(float("nan")), "nan"),
        (lambda: ScaledLinear().time(-9.0), "covers"),
        (lambda: Cosine(3, -3), "logsnr_min"),
        (lambda: FlowMatching().shifted(0), "positive"),
        (lambda: FlowMatching().with_scaling("vpp"), "unknown scaling"),
        (lambda: FromFunctions(lambda t: t, lambda t: 1 - t), "reversed"),
        (lambda: logsnr_of_betas(torch.tensor([0.1, 1.0])), "betas"),
        (lambda: VPLinear(beta_min=0), "beta_min"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_functions_may_be_constant():
    ours, there = FromFunctions(lambda t: 1.0, lambda t: 80 * t), torch.tensor([0.1, 0.5, 1.0])
    assert torch.equal(ours.values(there)[0], torch.ones(3))
    assert torch.equal(ours.slopes(there)[0], torch.zeros(3))
    assert torch.allclose(ours.logsnr(there), -2 * (80 * there).log().double(), atol=1e-6)
