"""The schedulers of diffusers against ours in one run: same noise, same network, same states.

Each scheduler is driven by its own loop with the exact denoiser of a mixture. Its sigmas are our
grid, its injected noise is ours, and the states at every network call and the result must agree.
`ROWS` says which of our samplers a scheduler is. Its coefficients are computed in float64 where
they come from an attribute (`sigmas`, `alphas_cumprod`), so that what is left is rounding:

    FLOAT64   nothing else in the scheduler is rounded
    FLOAT32   it rounds the state or a table to float32 in each step: 6e-8, times up to 50 where
              steps are long or two close numbers are subtracted
    NODE      its inner nodes are float32, ours are the middle (or thirds) of the step: 6e-8 of a
              node, and the state is of second order in that

Not here: `DPMSolverSDEScheduler` and `CosineDPMSolverMultistepScheduler` need torchsde, and
`sde-dpmsolver` (noise prediction with noise) is a sampler of another variance, see test_peer_bugs.
"""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from instances import published as published_name
from twosides.oracle import GaussianMixture
from twosides.sampling.grids import Given, Uniform
from twosides.sampling.named import sampler_named
from twosides.sampling.noise import Deterministic, Eta, Rectified, Tau
from twosides.sampling.plan import Plan
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams, Euler, RungeKutta, Tableau
from twosides.schedules import FlowMatching, Level, ScaledLinear, Schedule

diffusers = pytest.importorskip("diffusers", reason="parity with diffusers needs diffusers")
lms = pytest.importorskip("diffusers.schedulers.scheduling_lms_discrete")
diffusers.logging.set_verbosity_error()
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # NumPy on torch tensors
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]

# ---------------------------------------------------------------------------- the table

FLOAT64, NODE, FLOAT32 = 1e-11, 1e-7, 5e-6
FEW, MANY = (4, 9, 14), (15, 30)  # lower_order_final acts below 15 steps


def adams(order: int, output: str, noise: Any = None, **options: Any) -> Sampler:
    """A multistep sampler in logsnr as it was published: Euler first, nothing left out."""
    solver = Adams(order, output, "logsnr", corrected_start=False, limit=math.inf, **options)
    return Sampler(solver=solver, stochasticity=noise or Deterministic())


def published(name: str) -> Sampler:
    return sampler_named(published_name(name))


class Row(NamedTuple):
    """What a scheduler of diffusers is here."""

    scheduler: str  # its name without "Scheduler"
    config: dict[str, Any]
    ours: str | Sampler
    space: str  # the coordinates of z: VP, VE (sigma / alpha), EDM (VE with an F network) or flow
    tolerance: float
    steps: tuple[int, ...] = (4, 9, 20)
    per_step: int = 1  # their steps in one of ours
    options: dict[str, Any] = {}  # noqa: RUF012  of its `step`


NO_CLIP = {"clip_sample": False}
LARGE = {**NO_CLIP, "variance_type": "fixed_large"}
LOWER, SAME = {"lower_order_final": True}, {"lower_order_final": False}
EPS = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
HEUN, THIRD = {"solver_type": "heun"}, {"solver_order": 3}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
UNIFORM = {"use_exponential_sigmas": True}  # uniform in logsnr: the nodes in between are the middle
ALL3 = Tableau(3, (1 / 3, 2 / 3), ((0,), (0, 1), (0, 1, 2)))
VP, VE, EDM = "vp", "ve", "edm"

