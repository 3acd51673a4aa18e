"""Stated orders are measured, and stochastic samplers reach the data's distribution."""

import inspect
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twosides.comparison import compare
from twosides.oracle import GaussianMixture
from twosides.outputs import Estimate
from twosides.reports.orders import SCHEDULES, _variance_error, inside, measured_order
from twosides.sampling.grids import UniformTime
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.noise import (
    ER,
    Churn,
    DDIMEta,
    Deterministic,
    Diffusion,
    EDMChurn,
    Epsilon,
    Eta,
    Langevin,
    LargeVariance,
    Rectified,
    Tau,
)
from twosides.sampling.plan import Plan
from twosides.sampling.presets import kappa_adams, samplers
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import (
    BDIA,
    TABLEAUS,
    Adams,
    RungeKutta,
    Tableau,
    walk,
)
from twosides.schedules import EDM, Cosine, FlowMatching, VPLinear

FLOAT64 = torch.float64
PAGE = Path(__file__).parents[2] / "docs/samplers.md"
DISTINCT = {name: sampler for name, sampler in reversed(samplers.items())}
DISTINCT = {name: each for name, each in DISTINCT.items() if each.order}
DISTINCT = {
    name: each
    for name, each in DISTINCT.items()
    if name == next(key for key in samplers if samplers[key] is each)
}


def table(text: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first name."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].split(",")[0].strip(): [cell.strip() for cell in cells] for cells in rows[2:]}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[str]]:
    """The command of the documentation, run as its reader would."""
    command = [sys.executable, "-m", "twosides.cli", "samplers", "--measure", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return table(done.stdout)


# Where a sampler looks better than it is in the limit: the first step, which is of lower order, lies
# at so much noise that the estimate hardly changes.
FLAT = {("unipc-3", "edm"): 4, ("lms", "edm"): 4}


def slow_to_settle(sampler, schedule):
    """Whether the order shows at many steps only, where the tests below measure it.

    Equal steps in logsnr, or in the number of the step, on a grid with infinite ends have errors
    like h^2 log h. A multistep solver with noise is of order 2 with a small coefficient: its
    third-order part still shows at the hundreds of steps of the table.
    """
    if sampler.stochastic:
        return isinstance(sampler.solver, Adams)
    infinite = math.isinf(sampler.levels(schedule, 2)[-1].logsnr)
    return infinite and getattr(sampler.solver, "variable", None) in ("logsnr", "index")


SLOW = [
    (name, key)
    for name, each in DISTINCT.items()
    for key, schedule in SCHEDULES.items()
    if slow_to_settle(each, schedule)
]


@pytest.mark.parametrize("name", DISTINCT)
def test_every_preset_has_its_order(name, measured):
    """Within 0.2 on its own grid on flow matching, cosine and EDM, and as the documentation says."""
    sampler = DISTINCT[name]
    found = [float(value) for value in measured[name][4].split(", ")]
    for (key, schedule), value in zip(SCHEDULES.items(), found, strict=True):
        order = sampler.order if sampler.stochastic else sampler.order_on(schedule)
        wanted = FLAT.get((name, key), order)
        if (name, key) not in SLOW:
            assert value == pytest.approx(wanted, abs=0.2), (key, found)
    documented = table(PAGE.read_text(encoding="utf-8"))[name]
    assert found == pytest.approx([float(value) for value in documented[4].split(", ")], abs=0.03)


def end_error(sampler, schedule, steps, variance=0.25):
    """The relative error of the end point for Gaussian data, where the network is a number.

    z stays on the exact solution when it stays proportional to its standard deviation.
    """
    levels = [level.floats() for level in sampler.levels(schedule, steps)]
    spread = [math.sqrt(level.alpha**2 * variance + level.sigma**2) for level in levels]
    route = sampler.stochasticity.route(schedule, levels)
    asks = walk(sampler.solver, spread[0], route, (levels[0], levels[-1]), lambda: 0.0)
    estimate = None
    while True:
        try:
            z, level = asks.send(estimate)
        except StopIteration as end:
            return end.value / spread[-1] - 1
        total = level.alpha**2 * variance + level.sigma**2
        estimate = Estimate(level.alpha * variance / total * z, level.sigma / total * z)


def order_beside_a_logarithm(first, second, third):
    """The p of errors h^p (a + b log h) at n, 2n and 4n steps; of h^p, too, where b is 0.

    Both 2^-p and its double root solve e_3 - 2 r e_2 + r^2 e_1 = 0.
    """
    rest = max(second**2 - first * third, 0.0)
    return -math.log2((abs(second) - math.sqrt(rest)) / abs(first))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("b", [0.0, 0.1, 1.0])
def test_the_order_beside_a_logarithm_is_found(p, b):
    errors = [n**-p * (0.3 + b * math.log(n)) for n in (100, 200, 400)]
    assert order_beside_a_logarithm(*errors) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "key"), [each for each in SLOW if not DISTINCT[each[0]].stochastic]
)
def test_slow_orders_are_reached_at_many_steps(name, key):
    """Within 0.2 beside a logarithm, from 640 calls on; from 1,280 where third order shows."""
    sampler, schedule = DISTINCT[name], SCHEDULES[key]
    calls = 1280 if sampler.order > 2 else 640
    steps = calls // sampler.nfe_per_step
    errors = [end_error(sampler, schedule, n) for n in (steps, 2 * steps, 4 * steps)]
    found = order_beside_a_logarithm(*errors)
    assert found == pytest.approx(sampler.order_on(schedule), abs=0.2), errors


