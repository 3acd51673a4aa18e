"""Conditioned denoisers in use: whole runs, orders, units, operators, what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch

import twosides as ts
from priors import problem
from twosides.oracle import GaussianMixture
from twosides.posteriors.measurement import linearise, solve
from twosides.posteriors.posterior import METHODS, published_strength
from twosides.schedules import FlowMatching

FLOAT64 = torch.float64
EXACT = dict(trust=-math.inf, tolerance=1e-13)
GAUSS, SEEN, TRUTH, _ = problem("gauss8", 0.05)
MIX, MIX_SEEN, MIX_TRUTH, _ = problem("mix8", 0.3)


def std(truth):
    return float(truth.covariance.trace() / len(truth.mean)) ** 0.5


@pytest.mark.parametrize(
    ("sampler", "most"),
    [("ddim", 1e-4), ("kab2c", 1e-4), ("ddpm", 1e-4), ("unipc", 1e-4), ("heun", 1e-10)],
)
def test_whole_runs_are_those_of_the_exact_posterior(sampler, most):
    """Test 4: sample by sample, from pure noise (heun's grid begins inside)."""
    told = dict(sampler=sampler, steps=20, seed=3, dtype=FLOAT64)
    got = ts.sample(ts.posterior(GAUSS, SEEN, **EXACT), (16, 8), **told)
    want = ts.sample(TRUTH, (16, 8), **told)
    assert float((got - want).abs().max()) < most * std(TRUTH)


def test_multistep_keeps_its_order_on_a_conditioned_denoiser():
    """Test 3: within 1.5 % of its own limit at 20 calls, and of order 2 at least."""
    conditioned = ts.posterior(MIX, MIX_SEEN, **EXACT)
    runs = {
        n: ts.sample(conditioned, (32, 8), sampler="kab2c", steps=n, seed=1, dtype=FLOAT64)
        for n in (10, 20, 40, 120)
    }
    errors = [
        float((runs[n] - runs[120]).pow(2).mean().sqrt()) / std(MIX_TRUTH) for n in (10, 20, 40)
    ]
    assert errors[1] < 0.015
    assert math.log2(errors[0] / errors[2]) / 2 > 2
    ddim = ts.sample(conditioned, (32, 8), sampler="ddim", steps=20, seed=1, dtype=FLOAT64)
    assert float((ddim - runs[120]).pow(2).mean().sqrt()) / std(MIX_TRUTH) > 3 * errors[1]


def test_replacement_is_not_a_posterior():
    """Test 7: docs/posteriors.md says how wrong `edit=` is for a Gaussian, however many steps."""
    A, y, noise = (
        torch.eye(8, dtype=FLOAT64)[:4],
        torch.tensor([0.9, -0.4, 0.3, 1.1]).double(),
        0.02,
    )
    truth = GAUSS.condition(A, y, noise)

    def replace(number, z, level):
        generator = torch.Generator().manual_seed(number)
        fresh = torch.randn(len(z), 4, generator=generator, dtype=FLOAT64)
        return torch.cat([level.alpha * y + level.sigma * fresh, z[:, 4:]], 1)

    told = dict(sampler="ddpm", seed=0, dtype=FLOAT64)
    off = [
        float(
            (ts.sample(GAUSS, (600, 8), steps=n, edit=replace, **told).mean(0) - truth.mean).norm()
        )
        / float(truth.covariance.trace().sqrt())
        for n in (50, 200)
    ]
    right = ts.posterior(GAUSS, ts.Measurement(lambda x: x[:, :4], y[None], noise), **EXACT)
    ours = ts.sample(right, (600, 8), steps=50, **told).mean(0) - truth.mean
    assert min(off) > 0.1
    assert float(ours.norm()) < 0.1 * float(truth.covariance.trace().sqrt())


def test_renoising_the_posterior_mean_halves_the_spread():
    """Test 7: even the exact denoiser, where a mean stands for a draw at each level."""
    x = ts.sample(MIX_TRUTH, (500, 8), sampler="consistency", steps=50, seed=0, dtype=FLOAT64)
    ratio = float(torch.cov(x.T).trace() / MIX_TRUTH.covariance.trace()) ** 0.5
    assert 0.3 < ratio < 0.7


@pytest.mark.parametrize("method", [*METHODS, "level"])
def test_it_works_where_nothing_is_recorded(method):
    seen = ts.Measurement(lambda x: 2 * x, torch.ones(1, 8), 0.3)
    conditioned = ts.posterior(MIX, seen, method)
    told = dict(sampler="kab2c", steps=6, seed=0)
    want = ts.sample(conditioned, (3, 8), **told)
    with torch.inference_mode():
        got = ts.sample(conditioned, (3, 8), **told)
    assert torch.equal(got, want) and bool(want.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_its_batch(method):
    told = dict(sampler="ddpm", steps=5, dtype=FLOAT64, seed=0)
    conditioned = ts.posterior(MIX, MIX_SEEN, method)
    whole, part = (ts.sample(conditioned, (n, 8), **told) for n in (5, 2))
    assert torch.allclose(whole[:2], part, rtol=1e-10)


@pytest.mark.parametrize("method", ["mmps", "gaussian", "diffpir", "level", "tilt"])
def test_measurements_are_of_data_in_their_own_units(method):
    """A network of standardised data, beside the prior of the data themselves."""
    mean, scale = 3.0, 2.0
    inside = GaussianMixture(MIX.weights, (MIX.means - mean) / scale, MIX.covariances / scale**2)
    network = ts.convert(inside, output="u")
    standardised = ts.Denoiser(network, output="u", data_mean=mean, data_std=scale)
    y = torch.linspace(-1, 1, 8, dtype=FLOAT64)[None]
    seen = ts.Measurement(lambda x: 0.5 * x, y, 0.4)
    level = FlowMatching().at(0.4)
    z = level.alpha * (MIX_TRUTH.sample(6, seed=0) - mean) / scale + level.sigma * 0.3
    data_level = FlowMatching().level(level.logsnr - 2 * math.log(scale))  # z = x + (sigma/alpha) n
    seen_z = (z / level.alpha * scale + mean) * data_level.alpha
    if method == "tilt":
        ours, theirs = ts.tilt(standardised, y[0]), ts.tilt(MIX, y[0])
    else:
        told = EXACT if method != "level" else {}
        ours = ts.posterior(standardised, seen, method, covariance=1.0, **told)
        theirs = ts.posterior(MIX, seen, method, covariance=scale**2, **told)
    got = standardised.unstandardise(ours(z, level).x)
    assert torch.allclose(got, theirs(seen_z, data_level).x, atol=1e-9)


def test_guidance_goes_inside_and_notation_outside():
    conditioned = ts.posterior(MIX, MIX_SEEN, **EXACT)
    level = FlowMatching().at(0.5)
    z = MIX_TRUTH.sample(4, seed=0, level=level)
    network = ts.convert(conditioned, output="v", schedule=ts.Cosine(-12, 12))
    back = ts.Denoiser(network, output="v", schedule=ts.Cosine(-12, 12))
    assert torch.allclose(back(z, level).x, conditioned(z, level).x, atol=1e-10)
    guided = ts.combined([(MIX, 2.0), (GAUSS, -1.0)])
    both = ts.posterior(guided, MIX_SEEN, "gaussian", covariance=1.0)(z, level)
    assert torch.allclose(level.mix(*both), z, atol=1e-12)


def test_any_differentiable_operator_is_linearised():
    bend = lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 1].sin()], 1)  # noqa: E731
    x, v = (
        torch.randn(5, 3, dtype=FLOAT64, generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    )
    here = linearise(bend, x)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda r: bend(r[None])[0], row) for row in x]
    )
    assert torch.allclose(here.forward(v), (jacobian @ v[..., None])[..., 0], atol=1e-12)
    u = v[:, :2]
    assert torch.allclose(here.adjoint(u), (jacobian.mT @ u[..., None])[..., 0], atol=1e-12)


