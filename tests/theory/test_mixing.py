"""Rules of guidance beside diffusers' guiders on the same numbers, and more than two denoisers."""

import pytest
import torch

import twosides as ts
from twosides import mixing
from twosides.guidance import autoguidance, classifier_free
from twosides.oracle import GaussianMixture
from twosides.outputs import OUTPUTS, Estimate
from twosides.schedules import Cosine, FlowMatching

FLOAT64 = torch.float64
RULES = {
    "apg": mixing.projected,
    "cfg-zero*": mixing.zero_star,
    "tcfg": mixing.tangential,
    "mambo-g": mixing.magnitude,
    "rescale": mixing.rescaled,
}
MODELS = {
    "vp": (Cosine(-12, 12), "eps"),
    "vp-v": (Cosine(-12, 12), "v"),
    "flow": (FlowMatching(), "u"),
}


class Raw:
    """A network's raw answers, strong under condition 0 and weak under 1."""

    def __init__(self, model, seed=0):
        self.schedule, self.output = MODELS[model]
        generator = torch.Generator().manual_seed(seed)
        self.raw = torch.randn(2, 3, 4, 6, 6, generator=generator)
        self.raw[0] += 0.7 * self.raw[1]

    def __call__(self, z, level, *, side):
        return OUTPUTS[self.output].estimate(z, self.raw[int(side[0])].to(z), level)


def guider(name, scale):
    """diffusers' guider of that name, as a function of the raw answers."""
    guiders = pytest.importorskip("diffusers.guiders")
    made = {
        "apg": lambda: guiders.AdaptiveProjectedGuidance(
            scale - 1,
            eta=0.0,
            adaptive_projected_guidance_rescale=5.0,
            use_original_formulation=True,
        ),
        "cfg-zero*": lambda: guiders.ClassifierFreeZeroStarGuidance(scale, zero_init_steps=0),
        "tcfg": lambda: guiders.TangentialClassifierFreeGuidance(scale),
        "mambo-g": lambda: guiders.MagnitudeAwareGuidance(scale, alpha=8.0),
        "rescale": lambda: guiders.ClassifierFreeGuidance(scale, guidance_rescale=0.7),
    }[name]()
    made._step = 1
    if name == "mambo-g":  # diffusers' cannot take the norm of images, only of rows
        return lambda o, w: made.forward(o.flatten(1), w.flatten(1)).pred.view_as(o)
    return lambda strong, weak: made.forward(strong, weak).pred


SIDE = torch.zeros(3, dtype=torch.long)
Z = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(9)).double()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_diffusers_guider_of_that_name(name, model):
    """Each in the output that the network predicts, which is where diffusers has them."""
    raw, numbers = Raw(model), {"apg": {"longest": 5.0}}.get(name, {})
    rule = RULES[name](output=raw.output, **numbers)
    level = raw.schedule.at(0.4)
    guided = classifier_free(raw, 3.5, null={"side": 1}, rule=rule)(Z, level, side=SIDE)
    want = guider(name, 3.5)(*raw.raw)
    got = OUTPUTS[raw.output].of(*guided, level)
    assert float((got - want).abs().max()) < 1e-6 * float(want.abs().max())
    assert torch.allclose(level.mix(*guided), Z, atol=1e-12)
    plain = classifier_free(raw, 3.5, null={"side": 1})(Z, level, side=SIDE)
    assert float((guided.x - plain.x).abs().max()) > 0.1  # it is something else than guidance


@pytest.mark.parametrize("name", RULES)
def test_at_scale_one_each_is_the_strong_estimate(name):
    """As a number, for which nothing else is asked, and as one level of many."""
    raw = Raw("flow")
    level = raw.schedule.at(torch.full((3,), 0.4, dtype=FLOAT64))
    told = dict(null={"side": 1}, rule=RULES[name]())
    strong = raw(Z, level, side=SIDE)
    for scale in (1.0, lambda level: torch.ones_like(level.sigma)):
        got = classifier_free(raw, scale, **told)(Z, level, side=SIDE)
        assert torch.allclose(got.x, strong.x, atol=1e-12)
        assert torch.allclose(got.eps, strong.eps, atol=1e-12)


def test_the_axis_of_two_estimates_is_their_first_singular_vector():
    o, w = (
        torch.randn(1, 40, dtype=FLOAT64, generator=torch.Generator().manual_seed(k))
        for k in (1, 2)
    )
    axis = torch.linalg.svd(torch.cat([o, w]), full_matrices=False).Vh[:1]
    common = mixing.tangential().mix(o, o, w, 0.0)
    assert torch.allclose(common, (w @ axis.T) * axis, atol=1e-12)


def test_equal_and_empty_estimates_are_no_special_cases():
    same, none = torch.ones(2, 5, dtype=FLOAT64), torch.zeros(2, 5, dtype=FLOAT64)
    for make in RULES.values():
        assert torch.allclose(make().mix(same, same, same, 3.0), same)
        assert bool(make().mix(none, none, none, 3.0).isfinite().all())
    assert float(mixing.projected(longest=1e-3).mix(same, same, none, 3.0).max()) < 1.1


