"""Levels and weights that follow the error: against closed forms and plain loops."""

import math

import numpy as np
import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.generation.notes import measured_grid
from twosides.generation.request import Request
from twosides.generation.samples import sample_model
from twosides.losses.densities import FromSchedule, Normal, Table, Uniform
from twosides.losses.learned import LEARNERS, Adaptive, LevelBins, Uncertainty
from twosides.losses.objective import Losses, Objective
from twosides.losses.recipes import recipe_named, recipes
from twosides.losses.weightings import ELBO, OutputMSE, Power, Sigmoid
from twosides.oracle import GaussianMixture
from twosides.outputs import Estimate
from twosides.randomness import PerSample
from twosides.sampling.grids import Arctan
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, FlowMatching
from twosides.storage import models, parts
from twosides.storage.trees import load_tree, save_tree

FLOAT64 = torch.float64
STD = 0.5  # of the data
FLOW = FromSchedule(FlowMatching())
MSE = OutputMSE("u", FlowMatching(), FLOW)
TARGETS = [(target, compensate) for target in ("loss", "error") for compensate in (True, False)]


class Wrong:
    """Data N(0, STD^2): u_hat is 1.3 times the best estimate of u, so its error is known."""

    schedule = FlowMatching()

    def __call__(self, z, level):
        a, s = (value.reshape(-1, 1) for value in level[1:])
        u = 1.3 * (s - a * STD**2) / (a**2 * STD**2 + s**2) * z
        return Estimate(z - s * u, z + a * u)

    @staticmethod
    def error(logsnr):
        """E|eps_hat - eps|^2 per element: (E u^2 - (2.6 - 1.3^2) E[u z]^2 / E z^2) / kappa."""
        a, s = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        known = (s - a * STD**2) ** 2 / (a**2 * STD**2 + s**2)
        return (1 + STD**2 - (2.6 - 1.3**2) * known) * a**2