@pytest.mark.parametrize(("name", "key"), [each for each in SLOW if DISTINCT[each[0]].stochastic])
def test_multistep_with_noise_reaches_its_order_at_many_steps(name, key):
    sampler, schedule = DISTINCT[name], SCHEDULES[key]
    few, many = (_variance_error(sampler, schedule, n) for n in (800, 1600))
    assert math.log2(few / many) == pytest.approx(sampler.order, abs=0.2)


@pytest.mark.parametrize("name", ["kab2(0.5, 3)", "kab2(0, 3)", "kab2(4, 0.5)", "kab2c(0.5, 3)",
                                  "kab2c(2, 2)", "ddim(0.5)", "ddpm(0.5)", "churn(0.5)", "edm(10)"])  # fmt: skip
def test_names_with_numbers_have_their_order(name):
    sampler = sampler_named(name)
    found = measured_order(sampler, FlowMatching())
    assert found == pytest.approx(sampler.order, abs=0.2)


@pytest.mark.parametrize("name", ["kab2c(0, 3)", "kab3c(0, 3)", "kab3c(0.5, 3)", "kab3c(4, 0.5)"])
def test_names_with_numbers_have_at_least_their_order(name):
    """The part of lower order comes from the first steps, and is the smaller one for long."""
    sampler = sampler_named(name)
    assert measured_order(sampler, FlowMatching()) > sampler.order_on(FlowMatching()) - 0.2


def test_the_documented_table_is_the_commands(measured):
    documented = table(PAGE.read_text(encoding="utf-8"))
    assert {name: row[:4] + row[5:] for name, row in measured.items()} == {
        name: row[:4] + row[5:] for name, row in documented.items()
    }