ROWS = {
    "ddim": Row("DDIM", NO_CLIP, "ddim", VP, FLOAT64),
    "ddim-0.5": Row("DDIM", NO_CLIP, "ddim(0.5)", VP, FLOAT64, options={"eta": 0.5}),
    "ddim-1": Row("DDIM", NO_CLIP, "ddim(1)", VP, FLOAT64, options={"eta": 1.0}),
    "ddim-1-is-ddpm": Row("DDIM", NO_CLIP, "ddpm", VP, FLOAT64, options={"eta": 1.0}),
    "ddpm-small": Row("DDPM", NO_CLIP, "ddpm", VP, FLOAT64),
    "ddpm-large": Row("DDPM", LARGE, "ddpm-large", VP, FLOAT64),
    # sigma / alpha coordinates
    "euler": Row("EulerDiscrete", {}, "edm-euler", VE, FLOAT32),
    "euler-karras": Row("EulerDiscrete", {"use_karras_sigmas": True}, "edm-euler", VE, FLOAT32),
    "euler-a": Row("EulerAncestralDiscrete", {}, "euler-a", VE, FLOAT32),
    "heun": Row("HeunDiscrete", {}, "heun", VE, FLOAT64),
    "heun-karras": Row("HeunDiscrete", {"use_karras_sigmas": True}, "heun", VE, FLOAT64),
    "lms": Row("LMSDiscrete", {}, published("lms"), VE, FLOAT64),
    "kdpm2": Row("KDPM2Discrete", {}, "dpm-2", VE, FLOAT32),
    "kdpm2-a": Row("KDPM2AncestralDiscrete", {}, "dpm-2-a", VE, FLOAT32),
    # DPM-Solver(++), multistep
    "dpm++1": Row("DPMSolverMultistep", {"solver_order": 1}, "ddim", VP, FLOAT32),
    "dpm++2m": Row("DPMSolverMultistep", {}, published("dpmpp-2m"), VP, FLOAT32),
    "dpm++2m-heun": Row("DPMSolverMultistep", HEUN, published("res-2m"), VP, FLOAT32),
    "dpm++2m-flow": Row("DPMSolverMultistep", FLOW, published("dpmpp-2m"), "flow", FLOAT32),
    "dpm++2m-flow-shift": Row("DPMSolverMultistep", {**FLOW, "flow_shift": 3.0}, published("dpmpp-2m"), "flow", FLOAT32),
    "dpm++3m-few": Row("DPMSolverMultistep", THIRD, published("dpmpp-3m"), VP, FLOAT32, FEW),
    "dpm++3m-many": Row("DPMSolverMultistep", THIRD, adams(3, "x", rule="published"), VP, FLOAT32, MANY),
    "dpm-2m": Row("DPMSolverMultistep", {**EPS, **SAME}, published("dpm-2m"), VP, FLOAT32),
    "dpm-2m-few": Row("DPMSolverMultistep", EPS, adams(2, "eps", rule="midpoint", **LOWER), VP, FLOAT32, FEW),
    "dpm-3m": Row("DPMSolverMultistep", {**EPS, **SAME, **THIRD}, adams(3, "eps", rule="published"), VP, FLOAT32),
    "sde-dpm++1": Row("DPMSolverMultistep", {**SDE, "solver_order": 1}, "ddpm", VP, FLOAT32),
    "sde-dpm++2m": Row("DPMSolverMultistep", SDE, published("dpmpp-2m-sde"), VP, FLOAT32),
    "sde-dpm++2m-heun": Row("DPMSolverMultistep", {**SDE, **HEUN}, adams(2, "x", Eta(1.0)), VP, FLOAT32),
    "sde-dpm++2m-flow": Row("DPMSolverMultistep", {**SDE, **FLOW}, published("dpmpp-2m-sde"), "flow", FLOAT32),
    # DPM-Solver++, single step: two or three of their steps are one of ours
    "dpm++2s": Row("DPMSolverSinglestep", UNIFORM, "dpmpp-2s", VP, NODE, (3, 9, 21), 2),
    "dpm++2s-heun": Row("DPMSolverSinglestep", {**UNIFORM, **HEUN}, "res-2s", VP, NODE, (3, 9, 21), 2),
    "dpm++3s": Row("DPMSolverSinglestep", {**UNIFORM, **THIRD}, Sampler(solver=RungeKutta("heun3", "x", "logsnr", math.inf)), VP, NODE, (4, 10, 22), 3),
    "dpm++3s-heun": Row("DPMSolverSinglestep", {**UNIFORM, **THIRD, **HEUN}, Sampler(solver=RungeKutta(ALL3, "x", "logsnr", math.inf)), VP, NODE, (4, 10, 22), 3),
    # UniPC, DEIS; SA-Solver has tests of its own
    "unipc": Row("UniPCMultistep", {}, published("unipc"), VP, FLOAT64),
    "unipc-3": Row("UniPCMultistep", THIRD, published("unipc-3"), VP, FLOAT64),
    "unipc-flow": Row("UniPCMultistep", {**FLOW, "flow_shift": 3.0}, published("unipc"), "flow", FLOAT64),
    "unipc-eps": Row("UniPCMultistep", {"predict_x0": False, "final_sigmas_type": "sigma_min"}, adams(2, "eps", corrector=3, rule="midpoint", **LOWER), VP, FLOAT64),
    "deis-2": Row("DEISMultistep", SAME, adams(2, "eps"), VP, FLOAT64),
    "deis-3": Row("DEISMultistep", {**THIRD, **SAME}, adams(3, "eps"), VP, FLOAT64),
    "deis-3-few": Row("DEISMultistep", THIRD, published("deis"), VP, FLOAT64, FEW),
    "sa-eps": Row("SASolver", {"algorithm_type": "noise_prediction", "predictor_order": 3, "corrector_order": 4, "tau_func": lambda _: torch.tensor(0.0)}, adams(3, "eps", corrector=4, **LOWER), VP, FLOAT64),
    # EDM's coordinates and network
    "edm-euler": Row("EDMEuler", {}, "edm-euler", EDM, FLOAT32),
    "edm-dpm++2m": Row("EDMDPMSolverMultistep", {}, published("dpmpp-2m"), EDM, FLOAT64),
    "edm-dpm++2m-heun": Row("EDMDPMSolverMultistep", HEUN, published("res-2m"), EDM, FLOAT64),
    "edm-dpm++3m": Row("EDMDPMSolverMultistep", THIRD, published("dpmpp-3m"), EDM, FLOAT64, FEW),
    "edm-sde-dpm++2m": Row("EDMDPMSolverMultistep", SDE, published("dpmpp-2m-sde"), EDM, FLOAT64),
    # flow matching, from zero SNR
    "flow-euler": Row("FlowMatchEulerDiscrete", {}, "flow-euler", "flow", FLOAT32),
    "flow-euler-shift": Row("FlowMatchEulerDiscrete", {"shift": 3.0}, "flow-euler", "flow", FLOAT32),
    "flow-euler-stochastic": Row("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "consistency", "flow", FLOAT32),
    "flow-heun": Row("FlowMatchHeunDiscrete", {}, "flow-heun", "flow", FLOAT32),
    "flow-heun-shift": Row("FlowMatchHeunDiscrete", {"shift": 3.0}, "flow-heun", "flow", FLOAT32),
    "ltx-euler-a": Row("LTXEulerAncestralRF", {}, published("euler-a-rf"), "flow", FLOAT32),
    "ltx-euler-a-0.5": Row("LTXEulerAncestralRF", {"eta": 0.5}, Sampler(solver=Euler("u"), stochasticity=Rectified(0.5)), "flow", FLOAT32),
}  # fmt: skip

# ---------------------------------------------------------------------------- one run of each

DATA = GaussianMixture(
    [0.3, 0.7],
    [[-1.0, 0.4], [0.8, -0.3]],
    [[[0.20, 0.05], [0.05, 0.10]], [[0.10, -0.02], [-0.02, 0.30]]],
)
SCHEDULES = {
    VP: FlowMatching().with_scaling("vp"),
    VE: FlowMatching().with_scaling("ve"),
    EDM: FlowMatching().with_scaling("ve"),
    "flow": FlowMatching(),
}
SCHEDULES["v"] = SCHEDULES[VP]
PREDICTS = {VP: "eps", VE: "eps", EDM: "F(0.5)", "flow": "u", "v": "v"}


def named(scheduler: str, config: dict[str, Any]) -> Any:
    own = {"LMSDiscrete": lms.LMSDiscreteScheduler}  # diffusers hides it where scipy is missing
    return (own.get(scheduler) or getattr(diffusers, f"{scheduler}Scheduler"))(**config)


def prepared(row: Row, steps: int) -> Any:
    scheduler = named(row.scheduler, row.config)
    scheduler.set_timesteps(steps)
    for table in ("sigmas", "alphas_cumprod"):
        if hasattr(scheduler, table):
            setattr(scheduler, table, getattr(scheduler, table).double())
    return scheduler


def ratios(scheduler: Any, space: str) -> list[float]:
    """sigma / alpha of each network call, and of the result."""
    calls = len(scheduler.timesteps)
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod[scheduler.timesteps]
        return [*((1 - kept) / kept).sqrt().tolist(), 0.0]
    sigmas = scheduler.sigmas[: calls + 1]
    return (sigmas / (1 - sigmas) if space == "flow" else sigmas).tolist()


def asked(scheduler: Any, space: str) -> list[float]:
    """sigma / alpha of each network call, the inner ones of KDPM2 included."""
    outer = ratios(scheduler, space)[:-1]
    if not hasattr(scheduler, "sigmas_interpol"):
        return outer
    lag = isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler)
    inner = scheduler.sigmas_interpol.tolist()
    return [inner[i - lag] if i % 2 else ratio for i, ratio in enumerate(outer)]