def data(count, dims=16, seed=0):
    """Gaussian, with a second moment of exactly STD^2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, generator=generator, dtype=FLOAT64)
    return STD * x / (x**2).mean().sqrt()


def mlp():
    return models.build_network({"class": "MLP"})


def filled(low, high, count, weighting):
    """Bins that hold the exact error and loss at their centres."""
    bins = LevelBins(low, high, count)
    at = bins.centres.repeat(10)
    error = Wrong.error(at)
    bins.update(at, loss=weighting.log(at).exp() * error, error=error)
    return bins


def learned(density, target, compensate):
    bins = filled(*density.logsnr(torch.tensor([1 - 1e-3, 1e-3], dtype=FLOAT64)).tolist(), 40, MSE)
    return Adaptive(density, bins, target, compensate)


# ---------------------------------------------------------------------------- bins


def test_bins_are_running_means():
    """Against the rule, one bin and one step at a time."""
    bins, rng = LevelBins(-4, 6, 7, decay=0.9), np.random.default_rng(0)
    means, visits = [None] * 7, [0] * 7
    for _ in range(30):
        at = rng.normal(1, 4, size=5)  # some of it outside
        loss, error = rng.random(5), rng.random(5)
        bins.update(
            torch.from_numpy(at), loss=torch.from_numpy(loss), error=torch.from_numpy(error)
        )
        place = np.clip(np.floor((at + 4) / (10 / 7)), 0, 6).astype(int)
        for b in set(place):
            mine = place == b
            new, keep = np.array([loss[mine].mean(), error[mine].mean()]), 0.9 ** mine.sum()
            means[b] = new if means[b] is None else keep * means[b] + (1 - keep) * new
            visits[b] += int(mine.sum())
    assert bins.visits.tolist() == visits and all(visits)
    assert np.allclose(torch.stack([bins.loss, bins.error], 1).numpy(), means, rtol=1e-13)


def test_the_order_of_the_samples_does_not_matter():
    g = torch.Generator().manual_seed(0)
    at, loss, error = torch.randn(3, 999, generator=g, dtype=FLOAT64)
    bins = [LevelBins(-1, 1, 5), LevelBins(-1, 1, 5)]
    for one, order in zip(bins, (torch.arange(999), torch.randperm(999, generator=g)), strict=True):
        one.update(at[order], loss=loss[order].exp(), error=error[order].exp())
    assert all(torch.equal(a, b) for a, b in zip(bins[0].buffers(), bins[1].buffers(), strict=True))


def test_bins_are_the_same_however_the_batch_was_split():
    """Two processes' losses, gathered in order of place, as the engine does: bit for bit.

    A network of arithmetic alone, in float32: the last bit of tanh, and of a level in float64, may
    depend on its place in a vector of the processor.
    """
    recipe = recipes["flow-matching"].learning("adaptive")
    denoiser = recipe.denoiser(lambda z, t: z / (1 + z.abs()) + t[:, None])
    x = data(300).float()
    one, two = recipe.objective(), recipe.objective()
    for step in range(5):
        total = {"stream": 1 + step, "total": 300}
        whole = one.evaluate(denoiser, x, generator=PerSample(0, range(300), **total))
        one.observe(whole)
        shares = [range(rank, 300, 2) for rank in (0, 1)]
        parts = [two.evaluate(denoiser, x[s], generator=PerSample(0, s, **total)) for s in shares]
        gathered = Losses(*(torch.stack(pair, 1).flatten() for pair in zip(*parts, strict=True)))
        two.observe(gathered)
        assert all(torch.equal(a, b) for a, b in zip(whole, gathered, strict=True))
    assert one.bins.ready and one.bins is not two.bins
    assert all(
        torch.equal(a, b) for a, b in zip(one.bins.buffers(), two.bins.buffers(), strict=True)
    )


def test_what_is_not_finite_is_left_out():
    """A step that overflowed must not end the statistics."""
    bins, at = LevelBins(-1, 1, 2), torch.tensor([0.5, 0.5, -0.5, math.nan])
    bins.update(
        at, loss=torch.tensor([2.0, math.inf, math.nan, 1.0]), error=torch.tensor([3.0, 1, 1, 1])
    )
    assert bins.visits.tolist() == [0, 1]
    assert bins.loss.tolist() == [0, 2] and bins.error.tolist() == [0, 3]


def test_bins_land_in_checkpoints_exactly(tmp_path):
    """Through the files that checkpoints are made of, and unharmed by casts of the model."""
    bins = filled(-5, 5, 33, MSE)
    model = torch.nn.ModuleDict({"bins": bins, "network": mlp()}).to(torch.bfloat16)
    save_tree(tmp_path, model.state_dict())
    fresh = LevelBins(-1, 1, 33)
    model = torch.nn.ModuleDict({"bins": fresh, "network": mlp().bfloat16()})
    model.load_state_dict(load_tree(tmp_path))
    for name, value in bins.named_buffers():
        assert torch.equal(fresh.get_buffer(name), value), name
    assert fresh.loss.dtype == fresh.edges.dtype == FLOAT64 and fresh.ready


@pytest.mark.parametrize("wrong", [(1, 1), (0, math.inf), (0, 1, 0), (0, 1, 5, 1.0)])
def test_bins_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="bins need"):
        LevelBins(*wrong)


# ---------------------------------------------------------------------------- the density


@pytest.mark.parametrize(("target", "compensate"), TARGETS)
@pytest.mark.parametrize("base", [FLOW, Normal(0.8, 2.0), Uniform(-6, 9)], ids=str)
def test_the_density_is_the_one_that_is_drawn(base, target, compensate):
    """logsnr inverts the distribution function (by quadrature of log_prob), whose integral is 1."""
    density = learned(base, target, compensate)
    low, high = density.bins.edges[[0, -1]].tolist()
    knots = [low, *density.bins.centres.tolist(), high]
    # Linear between knots: the trapezoid rule is exact there; the tails are the base's.
    fine = np.unique(np.concatenate([np.linspace(low, high, 401), knots]))
    p = density.log_prob(torch.from_numpy(fine)).exp().numpy()
    below = 1e-3 + np.concatenate([[0], np.cumsum(0.5 * (p[1:] + p[:-1]) * np.diff(fine))])
    assert below[-1] == pytest.approx(1 - 1e-3, abs=1e-12)
    found = density.logsnr(torch.from_numpy(1 - below))
    assert np.abs(found.numpy() - fine).max() < 1e-10
    u = torch.linspace(1e-5, 1 - 1e-5, 2001, dtype=FLOAT64)
    assert bool((density.logsnr(u).diff() < 0).all())
    again = np.interp(density.logsnr(u).numpy(), fine, below)
    assert again.shape == u.shape
    for tail in (torch.tensor([1e-7, 5e-4]), torch.tensor([1 - 5e-4, 1 - 1e-7])):
        at = base.logsnr(tail.double())
        assert torch.equal(density.logsnr(tail.double()), at)
        assert torch.equal(density.log_prob(at), base.log_prob(at))


@pytest.mark.parametrize(("target", "compensate"), TARGETS)
def test_log_prob_is_the_slope_of_logsnr(target, compensate):
    density = learned(FLOW, target, compensate)
    u = torch.linspace(0.002, 0.998, 777, dtype=FLOAT64)
    h, at = 1e-7, density.logsnr(u)
    numeric = 2 * h / (density.logsnr(u - h) - density.logsnr(u + h))
    assert torch.allclose(numeric, density.log_prob(at).exp(), rtol=1e-5)


def test_the_density_is_proportional_to_the_bins():
    for target, values in (("loss", MSE.log), ("error", torch.zeros_like)):
        density = learned(FLOW, target, True)
        at = density.bins.centres
        floor = (1 - 2e-3) * density.floor / (density.bins.edges[-1] - density.bins.edges[0])
        shape = values(at).exp() * Wrong.error(at)
        ratio = (density.log_prob(at).exp() - floor) / shape
        assert torch.allclose(ratio, ratio[0].expand(40), rtol=1e-10)


def test_the_base_is_drawn_until_the_bins_are_believed():
    density = Adaptive(FLOW, LevelBins.over(FLOW))
    u = torch.linspace(0.01, 0.99, 500, dtype=FLOAT64)
    one = torch.ones_like(u)
    assert torch.equal(density.logsnr(u), FLOW.logsnr(u))
    density.bins.update(FLOW.logsnr(u), loss=one, error=one)
    assert torch.equal(density.log_prob(FLOW.logsnr(u)), FLOW.log_prob(FLOW.logsnr(u)))
    density.bins.update(FLOW.logsnr(u), loss=one, error=one)
    assert density.bins.ready and not torch.equal(density.logsnr(u), FLOW.logsnr(u))


@pytest.mark.parametrize("target", ["loss", "error"])
def test_errors_of_zero_leave_the_floor(target):
    """A network that is perfect everywhere: uniform levels, no division by zero."""
    bins = LevelBins(-2, 2, 4)
    at = bins.centres.repeat(10)
    bins.update(at, loss=torch.zeros_like(at), error=torch.zeros_like(at))
    density = Adaptive(Uniform(-2, 2), bins, target)
    assert torch.allclose(density.log_prob(at).exp(), torch.full_like(at, 0.25), rtol=1e-12)


def test_an_adaptive_density_that_is_none_is_refused():
    bins = LevelBins.over(FLOW)
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        Adaptive(FLOW, bins, "los")
    with pytest.raises(ValueError, match="floor in"):
        Adaptive(FLOW, bins, floor=0.0)
    with pytest.raises(ValueError, match=r"LevelBins.over\(base\)"):
        Adaptive(Uniform(-1, 1), bins)
    gap = Table((-8, 0, 4, 6), (1, 0, 3))
    Adaptive(gap, LevelBins.over(gap))
    with pytest.raises(ValueError, match="draws nothing around logsnr 0.05"):
        Adaptive(gap, LevelBins.over(gap), "error", compensate=False)
    with pytest.raises(ValueError, match="shift its base"):
        Adaptive(FLOW, bins).shifted(3)
    with pytest.raises(ValueError, match="seen no sample"):
        bins.error_at(torch.zeros(1))


# ---------------------------------------------------------------------------- the objective


def trained(weighting, density, stratified=False, steps=60):
    """Losses per sample after the bins have settled, learned by `observe` itself."""
    objective, g = Objective(weighting, density, stratified), torch.Generator().manual_seed(0)
    x = data(1000)
    for _ in range(steps):
        objective.observe(objective.evaluate(Wrong(), x, generator=g))
    return torch.stack([objective(Wrong(), x, generator=g) for _ in range(100)])


def integral(weighting, low=-30.0, high=30.0):
    at = torch.linspace(low, high, 60_001, dtype=FLOAT64)
    return float(torch.trapezoid(weighting(at) * Wrong.error(at), at))


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("target", ["loss", "error"])
@pytest.mark.parametrize("weighting", [MSE, Sigmoid(2.0)], ids=str)
def test_compensated_levels_leave_the_objective(weighting, target, stratified):
    """The mean is the integral of w E|eps_hat - eps|^2, which is known, for any p."""
    base = FromSchedule(Cosine(-12, 12))
    losses = trained(weighting, Adaptive(base, LevelBins.over(base), target), stratified).mean(1)
    exact = integral(lambda at: weighting.log(at).exp(), -12, 12)
    error = float(losses.std()) / 10
    assert float(losses.mean()) == pytest.approx(exact, abs=4 * error)
    assert error < 0.01 * exact  # so that the comparison means something


def test_levels_not_compensated_train_another_weighting():
    """w p / base: with p ~ E[e] the integral of w E[e]^2 / base, over the mean of e."""
    base = Uniform(-8, 8)
    density = Adaptive(base, LevelBins.over(base), "error", compensate=False)
    losses = trained(Sigmoid(2.0), density).mean(1)
    weight = torch.linspace(-8, 8, 40_001, dtype=FLOAT64)
    share = Wrong.error(weight) / torch.trapezoid(Wrong.error(weight), weight)
    curve = Sigmoid(2.0).log(weight).exp() * Wrong.error(weight) * share * 16
    exact = float(torch.trapezoid(curve, weight))
    plain = integral(lambda at: Sigmoid(2.0).log(at).exp(), -8, 8)
    assert float(losses.mean()) == pytest.approx(exact, rel=0.01)
    assert abs(exact / plain - 1) > 0.05  # the bins make a difference


def test_adapted_levels_have_the_least_variance():
    """With p ~ w E[e] only the noise of e is left: of N(0, e) errors, a part sqrt(2 / dims)."""
    weighting, base = Sigmoid(2.0), FromSchedule(Cosine(-12, 12))
    adapted = trained(weighting, Adaptive(base, LevelBins.over(base))).flatten()
    fixed = trained(weighting, base, steps=0).flatten()
    least = math.sqrt(2 / 16)
    assert least * 0.98 < float(adapted.std() / adapted.mean()) < least * 1.05
    assert float(fixed.std() / fixed.mean()) > 2 * least


def test_uncertainty_trains_p_over_the_error():
    """At the bins' centres exactly, and between them to the interpolation."""
    base, weighting = Uniform(-8, 8), Sigmoid(2.0)
    uncertain = Uncertainty(weighting, base, filled(-8, 8, 400, weighting))
    at = uncertain.bins.centres
    exact = base.log_prob(at) - Wrong.error(at).log()
    assert torch.allclose(uncertain.log(at), exact, atol=1e-12)
    between = torch.linspace(-7.9, 7.9, 999, dtype=FLOAT64)
    exact = base.log_prob(between) - Wrong.error(between).log()
    assert torch.allclose(uncertain.log(between), exact, atol=1e-4)
    other = Uncertainty(MSE, base, uncertain.bins)
    assert torch.allclose(other.log(at), uncertain.log(at), atol=1e-12)