FRAMES = ["x", "eps", "u", "v", "score", "F(0.5)", "kappa(0.3)", "kappa(4)"]
SOLVERS = {
    **{f"adams-3 {frame}": Adams(3, frame) for frame in FRAMES},
    **{f"adams-2c {frame} logsnr": Adams(2, frame, "logsnr", 3) for frame in ("x", "eps", "u")},
    "adams-2 v angle": Adams(2, "v", "angle"),
    "adams-3 u t": Adams(3, "u", "t"),
    "adams-4": Adams(4, "u"),
    "adams-4c": Adams(4, "u", corrector=5),
    **{f"{name} u": RungeKutta(name, "u") for name in TABLEAUS},
    **{f"{name} v": RungeKutta(name, "v") for name in TABLEAUS},
    **{f"{name} x logsnr": RungeKutta(name, "x", "logsnr") for name in TABLEAUS if name != "rk4"},
    "kutta3 by numbers": RungeKutta(
        Tableau(3, (0.5, 1.0), ((0.5,), (-1.0, 2.0), (1 / 6, 2 / 3, 1 / 6)))
    ),
    "bdia-0.5": BDIA(0.5),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_have_their_order_in_every_frame_and_variable(name):
    """From its own start, between finite levels."""
    solver, schedule = SOLVERS[name], FlowMatching()
    found = measured_order(Sampler(inside(schedule), solver), schedule)
    assert found == pytest.approx(solver.convergence(False), abs=0.2)


def test_exponential_rk4_in_logsnr_keeps_at_least_order_two():
    """Classical weights carried over to an exponential method lose order; DPM-Solver-3's do not."""
    schedule, solver = FlowMatching(), RungeKutta("rk4", "x", "logsnr")
    assert measured_order(Sampler(inside(schedule), solver), schedule) > 1.9


def test_published_starts_and_ends_limit_the_order_to_two():
    """On a plain uniform grid, from the first Euler step and the lowered last one."""
    grid, schedule = UniformTime(start=0.85, end=0.1), FlowMatching()
    data = GaussianMixture.ring(5, std=0.45)
    init = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)

    def slope(solver):
        runs = [
            sample(data, (64, 2), sampler=Sampler(grid, solver), steps=n, init=init, dtype=FLOAT64,
                   schedule=schedule)
            for n in (60, 120, 240, 480)
        ]  # fmt: skip
        gaps = [float((a - b).abs().mean()) for a, b in itertools.pairwise(runs)]
        return -np.polyfit(np.log((60, 120, 240)), np.log(gaps), 1)[0]

    assert slope(Adams(3, "u", corrected_start=False)) == pytest.approx(2, abs=0.3)
    assert slope(Adams(3, "u", lower_order_final=True)) == pytest.approx(2, abs=0.3)
    assert slope(Adams(3, "u")) == pytest.approx(3, abs=0.2)


# ---------------------------------------------------------------------------- distributions


def recursion(made: Plan, data: GaussianMixture):
    """Exact mean and covariance of a plan's result for Gaussian data: estimates are affine in z.

    In the data's principal axes everything is diagonal: mean and variance per axis.
    """
    spectrum, axes = torch.linalg.eigh(data.covariance)
    centre = (axes.T @ data.mean).numpy()
    found = []
    for middle, variance in zip(centre, spectrum.numpy(), strict=True):
        total = made.alpha**2 * variance + made.sigma**2
        # x = middle + gain_x (z - alpha middle), eps = gain_e (z - alpha middle); the last column
        # carries the constant.
        states = np.zeros((made.nfe + 1, made.noise.shape[1] + 1))
        for i in range(made.nfe + 1):
            gain = made.x[i, :i] * made.alpha[:i] * variance + made.eps[i, :i] * made.sigma[:i]
            gain = gain / total[:i]
            states[i, :-1] = made.noise[i]
            states[i] += gain @ states[:i]
            states[i, -1] += (made.x[i, :i].sum() - gain @ made.alpha[:i]) * middle
        found.append((states[-1, -1], (states[-1, :-1] ** 2).sum()))
    means, variances = np.array(found).T
    return means, variances, centre, spectrum.numpy()


GAUSSIAN = GaussianMixture.gaussian([0.4, -0.2], [[0.30, 0.12], [0.12, 0.20]])
NOISES = {
    "ddpm": Eta(1.0), "eta-0.5": Eta(0.5), "churn": Churn(0.3), "ddim-eta": DDIMEta(0.7), "tau": Tau(1.2),
    "epsilon": Epsilon(1.0), "epsilon-t": Epsilon(lambda t: t), "diffusion": Diffusion(0.3),
    "large": LargeVariance(), "rectified": Rectified(0.8), "er": ER(),
}  # fmt: skip
STOCHASTIC = [name for name, each in DISTINCT.items() if each.stochastic]


