import pytest
import torch

from instances import CLOSED
from twosides import dynamics
from twosides.dynamics import Dynamics
from twosides.oracle import GaussianMixture
from twosides.schedules import Cosine, FlowMatching, Tabulated, VPLinear

SMOOTH = [name for name, schedule in CLOSED.items() if not isinstance(schedule, Tabulated)]
T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("name", SMOOTH)
def test_f_and_g_rebuild_the_schedule(name):
    schedule = CLOSED[name]
    alpha, sigma = schedule.alpha(0.0), schedule.sigma(0.0)
    back = Dynamics.of(schedule).schedule(float(alpha), float(sigma))
    for part in ("alpha", "sigma", "logsnr"):
        ours, truth = getattr(back, part)(T), getattr(schedule, part)(T)
        assert torch.allclose(ours, truth, rtol=1e-10, atol=1e-10), part


def test_textbook_coefficients():
    assert torch.allclose(dynamics.f(FlowMatching(), T), -1 / (1 - T))
    assert torch.allclose(dynamics.g(FlowMatching(), T) ** 2, 2 * T / (1 - T))
    assert torch.allclose(dynamics.f(VPLinear(), T), -0.5 * (0.1 + 19.9 * T))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(dynamics.g(VPLinear(), ends) ** 2, 0.1 + 19.9 * ends)


def test_epsilon_is_eta_g_both_ways():
    for schedule in (FlowMatching(), Cosine()):
        process = Dynamics.of(schedule, epsilon=lambda t: 0.2 + t)
        assert torch.allclose(process.epsilon(T), 0.2 + T)
        again = Dynamics.of(schedule, eta=process.eta)
        assert torch.allclose(again.epsilon(T), 0.2 + T)
    with pytest.raises(ValueError, match="not both"):
        Dynamics.of(FlowMatching(), eta=torch.ones_like, epsilon=torch.ones_like)


def test_reverse_drift_without_noise_is_the_velocity():
    data, schedule = GaussianMixture.ring(5), Cosine()
    z = data.sample(6, seed=0)
    t = torch.tensor(0.4, dtype=torch.float64)
    drift = Dynamics.of(schedule).reverse_drift(z, data.score(z, schedule.at(t)), t)
    assert torch.allclose(drift, data.velocity(z, schedule, t), atol=1e-12)


def test_reverse_process_keeps_the_density():
    """Fokker-Planck: d log p/dt = -div(drift) - drift . score - (eps^2/2)(...) vanishes in sum."""
    data, schedule = GaussianMixture.ring(3, std=0.4), FlowMatching()
    process = Dynamics.of(schedule, eta=lambda t: 0.7 + 0 * t)
    t = torch.tensor(0.5, dtype=torch.float64)
    z = data.sample(5, seed=1)

    def log_p(z, t):
        return data.log_prob(z, schedule.at(t))

    def reverse(z):
        return process.reverse_drift(z, data.score(z, schedule.at(t)), t)

    h = 1e-5
    change = (log_p(z, t + h) - log_p(z, t - h)) / (2 * h)
    eye = h * torch.eye(2, dtype=torch.float64)
    divergence = sum(
        (reverse(z + e)[:, i] - reverse(z - e)[:, i]) / (2 * h) for i, e in enumerate(eye)
    )
    score = data.score(z, schedule.at(t))
    laplace = sum(
        (data.score(z + e, schedule.at(t)) - data.score(z - e, schedule.at(t)))[:, i] / (2 * h)
        for i, e in enumerate(eye)
    )
    half = 0.5 * process.epsilon(t) ** 2
    # Time runs backwards: the noise term has the sign opposite to the forward equation's.
    expected = -divergence - (reverse(z) * score).sum(1) - half * (laplace + (score**2).sum(1))
    assert torch.allclose(change, expected, atol=1e-6)
