"""Bugs of other libraries' samplers: each stated in a few lines, shown to be wrong, and not ours.

What is wrong is measured against the truth: the probability-flow ODE of a mixture, the exact
standard deviation of samples of Gaussian data, or integrals that are known.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from twosides import dynamics
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.oracle import GaussianMixture
from twosides.sampling.grids import Given, Grid, Karras, ShiftedGrid, ThenData, Uniform, UniformTime
from twosides.sampling.named import sampler_named
from twosides.sampling.noise import EDMChurn, Eta
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams, Euler, EulerMaruyama, RungeKutta
from twosides.schedules import (
    Cosine,
    FlowMatching,
    FromFunctions,
    Geometric,
    Level,
    ScaledLinear,
    Schedule,
)

FLOAT64 = torch.float64
FLOW, VP, VE = (FlowMatching().with_scaling(scaling) for scaling in ("flow", "vp", "ve"))
MIXTURE = GaussianMixture(
    [0.3, 0.7],
    [[-1.0, 0.4], [0.8, -0.3]],
    [[[0.20, 0.05], [0.05, 0.10]], [[0.10, -0.02], [-0.02, 0.30]]],
)
STD = 0.5
GAUSSIAN = GaussianMixture.gaussian([0.0], [[STD**2]])
POINT = GaussianMixture.gaussian([0.0], [[0.0]])  # its marginals are N(0, sigma^2)
NOISE = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
INSIDE = UniformTime(start=0.98, end=0.02)  # where every frame is smooth
PLAIN: dict[str, Any] = {"corrected_start": False, "limit": math.inf}  # Adams as published
NODES, WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(30))
NODES = NODES + 0.5  # of an integral over [0, 1]

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers and NumPy

# ---------------------------------------------------------------------------- truth


def size(level: Level) -> float:
    """The standard deviation of z if data and noise have 1; noise starts with this."""
    return math.hypot(level.alpha, level.sigma)


@functools.cache
def solution(start: Level, end: Level) -> torch.Tensor:
    """The probability-flow ODE's from NOISE at a level to another, to 1e-7."""
    grid = Uniform("angle", start.logsnr, end.logsnr)
    plan = Sampler(grid, RungeKutta("rk4", "u")).plan(VP, 100)
    return run(plan, MIXTURE, NOISE) * size(end)


def rms(z: torch.Tensor) -> float:
    return float(z.square().mean().sqrt())


def slope(steps: tuple[int, ...], errors: list[float]) -> float:
    """The power of 1 / steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def error(sampler: str | Sampler, steps: int, schedule: Schedule = FLOW) -> float:
    """Of our sampler on the mixture, at the end of its grid."""
    plan = sampler_named(sampler).plan(schedule, steps)
    return rms(run(plan, MIXTURE, NOISE) - solution(plan.levels[0], plan.levels[-1]))


Step = Callable[[torch.Tensor, Level, Level], torch.Tensor]


def error_of(step: Step, grid: Grid, steps: int, schedule: Schedule = FLOW) -> float:
    """Of a step z, here, there -> z that is re-stated in a test."""
    levels = Sampler(grid).levels(schedule, steps)
    z = NOISE * size(levels[0])
    for here, there in itertools.pairwise(levels):
        z = step(z, here, there)
    return rms(z - solution(levels[0], levels[-1]))


def marginal(level: Level, data: GaussianMixture) -> float:
    """The standard deviation of z for centred Gaussian data."""
    return math.hypot(level.alpha * math.sqrt(float(data.covariance)), level.sigma)


def one_hot(count: int) -> tuple[torch.Tensor, Any]:
    """Noises as unit vectors: row j of a linear run's state is then the coefficient of noise j."""
    first, *rest = torch.eye(count, dtype=FLOAT64)[..., None]
    return first, iter(rest)


def spread(
    sampler: str | Sampler, steps: int, schedule: Schedule = FLOW, data: Any = GAUSSIAN
) -> float:
    """The standard deviation of our samples from exact noise, over what it should be. No sampling."""
    sampler = sampler_named(sampler)
    plan, start = sampler.plan(schedule, steps), sampler.levels(schedule, steps)[0]
    first, draws = one_hot(plan.noise.shape[1])
    z = run(plan, data, first * marginal(start, data) / size(start), lambda: next(draws))
    return float(z.norm()) / marginal(plan.levels[-1], data)