def test_uncertainty_is_the_minimiser_of_its_loss():
    """u* of E[loss] exp(-u) + u, found by Newton's method, with the exact E[loss] = w e / p."""
    base, weighting = Uniform(-8, 8), Sigmoid(2.0)
    uncertain = Uncertainty(weighting, base, filled(-8, 8, 100, weighting))
    at = uncertain.bins.centres
    loss = weighting.log(at).exp() * Wrong.error(at) * 16
    u = torch.zeros_like(at, requires_grad=True)
    for _ in range(60):
        (slope,) = torch.autograd.grad((loss * (-u).exp() + u).sum(), u)
        u = (u - slope / (loss * (-u).exp()).clamp(min=1)).detach().requires_grad_()
    assert torch.allclose(uncertain.u(at), u, atol=1e-6)


def test_every_level_contributes_one():
    base = FromSchedule(Cosine(-12, 12))
    bins = LevelBins.over(base)
    objective = Objective(Uncertainty(Sigmoid(2.0), base, bins), base)
    x, g = data(2000), torch.Generator().manual_seed(0)
    start = objective(Wrong(), x, generator=g)
    assert torch.equal(objective.weighting.u(bins.centres), torch.zeros(100, dtype=FLOAT64))
    for _ in range(100):
        objective.observe(objective.evaluate(Wrong(), x, generator=g))
    found = [objective.evaluate(Wrong(), x, generator=g) for _ in range(50)]
    loss, at = (torch.cat([getattr(each, name) for each in found]) for name in ("loss", "logsnr"))
    levels = torch.bucketize(at, torch.linspace(-6, 6, 13, dtype=FLOAT64))
    means = torch.bincount(levels, loss) / torch.bincount(levels)
    assert torch.allclose(means, torch.ones(14, dtype=FLOAT64), atol=0.05)
    assert not 0.9 < float(start.mean()) < 1.1


