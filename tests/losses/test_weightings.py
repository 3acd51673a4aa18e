"""Weightings and recipes against their closed forms, and against the losses as published."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from twosides.comparison import compare, curves
from twosides.conversion import convert
from twosides.losses.densities import (
    FromSchedule,
    Laplace,
    Mode,
    Normal,
    Table,
    Uniform,
    UShape,
    cosmap,
)
from twosides.losses.recipes import Recipe, recipes
from twosides.losses.weightings import (
    ELBO,
    P2,
    LogFunction,
    MinSNR,
    Monotonic,
    OutputMSE,
    Power,
    Sigmoid,
    TruncatedSNR,
    soft_min_snr,
)
from twosides.oracle import GaussianMixture
from twosides.outputs import output_named
from twosides.schedules import EDM, Cosine, FlowMatching, ScaledLinear, VPLinear
from twosides.storage import models

FLOAT64 = torch.float64
GRID = torch.linspace(-12, 12, 2401, dtype=FLOAT64)
RING = GaussianMixture.ring(8, std=0.3)
S = torch.sigmoid


def bell(mean, std):
    return (-0.5 * ((GRID - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))


def p_flow():
    return (GRID / 4).cosh() ** -2 / 8


def p_cosine():
    return 1 / (GRID / 2).cosh() / (2 * math.pi)


def root():  # sqrt(b0^2 + 2 (b1 - b0) log(1 + exp(-logsnr))) of VP-linear: beta(t)
    return (0.01 + 39.8 * torch.log1p((-GRID).exp())).sqrt()


def kappa_u():
    return (1 + (-GRID / 2).exp()) ** 2


def edm(mean, std):
    return bell(mean, std) * ((-GRID).exp() + 0.25) / 0.25


def mode():
    """1 / |dt/du| where t(u) = 1 - u - s (cos^2(pi u/2) - 1 + u), found by bisection."""
    t, s = S(-GRID / 2), 1.29
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        u = 0.5 * (low + high)
        above = 1 - u - s * ((0.5 * math.pi * u).cos() ** 2 - 1 + u) > t
        low, high = torch.where(above, u, low), torch.where(above, high, u)
    density = 1 / (1 + s - s * 0.5 * math.pi * (math.pi * u).sin())
    return 0.5 * (-GRID / 2).exp() * density


def u_shape():
    t = S(-GRID / 2)
    density = 4 * ((4 * t).exp() + (4 * (1 - t)).exp()) / (2 * math.expm1(4))
    return 0.5 * (-GRID / 2).exp() * density


CLOSED = {
    "flow-matching": lambda: (-GRID / 2).exp() / 2,
    "v-cosine": lambda: (-GRID / 2).exp() / math.pi,
    "ve-sde": lambda: torch.full_like(GRID, 1 / (2 * math.log(5000))),
    "vdm": lambda: torch.full_like(GRID, 0.5),
    "vdm++": lambda: 1 / (1 + (GRID - 2).exp()),
    "sid2": lambda: S(-GRID),
    "edm": lambda: edm(2.4, 2.4),
    "edm2": lambda: edm(0.8, 2.0),
    "edm2-img64": lambda: edm(1.6, 3.2),
    "eps-linear": lambda: 1 / ((1 + GRID.exp()) * root()),
    "sit-gvp": lambda: math.pi / 4 * (-GRID / 2).exp(),
    "sit-vp": lambda: root() / 4,
    "sit-linear-score": p_flow,
    "sit-gvp-score": p_cosine,
    "sit-score-velocity": lambda: (-GRID / 2).exp() / 2,
    "sit-score-likelihood": lambda: torch.full_like(GRID, 0.5),
    "sd3": lambda: bell(0, 2) * kappa_u(),
    "sd3-mode": mode,
    "sd3-cosmap": lambda: p_cosine() * kappa_u(),
    "sd3-1024": lambda: bell(-2 * math.log(3), 2) * kappa_u(),
    "flux": lambda: bell(-2.3, 2) * kappa_u(),
    "meanflow": lambda: bell(0.8, 2) * torch.erfc((GRID - 0.8) / 8**0.5) * kappa_u(),
    "rf++": u_shape,
    "indi": lambda: (-GRID).exp() * p_flow(),
    "truncated-snr": lambda: p_cosine() * (-GRID).exp().clamp(min=1),
    "laplace": lambda: (-GRID.abs() / 0.5).exp() * (1 + (-GRID).exp()),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    """Density times native factor times kappa, as composed, is the formula of the catalogue."""
    ours, drawn = curves(recipes[name], GRID)
    reached = torch.isfinite(drawn)
    assert int(reached.sum()) > 1700
    assert torch.allclose(ours.exp()[reached], CLOSED[name]()[reached], rtol=1e-10, atol=0)


def test_factors_of_the_error_of_eps():
    snr = GRID.exp()
    for factor, truth in {
        MinSNR(5): torch.minimum(snr, torch.full_like(snr, 5)) / snr,
        soft_min_snr(5): 5 / (5 + snr),
        P2(1, 0.5): (1 + snr) ** -0.5,
        P2(3, 2): (3 + snr) ** -2,
        TruncatedSNR(): snr.clamp(min=1) / snr,
        Power(-0.5): snr**-0.5,
        Sigmoid(2).shifted(3): 1 / (1 + (GRID + 2 * math.log(3) - 2).exp()),
        LogFunction(lambda s: -(s**2)): (-(GRID**2)).exp(),
    }.items():
        assert torch.allclose(factor.log(GRID).exp(), truth, rtol=1e-12, atol=0), str(factor)


def test_soft_min_snr_p2_and_the_sigmoid_weighting_are_one():
    """gamma / (gamma + SNR) = k (k + SNR)^-1 = sigmoid(b - logsnr) for gamma = k = exp(b)."""
    for gamma in (1.0, 4.0, 5.0):
        sigmoid = Sigmoid(math.log(gamma)).log(GRID)
        assert float((soft_min_snr(gamma).log(GRID) - sigmoid).abs().max()) < 1e-12
        assert float((math.log(gamma) + P2(gamma, 1).log(GRID) - sigmoid).abs().max()) < 1e-12
    schedule = ScaledLinear()
    ours = [Recipe.weighted("x", schedule, factor) for factor in (soft_min_snr(3), P2(3, 1))]
    result = compare(*ours)
    assert result.same and result.factor == pytest.approx(3, rel=1e-12)
    # Min-SNR's corner lies at most 1/2 from the smooth one.
    gap = (MinSNR(5).log(GRID).exp() - soft_min_snr(5).log(GRID).exp()).abs().max()
    assert float(gap) == pytest.approx(0.5, abs=1e-3)


def test_one_weighting_whatever_the_output():
    """Min-SNR's, as its code has it per output: eps min(s, g)/s, v min(s, g)/(s + 1), x min(s, g)."""
    schedule, snr = Cosine(), GRID.exp()
    density, least = FromSchedule(schedule), snr.clamp(max=5)
    reference = (OutputMSE("eps", schedule, density) * MinSNR(5)).log(GRID)
    for output, native in {"eps": least / snr, "v": least / (snr + 1), "x": least}.items():
        ours = OutputMSE(output, schedule, density).log(GRID) + native.log()
        assert torch.allclose(ours, reference, rtol=0, atol=1e-11), output


