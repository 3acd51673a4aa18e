"""The claims of "Diffusion Meets Flow Matching" [Gao+ 2024], each as a number.

A claim is a sentence and a function that measures how far it is from true. Errata are claims, too:
the corrected statement is checked, and the printed one is shown to be wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twosides import dynamics
from twosides.comparison import compare, total_variation
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.dynamics import FromSDE
from twosides.losses.recipes import recipes
from twosides.oracle import GaussianMixture
from twosides.outputs import OUTPUTS, F
from twosides.sampling.grids import Given
from twosides.sampling.named import plan
from twosides.sampling.noise import Churn, DDIMEta, EDMChurn, Eta, Step
from twosides.sampling.noise import convert as convert_noise
from twosides.sampling.plan import Plan
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Euler, EulerMaruyama
from twosides.schedules import Cosine, FlowMatching, Level, VPLinear

Float64 = torch.float64


@dataclass(frozen=True)
class Claim:
    """A sentence and how it is checked.

    text: the sentence.
    measure: measures how far it is from true.
    at_most: the largest value with which the sentence holds.
    at_least: the smallest value with which it holds, for sentences on what is not so.
    """

    text: str
    measure: Callable[[], float]
    at_most: float = math.inf
    at_least: float = -math.inf

    def check(self) -> Result:
        """Measure the claim."""
        value = float(self.measure())
        return Result(self, value, self.at_least <= value <= self.at_most)


@dataclass(frozen=True)
class Result:
    """A claim, its measured residual, and whether it holds."""

    claim: Claim
    residual: float
    passed: bool

    def __str__(self) -> str:
        """One line for a terminal."""
        claim = self.claim
        bound = f"<= {claim.at_most:.0e}" if claim.at_most < math.inf else f">= {claim.at_least:g}"
        return f"{'PASS' if self.passed else 'FAIL'}  {self.residual:9.2e} {bound:9}  {claim.text}"


CLAIMS: list[Claim] = []


def claim(text: str, **bound: float) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register a function as the measure of the next claim; `bound` is at_most= or at_least=."""

    def register(measure: Callable[[], float]) -> Callable[[], float]:
        CLAIMS.append(Claim(text, measure, **bound))
        return measure

    return register


def verify(tell: Callable[[int, Result], None] = lambda number, result: None) -> list[Result]:
    """Check every claim in order; `tell(number, result)` is called with each result."""
    results = []
    for number, each in enumerate(CLAIMS, 1):
        results.append(each.check())
        tell(number, results[-1])
    return results


def _times(count: int = 64) -> torch.Tensor:
    return torch.linspace(0.01, 0.99, count, dtype=Float64)


def _gap(a: Plan, b: Plan) -> float:
    return compare(a, b).difference


# ---------------------------------------------------------------------------- sampling


@claim("DDIM on the flow-matching schedule is flow matching's Euler step", at_most=1e-14)
def ddim_is_flow_euler() -> float:
    """The largest difference of the two plans' matrices, for 1 to 50 steps."""
    pairs = [
        (plan("ddim", FlowMatching(), n), plan("flow-euler", FlowMatching(), n))
        for n in (1, 10, 50)
    ]
    return max(_gap(a, b) for a, b in pairs)


@claim("DDIM does not depend on the scaling of z (flow, VP, an arbitrary one)", at_most=1e-13)
def ddim_ignores_scaling() -> float:
    """The largest difference of plans over rescalings of one schedule."""
    base = FlowMatching()
    others = (base.with_scaling("vp"), base.with_scaling(lambda s: 1.5 + torch.tanh(s / 3)))
    return max(_gap(plan("ddim", base, 20), plan("ddim", other, 20)) for other in others)


@claim("Euler on the probability-flow ODE does depend on the scaling of z", at_least=1e-2)
def pf_euler_depends_on_scaling() -> float:
    """The difference of the flow- and VP-scaled plans."""
    vp = FlowMatching().with_scaling("vp")
    return _gap(plan("pf-euler", FlowMatching(), 10), plan("pf-euler", vp, 10))