@pytest.mark.parametrize("output", ["x", "eps", "v", "u", "score", "F(0.5)", "velocity"])
def test_the_error_of_eps_is_that_of_eps(output):
    """Whatever the network predicts: against the estimate of the same call."""
    schedule = Cosine(-9, 9)
    denoiser = Denoiser(lambda z, t: torch.sin(3 * z) + t[:, None], output, schedule)
    x = data(64)
    losses = Objective(ELBO(), Uniform(-9, 9)).evaluate(
        denoiser, x, generator=PerSample(1, range(64))
    )
    eps = PerSample(1, range(64)).normal((16,), FLOAT64)
    level = schedule.level(losses.logsnr)
    error = ((denoiser(level.mix(x, eps), level).eps - eps) ** 2).mean(1)
    assert torch.allclose(losses.eps_error, error, rtol=1e-9)


def test_an_infinite_kappa_is_no_error_of_eps():
    """Of x at zero SNR: whatever it says, eps is known. It stays out of the statistics."""

    class Pure(Uniform):
        def logsnr(self, u):
            return torch.where(u < 0.5, -math.inf, super().logsnr(u))

    denoiser = Denoiser(lambda z, t: z, "x", FlowMatching())
    objective = Objective(Power(-0.5), Pure(-2, 2))
    losses = objective.evaluate(denoiser, data(50), generator=PerSample(0, range(50)))
    pure = torch.isneginf(losses.logsnr)
    assert int(pure.sum()) == 25
    assert bool((losses.eps_error[pure] == 0).all()) and bool((losses.eps_error[~pure] > 0).all())
    bins = LevelBins(-2, 2, 4)
    Objective(Power(-0.5), Adaptive(Uniform(-2, 2), bins)).observe(losses)
    assert int(bins.visits.sum()) == 25