def shown(ratio: float, space: str) -> Level:
    """The level of what `scale_model_input` returns."""
    logsnr, data = -2 * math.log(ratio), 0.5 if space == EDM else 1.0
    if space == "flow":
        return Level(logsnr, 1 / (1 + ratio), 1 / (1 + 1 / ratio))
    return Level(logsnr, 1 / math.hypot(data, ratio), 1 / math.hypot(data / ratio, 1))


def theirs(scheduler: Any, space: str, z: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """The states of the scheduler's own loop: at each call, and the result."""
    states = [z]
    for t, ratio in zip(scheduler.timesteps, asked(scheduler, space), strict=True):
        scale = getattr(scheduler, "scale_model_input", lambda z, _: z)
        output = DATA.predict(scale(z, t), shown(ratio, space), PREDICTS[space])
        z = scheduler.step(output, t, z, **options).prev_sample
        states.append(z)
    return states


def our_plan(sampler: str | Sampler, nodes: list[float], space: str, per_step: int = 1) -> Plan:
    """Our sampler on the scheduler's nodes; those asked twice or inside a step count once."""
    outer = list(dict.fromkeys(nodes))
    outer = outer[:-1:per_step] + outer[-1:]
    sampler = replace(sampler_named(published_name(sampler)), grid=Given.sigmas(outer))
    return sampler.plan(SCHEDULES[space], len(outer) - 1)


def run_states(plan: Plan, initial: torch.Tensor, draws: Any) -> list[torch.Tensor]:
    """The states of a plan's run: at each call, and the result."""
    states: list[torch.Tensor] = []
    last = run(plan, DATA, initial, lambda: next(draws), watch=lambda call: states.append(call.z))
    return [*states, last]


def worst(these: list[torch.Tensor], those: list[torch.Tensor]) -> float:
    """The largest difference of two runs' states, relative to the size of the state."""
    assert len(these) == len(those)
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(these, those, strict=True)]
    return float(torch.stack(gaps).max())