def spread_of(step: Any, grid: Grid, steps: int, schedule: Schedule = FLOW) -> float:
    """The same of a step z, here, there, noise -> z that is re-stated in a test."""
    levels = Sampler(grid).levels(schedule, steps)
    first, draws = one_hot(steps + 1)
    z = first * marginal(levels[0], GAUSSIAN)
    for here, there in itertools.pairwise(levels):
        z = step(z, here, there, next(draws))
    return float(z.norm()) / marginal(levels[-1], GAUSSIAN)


@pytest.fixture
def diffusers() -> Any:
    module = pytest.importorskip("diffusers", reason="the bug is shown in diffusers itself")
    module.logging.set_verbosity_error()
    return module


@pytest.fixture
def their_spread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same of a diffusers scheduler's loop."""

    def after_loop(scheduler: Any, space: str, data: Any = GAUSSIAN, **options: Any) -> float:
        scheduler.sigmas = scheduler.sigmas.double()
        first, draws = one_hot(2 * len(scheduler.timesteps) + 1)
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
        levels = [level_of(float(sigma), space) for sigma in scheduler.sigmas]
        z = first * marginal(levels[0], data)
        for t, level in zip(scheduler.timesteps, levels, strict=False):
            if space == "ve":
                scheduler.scale_model_input(z, t)
            output = data.predict(z, level, "u" if space == "flow" else "eps")
            z = scheduler.step(output, t, z, **options).prev_sample
        return float(z.norm()) / marginal(levels[-1], data)

    return after_loop


def level_of(sigma: float, space: str) -> Level:
    """A diffusers sigma as a level: sigma of flow matching, or sigma / alpha."""
    if space == "flow":
        return Level(0.0, 1 - sigma, sigma)
    alpha = 1.0 if space == "ve" else 1 / math.hypot(1, sigma)
    return Level(0.0, alpha, alpha * sigma)


# ---------------------------------------------------------------------------- DPM-Solver


def history(x: Callable[[Any], Any], h: float) -> tuple[list[float], list[float], float]:
    """Half log-SNRs -2h, -h, 0, h; x at the first three; int e^(l - h) x(l) dl from 0 to h."""
    nodes = [-2 * h, -h, 0.0, h]
    integral = float(h * WEIGHTS @ (np.exp(h * (NODES - 1)) * x(h * NODES)))
    return nodes, [float(x(node)) for node in nodes[:3]], integral


def our_integral(rule: str, nodes: list[float], x: list[float]) -> float:
    """The same from the last row of a plan: what it adds to (sigma_s / sigma_t) z, over alpha_s."""
    solver = Adams(3, "x", "logsnr", rule=rule, **PLAIN)
    plan = Sampler(Given(tuple(2 * node for node in nodes)), solver).plan(VP, 3)
    weights = plan.x[3] - plan.eps[3] * plan.alpha[:3] / plan.sigma[:3]
    return float(weights @ x) / plan.alpha[3]


def their_integral(diffusers: Any, nodes: list[float], x: list[float]) -> float:
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3)
    scheduler.set_timesteps(3)
    scheduler.sigmas, scheduler._step_index = torch.tensor(nodes, dtype=FLOAT64).neg().exp(), 2
    calls = list(torch.tensor(x, dtype=FLOAT64))
    moved = scheduler.multistep_dpm_solver_third_order_update(calls, sample=0 * calls[0])
    return float(moved) * math.hypot(1, scheduler.sigmas[3])


def test_dpm_solver_pp_3m_quadratic_term(diffusers):
    """DPM-Solver++(3M) halves its quadratic term: parabolas are not exact, an order is lost.

    So in dpm_solver_pytorch, diffusers, k-diffusion (3m_sde) and diff-sampler.
    """
    nodes, x, exact = history(lambda node: 1 + 0.7 * node - 2 * node**2, 0.5)
    assert abs(our_integral("exact", nodes, x) - exact) < 1e-14
    assert abs(their_integral(diffusers, nodes, x) - exact) > 0.01
    assert abs(our_integral("published", nodes, x) - their_integral(diffusers, nodes, x)) < 1e-13
    gaps: dict[str, list[float]] = {"ours": [], "theirs": []}
    for h in (0.02, 0.01, 0.005):
        nodes, x, exact = history(lambda node: np.sin(2 * node + 0.7), h)
        gaps["ours"].append(abs(our_integral("exact", nodes, x) - exact))
        gaps["theirs"].append(abs(their_integral(diffusers, nodes, x) - exact))
    assert slope((1, 2, 4), gaps["ours"]) == pytest.approx(4, abs=0.2)  # of one step
    assert slope((1, 2, 4), gaps["theirs"]) == pytest.approx(3, abs=0.2)