def test_fixed_objectives_have_nothing_to_learn():
    objective = recipes["sd3"].objective()
    losses = objective.evaluate(Wrong(), data(8), generator=PerSample(0, range(8)))
    assert objective.bins is None and objective.observe(losses) is None


def test_bins_are_found_inside_and_are_one():
    bins = LevelBins.over(FLOW)
    assert Objective(Uncertainty(MSE, FLOW, bins) * Sigmoid(1), FLOW).bins is bins
    with pytest.raises(ValueError, match="share one"):
        Objective(Uncertainty(MSE, FLOW, bins), Adaptive(FLOW, LevelBins.over(FLOW)))
    assert Objective(Uncertainty(MSE, FLOW, bins), Adaptive(FLOW, bins)).bins is bins


# ---------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("learns", LEARNERS)
@pytest.mark.parametrize("name", ["flow-matching", "ddpm", "edm", "ve-sde", "min-snr", "laplace"])
def test_any_recipe_learns_and_starts_as_it_was(name, learns):
    recipe = recipe_named(f"{name}+{learns}")
    assert recipe == recipes[name].learning(learns) != recipes[name]
    objective, plain = recipe.objective(), recipes[name].objective()
    denoiser = recipe.denoiser(lambda z, t: torch.tanh(z))
    x = data(1000)
    losses = objective.evaluate(denoiser, x, generator=PerSample(3, range(1000)))
    before = plain.evaluate(denoiser, x, generator=PerSample(3, range(1000)))
    assert torch.equal(losses.logsnr, before.logsnr) and torch.equal(losses.error, before.error)
    assert torch.allclose(losses.loss, before.loss, rtol=1e-12)  # a plain error's weight is 1
    objective.observe(losses)
    after = objective(denoiser, x, generator=PerSample(3, range(1000)))
    assert bool(torch.isfinite(after).all()) and not torch.equal(after, losses.loss)