@claim("Euler on the ODE of the flow-matching schedule is DDIM", at_most=1e-14)
def pf_euler_on_flow() -> float:
    """The difference of the plans."""
    return _gap(plan("pf-euler", FlowMatching(), 10), plan("ddim", FlowMatching(), 10))


@claim("Euler in the frame of x, eps, v, u, score or F is DDIM", at_most=1e-13)
def every_frame_is_ddim() -> float:
    """The largest difference over outputs, on a grid whose ends are finite."""
    schedule = Cosine(-12, 12)
    frames = [*OUTPUTS.values(), F(1.3)]
    plans = [Sampler(solver=Euler(output)).plan(schedule, 20) for output in frames]
    return max(_gap(plan("ddim", schedule, 20), other) for other in plans)


@claim(
    "a network trained as diffusion (eps, VP) samples as flow matching, point by point",
    at_most=1e-12,
)
def converted_network_samples_alike() -> float:
    """The difference of samples of a random network by DDIM and, converted to u, by flow Euler."""
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=Float64)
    schedule = Cosine(-12, 12)

    def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ weight + t[:, None])

    diffusion = Denoiser(network, "eps", schedule)
    flow_schedule = schedule.with_scaling("flow")
    flow = Denoiser(convert(diffusion, "u", flow_schedule), "u", flow_schedule)
    options: dict[str, Any] = {"steps": 20, "seed": 0, "dtype": Float64}
    a = sample(diffusion, (16, 3), sampler="ddim", **options)
    b = sample(flow, (16, 3), sampler="flow-euler", **options)
    return float((a - b).abs().max() / a.abs().max())


@claim(
    "DDPM's step is DDIM to logsnr + 2 Delta, then forward diffusion back by Delta", at_most=1e-14
)
def ddpm_is_ddim_and_renoise() -> float:
    """The difference to the posterior of Ho+ 2020 (eq. 6-7), in its own alpha-bar arithmetic."""
    schedule, steps = VPLinear(), 25
    made = plan("ddpm", schedule, steps)
    bar = made.alpha**2
    ratio = bar[:-1] / bar[1:]
    mean_x = np.sqrt(bar[1:]) * (1 - ratio) / (1 - bar[:-1])
    mean_z = np.sqrt(ratio) * (1 - bar[1:]) / (1 - bar[:-1])
    variance = (1 - bar[1:]) / (1 - bar[:-1]) * (1 - ratio)
    rows = np.arange(1, steps)  # the last row's noise is zero
    x, eps, noise = (np.diag(t, -1)[rows - 1] for t in (made.x, made.eps, made.noise[:, 1:]))
    x_gap = x - (mean_x + mean_z * made.alpha[:-1])[:-1]
    eps_gap = eps - (mean_z * made.sigma[:-1])[:-1]
    noise_gap = noise - np.sqrt(variance)[:-1]
    return float(max(np.abs(gap).max() for gap in (x_gap, eps_gap, noise_gap)))


@claim(
    "churn c, SDE eta = sqrt(c/(1-c)) and EDM's gamma are coordinates of one step", at_most=1e-14
)
def noise_coordinates_agree() -> float:
    """The error of round trips through all coordinates, on steps of three schedules."""
    worst = 0.0
    for schedule in (FlowMatching(), Cosine(), VPLinear()):
        step = Step.between(schedule, 0.6, 0.57, steps=10)
        for fraction in (0.05, 0.3, 0.5):
            eta = convert_noise(Churn(fraction), Eta, step)
            back = convert_noise(convert_noise(eta, EDMChurn, step), Churn, step)
            gaps = (
                eta.at(step) - math.sqrt(fraction / (1 - fraction)),
                back.at(step) - fraction,
            )
            worst = max(worst, *map(abs, gaps))
    return worst


@claim("DDIM's eta equals the SDE's eta at 1 and for short steps only", at_least=1e-2)
def ddim_eta_is_not_eta() -> float:
    """The difference of the two etas for eta = 0.5 on a long step."""
    step = Step.between(FlowMatching(), 0.8, 0.4)
    return abs(convert_noise(DDIMEta(0.5), Eta, step).at(step) - 0.5)