def test_cosmap_is_the_cosine_schedule():
    """t = 1 - 1 / (tan(pi u / 2) + 1), with density 2 / (pi (1 - 2 t + 2 t^2))."""
    u = torch.linspace(0.01, 0.99, 99, dtype=FLOAT64)
    t = S(-cosmap().logsnr(u) / 2)
    assert torch.allclose(t, 1 - 1 / ((0.5 * math.pi * u).tan() + 1), rtol=1e-13)
    weight = 2 / (math.pi * (1 - 2 * t + 2 * t**2))
    logsnr = FlowMatching().logsnr(t)
    uniform = FromSchedule(FlowMatching()).log_prob(logsnr).exp()
    assert torch.allclose(cosmap().log_prob(logsnr).exp(), weight * uniform, rtol=1e-12)


def test_shifts():
    """logit-normal(m) shifted by s is logit-normal(m + log s); a schedule's is the density's."""
    ours = Normal.logit_normal(0.2, 0.9).shifted(3.0)
    truth = Normal.logit_normal(0.2 + math.log(3), 0.9)
    assert torch.allclose(ours.log_prob(GRID), truth.log_prob(GRID), rtol=1e-13)
    flow = FlowMatching()
    ours, truth = FromSchedule(flow).shifted(3.0), FromSchedule(flow.shifted(3.0))
    assert torch.allclose(ours.log_prob(GRID), truth.log_prob(GRID), rtol=1e-12)
    u = torch.linspace(0.01, 0.99, 99, dtype=FLOAT64)
    t = S(-ours.logsnr(u) / 2)
    assert torch.allclose(t, 3 * u / (1 + 2 * u), rtol=1e-12)
    # A shifted density of u is not the shifted weighting; of eps, whose kappa is 1, it is.
    for output, gap in (("eps", 0.0), ("u", 1.0)):
        moved = OutputMSE(output, flow, FromSchedule(flow).shifted(3.0)).log(GRID)
        shifted = OutputMSE(output, flow, FromSchedule(flow)).shifted(3.0).log(GRID)
        expected = 2 * (torch.log1p((-GRID / 2).exp()) - torch.log1p((-GRID / 2).exp() / 3))
        assert torch.allclose(moved - shifted, gap * expected, atol=1e-11)