def test_published_recipes_learn_what_they_publish():
    learning = {name: r.learns for name, r in recipes.items() if r.learns}
    assert learning == {
        "vdm++": "adaptive",
        "edm-monotonic": "adaptive",
        "infonoise": "entropy-rate",
        "edm2": "uncertainty",
        "edm2-img64": "uncertainty",
    }
    assert recipe_named("vdm+++entropy-rate").learns == "entropy-rate"
    first, second = (recipes["vdm++"].objective() for _ in range(2))
    assert first.bins is not second.bins


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd3+adaptve", "did you mean 'adaptive'"),
        ("sdd3+adaptive", "did you mean 'sd3'"),
        ("vdm+", r"did you mean 'vdm\+\+'"),
        ("sd3+", "did you mean 'sd3'"),
        ("+adaptive", "unknown recipe"),
    ],
)
def test_recipes_that_are_none_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        recipe_named(name)


# ---------------------------------------------------------------------------- the sampling grid


class Exact:
    """The error of the exact denoiser of N(0, STD^2): sigmoid(logsnr + 2 log STD)."""

    @staticmethod
    def bins(count=400, reach=14.0):
        bins = LevelBins(-reach, reach, count)
        error = torch.sigmoid(bins.centres + 2 * math.log(STD))
        bins.update(bins.centres, loss=error, error=error)
        return bins


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_grid_has_equal_steps_of_entropy(steps):
    """H = softplus(logsnr + 2 log STD) / 2 exactly; rescaled, the arctan grid of STD."""
    bins = Exact.bins()
    low, high = bins.centres[[0, -1]].tolist()
    schedule, shift = Cosine(low, high), 2 * math.log(STD)
    nodes = bins.grid(rescaled=False).logsnrs(schedule, steps)
    h = torch.nn.functional.softplus(nodes + shift)
    assert torch.allclose(h.diff(), (h[-1] - h[0]).expand(steps) / steps, rtol=2e-4)
    exact = Arctan(STD, start=low, end=high).logsnrs(schedule, steps)
    assert torch.allclose(bins.grid().logsnrs(schedule, steps), exact, atol=2e-3)


def test_the_grid_of_a_training_run_is_the_analytic_one():
    """Errors measured by the objective on an exact denoiser, no training needed."""
    low, high = -8.0, 8.0
    oracle = GaussianMixture.gaussian(torch.zeros(4), STD**2 * torch.eye(4))
    objective = recipe_named("flow-matching+adaptive").objective()
    x, g = data(4000, 4), torch.Generator().manual_seed(0)
    for _ in range(30):
        objective.observe(objective.evaluate(oracle, x, generator=g))
    schedule = Cosine(low, high)
    exact = Arctan(STD, start=low, end=high).logsnrs(schedule, 8)
    assert torch.allclose(objective.bins.grid().logsnrs(schedule, 8), exact, atol=0.2)


def test_a_stored_grid_is_read_by_the_command_line(tmp_path):
    grid = Exact.bins(20).grid()
    assert parts.restore(parts.describe(grid)) == grid
    denoiser = Denoiser(mlp(), "u", FlowMatching())
    about = {"shape": [2], "classes": ""}
    models.save(denoiser, tmp_path / "with", **about, entropic=parts.describe(grid))
    assert measured_grid(tmp_path / "with") == grid
    request = Request.of(grid=measured_grid(tmp_path / "with"), steps=4, count=3)
    drawn = sample_model(tmp_path / "with", request, tmp_path / "a.npy")
    own = sample(denoiser, (3, 2), sampler=Sampler(grid=grid), steps=4, seed=0)
    assert torch.equal(drawn, own)
    models.save(denoiser, tmp_path / "without", **about)
    with pytest.raises(ValueError, match="sd3.adaptive"):
        measured_grid(tmp_path / "without")
    models.save(denoiser, tmp_path / "other", **about, entropic=[1, 2])
    with pytest.raises(ValueError, match="entropic is"):
        measured_grid(tmp_path / "other")