def test_the_solver_solves_and_stops_at_negative_curvature():
    root = torch.randn(2, 6, 6, dtype=FLOAT64, generator=torch.Generator().manual_seed(0))
    good = root @ root.mT + 0.1 * torch.eye(6, dtype=FLOAT64)
    right = torch.ones(2, 6, dtype=FLOAT64)
    u = solve(lambda v: (good @ v[..., None])[..., 0], right, 1e-12, 40)
    assert torch.allclose((good @ u[..., None])[..., 0], right, atol=1e-9)
    bad = torch.stack([good[0], -good[1]])
    u = solve(lambda v: (bad @ v[..., None])[..., 0], right, 1e-12, 40)
    assert torch.allclose((bad[0] @ u[0]), right[0], atol=1e-9) and torch.equal(u[1], 0 * right[1])


def test_noise_that_depends_on_what_is_measured():
    """Counts: variance A(x), as one number for each; and tensors of deviations."""
    level, z = FlowMatching().at(0.3), MIX_TRUTH.sample(3, seed=0) * 0.7
    positive = lambda x: 5 + x[:, :2].abs()  # noqa: E731
    y = torch.tensor([[6.0, 5.5]], dtype=FLOAT64)
    x = MIX(z, level).x
    for noise in (torch.sqrt, lambda a: a.sqrt()):
        got = ts.posterior(MIX, ts.Measurement(positive, y, noise), "diffpir")(z, level).x
        for row in range(3):
            own = positive(x)[row].sqrt()
            alone = ts.Measurement(positive, y, own)
            want = ts.posterior(MIX, alone, "diffpir")(z[row : row + 1], level).x
            assert torch.allclose(got[row], want[0], atol=1e-6)