@claim("every churn keeps the marginals in the limit: variance of Gaussian data", at_most=1e-4)
def churn_keeps_marginals() -> float:
    """The relative error of the variance after DDIM, churn 0.3 and DDPM, extrapolated in 1/n."""
    errors = []
    for noise in (Churn(0.0), Churn(0.3), Eta(1.0)):
        sampler = Sampler(stochasticity=noise)
        few, many = (
            _gaussian_variance(sampler.plan(Cosine(-15, 15), n), 0.25) for n in (1000, 2000)
        )
        errors.append(abs((2 * many - few) / 0.25 - 1))
    return max(errors)


def _gaussian_variance(made: Plan, variance: float) -> float:
    """The variance of the result for data N(0, variance), whose exact estimates are linear in z."""
    state = float(made.noise[0, 0] ** 2)
    for k, level in enumerate(made.levels[:-1]):
        total = level.alpha**2 * variance + level.sigma**2
        gain = (
            made.x[k + 1, k] * level.alpha * variance + made.eps[k + 1, k] * level.sigma
        ) / total
        state = gain**2 * state + float((made.noise[k + 1, 1:] ** 2).sum())
    return state


@claim("Euler-Maruyama is another discretisation: 20 steps differ from DDPM's", at_least=1e-2)
def euler_maruyama_differs() -> float:
    """The difference of the plans (the post's "recovers DDPM" needs the exponential form)."""
    schedule = Cosine(-15, 15)
    other = Sampler(solver=EulerMaruyama(), stochasticity=Eta(1.0)).plan(schedule, 20)
    return _gap(plan("ddpm", schedule, 20), other)


@claim(
    "erratum: DDIM weighs the v predictions equally only to 1.2 % (0.015506 to 0.015696)",
    at_most=1e-6,
)
def ddim_v_weights() -> float:
    """The distance of the extreme weights from the post's curve (100 steps, [-15, 15])."""
    weights = -plan("ddim", Cosine(-15, 15), 100).weights("v").predictions
    return max(abs(weights.min() - 0.015506), abs(weights.max() - 0.015696))


@claim("the post's churn curves: sums of the weights at churn 0, 0.1 ... 0.5", at_most=6e-4)
def churn_figure() -> float:
    """The largest distance from the published sums, which are given to three decimals."""
    published = (1.560, 1.608, 1.665, 1.734, 1.820, 1.930)
    gaps = []
    for tenth, total in enumerate(published):
        made = Sampler(stochasticity=Churn(tenth / 10)).plan(Cosine(-15, 15), 100)
        gaps.append(abs(-made.weights("v").predictions.sum() - total))
    return max(gaps)


@claim("erratum: a '6-step' sampler of the figures has 6 nodes, so 5 network calls", at_most=0)
def six_nodes_are_five_steps() -> float:
    """The calls of the DDIM plan on the figures' nodes, linspace(1, 0, 6), minus 5."""
    nodes = Given.times(FlowMatching(), torch.linspace(1, 0, 6).tolist())
    return float(Sampler(grid=nodes).plan(FlowMatching(), 5).nfe - 5)


@claim("flow matching is straight for one data point: one Euler step is exact", at_most=1e-14)
def straight_for_a_point() -> float:
    """The error of one flow-matching step to a single point."""
    point = GaussianMixture.gaussian([0.7, -0.2], 1e-30 * np.eye(2))
    x = sample(point, (8, 2), sampler="flow-euler", steps=1, seed=0, dtype=Float64)
    return float((x - torch.tensor([0.7, -0.2], dtype=Float64)).abs().max())


@claim("VP is the straighter one for unit-variance data: its velocity vanishes", at_most=1e-14)
def vp_straight_for_unit_variance() -> float:
    """The largest probability-flow velocity on N(0, 1) data, VP cosine."""
    data, schedule = GaussianMixture.gaussian([0.0], np.eye(1)), Cosine()
    z = torch.linspace(-3, 3, 7, dtype=Float64)[:, None]
    return max(float(data.velocity(z, schedule, float(t)).abs().max()) for t in _times(9))