def noisy_dpm(diffusers: Any, grid: Grid, steps: int, **config: Any) -> Any:
    """diffusers' DPM-Solver with noise on a grid."""
    ends = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = diffusers.DPMSolverMultistepScheduler(**ends, **config)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = (-0.5 * grid.logsnrs(VP, steps)).exp()
    return scheduler


def test_diffusers_sde_dpmsolver_pp_order_3(diffusers, their_spread):
    """Its quadratic coefficient tends to -1 for short steps instead of 0: order 1."""
    grid, steps = Uniform("logsnr", -6, 6), (80, 160, 320)
    config = {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}
    theirs = [their_spread(noisy_dpm(diffusers, grid, n, **config), "vp") - 1 for n in steps]
    third = Sampler(grid, sampler_named("dpmpp-3m-sde").solver, Eta(1.0))
    ours = [spread(third, n, VP) - 1 for n in steps]
    assert slope(steps, theirs) == pytest.approx(1, abs=0.2)
    assert slope(steps, ours) == pytest.approx(2, abs=0.2)
    assert ours[0] < theirs[0] / 20


@pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning")
def test_diffusers_sde_dpmsolver_variance(diffusers, their_spread):
    """Noise prediction with noise: too much of it, by 2 (e^h - 1)^2, even where x is known."""
    h = 0.6
    grid, config = Given((0.0, 2 * h)), {"algorithm_type": "sde-dpmsolver"}
    theirs = their_spread(noisy_dpm(diffusers, grid, 1, **config), "vp", POINT)
    assert theirs**2 == pytest.approx(1 + 2 * math.expm1(h) ** 2, rel=1e-6)
    ours = spread(Sampler(grid, stochasticity=Eta(1.0)), 1, VP, POINT)
    assert ours == pytest.approx(1, rel=1e-14)


def test_sana_91_dpmpp_on_uniform_flow_time():
    """DPM-Solver++(2M) on uniform t to 1e-3 extrapolates over the last step, which is long.

    The published cure is a first-order last step; Adams on u needs none.
    """
    grid, midpoint = UniformTime(end=1e-3), Adams(2, "x", "logsnr", rule="midpoint", **PLAIN)
    for steps in (5, 10):
        bold = error(Sampler(grid, midpoint), steps)
        assert bold > 1.5 * error("ddim", steps)
        assert bold > 4 * error("dpmpp-2m", steps)
        assert bold > 8 * error("kab2", steps)


def test_diffusers_duplicated_last_sigma(diffusers, their_spread):
    """Karras sigmas with final_sigmas_type="sigma_min" end in a step of length 0, then NaN."""
    ends = {"final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_type": "heun"}
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **ends)
    scheduler.set_timesteps(20)
    assert math.isnan(their_spread(scheduler, "vp"))
    nodes = tuple((-2 * scheduler.sigmas.log()).tolist())
    with pytest.raises(ValueError, match="nodes must increase"):
        Sampler(Given(nodes), sampler_named("res-2m").solver).plan(VP, 20)


# ---------------------------------------------------------------------------- other multistep