def test_edm_monotonic_holds_the_peak():
    weighting = recipes["edm-monotonic"].weighting
    # d log w / dlogsnr = 0: logsnr = m - s^2 sigmoid(-logsnr - 2 log sigma_data)
    peak = weighting.peak
    assert peak == pytest.approx(
        2.4 - 2.4**2 * float(S(torch.tensor(math.log(4) - peak))), abs=1e-6
    )
    assert peak == pytest.approx(-3.3078, abs=1e-4)
    ours, base = weighting.log(GRID), recipes["edm"].weighting.log(GRID)
    top = float(recipes["edm"].weighting.log(torch.tensor(peak, dtype=FLOAT64)))
    assert torch.equal(ours[GRID > peak], base[GRID > peak])
    assert torch.allclose(ours[GRID <= peak], torch.full_like(GRID, top)[GRID <= peak], rtol=1e-13)
    with pytest.raises(ValueError, match="no peak"):
        Monotonic(Sigmoid(2)).log(GRID)


@pytest.mark.parametrize("edge", [-5.364, -2.0125, 1.0])
def test_a_peak_at_the_last_level_holds_there(edge):
    base = OutputMSE("eps", Cosine(), Uniform(edge, 9.0)) * Power(-1)
    weighting, top = Monotonic(base), base.log(torch.tensor(edge, dtype=FLOAT64))
    assert weighting.peak == pytest.approx(edge, abs=1e-7) and weighting.peak >= edge
    assert torch.allclose(weighting.log(GRID[GRID < edge]), top, atol=1e-7, rtol=0)


def test_the_peak_needs_no_slope():
    """Of a schedule by its functions, whose derivatives have rounding and holes."""
    g = torch.Generator().manual_seed(3)
    noise = 1e-13 * torch.randn(4, generator=g, dtype=FLOAT64)
    ragged = LogFunction(lambda at: -((at - 1.234) ** 2) + noise[at.abs().long() % 4])
    assert Monotonic(ragged).peak == pytest.approx(1.234, abs=1e-6)


def test_powers_of_nothing_are_one():
    ends = torch.tensor([-math.inf, 0.0, math.inf], dtype=FLOAT64)
    for weighting in (P2(1, 0), Power(0)):
        assert torch.equal(weighting.log(ends), torch.zeros(3, dtype=FLOAT64))


