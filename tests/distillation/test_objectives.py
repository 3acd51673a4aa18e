"""The split rule's fixed point is the exact map; couplings; where states and times come from."""

import pytest
import torch

import twosides as ts
from twosides.distillation.flow_map import FlowMap
from twosides.distillation.loss import MapObjective
from twosides.distillation.objectives import fractions, hop, objectives, residual
from twosides.storage.networks import MLP

RING = ts.oracle.GaussianMixture.ring(8, std=0.25)
FLOW = ts.FlowMatching()


def velocity(z, t):
    estimate = RING(z, FLOW.at(t))
    return estimate.eps - estimate.x


def exact(z, t, s, steps=100):
    """The average velocity of the mixture's own ODE, by Runge and Kutta's method in float64."""
    start, h = z, (s - t) / steps
    for number in range(steps):
        here, step = t + number * h, h[:, None]
        a = velocity(z, here)
        b = velocity(z + step / 2 * a, here + h / 2)
        c = velocity(z + step / 2 * b, here + h / 2)
        d = velocity(z + step * c, here + h)
        z = z + step / 6 * (a + 2 * b + 2 * c + d)
    return (z - start) / (s - t)[:, None]


@pytest.fixture(scope="module")
def places():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    z = torch.randn(32, 2, generator=g, dtype=torch.float64)
    t = 0.5 + 0.45 * draw(32)
    return z, t, t * draw(32) * 0.8 + 0.02, draw(32)


def size(x):
    return float(x.square().sum(1).mean().sqrt())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("shortcut", 1e-9),  # two exact hops
        ("consistency", 2e-3),  # one midpoint step of the teacher's, and divided by sqrt(1/4)
        ("meanflow", 1e-3),
        ("lagrangian", 1e-3),
        ("progressive", 3e-2),  # four midpoint steps for the whole way
    ],
)
def test_the_exact_map_has_no_residual(name, most, places):
    z, t, s, u = places
    left = residual(objectives[name], exact, velocity, z, t, s, u)
    assert size(left) / size(exact(z, t, s)) < most


@pytest.mark.parametrize("name", ["shortcut", "consistency", "meanflow", "lagrangian"])
def test_another_map_has_one(name, places):
    """Euler's straight step is no map: what is 1e-9 ... 1e-3 above is of order one here."""
    z, t, s, u = places
    left = residual(objectives[name], lambda z, t, s: velocity(z, t), velocity, z, t, s, u)
    assert size(left) / size(exact(z, t, s)) > 0.05


def test_stored_runs_make_the_whole_way(places):
    z, t, s, _ = places
    wanted = exact(z, t, s)
    assert size(hop(velocity, z, t, s, 64) - wanted) / size(wanted) < 1e-4


def test_hops_of_the_teacher_are_of_second_order(places):
    z, t, s, _ = places
    errors = [size(hop(velocity, z, t, s, n) - exact(z, t, s)) for n in (16, 32)]
    assert 1.7 < torch.tensor(errors[0] / errors[1]).log2() < 2.3


def test_no_hop_is_longer_than_the_way(places):
    _, t, _, u = places
    near = t - 1e-3
    for rule in objectives.values():
        k = fractions(rule, t, near, u)
        assert bool((k >= 0.2).all())
        assert bool((k <= 0.8).all())


def test_gradients_go_where_the_rule_says(places):
    z, t, s, u = places
    for name, through in (("shortcut", False), ("lagrangian", True)):
        weight, asked = torch.ones(1, dtype=torch.float64, requires_grad=True), []

        def student(z, t, s, asked=asked, weight=weight):
            asked.append(torch.is_grad_enabled())
            return weight * velocity(z, t)

        residual(objectives[name], student, velocity, z, t, s, u).square().sum().backward()
        assert weight.grad is not None
        assert asked == ([True, True] if through else [False, False, True])


def test_padding_is_not_trained():
    """Whatever stands in it, each row's error is that of its own elements; any loop calls it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = FlowMap.from_denoiser(ts.Denoiser(MLP(4)))
    objective = MapObjective(rule=objectives["shortcut"])
    x, mask = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.ones(6, 4)
    mask[::2, 2:] = 0
    told = {"generator": torch.Generator().manual_seed(0)}
    plain = objective.evaluate(student, x, **told)
    told = {"generator": torch.Generator().manual_seed(0)}
    found = objective(student, x, loss_mask=mask, **told)
    whole = (plain.loss[:, None] == found).any(1)
    assert int(whole.sum()) == 3, "those without padding"
    with pytest.raises(TypeError, match="weighting"):
        MapObjective(rule=objectives["shortcut"], weighting=ts.recipes["sd3"].weighting)