def test_azula_reab_sigma():
    """REABSampler ends in sqrt(alpha_s^2 + sigma_t^2) times its integral, where sigma_s is meant."""

    def rotation(scale: Callable[[Level, Level], float]) -> Step:
        past: list[tuple[float, torch.Tensor]] = []

        def step(z, here, there):
            past.append((here.logsnr, MIXTURE.predict(z, here, "v")))
            (l0, v0), (l1, v1) = past[-1], past[-2] if past[1:] else (here.logsnr + 1, past[-1][1])
            gain, angle = there.logsnr - l0, lambda logsnr: np.arctan(np.exp(-logsnr / 2))
            turn, mean = angle(l0 + gain) - angle(l0), WEIGHTS @ angle(l0 + gain * NODES)
            integral = turn * v0 + gain * (angle(l0 + gain) - mean) / (l0 - l1) * (v0 - v1)
            return z + scale(here, there) * integral

        return step

    steps = (20, 40, 80)
    wrong, right = (
        [error_of(rotation(scale), INSIDE, n, VP) for n in steps]
        for scale in (lambda t, s: math.hypot(s.alpha, t.sigma), lambda t, s: size(s))
    )
    assert slope(steps, wrong) == pytest.approx(1, abs=0.2)
    assert slope(steps, right) == pytest.approx(2, abs=0.4)
    ours = [error(Sampler(INSIDE, Adams(2, "v", "logsnr")), n, VP) for n in steps]
    assert slope(steps, ours) == pytest.approx(2, abs=0.4)
    assert ours[-1] < wrong[-1] / 5


def stork(stages: int) -> tuple[float, float]:
    """What STORK-2's stages add in the end, as weights of dt v and dt^2 v'.

    The Runge-Kutta-Gegenbauer recursion, with velocities v + c dt v' that ignore the stage itself.
    """
    b = [1, 1 / 3]
    b += [4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3)) for j in range(2, 99)]
    unit, span = 6 / ((stages + 4) * (stages - 1)), stages**2 + stages - 2
    before, last = np.zeros(2), np.array([unit, 0.0])
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b[j] / (j * b[j - 1]), -(j + 1) * b[j] / (j * b[j - 2])
        at = 4 / (3 * span) if j == 2 else ((j - 1) ** 2 + j - 3) / span
        own = mu * unit * np.array([j * (j + 1) * b[j - 1] / 2, at])
        before, last = last, mu * last + nu * before + own
    return tuple(last)


def test_stork2_slope_weight():
    """STORK-2 is a linear multistep whose slope weighs .460 (8 stages), .490 (50): order 1."""
    for stages, weight in ((8, 0.460), (50, 0.490)):
        assert stork(stages) == pytest.approx((1.0, weight), abs=1e-3)
    plan = sampler_named("kab2").plan(FLOW, 10)
    assert plan.eps[5, 3] * 10 == pytest.approx(0.5)  # of u before: dt^2 u' / 2 for dt = -1/10

    def with_slope(weight: float) -> Step:
        past: list[tuple[float, torch.Tensor]] = []

        def step(z, here, there):
            past.append((here.sigma, MIXTURE.predict(z, here, "u")))
            (t, u), (before, old) = past[-1], past[-2] if past[1:] else (1.0, past[-1][1])
            dt = there.sigma - t
            return z + dt * (u + weight * dt * (u - old) / (t - before))

        return step

    steps = (80, 160, 320)
    errors = {w: [error_of(with_slope(w), INSIDE, n) for n in steps] for w in (stork(8)[1], 0.5)}
    assert slope(steps, errors[0.5]) == pytest.approx(2, abs=0.2)
    assert slope(steps, errors[stork(8)[1]]) == pytest.approx(1, abs=0.3)


# ---------------------------------------------------------------------------- Runge-Kutta


def test_azula_heun_on_flow_worse_than_euler():
    """HeunSampler steps in sigma / alpha on flow matching's uniform t: worse than half the calls.

    The same rule in u, where that grid is uniform, is what Heun means there.
    """
    grid = UniformTime(start=0.999, end=0.001)  # azula's RectifiedSchedule

    def heun(z, here, there):
        change = there.sigma / there.alpha - here.sigma / here.alpha
        first = MIXTURE(z, here).eps
        there_too = MIXTURE(there.alpha * (z / here.alpha + change * first), there).eps
        return there.alpha * (z / here.alpha + change * (first + there_too) / 2)

    for steps in (5, 10):
        theirs, euler = error_of(heun, grid, steps), error("ddim", steps)
        assert theirs == pytest.approx(
            error(Sampler(grid, RungeKutta("heun", "eps", limit=math.inf)), steps)
        )
        assert theirs > 4 * euler
        assert error("flow-heun", steps) < euler / 3