def test_a_scale_of_the_level():
    raw, level = Raw("flow"), FlowMatching().at(torch.tensor([0.2, 0.5, 0.8], dtype=FLOAT64))
    told = dict(null={"side": 1}, interval=(-1.0, 9.0))
    guided = classifier_free(raw, lambda level: 1 + 4 * level.sigma, **told)(Z, level, side=SIDE)
    for row, scale in enumerate((1.8, 3.0, 1.0)):  # the last is outside of the interval
        alone = classifier_free(raw, scale, null={"side": 1})(Z, level, side=SIDE)
        assert torch.allclose(guided.x[row], alone.x[row])
    floats = FlowMatching().at(0.5).floats()
    one = classifier_free(raw, lambda level: 1 + 4 * level.sigma, null={"side": 1})
    want = classifier_free(raw, 3.0, null={"side": 1})
    assert torch.allclose(one(Z, floats, side=SIDE).x, want(Z, floats, side=SIDE).x)


SIDES = [GaussianMixture.gaussian([m, 0.0], [[0.3, 0.0], [0.0, 1.0]]) for m in (-1.0, 0.5, 2.0)]


def test_two_of_many_are_guidance():
    z, level = (
        torch.randn(5, 2, dtype=FLOAT64, generator=torch.Generator().manual_seed(0)),
        FlowMatching().at(0.6),
    )
    pair = ts.combined([(SIDES[0], 3.0), (SIDES[1], -2.0)])(z, level)
    want = autoguidance(SIDES[0], SIDES[1], 3.0)(z, level)
    assert torch.allclose(pair.x, want.x) and torch.allclose(pair.eps, want.eps)
    assert torch.allclose(level.mix(*ts.combined([(s, 1 / 3) for s in SIDES])(z, level)), z)


def test_instruct_pix2pix_is_a_sum_of_three():
    """e(0, 0) + s_i (e(i, 0) - e(0, 0)) + s_t (e(i, t) - e(i, 0)), its equation 3."""

    class Editor:
        schedule = FlowMatching()

        def __call__(self, z, level, *, image, text):
            return SIDES[0](z - image - 2 * text, level)

    z, level, row = (
        torch.zeros(4, 2, dtype=FLOAT64),
        FlowMatching().at(0.5),
        torch.ones(1, 1, dtype=FLOAT64),
    )
    none, only, both = (
        mixing.told(Editor(), image=i * row, text=t * row) for i, t in ((0, 0), (1, 0), (1, 1))
    )
    image, text = 1.5, 7.0
    made = ts.combined([(none, 1 - image), (only, image - text), (both, text)])(z, level)
    a, b, c = (each(z, level).eps for each in (none, only, both))
    assert torch.allclose(made.eps, a + image * (b - a) + text * (c - b))


def test_regions_and_levels_as_weights():
    z, level = torch.zeros(3, 2, dtype=FLOAT64), FlowMatching().at(0.5)
    left = torch.tensor([1.0, 0.0], dtype=FLOAT64)
    made = ts.combined([(SIDES[0], left), (SIDES[2], 1 - left)])(z, level)
    assert torch.equal(made.x[:, 0], SIDES[0](z, level).x[:, 0])
    assert torch.equal(made.x[:, 1], SIDES[2](z, level).x[:, 1])
    late = ts.combined([(SIDES[0], lambda at: at.alpha), (SIDES[2], lambda at: at.sigma)])
    assert torch.allclose(late(z, level).x, (SIDES[0](z, level).x + SIDES[2](z, level).x) / 2)


def test_one_part_whose_eps_is_no_score_is_enough():
    coupled = ts.Denoiser(lambda z, t: z)
    coupled.coupling = "reflow"
    for mixed in (
        ts.combined([(SIDES[0], 0.5), (coupled, 0.5)]),
        autoguidance(SIDES[0], coupled, 2.0),
        ts.combined([(mixing.told(coupled), 2.0), (SIDES[0], -1.0)]),
    ):
        assert mixed.coupling == "reflow"
        with pytest.raises(ValueError, match="needs the score"):
            ts.sample(mixed, (2, 2), sampler="ddpm", steps=2)
    with pytest.raises(ValueError, match="steering by particles needs the score"):
        ts.steer(coupled, (2, 2), reward=lambda x: x[:, 0], steps=2)


def test_refusals():
    with pytest.raises(ValueError, match="sum to 1"):
        ts.combined([(SIDES[0], 1.0), (SIDES[1], -1.0)])
    with pytest.raises(ValueError, match="none"):
        ts.combined([])
    late = ts.combined([(SIDES[0], lambda at: at.alpha), (SIDES[1], lambda at: at.alpha)])
    with pytest.raises(ValueError, match="sum to 1"):
        late(torch.zeros(1, 2), FlowMatching().at(0.3))
    wide = ts.Denoiser(lambda z, t: z, data_std=2.0)
    with pytest.raises(ValueError, match="standardise data differently"):
        ts.combined([(SIDES[0], 2.0), (wide, -1.0)])
    for make in (
        lambda: mixing.rescaled(2.0),
        lambda: mixing.magnitude(-1.0),
        lambda: mixing.projected(0.0, -1.0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()
    assert isinstance(Raw("vp")(Z, Cosine(-12, 12).at(0.5), side=SIDE), Estimate)