def test_far_levels_are_exact():
    """logsnr +-1400, where kappa overflows, and +-inf, which is never drawn."""
    far = torch.tensor([-1400.0, 1400.0], dtype=FLOAT64)
    ends = torch.tensor([-math.inf, math.inf], dtype=FLOAT64)
    flow = recipes["flow-matching"].weighting
    assert torch.allclose(flow.log(far), -far / 2 - math.log(2), rtol=1e-13)
    noisy = float(recipes["indi"].weighting.log(far)[0])
    assert noisy == pytest.approx(700 - math.log(2), rel=1e-13)
    for recipe in recipes.values():
        if isinstance(recipe.weighting, OutputMSE):
            assert torch.equal(recipe.weighting.log(ends), torch.full_like(ends, -math.inf))
    assert torch.equal(Sigmoid(2).log(ends).exp(), torch.tensor([1.0, 0.0], dtype=FLOAT64))
    assert torch.equal(MinSNR(5).log(ends).exp(), torch.tensor([1.0, 0.0], dtype=FLOAT64))
    assert torch.equal(P2(1, 1).log(ends).exp(), torch.tensor([1.0, 0.0], dtype=FLOAT64))


@pytest.mark.parametrize("output", ["x", "eps", "v", "u", "score", "F(0.5)", "velocity", "-u"])
def test_log_kappa_is_the_logarithm_of_kappa(output):
    for schedule in (FlowMatching(), Cosine(), VPLinear(), EDM(0.001, 1000)):
        inside = GRID[schedule.covers(GRID)]
        made, level = output_named(output, schedule), schedule.level(inside)
        assert torch.allclose(made.log_kappa(level).exp(), made.kappa(level), rtol=1e-11)


# ---------------------------------------------------------------------------- published losses


def published_edm(p):
    """Karras+ 2022, table 1: lambda |c_skip y + c_out F - x|^2."""
    d = 0.5
    c_skip, c_out = d**2 / (p.s**2 + d**2), p.s * d / (p.s**2 + d**2).sqrt()
    return (p.s**2 + d**2) / (p.s * d) ** 2 * (c_skip * p.z + c_out * p.answer - p.x) ** 2


def published_soft(p):
    """k-diffusion: (s d)^2 / (s^2 + d^2)^2 on the preconditioned network's target."""
    d = 0.5
    c_skip, c_out = d**2 / (p.s**2 + d**2), p.s * d / (p.s**2 + d**2).sqrt()
    noised = p.x + p.s * p.eps
    target = (p.x - c_skip * noised) / c_out
    return (p.s * d) ** 2 / (p.s**2 + d**2) ** 2 * (p.answer - target) ** 2


def published_sit_vp(p):
    """SiT's VP path in its own time, data at 1: d_alpha x1 + d_sigma x0."""
    back = 1 - p.t
    log_mean = -0.25 * p.t**2 * 19.9 - 0.5 * p.t * 0.1
    d_log_mean = 0.5 * p.t * 19.9 + 0.5 * 0.1
    alpha, sigma = log_mean.exp(), (-torch.expm1(2 * log_mean)).sqrt()
    d_sigma = (2 * log_mean).exp() * 2 * d_log_mean / (-2 * sigma)
    assert back.min() >= 0
    return (-p.answer - (d_log_mean * alpha * p.x + d_sigma * p.eps)) ** 2


def published_sit_score(power):
    """SiT's score model on its linear path, data at 1: weight 1, (var/s)^2 or var/s^2."""

    def loss(p):
        back = 1 - p.t
        sigma = 1 - back
        drift_var = sigma**2 / back + sigma
        weight = {0: 1.0, 1: drift_var / sigma**2, 2: (drift_var / sigma) ** 2}[power]
        return weight * (p.answer * sigma + p.eps) ** 2

    return loss


def published_sid2(p):
    """Hoogeboom+ 2024, equation 4: -dlogsnr/dt e^b sigmoid(logsnr - b) |x_hat - x|^2, b = 0."""
    low, high = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    angle = low + p.t * (high - low)
    logsnr = -2 * angle.tan().log()
    pace = 4 * (high - low) / (2 * angle).sin()
    x_hat = p.alpha * p.z - p.sigma * p.answer
    return pace * S(logsnr) * (x_hat - p.x) ** 2