def test_torchdyn_rk4_first_order():
    """rk4's nodes are off by one, (0, 1/2, 1/2) for (1/2, 1/2, 1): first order where u sees t."""

    def rk4(nodes: tuple[float, ...]) -> Step:
        def step(z, here, there):
            dt = there.sigma - here.sigma
            k, total = torch.zeros_like(z), torch.zeros_like(z)
            stages = zip((0, *nodes), (0, 0.5, 0.5, 1), (1, 2, 2, 1), strict=True)
            for node, length, share in stages:
                level = FLOW.at(here.sigma + node * dt).floats()
                k = MIXTURE.predict(z + length * dt * k, level, "u")
                total = total + share * k
            return z + dt * total / 6

        return step

    steps = (10, 20, 40)
    theirs = [error_of(rk4((0, 0.5, 0.5)), INSIDE, n) for n in steps]
    ours = [error(Sampler(INSIDE, RungeKutta("rk4", "u")), n) for n in steps]
    assert slope(steps, theirs) == pytest.approx(1, abs=0.1)
    assert slope(steps, ours) == pytest.approx(4, abs=0.3)
    assert error_of(rk4((0.5, 0.5, 1)), INSIDE, 10) == pytest.approx(ours[0], rel=1e-9)


# ---------------------------------------------------------------------------- noise


def test_hackable_diffusion_addim():
    """AdjustedDDIMStep scales x by alpha_t where its paper has alpha_s: it never converges."""
    noise = torch.tensor([[NormalDist().inv_cdf((i + 0.5) / 2000)] for i in range(2000)]).double()

    def addim(steps: int, wrong: bool) -> float:
        z = noise
        for t, s in itertools.pairwise(np.linspace(1, 0, steps + 1)):
            here, there = Level(0.0, 1 - t, t), Level(0.0, 1 - s, s)
            x, eps = GAUSSIAN(z, here)
            lost = (there.alpha - here.alpha * s / t) ** 2 * 0.1 / (2 + (here.alpha / t) ** 2)
            longer = (s**2 + lost / eps.square().mean()).sqrt()
            z = (here if wrong else there).alpha * x + longer * eps
        return float(z.std()) / STD

    assert addim(40, True) < 0.7 and addim(320, True) < 0.7
    assert addim(320, False) == pytest.approx(1, abs=0.02)
    assert spread("ddim", 320) == pytest.approx(1, abs=0.01)


def test_smalldiffusion_ddpm_on_flow():
    """samples(mu=0.5) adds noise as if alpha stayed 1, to a flow model too: the wrong spread."""

    def step(z, here, there, noise):
        low = there.sigma**2 / here.sigma
        z = z - (here.sigma - low) * GAUSSIAN.predict(z, here, "u")
        return z + math.sqrt(there.sigma**2 - low**2) * noise

    assert spread_of(step, UniformTime(), 320) > spread_of(step, UniformTime(), 40) > 1.2
    assert spread("ddpm", 40) == pytest.approx(1, abs=0.1)
    assert spread("ddpm", 320) == pytest.approx(1, abs=0.02)


def reverse_sde(pull: Callable[[float, float], float]) -> Any:
    """Euler-Maruyama on flow matching: `z + (pull z + g^2 score) dt + g sqrt(dt) n`."""

    def step(z, here, there, noise):
        t, dt = here.sigma, here.sigma - there.sigma
        g2 = 2 * t / (1 - t)
        drift = pull(t, g2) * z + g2 * GAUSSIAN.score(z, here)
        return z + drift * dt + math.sqrt(g2 * dt) * noise

    return step


def test_jcopo_euler_maruyama_on_flow():
    """The drift is g^2 (z / 2 + score) for every process: right for VP, where -f = g^2 / 2."""
    grid = UniformTime(start=0.999, end=0.001)
    ours = Sampler(grid, EulerMaruyama(), Eta(1.0))
    for steps in (40, 320):
        assert spread_of(reverse_sde(lambda t, g2: g2 / 2), grid, steps) < 0.75
        right = spread_of(reverse_sde(lambda t, g2: 1 / (1 - t)), grid, steps)
        assert spread(ours, steps) == pytest.approx(right, rel=1e-6)
        assert right == pytest.approx(1, abs=0.01)


def test_jcopo_edm_g():
    """EDM.sde_coefficients says g = 1 for sigma = t; it is sqrt(2 t)."""
    straight = FromFunctions(torch.ones_like, lambda t: t)
    for t in (0.1, 0.5, 0.9):
        assert float(dynamics.g(straight, t)) == pytest.approx(math.sqrt(2 * t), rel=1e-9)


