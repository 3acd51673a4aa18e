import math

import numpy as np
import pytest
import torch

from instances import CLOSED, outputs
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.losses.densities import (
    FromSchedule,
    Laplace,
    Mode,
    Normal,
    NormalMin,
    Table,
    Uniform,
    UShape,
)
from twosides.losses.objective import Objective
from twosides.losses.recipes import Recipe, recipe_named, recipes
from twosides.losses.truncation import Levels
from twosides.losses.weightings import ELBO, LogFunction, OutputMSE, Sigmoid
from twosides.oracle import GaussianMixture
from twosides.outputs import output_named
from twosides.randomness import PerSample
from twosides.schedules import Cosine, FlowMatching, ScaledLinear, VPLinear
from twosides.training.ema import PowerEMA, gamma_of

FLOAT64 = torch.float64
RING = GaussianMixture.ring(8, std=0.3)
GRID = torch.linspace(-12, 12, 4001, dtype=FLOAT64)
DENSITIES = {
    **{f"from-{name}": FromSchedule(schedule) for name, schedule in CLOSED.items()},
    "logit-normal": Normal.logit_normal(0.3, 1.2),
    "log-normal-sigma": Normal.log_normal_sigma(-1.2, 1.2),
    "normal-min": NormalMin(Normal(0.8, 2)),
    "uniform": Uniform(-6, 9),
    "laplace": Laplace(0.3, 0.7),
    "mode": Mode(),
    "mode-ends": Mode(-0.9),
    "mode-middle": Mode(1.75),
    "u-shape": UShape(),
    "u-shape-steep": UShape(12),
    "shifted": Normal(0, 2).shifted(3.0),
    "table": Table((-8, -3, -1, 2, 6), (1.0, 4.0, 2.0, 0.5)),
}
PLAIN = [
    name
    for name, r in recipes.items()
    if r.weighting == OutputMSE(r.output, r.schedule, r.density) and r.output != "score"
]


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_densities_draw_what_they_state(density):
    """The distribution function of the drawn levels has the stated density as its derivative."""
    u = torch.linspace(0.003, 0.997, 301, dtype=FLOAT64)
    logsnr = density.logsnr(u)
    assert bool((logsnr.diff() < 0).all())
    h = 1e-6
    numeric = 2 * h / (density.logsnr(u - h) - density.logsnr(u + h))
    ours = density.log_prob(logsnr).exp()
    smooth = torch.ones_like(u, dtype=torch.bool)
    if hasattr(getattr(density, "schedule", None), "table"):  # not across the kinks of a table
        knots = u * (density.schedule.count - 1)
        smooth = (knots - knots.round()).abs() > 1e-3
    assert torch.allclose(numeric[smooth], ours[smooth], rtol=2e-4)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_a_density_is_the_slope_of_its_distribution_function(density):
    """By automatic differentiation, to ten digits: log p = -log |dlogsnr/du|."""
    u = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    u = torch.cat([u, u[:5] * 1e-6, 1 - u[:5] * 1e-6]).requires_grad_()
    logsnr = density.logsnr(u)
    (slope,) = torch.autograd.grad(logsnr.sum(), u)
    known = torch.isfinite(slope)  # not beside an infinite end of a table
    gap = (density.log_prob(logsnr.detach()) + (-slope).log())[known]
    assert int(known.sum()) > 500
    assert float(gap.abs().max()) < 1e-9 and float(gap.abs().median()) < 1e-12


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_a_density_integrates_to_its_distribution_function(density):
    """Gauss-Legendre panels between levels drawn at u; nothing is ever drawn at infinity."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
    u = torch.linspace(0.001, 0.999, 400, dtype=FLOAT64)
    edges = density.logsnr(u)
    half = 0.5 * (edges[:-1] - edges[1:])[:, None]
    inner = edges[1:, None] + half * (nodes + 1)
    mass = (density.log_prob(inner).exp() * weights * half).sum(1)
    smooth = (mass / u.diff() - 1).abs() < 1e-6  # all but panels across a kink
    assert int(smooth.sum()) >= (0 if hasattr(density, "schedule") else 390)
    assert float(mass.sum()) == pytest.approx(float(u[-1] - u[0]), rel=1e-3)
    assert float((mass / u.diff() - 1)[smooth].abs().max()) < 1e-6
    for end in (-math.inf, math.inf):
        assert float(density.log_prob(torch.tensor([end], dtype=FLOAT64))) == -math.inf


def test_a_table_draws_no_level_of_an_empty_bin():
    u = torch.tensor([0.0, 0.75, 1.0], dtype=FLOAT64)
    edges = (-9, -8, 0, 4, 5, 6)
    assert Table(edges, (0, 0, 1, 3, 0)).logsnr(u).tolist() == [5, 4, 0]
    assert Table(edges, (1, 0, 0, 3, 0)).logsnr(u).tolist() == [5, -8, -9]


def test_steep_u_shapes_are_two_exponentials():
    u = torch.tensor([0.1, 0.4, 0.6], dtype=FLOAT64)
    t = -torch.log1p(-2 * u[:2]) / 1400  # and what is left of the other end is exp(-1400)
    expected = 2 * (torch.log1p(-t) - t.log())
    levels = UShape(1400).logsnr(u)
    assert torch.allclose(levels[:2], expected, rtol=1e-13) and levels[2] == -levels[1]


def test_the_later_of_two_times():
    """As MeanFlow draws them: two logit-normal times, the later of each pair."""
    g = torch.Generator().manual_seed(0)
    pairs = torch.sigmoid(torch.randn(200_000, 2, generator=g, dtype=FLOAT64) - 0.4)
    t = pairs.max(1).values
    drawn = (2 * ((1 - t) / t).log()).sort().values
    levels = recipes["meanflow"].density.logsnr(torch.linspace(0.9, 0.1, 9, dtype=FLOAT64))
    below = torch.searchsorted(drawn, levels) / len(drawn)
    assert torch.allclose(below, torch.linspace(0.1, 0.9, 9), atol=4 / len(drawn) ** 0.5)
    assert float(drawn.mean()) == pytest.approx(0.8 - 2 / math.pi**0.5, abs=0.02)


def test_plain_errors_have_weight_one_at_zero_snr():
    schedule = ScaledLinear(zero_terminal_snr=True)
    recipe = Recipe.plain("v", schedule, Levels(schedule))
    g, x = torch.Generator().manual_seed(0), RING.sample(2000, seed=0)
    losses = recipe.objective().evaluate(recipe.denoiser(lambda z, t: 0.5 * z), x, generator=g)
    assert bool(torch.isneginf(losses.logsnr).any())
    assert torch.equal(losses.loss, losses.error)


def test_closed_forms_of_densities_and_weightings():
    flow, cosine = FromSchedule(FlowMatching()), FromSchedule(Cosine())
    assert torch.allclose(flow.log_prob(GRID).exp(), (GRID / 4).cosh() ** -2 / 8, rtol=1e-12)
    assert torch.allclose(
        cosine.log_prob(GRID).exp(), 1 / (GRID / 2).cosh() / (2 * math.pi), rtol=1e-12
    )
    b0, b1 = 0.1, 20.0
    linear = 1 / ((1 + GRID.exp()) * (b0**2 + 2 * (b1 - b0) * (1 + (-GRID).exp()).log()).sqrt())
    reached = GRID > VPLinear().logsnr_min
    assert torch.allclose(
        FromSchedule(VPLinear()).log_prob(GRID).exp()[reached], linear[reached], rtol=1e-10
    )

    def weight(name):
        return recipes[name].weighting.log(GRID).exp()

    def bell(mean, std):
        return (-0.5 * ((GRID - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))

    assert torch.allclose(weight("flow-matching"), (-GRID / 2).exp() / 2, rtol=1e-11)
    assert torch.allclose(weight("v-cosine"), (-GRID / 2).exp() / math.pi, rtol=1e-11)
    assert torch.allclose(weight("edm"), bell(2.4, 2.4) * ((-GRID).exp() + 0.25) / 0.25, rtol=1e-11)
    assert torch.allclose(weight("sd3"), bell(0.0, 2.0) * (1 + (-GRID / 2).exp()) ** 2, rtol=1e-11)
    assert torch.allclose(weight("eps-linear")[reached], linear[reached], rtol=1e-10)
    assert torch.allclose(Sigmoid(math.log(5)).log(GRID).exp(), 5 / (5 + GRID.exp()), rtol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_the_loss_is_the_native_loss_of_the_recipe(name):
    """Written out per output: plain mean squared error at the recipe's own levels."""
    recipe = recipes[name]
    denoiser = recipe.denoiser(lambda z, t: torch.tanh(z) + t[:, None])
    x = RING.sample(32, seed=0)
    losses = recipe.objective().evaluate(denoiser, x, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    torch.rand(1, generator=g, dtype=FLOAT64)
    eps = torch.randn(x.shape, generator=g, dtype=FLOAT64)
    level = recipe.schedule.level(losses.logsnr)
    z = level.mix(x, eps)
    answer = torch.tanh(z) + denoiser.clock.read(losses.logsnr, recipe.schedule)[:, None]
    a, s = level.alpha[:, None], level.sigma[:, None]
    n = (0.25 * a**2 + s**2).sqrt()
    target = {
        "x": x,
        "velocity": output_named("velocity", recipe.schedule).of(x, eps, level),
        "u": eps - x,
        "v": a * eps - s * x,
        "eps": eps,
        "F(0.5)": (s / 0.5 * x - 0.5 * a * eps) / n,
    }
    native = ((answer - target[recipe.output]) ** 2).mean(1)
    assert torch.allclose(losses.loss, native, rtol=1e-9)
    assert losses.loss.shape == (32,)


@pytest.mark.parametrize("name", ["flow-matching", "vp-linear", "edm"])
def test_any_notation_gives_the_same_losses(name):
    """One function, one weighting: the loss does not depend on output or schedule."""
    schedule = CLOSED[name]
    objective = Objective(Sigmoid(1.0), Uniform(-5, 5))
    x = RING.sample(64, seed=1)
    g = torch.Generator
    reference = objective(RING, x, generator=g().manual_seed(2))
    for output in outputs(schedule).values():
        network = Denoiser(convert(RING, output, schedule), output, schedule)
        ours = objective(network, x, generator=g().manual_seed(2))
        assert torch.allclose(ours, reference, rtol=1e-6), output.name


def test_the_mean_does_not_depend_on_the_levels_density():
    x = RING.sample(512, seed=3)
    runs = {}
    for kind, density in (("uniform", Uniform(-8, 8)), ("normal", Normal(0.5, 2.5))):
        for stratified in (True, False):
            objective = Objective(LogFunction(lambda s: -0.5 * s**2 / 4), density, stratified)
            g = torch.Generator().manual_seed(0)
            runs[kind, stratified] = torch.stack(
                [objective(RING, x, generator=g).mean() for _ in range(40)]
            )
    grand = float(torch.stack(list(runs.values())).mean())
    for key, losses in runs.items():
        assert float(losses.mean()) == pytest.approx(
            grand, abs=5 * float(losses.std()) / math.sqrt(40)
        ), key


def test_strata_cut_the_variance():
    """With an error known to 1 % per sample, what is left is the variance over levels."""
    silent = Denoiser(lambda z, t: torch.zeros_like(z), "eps", Cosine(-15, 15))
    x, spread = torch.zeros(64, 4000), {}
    for stratified in (True, False):
        objective = Objective(Sigmoid(0.0), Uniform(-8, 8), stratified)
        g = torch.Generator().manual_seed(0)
        spread[stratified] = float(
            torch.stack([objective(silent, x, generator=g).mean() for _ in range(25)]).std()
        )
    assert spread[True] < 0.5 * spread[False]


def test_elbo_of_an_exact_denoiser_is_the_information():
    """I-MMSE: the integral of (1/2) E|eps_hat - eps|^2 over logsnr, for a Gaussian: exact."""
    data, low, high = GaussianMixture.gaussian([0.0], [[1.0]]), -6.0, 6.0
    objective = Objective(ELBO(), Uniform(low, high))
    x = data.sample(40_000, seed=0)
    ours = float(objective(data, x, generator=torch.Generator().manual_seed(1)).mean())
    mmse = 0.5 * (math.log1p(math.exp(high)) - math.log1p(math.exp(low)))
    assert ours == pytest.approx(mmse, rel=0.02)


def test_tails_do_not_overflow():
    for recipe in recipes.values():
        far = torch.tensor([-60.0, -30.0, 30.0, 60.0], dtype=FLOAT64)
        ratio = recipe.weighting.log(far) - recipe.density.log_prob(far)
        inside = torch.isfinite(recipe.density.log_prob(far))
        assert bool(torch.isfinite(ratio[inside]).all())


def test_noise_of_a_sample_depends_on_seed_step_and_index_only():
    objective = recipes["sd3"].objective()
    denoiser = recipes["sd3"].denoiser(lambda z, t: torch.sin(z) + t[:, None])
    x = RING.sample(8, seed=0)
    whole = objective(denoiser, x, generator=PerSample(3, range(8), stream=17))
    halves = [
        objective(denoiser, x[part], generator=PerSample(3, part, stream=17, total=8))
        for part in ([0, 2, 4, 6], [1, 3, 5, 7])
    ]
    assert torch.equal(whole[0::2], halves[0]) and torch.equal(whole[1::2], halves[1])
    other = objective(denoiser, x, generator=PerSample(3, range(8), stream=18))
    assert not torch.equal(whole, other)
    strata = PerSample(3, range(8), stream=17).strata().sort().values
    assert torch.allclose(strata.diff(), torch.full((7,), 1 / 8, dtype=FLOAT64))


def test_data_are_standardised_before_noise():
    data = GaussianMixture.gaussian([5.0], [[0.01]])
    recipe = recipes["flow-matching"]
    exact = GaussianMixture.gaussian([0.0], [[1.0]])
    denoiser = recipe.denoiser(convert(exact, "u"), data_mean=5.0, data_std=0.1)
    x = data.sample(256, seed=0)
    ours = recipe.objective()(denoiser, x, generator=torch.Generator().manual_seed(0))
    truth = recipe.objective()(exact, (x - 5) / 0.1, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours, truth, rtol=1e-4)


def test_power_average_weighs_step_s_by_s_to_the_gamma():
    gamma = gamma_of(0.1)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(
        0.1, rel=1e-12
    )
    layer = torch.nn.Linear(1, 1, bias=False, dtype=FLOAT64, device="meta").to_empty(device="cpu")
    average = PowerEMA(layer, 0.1)
    values = np.random.default_rng(0).normal(size=200)
    for value in values:
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update(layer)
    # beta_t = (1 - 1/t)^(gamma + 1) telescopes to weights t^(gamma+1) - (t-1)^(gamma+1).
    t = np.arange(201.0)
    weights = np.diff(t ** (gamma + 1)) / 200 ** (gamma + 1)
    assert float(average.weights["weight"]) == pytest.approx(float(weights @ values), rel=1e-9)
    copy = PowerEMA(layer, 0.1)
    copy.load_state_dict(average.state_dict())
    assert copy.steps == 200 and torch.equal(copy.weights["weight"], average.weights["weight"])
    with pytest.raises(ValueError, match="is not this run's"):
        PowerEMA(layer, 0.05).load_state_dict(average.state_dict())
    with pytest.raises(ValueError, match="sigma_rel"):
        gamma_of(0.4)


def test_a_small_network_learns_the_score():
    """The objective trains: on a Gaussian the optimal u is linear, and is found."""
    data = GaussianMixture.gaussian([0.5], [[0.25]])
    level = FlowMatching().at(0.5).floats()
    objective = Objective(
        OutputMSE("u", FlowMatching(), FromSchedule(FlowMatching())), Uniform(-0.01, 0.01)
    )
    parameters = torch.zeros(2, dtype=FLOAT64, requires_grad=True)
    denoiser = Denoiser(lambda z, t: parameters[0] * z + parameters[1])
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    x = data.sample(4096, seed=0)
    for step in range(300):
        loss = objective(denoiser, x, generator=torch.Generator().manual_seed(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.tensor([[0.0], [1.0]], dtype=FLOAT64)
    truth = data.predict(z, level, "u")
    assert torch.allclose(denoiser.network(z, None), truth, atol=0.03)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="did you mean 'flow-matching'"):
        recipe_named("flow-matchin")
    with pytest.raises(ValueError, match="std > 0"):
        Normal(0, 0)
    with pytest.raises(ValueError, match="2 seeds were given for 3"):
        recipes["sd3"].objective()(RING, RING.sample(3, seed=0), generator=PerSample(0, range(2)))
