"""Routes: what noise makes of the levels of a grid, and that solvers of any order walk them."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twosides.outputs import Estimate
from twosides.reports.orders import reached_variance
from twosides.sampling.grids import Given, Karras, UniformLogSNR, UniformTime
from twosides.sampling.noise import (
    STOCHASTICITIES,
    Churn,
    Deterministic,
    EDMChurn,
    Eta,
    Langevin,
    Leg,
    Restart,
    Stochasticity,
)
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, Adams, RungeKutta, walk
from twosides.schedules import EDM, Cosine, FlowMatching, VPLinear

FLOW = FlowMatching()
SCHEDULES = [EDM(), FLOW, Cosine()]


def route_of(noise, grid, schedule, steps):
    return noise.route(schedule, Sampler(grid).levels(schedule, steps))


@pytest.mark.parametrize("name", STOCHASTICITIES)
@pytest.mark.parametrize("schedule", [FLOW, VPLinear(), EDM()])
def test_a_leg_falls_to_where_the_next_one_starts(name, schedule):
    """Every route begins and ends with its grid, and no leg starts above where the last one went."""
    grid = UniformTime(start=0.98, end=0.02)
    levels = Sampler(grid).levels(schedule, 12)
    legs = STOCHASTICITIES[name]().route(schedule, levels)
    assert legs[0].here.logsnr <= levels[0].logsnr and legs[-1].there == levels[-1]
    for leg, after in pairwise(legs):
        assert leg.here.logsnr <= leg.over.logsnr
        assert leg.over.logsnr == pytest.approx(leg.there.logsnr + leg.overshoot)
        assert after.here == leg.there or after.back or name == "langevin"
        assert after.here.logsnr <= leg.over.logsnr


# ---------------------------------------------------------------------------- EDM's churn


@dataclass(frozen=True)
class Forgetful(Adams):
    """Adams whose memory is lost at every step, as where churn was noise before a call."""

    def step(self, z, leg, memory):
        memory.clear()
        return super().step(z, leg, memory)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", [2, 3])
def test_multistep_solvers_keep_their_order_with_edm_churn(schedule, order):
    """The variance of Gaussian data; the first level is not churned, or its error would stay."""
    start, end = (float(schedule.time(logsnr)) for logsnr in (-3.0, 5.0))
    churn = EDMChurn(2.0, sigma_max=4.4)

    def error(solver, steps):
        plan = Sampler(UniformTime(start=start, end=end), solver, churn).plan(schedule, steps)
        return sum(abs(reached_variance(plan, 0.02 * 2.0**power) - 1) for power in range(8))

    counts = 80, 160, 320
    errors = [error(Adams(order, "x", "logsnr"), steps) for steps in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)
    assert errors[0] < error(Forgetful(order, "x", "logsnr"), 80) / 10


# ---------------------------------------------------------------------------- Langevin


@pytest.mark.parametrize(
    "solver", [DDIM(), Adams(2, "x", "logsnr"), RungeKutta("heun", "eps")], ids=repr
)
def test_langevin_is_any_solver_and_ddim_back_and_forth(solver):
    """The plan by hand: a step of the solver, DDIM to the overshoot, noise back, and so on."""
    schedule, steps, times = VPLinear(), 6, 2
    made = Sampler(UniformTime(), solver, Langevin(Eta(0.7), times)).plan(schedule, steps)
    levels = Sampler(UniformTime()).levels(schedule, steps)
    network = np.random.default_rng(0).normal(size=(3,))

    def estimate(z, level):
        return Estimate(network[0] * z + network[1] * level.alpha, network[2] * z)

    def run(asks):
        answer = None
        while True:
            try:
                z, level = asks.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = estimate(z, level)

    noises = np.random.default_rng(1).normal(size=100)
    z, memory, draws = noises[0] * math.hypot(*levels[0][1:]), [], iter(noises[1:])
    for number, (here, there) in enumerate(pairwise(levels)):
        leg = Leg(schedule, here, there, there, left=steps - number)
        z = run(solver.step(z, leg, memory))
        q = 0.7**2 * (there.logsnr - here.logsnr)
        for _ in range(times if there.sigma else 0):
            over = schedule.level(there.logsnr + q).floats()
            x, eps = estimate(z, there)
            z = there.alpha / over.alpha * (over.alpha * x + over.sigma * eps)
            z += there.sigma * math.sqrt(1 - math.exp(-q)) * next(draws)
    states, pairs = [], []
    for i, row in enumerate(made.rows):
        parts = {"x": [p[0] for p in pairs], "eps": [p[1] for p in pairs], "noise": noises}
        states.append(sum(value * parts[kind][k] for (kind, k), value in row.items()))
        if i < made.nfe:
            pairs.append(estimate(states[-1], made.levels[i]))
    assert states[-1] == pytest.approx(z, rel=1e-12)


def test_langevin_costs_its_corrections():
    sampler = Sampler(solver=RungeKutta("midpoint", "u"), stochasticity=Langevin(times=3))
    assert sampler.nfe_per_step == 5 and sampler.stochastic
    made = sampler.plan(FLOW, 4)
    # None at the data; and the last step of a solver may be shorter.
    assert made.nfe == 4 * 2 + 3 * 3
    assert samplers["langevin"].nfe_per_step == 2


# ---------------------------------------------------------------------------- Restart


@given(
    low=st.floats(-3, 2), width=st.floats(0.5, 6), times=st.integers(1, 3),
    sub=st.integers(1, 5), steps=st.integers(4, 30), grid=st.sampled_from([Karras(), UniformTime()]),
)  # fmt: skip
def test_restart_repeats_a_part_of_the_way(low, width, times, sub, steps, grid):
    main = [level.logsnr for level in Sampler(grid).levels(FLOW, steps)]
    legs = route_of(Restart(low, low + width, times, sub), grid, FLOW, steps)
    assert len(legs) == steps + times * sub
    back = [index for index, leg in enumerate(legs) if leg.back]
    assert back == [back[0] + k * sub for k in range(times)]
    rest = legs[: back[0]] + legs[back[0] + times * sub :]
    assert [leg.here.logsnr for leg in rest] == main[:-1]
    assert [leg.there.logsnr for leg in rest] == main[1:]
    top = main[back[0]]
    later = [value for value in main if value > low and value < math.inf]
    assert abs(top - low - width) == pytest.approx(min(abs(v - low - width) for v in later))
    # The paper's ramp from t_max to the level of the main grid.
    roots = np.linspace(math.exp(-low / 14), math.exp(-top / 14), sub + 1)
    for first in back:
        loop = legs[first : first + sub]
        nodes = np.array([leg.here.logsnr for leg in loop] + [loop[-1].there.logsnr])
        assert (nodes[0], nodes[-1]) == (low, top)
        assert np.allclose(np.exp(-0.5 * nodes), roots**7)


def test_restart_costs_its_sub_steps():
    made = Sampler(Karras(), stochasticity=Restart(0, 4, times=3, steps=2)).plan(FLOW, 12)
    assert made.nfe == 12 + 3 * 2
    assert np.count_nonzero(made.noise[:, 1:].any(0)) == 3
    without_room = route_of(Restart(), Karras(), VPLinear(), 1)
    assert without_room == route_of(Deterministic(), Karras(), VPLinear(), 1)


@pytest.mark.parametrize("along", [Deterministic(), Churn(0.4), Eta(1.0), EDMChurn(3.0)], ids=repr)
def test_restarts_nest_in_any_order_and_with_other_noise(along):
    """Two intervals are each walked again once, wherever the other one stands."""
    first, second = {"low": -2.0, "high": 1.0, "times": 1}, {"low": 2.4, "high": 5.6, "times": 1}
    one = route_of(Restart(**second, along=Restart(**first, along=along)), Karras(), FLOW, 18)
    other = route_of(Restart(**first, along=Restart(**second, along=along)), Karras(), FLOW, 18)
    plain = route_of(along, Karras(), FLOW, 18)
    assert [leg for leg in one if leg in plain] == plain
    assert {leg.here.logsnr for leg in one if leg.back} == {-2.0, 2.4}
    assert len(one) == len(other) == 18 + 2 + 2
    assert sorted(one) == sorted(other)


def test_restart_with_a_high_order_solver_converges():
    """A loop restores the marginal: with an exact solver Restart leaves Gaussian data exact."""
    grid = UniformLogSNR(-4, 8)
    noise = Restart(0.0, 4.0, times=2, steps=40)
    counts = 40, 80, 160

    def error(steps):
        sampler = Sampler(grid, RungeKutta("heun", "u"), replace(noise, steps=steps))
        return abs(reached_variance(sampler.plan(EDM(), steps), 0.3) - 1)

    slope = -np.polyfit(np.log(counts), np.log([error(steps) for steps in counts]), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)


# ---------------------------------------------------------------------------- anybody's


def test_a_rule_of_ones_own_is_a_route():
    """A walk that goes back half of each step, by ten lines of a user's."""

    @dataclass(frozen=True)
    class TwoSteps(Stochasticity):
        def route(self, schedule, levels):
            legs = []
            for number, leg in enumerate(super().route(schedule, levels)):
                legs += [leg, leg._replace(back=True)] if number == 1 else [leg]
            return legs

    made = Sampler(UniformLogSNR(-4, 4), DDIM(), TwoSteps()).plan(FLOW, 4)
    assert made.nfe == 5 and made.noises == 1
    assert made.logsnr.tolist() == [-4, -2, -2, 0, 2, 4]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Restart(2, 1), "low < high"),
        (lambda: Restart(math.nan, 1), "low < high"),
        (lambda: Restart(-math.inf, 1), "low < high"),
        (lambda: Restart(0, 1, times=0), "times must be"),
        (lambda: Restart(0, 1, steps=0), "steps must be"),
        (lambda: Restart(0, 1, rho=0.0), "rho"),
        (lambda: route_of(Restart(-9, 1), Karras(), EDM(), 9), "raise low"),
        (lambda: Langevin(times=0), "times must be"),
        (lambda: Langevin(Deterministic()), "exchanges an overshoot"),
    ],
)
def test_bad_rules_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_run_that_goes_on_in_the_middle_forgets_nothing():
    """Two halves of a route, the memory handed over, are the whole."""
    schedule = VPLinear()
    levels = Sampler(UniformTime()).levels(schedule, 9)
    route = Eta(0.5).route(schedule, levels)
    solver, draws = Adams(3, "x", "logsnr"), np.random.default_rng(2).normal(size=9)

    def run(z, legs, ends, memory, noise):
        asks, answer = walk(solver, z, legs, ends, lambda: next(noise), memory), None
        while True:
            try:
                state, level = asks.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = Estimate(np.tanh(state) + level.sigma, 0.3 * state)

    whole = run(1.3, route, (levels[0], levels[-1]), [], iter(draws))
    memory, noise = [], iter(draws)
    half = run(1.3, route[:4], (levels[0], levels[4]), memory, noise)
    rest = [leg._replace() for leg in route[4:]]
    assert run(half, rest, (levels[4], levels[-1]), memory, noise) == pytest.approx(
        whole, rel=1e-13
    )


def test_levels_of_ones_own():
    nodes = Given((-3.0, -1.0, 0.5, 4.0))
    assert [leg.here.logsnr for leg in route_of(Eta(), nodes, FLOW, 3)] == [-3.0, -1.0, 0.5]