def test_sit_default_sde_nan():
    """sample_sde() of a velocity model starts at zero SNR, where its diffusion is infinite: NaN.

    Ours refuses there, says where to start, and offers the exact step, which is finite.
    """
    t = torch.tensor(0.0)  # SiT's time of pure noise
    sigma, velocity = 1 - t, -MIXTURE.predict(NOISE, FLOW.at(1.0), "u")
    diffusion = sigma**2 / t + sigma
    score = (t * velocity - NOISE) / (sigma**2 + t * sigma)
    assert not (velocity + diffusion * score).isfinite().any()
    with pytest.raises(ValueError, match=r"UniformTime\(start=0.999\), or use DDIM"):
        Sampler(solver=EulerMaruyama(), stochasticity=Eta(1.0)).plan(FLOW, 20)
    inside = Sampler(UniformTime(start=0.999), EulerMaruyama(), Eta(1.0))
    assert sample(MIXTURE, (4, 2), sampler=inside, seed=0).isfinite().all()
    assert sample(MIXTURE, (4, 2), sampler="ddpm", seed=0).isfinite().all()


def test_hackable_diffusion_ve_prior_scale():
    """sample_from_invariant is N(0, 1) for every process; a VE one starts at sigma(1)."""
    for schedule in (Geometric(), FLOW, VP):
        plan = sampler_named("ddim").plan(schedule, 3)
        start = schedule.at(1.0)
        assert plan.noise[0, 0] == pytest.approx(math.hypot(start.alpha, start.sigma))
    assert sampler_named("ddim").plan(Geometric(), 3).noise[0, 0] > 10


def test_diffusers_euler_churn_after_the_network(diffusers, their_spread):
    """EulerDiscrete raises the noise after the network has seen the state without it."""
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    scheduler.sigmas = torch.tensor([2.0, 1.0])
    assert their_spread(scheduler, "ve", POINT, s_churn=0.3) > 1.5
    churned = Sampler(Given.sigmas([2.0, 1.0]), Euler("eps"), EDMChurn(0.3))
    assert spread(churned, 1, VE, POINT) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("FlowMatchHeunDiscreteScheduler", {}, {"s_churn": 8.0}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ],
)
def test_diffusers_noise_on_flow(diffusers, their_spread, name, config, options):
    """Churn without rescaling, and full renoising, leave the data's distribution at any step count.

    Ours has an order for noise that keeps it, and 0 for full renoising.
    """
    for steps in (40, 160):
        scheduler = getattr(diffusers, name)(**config)
        scheduler.set_timesteps(steps)
        assert abs(their_spread(scheduler, "flow", **options) - 1) > 0.2
    assert spread("ddpm", 160) == pytest.approx(1, abs=0.03)
    assert sampler_named("consistency").order == 0 and sampler_named("ddpm").order == 1


# ---------------------------------------------------------------------------- ends and schedules


def test_kdiffusion_sigma_inf_nan():
    """d = (z - x) / sigma is NaN at sigma = inf, where flow matching starts."""
    sigma, after, x = torch.tensor(math.inf), torch.tensor(9.0), MIXTURE(NOISE, FLOW.at(1.0)).x
    z = NOISE * sigma
    assert (z + (z - x) / sigma * (after - sigma)).isnan().all()
    grid = Given.sigmas([math.inf, 9.0, 3.0, 1.0, 0.3, 0.0])
    for name in ("edm-euler", "euler-a", "heun", "dpmpp-2m", "lms"):
        preset = sampler_named(name)
        plan = Sampler(grid, preset.solver, preset.stochasticity).plan(VP, 5)
        draws = iter(torch.zeros(9, 64, 2))
        assert run(plan, MIXTURE, NOISE, lambda draws=draws: next(draws)).isfinite().all(), name


def test_nvlabs_edm_one_step():
    """i / (num_steps - 1) of EDM's grid is 0 / 0 for one step."""
    assert (torch.arange(1) / (1 - 1)).isnan().all()
    start, end = Karras().logsnrs(VE, 1).tolist()
    assert start == pytest.approx(-2 * math.log(80)) and end == math.inf


