"""The name "auto": which rule it is at how many steps, and how it fares where presets are known."""

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.outputs import kappa
from twosides.sampling.grids import Beta, UniformTime
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams
from twosides.schedules import EDM, Cosine, FlowMatching, ScaledLinear
from twosides.storage.parts import describe, restore

SHORT = Adams(2, kappa(1.0), corrected_start=False)
PLAIN = Adams(2, kappa(1.0), corrector=3)
FINAL = Adams(2, kappa(1.0), corrector=3, lower_order_final=True)
SCHEDULES = [FlowMatching(), Cosine(), ScaledLinear(), EDM()]


def same(a, b):
    return max(abs(a.x - b.x).max(), abs(a.eps - b.eps).max()) < 1e-13


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_it_is_the_rule_for_so_many_steps(schedule):
    grid = Beta(0.7, 1.0, variable="u")
    for steps in (1, 2, 7):
        assert same(plan("auto", schedule, steps), Sampler(grid, SHORT).plan(schedule, steps))
    # The data are far from where Stable Diffusion's schedule ends: its last step is a long one.
    end = PLAIN if isinstance(schedule, ScaledLinear) else FINAL
    for steps in (8, 20):
        short = steps == 8 and isinstance(schedule, ScaledLinear)
        wanted = Sampler(grid, FINAL if short else end).plan(schedule, steps)
        assert same(plan("auto", schedule, steps), wanted)


def test_on_even_steps_the_last_one_is_of_full_order():
    """As on a pipeline's own levels, which a name keeps."""
    solver = sampler_named("auto").solver
    even = Sampler(UniformTime(), solver).plan(FlowMatching(), 12)
    assert same(even, Sampler(UniformTime(), PLAIN).plan(FlowMatching(), 12))
    assert not same(even, Sampler(UniformTime(), FINAL).plan(FlowMatching(), 12))


def test_begun_in_the_middle_it_is_the_same_rule():
    from twosides.integrations.diffusers import Scheduler

    config = {"prediction_type": "flow_prediction"}
    runs = [Scheduler(name, **config) for name in ("auto", "kab2c")]
    for scheduler in runs:
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(4)  # six steps are left of ten
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(2, 1, 4, 4, generator=generator)] * 2
    for t in runs[0].timesteps[4:]:
        z = [
            one.step(0.3 * each + t / 1000, t, each).prev_sample
            for one, each in zip(runs, z, strict=True)
        ]
    assert torch.equal(*z)


def test_it_is_a_name_and_a_part():
    made = sampler_named("auto")
    assert restore(describe(made)) == made and not made.stochastic and made.nfe_per_step == 1
    assert sampler_named("auto", noise="eta(1)").stochastic
    with pytest.raises(ValueError, match="takes no numbers|auto"):
        sampler_named("auto(3)")


def test_it_is_far_better_than_ddim_on_exact_problems():
    """From unit noise, at 5 to 20 calls, on a ring and under guidance."""
    ring = ts.oracle.GaussianMixture.ring(8, std=0.1)
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = run(plan("kab3c", FlowMatching(), 400), ring, start)
    for steps, times in ((5, 3), (8, 5), (20, 15)):
        errors = [
            np.median((run(plan(name, FlowMatching(), steps), ring, start) - exact).norm(dim=1))
            for name in ("auto", "ddim")
        ]
        assert times * errors[0] < errors[1], (steps, errors)