@pytest.mark.parametrize("schedule", [FlowMatching(), Cosine(), VPLinear()], ids=repr)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_every_noise_reaches_the_moments(noise, schedule):
    # A constant epsilon is stiff at the data, where g vanishes and eta = epsilon / g does not.
    stiff = isinstance(noise, Epsilon | Diffusion) and not callable(noise.value)
    grid = UniformTime(end=0.15) if stiff else UniformTime()
    errors = moment_errors(Sampler(grid, stochasticity=noise), schedule)
    assert errors[-1] / errors[-2] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_presets_reach_the_moments(name):
    moment_errors(samplers[name], VPLinear())


@pytest.mark.parametrize("noise", [Eta(1.0), Eta(0.4), DDIMEta(0.7), Churn(0.2), ER()])
@pytest.mark.parametrize("solver", [Adams(3, "u"), Adams(2, "v", corrector=3), RungeKutta("rk4")])
def test_every_solver_takes_every_noise(solver, noise):
    moment_errors(Sampler(UniformTime(end=0.02), solver, noise), FlowMatching())


def moment_errors(sampler, schedule):
    """The errors fall towards zero, with the order that infinite levels leave: at least 1."""
    errors, steps = [], (100, 200, 400)
    for n in steps:
        made = sampler.plan(schedule, n)
        means, variances, centre, spectrum = recursion(made, GAUSSIAN)
        scale = made.alpha[-1]
        variances = variances - made.sigma[-1] ** 2  # what the last level keeps of the noise
        off = np.abs(means / scale - centre).max() + np.abs(variances / scale**2 - spectrum).max()
        errors.append(float(off))
    start = 2 * made.alpha[0]  # the prior's own error, N(0, alpha^2 + sigma^2) for N(alpha m, ...)
    assert errors[-1] < 0.08 + start
    falls = [before / after for before, after in itertools.pairwise(errors)]
    assert min(falls) > 2**0.8 or errors[-1] < 1e-3 + start, errors
    return errors


WEIGHTS = [0.1, 0.2, 0.3, 0.4]
ANGLES = torch.arange(4) * math.pi / 2
MEANS = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1).double()
FOUR = GaussianMixture(WEIGHTS, MEANS, 0.09 * torch.eye(2, dtype=FLOAT64).expand(4, 2, 2))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_mixture_modes_are_found_in_proportion(name):
    """Masses of the modes, and the Wasserstein-2 distance within them, at the sampling floor."""
    count = 4000
    schedule = VPLinear() if name == "euler-maruyama" else FlowMatching()
    steps = 400 if name == "euler-maruyama" else 150
    x = sample(
        FOUR, (count, 2), sampler=name, steps=steps, schedule=schedule, seed=0, dtype=FLOAT64
    )
    nearest = torch.cdist(x, MEANS).argmin(1)
    masses = torch.bincount(nearest, minlength=4) / count
    for mass, weight in zip(masses.tolist(), WEIGHTS, strict=True):
        assert mass == pytest.approx(weight, abs=5 * math.sqrt(weight * (1 - weight) / count))
    for mode in range(4):
        inner = x[nearest == mode] - MEANS[mode]
        roots = torch.linalg.eigvalsh(torch.cov(inner.T)).sqrt()
        distance = math.sqrt(float((inner.mean(0) ** 2).sum() + ((roots - 0.3) ** 2).sum()))
        assert distance < 0.3 * 5 / math.sqrt(len(inner)) + 0.02


def test_consistency_sampling_restarts_from_the_data_estimate():
    """Full renoise: the state depends on the last estimate only, and no order is claimed."""
    made = samplers["consistency"].plan(FlowMatching(), 5)
    assert not np.abs(made.eps).max() > 1e-15
    assert np.allclose(np.diag(made.x, -1), made.alpha[1:])
    assert samplers["consistency"].order == 0