def test_flow_matching_transformed_model_end_point():
    """ScheduleTransformedModel divides by sigma = 0 at the data: NaN, or garbage from rounding.

    Its formulas, u(z, r) = s'/s z + t' s u(z / s, t), in float32 as it runs; time 1 is the data.
    """

    def parts(alpha, sigma, dalpha, dsigma):
        t = (alpha / sigma) / (1 + alpha / sigma)
        scale, dt = sigma / (1 - t), (1 - t) ** 2 * (sigma * dalpha - alpha * dsigma) / sigma**2
        return t, scale, dt, ((1 - t) * dsigma + sigma * dt) / (1 - t) ** 2

    def velocity(z, r):
        turn = torch.pi / 2 * torch.tensor(r)
        sine, cosine = turn.sin(), turn.cos()
        t, scale, dt, dscale = parts(sine, cosine, torch.pi / 2 * cosine, -torch.pi / 2 * sine)
        u = -MIXTURE.predict(z / scale, Level(0.0, float(t), float(1 - t)), "u")
        return dscale * z / scale + dt * scale * u

    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert all(part.isnan() for part in parts(one, zero, one, -one))  # LinearVP, VP at the data
    z = NOISE.float()
    for r, after in itertools.pairwise(np.linspace(0, 1, 21)):
        first = velocity(z, r)
        z = z + (after - r) * (first + velocity(z + (after - r) * first, after)) / 2
    assert rms(z) > 1e3
    assert error(Sampler(solver=RungeKutta("heun", "u")), 20, Cosine()) < 0.02
    assert error(Sampler(solver=RungeKutta("heun", "v")), 20, Cosine()) < 0.02


def test_azula_sd_velocity_skip():
    """c_skip = alpha / n for v-networks, n^2 = alpha^2 + sigma^2, holds for VP only; it is / n^2."""
    trained = Cosine()
    denoiser = Denoiser(convert(MIXTURE, "v", trained), "v", trained)
    for schedule in (VP, FLOW, VE):
        level = schedule.at(0.4).floats()
        n, z = size(level), NOISE * size(level)
        v = MIXTURE.predict(z / n, VP.level(level.logsnr), "v")
        x, theirs = MIXTURE(z, level).x, level.alpha / n * z - level.sigma / n * v
        assert torch.allclose(denoiser(z, level).x, x, atol=1e-9)
        assert torch.allclose(theirs, x, atol=1e-9) == (schedule is VP)


def test_diffusers_ddim_zero_snr_epsilon(diffusers):
    """DDIM with an eps-network from zero SNR divides by alpha = 0 without a word."""
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    first = scheduler.timesteps[0]
    assert scheduler.step(NOISE, first, NOISE).prev_sample.isnan().all()
    table = ScaledLinear(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="says nothing about the data at zero SNR"):
        sample(Denoiser(lambda z, t: z, "eps", table), (4, 2), seed=0)


def test_diffusers_integer_timesteps_on_flow(diffusers):
    """Flow timesteps are cut to integers: networks see other times than the solver's, some twice."""
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 30.0}
    scheduler = diffusers.DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(50)
    assert len(set(scheduler.timesteps.tolist())) < 50
    assert (scheduler.timesteps / 1000 - scheduler.sigmas[:-1]).abs().max() > 9e-4
    asked: list[float] = []

    def network(z, t):
        asked.append(float(t[0]))
        return z

    sigmas = scheduler.sigmas.double()
    grid = Given.times(FLOW, sigmas.tolist())
    plan = Sampler(grid, sampler_named("dpmpp-2m").solver).plan(FLOW, 50)
    run(plan, Denoiser(network, "u", FLOW, "t"), NOISE)
    assert torch.allclose(torch.tensor(asked).double(), sigmas[:-1], atol=1e-12)


def test_diffusers_flow_match_euler_double_shift(diffusers):
    """set_timesteps(n) shifts the last time again, which was shifted already."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    even = torch.linspace(1, 1e-3, 10, dtype=FLOAT64)
    meant = 3 * even / (1 + 2 * even)
    assert float(scheduler.sigmas[-2]) == pytest.approx(3 * float(meant[-1]), rel=0.01)
    nodes = ThenData(ShiftedGrid(UniformTime(end=1e-3), 3.0)).logsnrs(FLOW, 10)
    assert torch.allclose(FLOW.time(nodes)[:-1], meant, atol=1e-12)