PUBLISHED = {
    "flow-matching": lambda p: (p.answer - (p.eps - p.x)) ** 2,
    "sd3": lambda p: (p.answer - (p.eps - p.x)) ** 2,
    "sd3-1024": lambda p: (p.answer - (p.eps - p.x)) ** 2,
    "ddpm": lambda p: (p.answer - p.eps) ** 2,
    "iddpm": lambda p: (p.answer - p.eps) ** 2,
    "sd2-v": lambda p: (p.answer - (p.alpha * p.eps - p.sigma * p.x)) ** 2,
    "vdm": lambda p: 0.5 * (13.3 + 5) * (p.answer - p.eps) ** 2,
    # EDM's VELoss: 1/sigma^2 on the denoiser x_hat = z + sigma^2 score.
    "ve-sde": lambda p: (p.z + p.s**2 * p.answer - p.x) ** 2 / p.s**2,
    "edm": published_edm,
    "edm2": published_edm,
    "soft-min-snr": published_soft,
    "sit-vp": published_sit_vp,
    "sit-linear-score": published_sit_score(0),
    "sit-score-likelihood": published_sit_score(1),
    "sit-score-velocity": published_sit_score(2),
    "sid2": published_sid2,
    "indi": lambda p: (p.answer - p.x) ** 2,
    "truncated-snr": lambda p: p.snr.clamp(min=1) * (p.answer - p.x) ** 2,
    "min-snr": lambda p: p.snr.clamp(max=5) * (p.answer - p.x) ** 2,
    "p2": lambda p: (p.answer - p.eps) ** 2 / (1 + p.snr),
    "debiased": lambda p: (p.answer - p.eps) ** 2 / p.snr.sqrt(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_loss_is_the_published_one(name):
    """Sample by sample, with the paper's own formula written out: equal to 1e-10."""
    recipe = recipes[name]
    denoiser = recipe.denoiser(lambda z, t: torch.tanh(z) + 0.1)
    x = RING.sample(64, seed=0)
    losses = recipe.objective().evaluate(denoiser, x, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    torch.rand(1, generator=g, dtype=FLOAT64)
    eps = torch.randn(x.shape, generator=g, dtype=FLOAT64)
    logsnr = losses.logsnr[:, None]
    level = recipe.schedule.level(logsnr)
    z = level.mix(x, eps)
    p = SimpleNamespace(x=x, eps=eps, z=z, answer=torch.tanh(z) + 0.1)
    p.alpha, p.sigma, p.s, p.snr = level.alpha, level.sigma, (-logsnr / 2).exp(), logsnr.exp()
    if recipe.density == FromSchedule(recipe.schedule):
        p.t = recipe.schedule.time(logsnr)
    assert torch.allclose(losses.loss, PUBLISHED[name](p).mean(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", recipes)
def test_the_exact_network_has_the_least_loss(name):
    """The oracle in the recipe's notation: finite gradients, and no gain from scaling it."""
    recipe = recipes[name]
    exact = convert(RING, recipe.output, recipe.schedule, recipe.time)
    scale = torch.ones((), dtype=FLOAT64, requires_grad=True)
    denoiser = recipe.denoiser(lambda z, t: scale * exact(z, t))
    x = RING.sample(256, seed=0)
    losses = recipe.objective()(denoiser, x, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(losses.mean(), scale)
    assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(slope))
    # The loss is a parabola in the scale: its minimum lies within what 256 samples can tell.
    with torch.no_grad():
        bent = 0.0
        for value in (0.5, 1.5):
            scale.fill_(value)
            again = recipe.objective()(denoiser, x, generator=torch.Generator().manual_seed(1))
            bent += float(again.mean())
    curvature = (bent - 2 * losses.mean().item()) / 0.25
    assert curvature > 0 and abs(slope.item() / curvature) < 0.35


@pytest.mark.parametrize("name", recipes)
def test_a_model_of_any_recipe_can_be_saved(name):
    """Its notation survives JSON."""
    recipe = recipes[name]
    network = models.build_network({"class": "MLP"})
    text = json.dumps(models.describe_denoiser(recipe.denoiser(network)))
    back = models.build_denoiser(json.loads(text))
    assert back.schedule == recipe.schedule and back.output.name == recipe.output


# ---------------------------------------------------------------------------- comparisons


def test_sd3_and_edm_as_the_post_plots_them_and_for_their_data():
    raw = compare(recipes["sd3"], recipes["edm"])
    assert raw.difference == pytest.approx(0.093, abs=1e-3)
    assert "total variation of w 0.09" in str(raw) and "depends on" not in str(raw)
    assert "which it depends on" in str(compare(recipes["sd3"], recipes["flow-matching"]))
    normalised = compare(recipes["sd3"], recipes["edm"], data_std=(1.0, 0.5))
    assert normalised.difference == pytest.approx(0.213, abs=1e-3)
    assert "unit-variance data" in str(normalised)
    once = Recipe.plain("u", FlowMatching(), Normal.logit_normal(-0.4, 1))
    meanflow = compare(once, recipes["edm2"])
    assert meanflow.difference == pytest.approx(0.183, abs=1e-3)
    # Data half as large and noise half as large are the same problem.
    half = Recipe.plain("F(0.5)", EDM(), Normal(2.4, 2.4))
    unit = Recipe.plain("F(1)", EDM(), Normal(2.4 + 2 * math.log(0.5), 2.4))
    assert compare(half, unit, data_std=(0.5, 1.0)).same and not compare(half, unit).same
    with pytest.raises(ValueError, match="standard deviation"):
        compare(half, unit, data_std=(0.0, 1.0))


def test_factors_of_equal_recipes():
    result = compare(recipes["sit-gvp"], recipes["v-cosine"])
    assert result.same and result.factor == pytest.approx(math.pi**2 / 4, rel=1e-12)
    assert compare(recipes["sit-score-velocity"], recipes["flow-matching"]).factor == 1


def test_the_elbo_has_one_weight_for_every_density():
    for density in (Uniform(-3, 3), Normal(0, 2)):
        recipe = Recipe("eps", Cosine(), density, ELBO())
        assert compare(recipe, Recipe("v", FlowMatching(), density, ELBO())).same


def test_bad_numbers_are_refused():
    for make, message in (
        (lambda: MinSNR(0), "gamma > 0"),
        (lambda: P2(-1), "k > 0"),
        (lambda: Sigmoid().shifted(0), "positive factor"),
        (lambda: Normal(0, 1).shifted(-1), "positive factor"),
        (lambda: Laplace(0, 0), "scale > 0"),
        (lambda: Uniform(3, -3), "finite low < high, got 3, -3"),
        (lambda: Uniform(float("nan"), 1), "got nan, 1"),
        (lambda: Sigmoid(float("nan")), "finite bias, got nan"),
        (lambda: Power(float("inf")), "finite exponent, got inf"),
        (lambda: soft_min_snr(0), "gamma > 0, got 0"),
        (lambda: Mode(1.8), "1.752"),
        (lambda: UShape(0), "0 < a <= 1400, got 0"),
        (lambda: UShape(1500), "got 1500"),
        (lambda: Table((0, 1), (1.0, 2.0)), "2 edges and 2 masses"),
        (lambda: Table((0, 0), (1.0,)), "rising edges"),
        (lambda: Table((0, 1), (0.0,)), "positive sum"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("name", recipes)
def test_the_clock_of_a_recipe_tells_all_its_levels(name):
    recipe = recipes[name]
    ends = recipe.density.logsnr(torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=FLOAT64))
    clock = recipe.denoiser(torch.nn.Identity()).clock
    back = clock.logsnr(clock.read(ends, recipe.schedule), recipe.schedule)
    assert torch.allclose(back, ends, rtol=1e-6)