def test_a_physics_object_of_deepinv_is_a_measurement_as_it_is():
    A = torch.eye(8, dtype=FLOAT64)[:3]
    physics = SimpleNamespace(A=lambda x: x @ A.T, noise_model=SimpleNamespace(sigma=0.2))
    y, level, z = (
        torch.ones(1, 3, dtype=FLOAT64),
        FlowMatching().at(0.5),
        torch.ones(2, 8, dtype=FLOAT64),
    )
    got = ts.posterior(MIX, ts.Measurement(physics, y))(z, level)
    want = ts.posterior(MIX, ts.Measurement(lambda x: x @ A.T, y, 0.2))(z, level)
    assert torch.equal(got.x, want.x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in its own imports
def test_azula_solved_to_the_end_is_the_same():
    """Test 6: azula's MMPS at the same state; at its default of one iteration it is another."""
    guidance, denoise = (pytest.importorskip(f"azula.{name}") for name in ("guidance", "denoise"))
    noise, linalg = (
        pytest.importorskip(f"azula.{name}") for name in ("noise", "linalg.covariance")
    )

    class Exact(denoise.Denoiser):
        schedule = noise.RectifiedSchedule()

        def forward(self, x_t, t, **kwargs):
            return denoise.DiracPosterior(mean=MIX(x_t, at(t)).x)

    def at(t):
        alpha, sigma = (float(value) for value in Exact.schedule(t))
        return ts.schedules.Level(2 * math.log(alpha / sigma), alpha, sigma)

    t = torch.tensor(0.4, dtype=FLOAT64)
    z = MIX_TRUTH.sample(8, seed=0, level=at(t))
    seen = MIX_SEEN.value, MIX_SEEN.operator
    spread = linalg.IsotropicCovariance(float(MIX_SEEN.noise) ** 2)
    solved = guidance.MMPSDenoiser(Exact(), *seen, spread, solver="cg", iterations=8)(z, t).mean
    ours = ts.posterior(MIX, MIX_SEEN, **EXACT)(z, at(t)).x
    assert torch.allclose(ours, solved, atol=1e-10)
    one = guidance.MMPSDenoiser(Exact(), *seen, spread)(z, t).mean
    assert float((one - ours).abs().max()) > 1e-3


def test_the_published_strength_is_the_published_step():
    """zeta times the gradient of the residual's norm, taken from the state after a ddpm step."""
    plan, zeta = ts.plan("ddpm", ts.Cosine(-8, 8), 10), 0.3
    conditioned = ts.posterior(
        MIX, MIX_SEEN, "dps", strength=published_strength(plan, zeta), trust=-math.inf
    )
    k, z = 6, torch.randn(4, 8, dtype=FLOAT64, generator=torch.Generator().manual_seed(0))
    level, row = plan.levels[k], plan.rows[k + 1]
    leaf = z.clone().requires_grad_()
    residual = MIX_SEEN.residual(MIX_SEEN.predict(MIX(leaf, level).x)).norm(dim=1)
    (gradient,) = torch.autograd.grad(residual.sum(), leaf)
    ends = [row["x", k] * e.x + row["eps", k] * e.eps for e in conditioned.pair(z, level)]
    assert torch.allclose(ends[1], ends[0] - zeta * gradient, atol=1e-10)
    with pytest.raises(ValueError, match="makes no call"):
        conditioned(z, FlowMatching().at(0.123))


def test_refusals():
    y = torch.zeros(1, 8)
    with pytest.raises(ValueError, match="no method is called|method"):
        ts.posterior(MIX, MIX_SEEN, "mpms")
    with pytest.raises(ValueError, match="at least 0"):
        ts.Measurement(lambda x: x, y, -0.1)
    with pytest.raises(ValueError, match="rows"):
        ts.Measurement(lambda x: x, 0.5)
    with pytest.raises(ValueError, match="alone"):
        ts.Measurement(lambda x: x, y, log_likelihood=lambda x: x[:, 0])
    with pytest.raises(ValueError, match="dps"):
        ts.posterior(MIX, ts.Measurement(log_likelihood=lambda x: x[:, 0]))
    with pytest.raises(ValueError, match="one for each"):
        ts.posterior(MIX, ts.Measurement(lambda x: x, torch.zeros(3, 8), 0.1))(
            torch.zeros(2, 8), FlowMatching().at(0.5)
        )
    with pytest.raises(ValueError, match="batch normalisation"):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(8))
        denoiser = ts.Denoiser(SimpleTime(network))
        ts.posterior(denoiser, ts.Measurement(lambda x: x, y, 0.1))(
            torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), FlowMatching().at(0.5)
        )
    with pytest.raises(ValueError, match="covariance"):
        ts.posterior(MIX, MIX_SEEN, "gaussian", covariance=0.0)
    with pytest.raises(ValueError, match="symmetric with positive eigenvalues"):
        ts.posterior(MIX, MIX_SEEN, "gaussian", covariance=torch.eye(8) - 0.2)

    class Frozen:
        schedule = FlowMatching()

        @torch.no_grad()
        def __call__(self, z, level):
            return MIX(z, level)

    with pytest.raises(ValueError, match="no derivative"):
        ts.posterior(Frozen(), MIX_SEEN)(torch.zeros(2, 8).double(), FlowMatching().at(0.5))


class SimpleTime(torch.nn.Module):
    """A network that does not look at the time."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z, time):
        return self.network(z)