# ---------------------------------------------------------------------------- training


@claim(
    "flow matching's weighting is v-prediction's on the cosine schedule, times pi/2", at_most=1e-12
)
def flow_weighting_is_v_cosine() -> float:
    """The largest relative deviation of the ratio of weightings from pi/2 on [-15, 15]."""
    grid = torch.linspace(-15, 15, 1001, dtype=Float64)
    ratio = recipes["flow-matching"].weighting.log(grid) - recipes["v-cosine"].weighting.log(grid)
    return float((ratio.exp() / (math.pi / 2) - 1).abs().max())


@claim("the loss of every output is the eps loss times kappa", at_most=1e-12)
def losses_convert() -> float:
    """The deviation of squared errors from kappa |eps_hat - eps|^2, for six outputs."""
    generator = torch.Generator().manual_seed(0)
    x, eps, wrong = (torch.randn(16, 5, generator=generator, dtype=Float64) for _ in range(3))
    level, worst = Cosine().at(_times(16)), 0.0
    z = level.mix(x, eps)
    for output in (*OUTPUTS.values(), F(1.7)):
        guess = output.of(x, eps, level) + wrong
        error = (output.estimate(z, guess, level).eps - eps) ** 2
        worst = max(worst, float((output.kappa(level)[:, None] * error / wrong**2 - 1).abs().max()))
    return worst


