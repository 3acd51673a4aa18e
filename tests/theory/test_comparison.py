import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from twosides.comparison import compare
from twosides.losses.recipes import Recipe, recipes
from twosides.sampling.grids import Given
from twosides.sampling.named import plan
from twosides.sampling.noise import Churn, EDMChurn, Eta
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, Euler
from twosides.schedules import Cosine, FlowMatching, VPLinear


def test_identical_plans():
    for n in (1, 10, 40):
        result = compare(plan("ddim", FlowMatching(), n), plan("flow-euler", FlowMatching(), n))
        assert result.verdict == "identical" and result.difference <= 1e-14
    base = Cosine()
    for to in ("flow", lambda logsnr: 2 + torch.tanh(logsnr)):
        result = compare(plan("ddim", base, 12), plan("ddim", base.with_scaling(to), 12))
        assert result.same and result.difference < 1e-13


def test_different_plans_say_how_far_and_where():
    a, b = plan("ddim", FlowMatching(), 10), plan("ddpm", FlowMatching(), 10)
    result = compare(a, b)
    assert not result.same and result.difference > 0.1
    few = compare(a, plan("ddim", FlowMatching(), 11))
    assert "10 and 11 network calls" in str(few)
    grids = compare(a, plan("ddim", FlowMatching().shifted(2), 10))
    assert "logsnr of call 2" in grids.where
    scaled = FlowMatching().with_scaling("vp")
    pf = compare(plan("pf-euler", FlowMatching(), 10), plan("pf-euler", scaled, 10))
    assert pf.verdict == "different" and "in" in pf.where


def with_noise(plan, noise):
    """The plan with other coefficients of its noises, a column for each."""
    rows = tuple(
        {key: value for key, value in row.items() if key[0] != "noise"}
        | {("noise", j): float(value) for j, value in enumerate(weights) if value}
        for row, weights in zip(plan.rows, noise, strict=True)
    )
    return replace(plan, rows=rows, noises=noise.shape[1] - 1)


def test_noise_in_other_pieces_is_the_same_in_distribution():
    whole = Sampler(Given((-4.0, -2.0, 0.0, 2.0, 4.0)), stochasticity=Eta(0.3)).plan(VPLinear(), 4)
    halves = np.repeat(whole.noise[:, 1:], 2, axis=1) / math.sqrt(2)
    noise = np.concatenate([whole.noise[:, :1], halves], axis=1)
    result = compare(whole, with_noise(whole, noise))
    assert result.verdict == "same in distribution" and result.difference < 1e-14
    flipped = with_noise(whole, whole.noise * np.array([1.0, -1, 1, -1, 1]))
    assert compare(whole, flipped).verdict == "same in distribution"
    assert not compare(whole, with_noise(whole, noise * 1.001)).same


def test_edm_churn_is_eta_cut_at_another_place():
    """What EDM adds before call i, the SDE's eta adds after the step before: same inputs seen."""
    schedule, nodes, gamma = VPLinear(), (-4.0, -2.0, 0.0, 2.0), 0.1
    steps = len(nodes) - 1
    before = Sampler(Given(nodes), DDIM(), EDMChurn(gamma * steps)).plan(schedule, steps)
    lost = 2 * math.log1p(gamma)
    seen = tuple(node - lost for node in nodes[:-1])

    def eta(t: float) -> float:
        here = float(schedule.logsnr(t))
        following = min((n for n in (*seen[1:], nodes[-1]) if n > here + 1e-9), default=here + 1)
        return math.sqrt(lost / (following - here)) if following < nodes[-1] else 0.0

    after = Sampler(Given((*seen, nodes[-1])), DDIM(), Eta(eta)).plan(schedule, steps)
    assert np.allclose(before.logsnr, after.logsnr, atol=1e-12)
    for part in ("x", "eps"):
        assert np.allclose(getattr(before, part), getattr(after, part), atol=1e-12)
    assert np.allclose(np.diag(before.noise[1:-1, 2:]), np.diag(after.noise[1:-1, 1:]), atol=1e-12)


def test_churn_and_eta_are_one_sampler():
    a = Sampler(stochasticity=Churn(0.2)).plan(Cosine(), 9)
    b = Sampler(stochasticity=Eta(0.5)).plan(Cosine(), 9)
    assert compare(a, b).verdict == "identical"


def test_recipes():
    result = compare(recipes["flow-matching"], recipes["v-cosine"])
    assert result.verdict == f"same weighting up to the factor {math.pi / 2:.6g}"
    assert result.difference < 1e-12
    far = compare(recipes["sd3"], recipes["edm"])
    assert far.verdict == "different" and far.difference == pytest.approx(0.093, abs=1e-3)
    same = Recipe.plain("v", Cosine().shifted(1.0))
    assert compare(same, recipes["v-cosine"]).verdict == "identical weighting"


def test_learned_weightings_are_not_fixed_ones():
    """EDM, InfoNoise and learned uncertainty start alike; levels that adapt train the same."""
    edm = recipes["edm"]
    assert compare(edm, edm.learning("adaptive")).verdict == "identical weighting"
    for what in ("entropy-rate", "uncertainty"):
        learned = compare(edm, edm.learning(what))
        assert not learned.same and f"before learning ({what})" in str(learned)
        assert compare(edm.learning(what), edm.learning(what)).verdict == "identical weighting"
    assert not compare(edm.learning("entropy-rate"), edm.learning("uncertainty")).same
    velocity, v, flow = (
        recipes[name].learning("uncertainty") for name in ("sit-gvp", "v-cosine", "flow-matching")
    )
    assert compare(velocity, v).same  # the same levels and weights, up to a factor
    assert not compare(v, flow).same  # of the same weights, but p / E[e] of other levels


def test_only_like_is_compared():
    with pytest.raises(TypeError, match="two plans or two recipes"):
        compare(plan("ddim", Cosine(), 3), recipes["sd3"])
    assert compare(Sampler(solver=Euler("v")).plan(Cosine(), 3), plan("ddim", Cosine(), 3)).same
    assert all(compare(plan(n, VPLinear(), 4), plan(n, VPLinear(), 4)).same for n in samplers)


def test_a_recipe_that_never_sees_some_levels_is_another():
    wide, narrow = (Recipe.plain("eps", Cosine(-r, r)) for r in (15, 2))
    for pair in ((wide, narrow), (narrow, wide)):
        assert compare(*pair).verdict == "different"
        assert "levels drawn alike" not in str(compare(*pair))


def test_an_infinite_level_is_not_a_large_one():
    a, b = (Sampler(Given((start, 0.0, 5.0))).plan(Cosine(), 2) for start in (-math.inf, -100.0))
    assert not compare(a, b).same and not compare(b, a).same
