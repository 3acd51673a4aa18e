import math

import pytest
import torch

from instances import SCHEDULES, outputs
from twosides.outputs import OUTPUTS, F, output_named
from twosides.schedules import Cosine, FlowMatching

GENERATOR = torch.Generator().manual_seed(0)
X, EPS = (torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_output_recovers_the_pair(name):
    schedule = SCHEDULES[name]
    level = schedule.at(torch.linspace(0.02, 0.98, 40, dtype=torch.float64))
    z = level.mix(X, EPS)
    for output in outputs(schedule).values():
        x, eps = output.estimate(z, output.of(X, EPS, level), level)
        # Where z is almost all noise (data), x (eps) is only known relative to sigma (alpha).
        assert torch.allclose(level.alpha[:, None] * (x - X), torch.zeros_like(x), atol=1e-11)
        assert torch.allclose(level.sigma[:, None] * (eps - EPS), torch.zeros_like(x), atol=1e-11)


def test_edm_preconditioning_is_f():
    """x = c_skip z + c_out F with the constants of Karras+ 2022, Table 1."""
    sd = 0.5
    level = FlowMatching().with_scaling("ve").at(torch.linspace(0.1, 0.9, 40, dtype=torch.float64))
    sigma = level.sigma[:, None]
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    z, f = level.mix(X, EPS), F(sd).of(X, EPS, level)
    assert torch.allclose(c_skip * z + c_out * f, X, atol=1e-12)


def test_u_v_and_velocity_on_their_own_schedules():
    t = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    flow, cosine = FlowMatching(), Cosine()
    assert torch.allclose(output_named("velocity", flow).of(X, EPS, flow.at(t)), EPS - X)
    v = output_named("v", cosine).of(X, EPS, cosine.at(t))
    assert torch.allclose(
        output_named("velocity", cosine).of(X, EPS, cosine.at(t)), v * math.pi / 2
    )
    assert torch.allclose(output_named("-u", flow).of(X, EPS, flow.at(t)), X - EPS)


def test_both_ends_work_where_they_are_defined():
    for name in ("x", "v", "u", "F"):
        level = Cosine().at(1.0)
        estimate = OUTPUTS[name].estimate(EPS, OUTPUTS[name].of(X, EPS, level), level)
        assert torch.allclose(estimate.x, X), name
    for name in ("eps", "v", "u", "F"):
        level = Cosine().at(0.0)
        estimate = OUTPUTS[name].estimate(X, OUTPUTS[name].of(X, EPS, level), level)
        assert torch.allclose(estimate.eps, EPS), name


@pytest.mark.parametrize(("name", "t", "words"), [("eps", 1.0, "zero SNR"), ("score", 1.0, "zero SNR"),
                                                  ("x", 0.0, "zero noise"), ("score", 0.0, "finite")])  # fmt: skip
def test_impossible_pairs_are_refused_with_a_reason(name, t, words):
    with pytest.raises(ValueError, match=words):
        OUTPUTS[name].solve(FlowMatching().at(t))
    with pytest.raises(ValueError, match=words):
        OUTPUTS[name].solve(FlowMatching().at(t).floats())


@pytest.mark.parametrize("name", ["w", "F()", "F(1,2)", "--", "u(3)"])
def test_unknown_outputs_are_named(name):
    with pytest.raises(ValueError, match="output|is not a name"):
        output_named(name, FlowMatching())
    with pytest.raises(ValueError, match="sigma_data"):
        F(0)


def test_kappa_is_the_ratio_of_squared_errors():
    for schedule in SCHEDULES.values():
        level = schedule.at(torch.linspace(0.1, 0.9, 40, dtype=torch.float64))
        for output in outputs(schedule).values():
            wrong = output.of(X, EPS, level) + 1.0
            error = (output.estimate(level.mix(X, EPS), wrong, level).eps - EPS) ** 2
            kappa = output.kappa(level)[:, None].expand_as(error)
            assert torch.allclose(kappa * error, torch.ones_like(error), rtol=1e-8), output.name