def noises(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 32, 2, generator=generator, dtype=torch.float64)


def solution(nodes: list[float], space: str, noise: torch.Tensor) -> torch.Tensor:
    """The probability-flow ODE's, to 1e-7: classical Runge-Kutta in u."""
    ends = (-2 * math.log(ratio) if ratio else math.inf for ratio in (nodes[0], nodes[-1]))
    fine = Sampler(Uniform("angle", *ends), RungeKutta("rk4", "u"))
    return run(fine.plan(SCHEDULES[space], 100), DATA, noise)


def rms(z: torch.Tensor) -> float:
    return float(z.square().mean().sqrt())


def slope(steps: tuple[int, ...], errors: list[float]) -> float:
    """The power of 1 / steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a scheduler draw its noise from an iterator."""

    def use(scheduler: Any, draws: Any) -> None:
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws), raising=False)

    return use


def gauss(function: Any, start: Any, end: Any, **_: Any) -> tuple[float]:
    """scipy's quad, exact for the cubics that LMS integrates; scipy may be missing."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    half, middle = float(end - start) / 2, float(end + start) / 2
    at = zip(nodes, weights, strict=True)
    return (half * sum(weight * float(function(middle + half * node)) for node, weight in at),)


@pytest.mark.parametrize(
    ("name", "steps"), [(name, n) for name, row in ROWS.items() for n in row.steps]
)
def test_same_run(name, steps, draw, monkeypatch):
    """The scheduler and the sampler of its row are one sampler."""
    monkeypatch.setattr(lms, "integrate", SimpleNamespace(quad=gauss), raising=False)
    row, noise = ROWS[name], noises(2 * steps + 2)
    scheduler = prepared(row, steps)
    draw(scheduler, iter(noise[1:]))
    plan = our_plan(row.ours, ratios(scheduler, row.space), row.space, row.per_step)
    start = noise[0] * plan.noise[0, 0]
    one = theirs(scheduler, row.space, start, **row.options)
    two = run_states(plan, noise[0], iter(noise[1:]))
    assert worst(one, two) < row.tolerance


# ---------------------------------------------------------------------------- SA-Solver


def without_its_extra_term(scheduler: Any) -> Any:
    """SA-Solver less what its code adds where two calls are combined.

    A line through two calls weighs `k h^2 / 2` there instead of its integral, k = 1 + tau^2 and h
    half the log-SNR gained (UniPC calls this B(h) = h): third order in h.
    """
    own = scheduler.get_coefficients_fn

    def coefficients(order, start, end, nodes, tau):
        values = own(order, start, end, nodes, tau)
        if order == 2:
            k, h = 1 + tau**2, end - start
            integral = (h * k - 1 + torch.exp(-h * k)) / k**2
            extra = torch.exp(k * end) * (h**2 / 2 - integral) / (nodes[0] - nodes[1])
            values[0], values[1] = values[0] - extra, values[1] + extra
        return values

    scheduler.get_coefficients_fn = coefficients
    return scheduler


def sa_run(config: dict[str, Any], ours: Sampler, schedule: Schedule, steps: int, draw: Any):
    """The states of SA-Solver without its extra term, and ours."""
    noise = noises(steps + 2)
    scheduler = without_its_extra_term(prepared(Row("SASolver", config, ours, VP, FLOAT64), steps))
    draw(scheduler, iter(noise[1:]))
    grid = Given.sigmas(ratios(scheduler, VP))
    plan = replace(ours, grid=grid).plan(schedule, steps)
    one = theirs(scheduler, VP, noise[0] * plan.noise[0, 0])
    # Theirs draws noise for steps of tau = 0 too.
    used = [
        n for t, n in zip(scheduler.timesteps, noise[1:], strict=False) if config["tau_func"](t)
    ]
    return one, run_states(plan, noise[0], iter(used))


@pytest.mark.parametrize("steps", [4, 9, 20])
@pytest.mark.parametrize(
    "orders", [(1, 2), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 4)], ids=str
)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_sa_solver(tau, orders, steps, draw):
    """Predictor order p is Adams(p), corrector order c is corrector=c: calls, the new one included.

    For c <= p + 1: beyond, theirs uses calls that the predictor did not, and ours does not.
    """
    predictor, corrector = orders
    config = {"predictor_order": predictor, "corrector_order": corrector}
    config["tau_func"] = lambda _: torch.tensor(tau, dtype=torch.float64)
    ours = adams(predictor, "x", Tau(tau), corrector=corrector, **LOWER)
    assert worst(*sa_run(config, ours, SCHEDULES[VP], steps, draw)) < FLOAT64


@pytest.mark.parametrize("steps", [5, 20])
def test_sa_solver_with_its_own_tau(steps, draw):
    """tau is 1 for the indices 200 ... 800 of DDPM's table, 0 elsewhere: the preset's."""
    config = {"predictor_order": 3, "corrector_order": 3, **SAME}
    config["tau_func"] = lambda t: torch.tensor(float(200 <= t <= 800), dtype=torch.float64)
    table = ScaledLinear(1e-4, 0.02, power=1)
    assert worst(*sa_run(config, published("sa-solver"), table, steps, draw)) < FLOAT64


def test_sa_solvers_extra_term_is_of_third_order(draw):
    """It changes the result by h^2 in all, and with tau = 0 away from the ODE's solution."""
    config = {"tau_func": lambda _: torch.tensor(0.0), "use_karras_sigmas": True}
    gaps, (noise,) = [], noises(1)
    for steps in (24, 48, 96):
        scheduler = prepared(Row("SASolver", config, adams(2, "x"), VP, FLOAT64), steps + 1)
        # With Karras sigmas the last level comes twice; a step of length 0 is undefined.
        scheduler.sigmas, scheduler.timesteps = scheduler.sigmas[:-1], scheduler.timesteps[:-1]
        nodes = ratios(scheduler, VP)
        draw(scheduler, iter(noises(steps)))
        plan = our_plan(adams(2, "x", corrector=2, **LOWER), nodes, VP)
        one = theirs(scheduler, VP, noise * plan.noise[0, 0])[-1]
        two, exact = run(plan, DATA, noise), solution(nodes, VP, noise)
        assert rms(one - exact) > 2 * rms(two - exact)
        gaps.append(rms(one - two))
    assert slope((24, 48, 96), gaps) == pytest.approx(2, abs=0.4)


