"""What may stand where a denoiser does, and that it is treated alike everywhere."""

import pickle

import pytest
import torch

from instances import CLOSED, outputs
from twosides.conversion import convert
from twosides.denoiser import BaseDenoiser, Denoiser, as_denoiser
from twosides.guidance import autoguidance, classifier_free
from twosides.losses.recipes import recipes
from twosides.ode.adaptive import sample_adaptive
from twosides.ode.integrate import Adaptive
from twosides.ode.likelihood import log_likelihood
from twosides.oracle import Empirical, GaussianMixture
from twosides.outputs import OUTPUTS, Estimate, output_named
from twosides.schedules import Cosine, FlowMatching

FLOAT64 = torch.float64
RING = GaussianMixture.ring(5, std=0.3)


class Linear(torch.nn.Module):
    """A module that a test may pickle: `network(z, t)` of any dtype."""

    def forward(self, z, t, label=None):
        shift = 0 if label is None else label.to(z.dtype).reshape(-1, 1)
        return torch.tanh(z) + t.reshape(-1, 1).to(z.dtype) - shift


class Plain:
    """A user's own denoiser: a schedule and a call, derived from nothing."""

    schedule = FlowMatching()

    def __init__(self, exact=RING):
        self.exact = exact

    def __call__(self, z, level, **conditioning):
        return self.exact(z, level)


class InUnits(Plain):
    """One that has units of its own, too."""

    def standardise(self, data):
        return (data - 4) / 2

    def unstandardise(self, x):
        return 2 * x + 4


class PlainModule(torch.nn.Module):
    """One that has parameters."""

    def __init__(self):
        super().__init__()
        self.schedule, self.weight = FlowMatching(), torch.nn.Parameter(torch.ones(2))

    def forward(self, z, level):
        return Estimate(self.weight * z, 0 * z)


def test_what_derives_from_the_base_is_left_as_it_is():
    network = Denoiser(Linear(), "v", Cosine())
    for each in (
        RING,
        Empirical(torch.zeros(3, 2)),
        network,
        classifier_free(network, 2.0, null={}),
    ):
        assert as_denoiser(each) is each and isinstance(each, BaseDenoiser)


def test_a_users_own_denoiser_is_used_as_the_exact_one_inside_it():
    level = FlowMatching().at(0.4).floats()
    z = level.mix(RING.sample(6, seed=0), torch.ones(6, 2, dtype=FLOAT64))
    ours, plain = RING(z, level), as_denoiser(Plain())
    (call,) = plain.prepare([level], z)
    for estimate in (plain(z, level), call.solution.apply(*plain.ask(z, call, {}))):
        assert torch.equal(estimate.x, ours.x) and torch.equal(estimate.eps, ours.eps)
    assert torch.equal(plain.answer(z, level), ours.eps)
    assert plain.standardise(z) is z and plain.unstandardise(z) is z


def test_a_users_own_denoiser_is_accepted_everywhere():
    x = RING.sample(4, seed=1)
    objective = recipes["flow-matching"].objective()
    for function in (
        lambda d: log_likelihood(d, x, steps=3).nats,
        lambda d: sample_adaptive(d, (3, 2), seed=0, dtype=FLOAT64, adaptive=Adaptive(rtol=1e-3)),
        lambda d: objective(d, x, generator=torch.Generator().manual_seed(0)),
        lambda d: convert(d, "u")(x, torch.full((4,), 0.5)),
        lambda d: autoguidance(d, d, 2.0)(x, FlowMatching().at(0.5)).x,
    ):
        assert torch.equal(function(Plain()), function(RING))


def test_the_units_of_a_users_own_denoiser_are_kept():
    draw = [sample_adaptive(d, (3, 2), seed=0, dtype=FLOAT64) for d in (Plain(), InUnits())]
    assert torch.allclose(draw[1], 2 * draw[0] + 4, atol=1e-12)
    guided = classifier_free(InUnits(), 2.0, null={})
    assert torch.equal(guided.standardise(draw[1]), (draw[1] - 4) / 2)


def test_parameters_of_a_users_own_module_stay_parameters_of_guidance_and_conversion():
    module = PlainModule()
    for around in (classifier_free(module, 2.0, null={}), convert(module, "u")):
        assert {id(p) for p in around.parameters()} == {id(module.weight)}
    assert module.weight.dtype == torch.float32
    assert classifier_free(module, 2.0, null={}).to(FLOAT64) and module.weight.dtype == FLOAT64


def test_what_is_no_denoiser_is_refused_with_the_remedy():
    for thing, words in ((3, "called with"), (Linear(), "wrap the network"), (Denoiser, "wrap")):
        with pytest.raises(TypeError, match=words):
            as_denoiser(thing)


@pytest.mark.parametrize("output", [*OUTPUTS, "velocity", "-u"])
def test_answer_is_the_output_that_is_trained(output):
    """The estimate that solves for the pair, read as the network's output again, is the answer."""
    schedule = Cosine(-9, 9)
    denoiser = Denoiser(Linear(), output, schedule)
    level = schedule.at(torch.tensor([0.2, 0.7], dtype=FLOAT64))
    z = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=FLOAT64)
    answer = denoiser.answer(z, level)
    assert torch.allclose(denoiser.output.of(*denoiser(z, level), level), answer, atol=1e-12)


@pytest.mark.parametrize("schedule", [n for n in CLOSED if n != "vp-custom"])
def test_denoisers_survive_pickling(schedule):
    """As processes, `torch.save` and schedulers of clusters need it: to the bit, for every output."""
    where = CLOSED[schedule]
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    for t in (0.3, torch.tensor([0.2, 0.5, 0.9], dtype=FLOAT64)):
        level = where.at(t)
        for output in (*outputs(where).values(), output_named("-velocity", where)):
            denoiser = Denoiser(Linear(), output, where)
            again = pickle.loads(pickle.dumps(denoiser))
            assert again.output == output and again.schedule == where
            pairs = zip(denoiser(z, level), again(z, level), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), output.name


def test_guidance_oracles_and_conversions_survive_pickling():
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    level, label = FlowMatching().at(0.3), torch.tensor([1, 2, 3])
    network = Denoiser(Linear(), "v", Cosine())
    guided = classifier_free(network, 3.0, null={"label": 0}, rescale=0.5)
    for each, told in (
        (guided, {"label": label}),
        (autoguidance(network, Denoiser(Linear(), "F"), 2.0), {}),
        (Denoiser(convert(RING, "F", Cosine(), "logsnr"), "F", Cosine(), "logsnr"), {}),
        (RING, {}),
        (Empirical(RING.sample(9, seed=0)), {}),
        (as_denoiser(Plain()), {}),
    ):
        again = pickle.loads(pickle.dumps(each))
        pairs = zip(each(z, level, **told), again(z, level, **told), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), each


def test_equal_outputs_are_equal_and_minus_twice_is_nothing():
    for name in ("v", "score", "F(0.5)", "velocity", "u"):
        output = output_named(name, Cosine())
        opposite = -output
        assert output == output_named(name, Cosine()) == -opposite and output != opposite
    assert output_named("F(0.5)", Cosine()) != output_named("F(0.6)", Cosine())
    assert output_named("velocity", Cosine()) != output_named("velocity", FlowMatching())


def test_the_plain_error_of_eps_has_the_weight_one_at_zero_snr():
    eps = OUTPUTS["eps"].log_kappa(FlowMatching().at(torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT64)))
    assert torch.equal(eps, torch.zeros(3, dtype=FLOAT64))