# ---------------------------------------------------------------------------- long steps, bad input


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-3m", "unipc", "unipc-3", "deis", "lms"])
def test_the_limit_keeps_long_last_steps_from_exploding(name):
    """The last step of a cosine grid up to logsnr 15 is eight times as long as the one before."""
    data, schedule = GaussianMixture.ring(8, std=0.2), Cosine(-15, 15)
    init = torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    bold = replace(samplers[name], solver=replace(samplers[name].solver, limit=math.inf))
    exact = run(samplers["rk4"].plan(schedule, 300), data, init)

    def error(sampler):
        return float((run(sampler.plan(schedule, 13), data, init) - exact).pow(2).mean().sqrt())

    assert error(samplers[name]) < 0.1
    assert error(samplers[name]) < 0.4 * error(bold)


def test_a_singular_frame_takes_one_step_at_first_order():
    """eps at zero SNR and x at zero noise: the plan is finite, and that row is DDIM's."""
    ddim = plan("ddim", FlowMatching(), 6)
    for name, row in (("deis", 1), ("dpmpp-3m", 6), ("lms", 1), ("unipc-3", 6)):
        made = plan(name, FlowMatching(), 6)
        assert np.allclose(made.x[row], ddim.x[row], atol=1e-13), name
        assert np.allclose(made.eps[row], ddim.eps[row], atol=1e-13), name


def test_kappa_adams_is_a_family():
    assert samplers["kab2"] == kappa_adams(1.0, 1.0)
    a = plan("kab2(0, 3)", Cosine(-9, 9), 7)
    b = replace(samplers["lms"], grid=kappa_adams(shift=3.0).grid, solver=Adams(2, "eps"))
    assert np.allclose(a.matrix("u"), b.plan(Cosine(-9, 9), 7).matrix("u"), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adams(5), "order 1, 2, 3 or 4, got 5"),
        (lambda: Adams(2, corrector=1), "corrector"),
        (lambda: Adams(2, rule="exct"), "did you mean 'exact'"),
        (lambda: Adams(2, limit=math.nan), "limit"),
        (lambda: RungeKutta("rk5"), "unknown tableau 'rk5'; did you mean 'rk4'"),
        (lambda: Tableau(2, (0.5,), ((0.5,), (0.3, 0.3))), "sum to its node"),
        (lambda: RungeKutta(limit=math.nan), "limit"),
        (lambda: RungeKutta(output="w"), "unknown output 'w'"),
        (lambda: Adams(2, "x", "v"), "v is no variable"),
        (lambda: Langevin(noise=Deterministic()), "exchanges an overshoot"),
        (lambda: EDMChurn(sigma_min=3.0, sigma_max=2.0), "sigma_min < sigma_max"),
        (lambda: plan("edm(40, 1)", FlowMatching(), 3), "takes fewer numbers"),
        (lambda: Tableau(2, (0.5,), ((-1,), (0, 1))), "stages before it"),
        (lambda: Tableau(2, (0.5,), ((1,), (0, 1))), "stages before it"),
        (lambda: Tableau(2, (1.5,), ((0,), (1,))), "nodes in"),
        (lambda: kappa_adams(-1.0), "kappa is a finite number"),
        (lambda: kappa_adams(1.0, 0.0), "shift is a finite number > 0"),
        (lambda: plan("dpmpp-2m(3)", FlowMatching(), 3), "takes no numbers"),
        (lambda: plan("ddim-published", FlowMatching(), 3), "as it was published"),
        (lambda: plan("unpic-published", FlowMatching(), 3), "did you mean 'unipc'"),
        (lambda: plan("ddpm", FlowMatching(), 3, encode=True), "deterministic"),
        (lambda: Sampler(solver=BDIA(), stochasticity=Eta()).plan(FlowMatching(), 3), "noise"),
        (lambda: Sampler(solver=RungeKutta("heun", "u", "index")).plan(FlowMatching(), 3), "index"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", [None, Sampler, BDIA(), 3])
def test_what_is_no_sampler_is_named(sampler):
    with pytest.raises(TypeError, match=r"a sampler is a preset's name|Sampler is a class"):
        inspect.unwrap(sampler_named)(sampler)


def test_bdia_does_not_depend_on_the_scaling():
    a, b = (plan("bdia", each, 10) for each in (EDM(), EDM().with_scaling("vp")))
    assert compare(a, b).difference < 1e-12