@claim("the training schedule does not change the loss, only its variance", at_most=1e-9)
def loss_ignores_training_density() -> float:
    """The spread of the integral of w E|eps_hat - eps|^2, by quadrature through four densities."""
    recipe = recipes["sd3"]

    def error(logsnr: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-logsnr / 2) * torch.sigmoid(2 + logsnr / 3)

    bell = torch.linspace(-8, 8, 4001, dtype=Float64)  # u = Phi(bell) resolves both tails
    mass, u = (-0.5 * bell**2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(bell)
    losses = []
    for name in ("sd3", "edm", "flow-matching", "v-cosine"):
        density = recipes[name].density
        logsnr = density.logsnr(u)
        weight = (recipe.weighting.log(logsnr) - density.log_prob(logsnr)).exp()
        losses.append(float(torch.trapezoid(mass * weight * error(logsnr), bell)))
    return (max(losses) - min(losses)) / losses[0]


@claim("erratum: the time integral needs -dlogsnr/dt, which is positive", at_most=1e-12)
def loss_needs_minus_sign() -> float:
    """The relative difference of the time and log-SNR integrals of one weighting."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(400))
    schedule, t, logsnr = Cosine(-8, 8), 0.5 + 0.5 * nodes, 8 * nodes
    over_time = torch.sigmoid(2 - schedule.logsnr(t)) * -schedule.dlogsnr(t) * 0.5
    over_logsnr = torch.sigmoid(2 - logsnr) * 8
    return abs(float((weights * over_time).sum() / (weights * over_logsnr).sum()) - 1)


@claim("SD3's weighting and EDM's are close: total variation 0.093", at_most=5e-4)
def sd3_is_close_to_edm() -> float:
    """The distance of the measured total variation from 0.093."""
    grid = torch.linspace(-40, 30, 70_001, dtype=Float64)
    sd3, edm = (recipes[name].weighting.log(grid) for name in ("sd3", "edm"))
    return abs(total_variation(sd3, edm, grid) - 0.093)


# ---------------------------------------------------------------------------- schedules, dynamics


@claim(
    "a shifted schedule (SD3, FLUX) is logsnr plus a constant: t' = s t / (1 + (s - 1) t)",
    at_most=1e-14,
)
def shift_is_a_constant() -> float:
    """The distance of the shifted schedule's times from the formula, s = 3."""
    t = _times()
    moved = FlowMatching().time(FlowMatching().shifted(3.0).logsnr(t))
    return float((moved - 3 * t / (1 + 2 * t)).abs().max())


@claim("(alpha, sigma, epsilon) -> (f, g, eta) -> back is the identity", at_most=1e-12)
def dynamics_round_trip() -> float:
    """The relative error of alpha, sigma and epsilon, from f and g by quadrature."""
    worst, t = 0.0, _times()
    for schedule in (FlowMatching(), Cosine(), VPLinear()):
        process = dynamics.Dynamics.of(schedule, epsilon=lambda t: 0.3 + t)
        back = process.schedule()
        pairs = ((back.alpha(t), schedule.alpha(t)), (back.sigma(t), schedule.sigma(t)))
        worst = max(worst, *(float((a / b - 1).abs().max()) for a, b in pairs))
        worst = max(worst, float((process.epsilon(t) / (0.3 + t) - 1).abs().max()))
    return worst


@claim(
    "erratum: sigma_t from (f, g) as printed lacks alpha_t: 58.84 times too large at t = 0.9 "
    "(VP-linear)",
    at_most=5e-3,
)
def printed_sigma_lacks_alpha() -> float:
    """Distance of the ratio of (int g^2 exp(-2 int f))^(1/2) to sigma_t from 58.84 (quadrature)."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))
    schedule, t = VPLinear(), 0.9
    s = 0.5 * t * (nodes + 1)
    integrand = dynamics.g(schedule, s) ** 2 * schedule.alpha(s) ** -2  # exp(-2 int f)
    printed = (0.5 * t * (weights * integrand).sum()).sqrt()
    return abs(float(printed / schedule.at(t).sigma) - 58.84)


@claim("erratum: sigma_t from (f, g) with the factor alpha_t is exact", at_most=1e-13)
def corrected_sigma() -> float:
    """The relative error of alpha_t (int g^2 / alpha^2)^(1/2), by quadrature."""
    t = torch.linspace(0.01, 0.99, 90, dtype=Float64)
    made = FromSDE(lambda t: -0.05 - 9.95 * t, lambda t: (0.1 + 19.9 * t).sqrt())
    return float((made.sigma(t) / VPLinear().sigma(t) - 1).abs().max())


@claim("erratum: the factor from flow to VP is 1/sqrt((1-t)^2 + t^2), with the root", at_most=1e-14)
def vp_factor_has_a_root() -> float:
    """The deviation of the VP-scaled flow schedule from (1 - t, t) times the factor."""
    t = _times()
    factor = ((1 - t) ** 2 + t**2) ** -0.5
    level = FlowMatching().with_scaling("vp").at(t)
    gaps = (level.alpha - factor * (1 - t), level.sigma - factor * t)
    return max(float(gap.abs().max()) for gap in gaps)


@claim("erratum: without the root alpha^2 + sigma^2 reaches 2", at_least=0.99)
def printed_vp_factor() -> float:
    """The deviation of alpha^2 + sigma^2 from 1 with the factor as printed, at t = 1/2."""
    printed = FlowMatching().with_scaling(lambda logsnr: _flow_norm(logsnr) ** -1)
    level = printed.at(0.5)
    return abs(float(level.alpha**2 + level.sigma**2) - 1)


def _flow_norm(logsnr: torch.Tensor) -> torch.Tensor:
    """The norm sqrt((1 - t)^2 + t^2); the printed factor times this is its inverse."""
    level = FlowMatching().level(logsnr)
    return torch.hypot(level.alpha, level.sigma)


@claim("u, v, eps, x and score are one network: conversions round-trip", at_most=1e-12)
def outputs_round_trip() -> float:
    """The error of converting every output to (x, eps) and back, on random pairs."""
    generator = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(64, 4, generator=generator, dtype=Float64) for _ in range(2))
    worst = 0.0
    for schedule in (FlowMatching(), Cosine()):
        level: Level = schedule.at(_times())
        z = level.mix(x, eps)
        for output in (*OUTPUTS.values(), F(0.5)):
            back = output.estimate(z, output.of(x, eps, level), level)
            scale = torch.stack([z.abs(), x.abs(), eps.abs()]).amax()
            tame = (level.alpha[:, None] * (back.x - x)).abs() / scale
            worst = max(worst, float(tame.max()))
    return worst


# ---------------------------------------------------------------------------- reflow


@claim("rectified flow: the ODE's coupling costs less than the independent one", at_most=0.2)
def reflow_saves_cost() -> float:
    """E|x - eps|^2 of both, as a ratio, for the ring of eight modes."""
    ring, noise = GaussianMixture.ring(8), _noise(256, 2)
    x = sample(ring, noise.shape, sampler="rk4", steps=24, init=noise, dtype=Float64)
    independent = float(ring.covariance.trace() + ring.mean.square().sum()) + 2.0
    return float((x - noise).square().sum(1).mean()) / independent


@claim("after reflow one Euler step is the ODE", at_most=1e-3)
def reflow_reproduces_pairs() -> float:
    """Largest distance of one step, with the exact E[eps - x | z] of the ODE's pairs."""
    noise, end = _noise(200, 1), _ends(_BEFORE, "rk4", 200)
    once = sample(_after(), noise.shape, steps=1, init=noise, dtype=Float64)
    return float((once - end).abs().max())


@claim("... which it is not before", at_least=0.5)
def euler_before_reflow() -> float:
    """The same distance for the mixture itself."""
    return float((_ends(_BEFORE, "ddim", 1) - _ends(_BEFORE, "rk4", 200)).abs().max())


@claim("... and the cost of its coupling is that of before", at_most=1e-4)
def reflow_keeps_cost() -> float:
    """Relative difference of E|x - eps|^2 along the ODEs before and after."""
    noise = _noise(200, 1)
    costs = [(_ends(d, "rk4", 50) - noise).square().mean() for d in (_BEFORE, _after())]
    return abs(float(costs[1] / costs[0] - 1))


@claim("... while its paths are straight, E int |u - (z_1 - z_0)|^2 dt falls", at_most=1e-4)
def reflow_straightens() -> float:
    """The ratio of this integral after and before."""
    after, before = (_bent(denoiser) for denoiser in (_after(), _BEFORE))
    return after / before


def _noise(count: int, dims: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, dims, generator=generator, dtype=Float64)


def _ends(denoiser: Any, sampler: str, steps: int) -> torch.Tensor:
    """Where the ODE of a denoiser goes from 200 noises of one dimension."""
    noise = _noise(200, 1)
    return sample(denoiser, noise.shape, sampler=sampler, steps=steps, init=noise, dtype=Float64)


def _bent(denoiser: Any, steps: int = 50) -> float:
    """`E int |u - (z_1 - z_0)|^2 dt` along the ODE of a denoiser."""
    noise = _noise(200, 1)
    run = sample(
        denoiser,
        noise.shape,
        sampler="rk4",
        steps=steps,
        init=noise,
        dtype=Float64,
        trajectory=True,
    )
    way = noise - run.sample
    us = [estimate.eps - estimate.x for estimate in run.predictions[::4]]  # at the nodes
    return float(torch.stack([(u - way).square().mean() for u in us]).mean())


class _Reflowed(torch.nn.Module):
    """E[eps - x | z] of the pairs that a mixture's ODE joins in one dimension, exactly.

    There the ODE's map T is increasing, so that z = (1 - t) T(eps) + t eps tells eps: it is found
    between the points of a table, which is linear beyond its ends.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.eps = torch.linspace(-6, 6, 8001, dtype=Float64)
        run = {"sampler": "rk4", "steps": 200, "init": self.eps[:, None], "dtype": Float64}
        self.x = sample(mixture, (len(self.eps), 1), **run)[:, 0]

    def forward(self, z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = float(time[0])
        states = (1 - t) * self.x + t * self.eps
        return _between(z.reshape(-1), states, self.eps - self.x).reshape(z.shape)


def _between(at: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of values at increasing places."""
    right = torch.searchsorted(places, at.contiguous()).clamp(1, len(places) - 1)
    low, high = places[right - 1], places[right]
    return torch.lerp(values[right - 1], values[right], (at - low) / (high - low))


_BEFORE = GaussianMixture([0.3, 0.7], [[-1.2], [0.9]], [[[0.09]], [[0.25]]])


@functools.cache
def _after() -> Denoiser:
    return Denoiser(_Reflowed(_BEFORE), "u", FlowMatching())
