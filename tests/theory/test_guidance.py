import pytest
import torch

from twosides.guidance import autoguidance, classifier_free
from twosides.oracle import GaussianMixture
from twosides.outputs import OUTPUTS
from twosides.sampling.sample import sample
from twosides.schedules import FlowMatching

FLOAT64 = torch.float64


class Conditional:
    """Data at -1 or +1 by label, at both for label 2: exact conditional and null denoisers."""

    schedule = FlowMatching()

    def __init__(self):
        sides = [GaussianMixture.gaussian([m], [[0.05]]) for m in (-1.0, 1.0)]
        both = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.05]], [[0.05]]])
        self.parts = [*sides, both]
        self.calls = 0

    def __call__(self, z, level, *, label):
        self.calls += 1
        return self.parts[int(label[0])](z, level)


Z = torch.linspace(-2, 2, 5, dtype=FLOAT64)[:, None]
LABEL = torch.zeros(5, dtype=torch.long)


def test_guidance_is_affine_and_keeps_the_pair_consistent():
    level, model = FlowMatching().at(0.4), Conditional()
    strong, weak = model(Z, level, label=LABEL), model(Z, level, label=LABEL + 2)
    guided = classifier_free(model, 2.5, null={"label": 2})(Z, level, label=LABEL)
    assert torch.allclose(level.mix(*guided), Z, atol=1e-12)
    for output in OUTPUTS.values():  # the same whatever is guided
        ends = [output.of(*estimate, level) for estimate in (weak, strong, guided)]
        assert torch.allclose(ends[0] + 2.5 * (ends[1] - ends[0]), ends[2], atol=1e-12)


def test_scale_one_and_outside_the_interval_make_one_call():
    level = FlowMatching().at(0.4)
    model = Conditional()
    classifier_free(model, 1.0, null={"label": 2})(Z, level, label=LABEL)
    classifier_free(model, 3.0, null={"label": 2}, interval=(2.0, 9.0))(Z, level, label=LABEL)
    assert model.calls == 2
    classifier_free(model, 3.0, null={"label": 2}, interval=(-2.0, 9.0))(Z, level, label=LABEL)
    assert model.calls == 4


def test_interval_with_levels_per_sample():
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=FLOAT64)
    level, model, z = FlowMatching().at(t), Conditional(), torch.full((5, 1), 0.1, dtype=FLOAT64)
    guided = classifier_free(model, 3.0, null={"label": 2}, interval=(0.5, 9.0))
    strong = model(z, level, label=LABEL)
    gaps = (guided(z, level, label=LABEL).x - strong.x).abs().squeeze(1)
    assert (gaps > 1e-3).tolist() == [True, True, False, False, False]
    assert float(gaps[2:].max()) < 1e-12


def test_rescale_brings_back_the_spread():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 50, generator=generator, dtype=FLOAT64)

    class Two:
        schedule = FlowMatching()

        def __call__(self, z, level, *, label):
            x = z * (1.0 if int(label[0]) == 0 else 0.2)
            return GaussianMixture.gaussian([0.0], [[1.0]])(z[:, :1], level)._replace(
                x=x, eps=(z - level.alpha * x) / level.sigma
            )

    level, label = FlowMatching().at(0.5), torch.zeros(3, dtype=torch.long)
    full = classifier_free(Two(), 4.0, null={"label": 1}, rescale=1.0)(z, level, label=label)
    assert torch.allclose(full.x.std(1), Two()(z, level, label=label).x.std(1))
    assert torch.allclose(level.mix(*full), z)


def test_guided_sampling_moves_to_the_class():
    guided = classifier_free(Conditional(), 2.0, null={"label": 2})
    label = torch.ones(64, dtype=torch.long)
    x = sample(guided, (64, 1), steps=30, seed=0, dtype=FLOAT64, label=label)
    assert float(x.min()) > 0.2


def test_autoguidance_uses_the_weak_denoiser():
    level = FlowMatching().at(0.4)
    a, b = GaussianMixture.gaussian([1.0], [[0.1]]), GaussianMixture.gaussian([0.0], [[1.0]])
    guided = autoguidance(a, b, 3.0)(Z, level)
    assert torch.allclose(guided.x, b(Z, level).x + 3 * (a(Z, level).x - b(Z, level).x))


def test_bad_input_is_named():
    model = Conditional()
    with pytest.raises(ValueError, match="finite"):
        classifier_free(model, float("nan"), null={"label": 2})
    with pytest.raises(ValueError, match="interval"):
        classifier_free(model, 2.0, null={"label": 2}, interval=(1, 0))
    with pytest.raises(ValueError, match="no such conditioning"):
        classifier_free(model, 2.0, null={"labels": 2})(Z, FlowMatching().at(0.5), label=LABEL)
    with pytest.raises(ValueError, match="rescale"):
        classifier_free(model, 2.0, null={"label": 2}, rescale=2)


def test_rescale_is_per_sample_and_refused_without_noise():
    level, label = FlowMatching().at(0.5), torch.zeros(5, dtype=torch.long)
    guided = classifier_free(Conditional(), 3.0, null={"label": 2}, rescale=0.7)
    whole = guided(Z, level, label=label)
    one = guided(Z[1:2], level, label=label[:1])
    assert torch.allclose(whole.x[1:2], one.x) and bool(torch.isfinite(whole.x).all())
    assert torch.allclose(level.mix(*whole), Z)
    with pytest.raises(ValueError, match="zero noise"):
        guided(Z, FlowMatching().at(0.0), label=label)


def test_guided_denoisers_standardise_like_their_own():
    from twosides.conversion import convert
    from twosides.denoiser import Denoiser
    from twosides.losses.recipes import recipes

    exact = GaussianMixture.gaussian([0.0], [[1.0]])
    plain = Denoiser(convert(exact, "u"), data_mean=10.0, data_std=5.0)
    x = 10 + 5 * exact.sample(64, seed=0)
    objective = recipes["flow-matching"].objective()
    losses = [
        objective(each, x, generator=torch.Generator().manual_seed(0))
        for each in (plain, classifier_free(plain, 1.0, null={}))
    ]
    assert torch.allclose(*losses, rtol=1e-6)
    with pytest.raises(ValueError, match="data_mean"):
        autoguidance(plain, Denoiser(convert(exact, "u")), 2.0)