# ---------------------------------------------------------------------------- documented differences


def ipndm(steps: int, first: int) -> Any:
    """IPNDM from its level number `first`, with tables in float64."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = (1 - scheduler.betas**2).sqrt()
    scheduler.set_begin_index(first)
    scheduler.timesteps = scheduler.timesteps[first:]
    scheduler.sigmas = (scheduler.betas / scheduler.alphas)[first:]
    return scheduler


@pytest.mark.parametrize("steps", [4, 9, 20])
def test_ipndm_from_its_second_level(steps):
    """Adams with the weights of equal steps, on eps."""
    scheduler, noise = ipndm(steps, 1), noises(1)[0]
    plan = our_plan(published("ipndm"), ratios(scheduler, "v"), "v")
    one = theirs(scheduler, "v", noise * plan.noise[0, 0])
    assert worst(one, run_states(plan, noise, iter(()))) < FLOAT64


def test_ipndm_ignores_its_network_at_zero_snr():
    """Its grid starts at alpha = 0, where it takes x from 0 / 1e-8; ours takes the network's x."""
    scheduler, noise = ipndm(20, 0), noises(1)[0]
    nodes = ratios(scheduler, "v")
    assert nodes[0] == math.inf
    plan = our_plan(published("ipndm"), nodes, "v")
    one, two = theirs(scheduler, "v", noise), run_states(plan, noise, iter(()))
    alpha, sigma = plan.alpha[1], plan.sigma[1]
    x = DATA(noise, plan.levels[0]).x
    assert torch.allclose(one[1], sigma * noise, atol=1e-12)
    assert torch.allclose(two[1], sigma * noise + alpha * x, atol=1e-12)
    exact = solution(nodes, "v", noise)
    assert rms(one[-1] - exact) > 1.5 * rms(two[-1] - exact)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 8), ("linspace", 40), ("trailing", 7)])
def test_ddim_steps_beside_the_next_level(spacing, steps):
    """diffusers' DDIM steps by 1000 // n, whatever the spacing says.

    The network of a single data point keeps the state on its straight line from noise to data, for
    DDIM at any number of steps. Theirs hands the network states of another level.
    """
    point = GaussianMixture.gaussian([0.5, -1.0], torch.zeros(2, 2))
    scheduler = named("DDIM", {**NO_CLIP, "timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    nodes, noise = ratios(scheduler, VP), noises(1)[0]
    levels = [shown(ratio, VP) for ratio in nodes[:-1]]
    z, beside = levels[0].mix(point.mean, noise), []
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        beside.append(rms(z - level.mix(point.mean, noise)))
        z = scheduler.step(point(z, level).eps, t, z).prev_sample
    plan = our_plan("ddim", nodes, VP)
    eps = (levels[0].mix(point.mean, noise)) / plan.noise[0, 0]
    states: list[torch.Tensor] = []
    run(plan, point, eps, watch=lambda call: states.append(call.z))
    gaps = [rms(z - level.mix(point.mean, noise)) for z, level in zip(states, levels, strict=True)]
    assert max(beside) > 1e-3 > 1e-9 > max(gaps)
