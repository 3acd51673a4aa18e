"""Grids: against diffusers, closed forms and identities; ends, counts and order on any schedule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instances import CLOSED
from twosides.denoiser import Denoiser
from twosides.losses.learned import measure_entropic
from twosides.naming import named
from twosides.oracle import GaussianMixture
from twosides.outputs import kappa
from twosides.sampling.frames import variable_named
from twosides.sampling.grids import (
    AYS,
    GRIDS,
    Arctan,
    Beta,
    Entropic,
    Exponential,
    Given,
    Indices,
    Karras,
    Quantiles,
    ShiftedGrid,
    ThenData,
    Uniform,
    UniformLogSNR,
    UniformTime,
    flux_shift,
    resolution_shift,
)
from twosides.sampling.grids.beta import beta_quantiles
from twosides.schedules import EDM, Betas, Cosine, FlowMatching, ScaledLinear, VPLinear

FLOW, SD = FlowMatching(), ScaledLinear()
INF = math.inf
# diffusers' Euler makes arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS = st.integers(1, 50)
SCHEDULE = st.sampled_from(list(CLOSED.values()))
TABULATED = [schedule for schedule in CLOSED.values() if hasattr(schedule, "table")]
LAW = st.floats(0.2, 6)


def random_table(kind, seed, *options):
    values = np.random.default_rng(seed).lognormal(sigma=3, size=31)
    return kind(tuple(np.linspace(-9, 9, 31)), tuple(values), *options)


FINITE_ENDS = st.one_of(
    st.tuples(st.just(Uniform), st.floats(0.01, 100).map(lambda k: f"kappa({k})")),
    st.tuples(st.just(Uniform), st.sampled_from(["u", "t", "angle", "-u"])),
    st.tuples(st.just(Arctan), st.floats(0.05, 20)),
    st.tuples(st.just(random_table), st.just(Entropic), st.integers(0, 99), st.booleans()),
    st.tuples(st.just(random_table), st.just(Quantiles), st.integers(0, 99)),
)
"""Makers of grids whose ends are any schedule's own, and their arguments."""


def sigmas(grid, schedule, steps):
    return (-0.5 * grid.logsnrs(schedule, steps)).exp().numpy()


def is_legal(nodes, steps):
    assert nodes.dtype == torch.float64 and nodes.shape == (steps + 1,)
    assert bool((nodes[1:] > nodes[:-1]).all()), nodes
    return bool(nodes[1:-1].isfinite().all())


# ---------------------------------------------------------------------------- every grid


@given(call=FINITE_ENDS, schedule=SCHEDULE, steps=STEPS)
def test_grids_reach_both_ends_of_any_schedule(call, schedule, steps):
    nodes = call[0](*call[1:]).logsnrs(schedule, steps)
    assert is_legal(nodes, steps)
    assert (float(nodes[0]), float(nodes[-1])) == (schedule.logsnr_min, schedule.logsnr_max)


@given(
    kind=st.sampled_from([Karras, Exponential]),
    rho=st.floats(0.5, 9),
    schedule=SCHEDULE,
    steps=STEPS,
)
def test_ramps_end_at_the_data(kind, rho, schedule, steps):
    nodes = kind(rho=rho).logsnrs(schedule, steps)
    assert is_legal(nodes, steps) and nodes[-1] == INF
    low, high = schedule.logsnr_min, schedule.logsnr_max
    assert float(nodes[0]) == (low if low > -INF else -2 * math.log(80))
    if steps > 1:
        assert float(nodes[-2]) == (high if high < INF else -2 * math.log(0.002))


@given(a=LAW, b=LAW, variable=st.sampled_from(["t", "u", "angle"]), schedule=SCHEDULE, steps=STEPS)
def test_beta_is_legal(a, b, variable, schedule, steps):
    nodes = Beta(a, b, variable).logsnrs(schedule, steps)
    assert is_legal(nodes, steps)
    assert float(nodes[0]) == schedule.logsnr_min and nodes[-1] == INF
    if schedule.logsnr_max < INF and steps > 1:
        assert float(nodes[-2]) == schedule.logsnr_max


@given(
    variable=st.sampled_from(["logsnr", "eps", "x", "kappa(0)", "u", "angle", "t"]),
    schedule=SCHEDULE,
    steps=STEPS,
)
def test_uniform_steps_are_equal_or_the_infinite_end_is_named(variable, schedule, steps):
    needed = {"logsnr": (-INF, INF), "eps": (-INF,), "kappa(0)": (-INF,), "x": (INF,)}
    ends = schedule.logsnr_min, schedule.logsnr_max
    if set(ends) & set(needed.get(variable, ())):
        with pytest.raises(ValueError, match="state a finite logsnr_m"):
            Uniform(variable).logsnrs(schedule, steps)
        return
    nodes = Uniform(variable).logsnrs(schedule, steps)
    assert is_legal(nodes, steps)
    gaps = np.diff(variable_named(variable, schedule).of(nodes.numpy()))
    assert np.allclose(gaps, gaps.mean(), rtol=1e-6)


@given(
    ends=st.tuples(st.floats(-30, 30), st.floats(-30, 30)).filter(lambda e: e[0] + 0.1 < e[1]),
    kind=st.sampled_from([Uniform, Arctan, UniformLogSNR]),
    steps=STEPS,
)
def test_stated_ends_are_exact(ends, kind, steps):
    grid = kind(*ends) if kind is UniformLogSNR else kind(start=ends[0], end=ends[1])
    nodes = grid.logsnrs(FLOW, steps)
    assert is_legal(nodes, steps) and (float(nodes[0]), float(nodes[-1])) == ends


@pytest.mark.parametrize("name", GRIDS)
def test_named_grids_work_or_say_why_not(name):
    grid = named("grid", name, GRIDS)
    worked = 0
    for schedule in CLOSED.values():
        for steps in (1, 2, 7, 20):
            if name.startswith("ays") and steps > 10:
                continue
            if name == "ddim_uniform" and 1000 % steps:  # it makes more steps than asked
                continue
            try:
                nodes = grid.logsnrs(schedule, steps)
            except ValueError as error:
                reasons = ("finite logsnr_m", "was asked of", "has no indices", "indices give 1")
                assert any(reason in str(error) for reason in reasons), error
                continue
            assert is_legal(nodes, steps)
            worked += 1
    assert worked
    with pytest.raises(ValueError, match=">= 1|but 0 were asked"):
        grid.logsnrs(SD, 0)


def test_names_take_numbers():
    assert named("grid", "karras(5, 0.1)", GRIDS) == Karras(5.0, 0.1)
    assert named("grid", "beta(0.5, 0.7)", GRIDS) == Beta(0.5, 0.7)
    assert named("grid", "arctan(0.5)", GRIDS) == Arctan(0.5)
    assert named("grid", "uniform-logsnr(-5, 5)", GRIDS) == UniformLogSNR(-5.0, 5.0)
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        named("grid", "karas", GRIDS)


# ---------------------------------------------------------------------------- equal steps


@given(factor=st.floats(0.05, 20), steps=STEPS)
def test_kappa_is_flow_matchings_shift(factor, steps):
    shifted = ShiftedGrid(UniformTime(), factor).logsnrs(FLOW, steps)
    ours = Uniform(f"kappa({1 / factor})").logsnrs(FLOW, steps)
    assert torch.allclose(ours, shifted, atol=1e-12)
    assert torch.equal(ours, Uniform(kappa(1 / factor)).logsnrs(FLOW, steps))
    t = torch.linspace(1, 0, steps + 1).double()
    moved = factor * t / (1 + (factor - 1) * t)
    assert torch.allclose(FLOW.time(shifted), moved, atol=1e-14)
    assert torch.allclose(UniformTime().logsnrs(FLOW.shifted(factor), steps), shifted, atol=1e-12)


@given(steps=STEPS)
def test_uniform_steps_in_time_logsnr_and_angle_are_the_grids_of_these_names(steps):
    for schedule in (Cosine(), SD, EDM()):
        time = UniformTime().logsnrs(schedule, steps)
        assert torch.allclose(Uniform("t").logsnrs(schedule, steps), time, atol=1e-10)
    cosine = UniformTime().logsnrs(Cosine(), steps)
    assert torch.allclose(Uniform("angle").logsnrs(FLOW, steps), cosine, atol=1e-10)
    assert torch.allclose(Arctan().logsnrs(FLOW, steps), cosine, atol=1e-10)
    truncated = UniformTime().logsnrs(Cosine(-15, 15), steps)
    assert torch.allclose(Arctan().logsnrs(Cosine(-15, 15), steps), truncated, atol=1e-10)
    equal = torch.linspace(-7, 9, steps + 1).double()
    assert torch.allclose(UniformLogSNR(-7, 9).logsnrs(FLOW, steps), equal, atol=1e-5)


@given(c=st.floats(0.1, 5), steps=st.integers(2, 20))
def test_arctan_is_the_papers_formula(c, steps):
    angles = np.linspace(math.atan(80 / c), math.atan(0.002 / c), steps + 1)
    assert np.allclose(sigmas(Arctan(c), EDM(), steps), c * np.tan(angles), rtol=1e-10)


@given(c=st.floats(0.2, 3), steps=st.integers(2, 12), seed=st.integers(0, 99))
def test_arctan_is_optimal_for_gaussian_data(c, steps, seed):
    """DDIM's deviation on N(0, c^2): r' = x + r'/r (z - x), x = c^2 z / (c^2 + r^2)."""

    def deviation(nodes):
        r = (-0.5 * nodes).exp()
        kept = (c * c + r[1:] * r[:-1]) / (c * c + r[:-1] ** 2)
        return float(kept.log().sum() + 0.5 * ((c * c + r[0] ** 2) / (c * c + r[-1] ** 2)).log())

    nodes = Arctan(c).logsnrs(EDM(), steps)
    assert deviation(nodes) < 0
    noise = torch.randn(steps + 1, generator=torch.Generator().manual_seed(seed)).double()
    noise[0] = noise[-1] = 0
    moved = nodes + 0.1 * noise * nodes.diff().min()
    assert deviation(moved) < deviation(nodes)


# ---------------------------------------------------------------------------- ramps


@given(rho=st.floats(1, 10), steps=st.integers(1, 40))
def test_ramps_are_k_diffusions(rho, steps):
    low, high, ramp = 0.03, 15.0, np.linspace(0, 1, steps)
    roots = low ** (1 / rho), high ** (1 / rho)
    karras = [*(roots[1] + ramp * (roots[0] - roots[1])) ** rho, 0]
    assert np.allclose(sigmas(Karras(rho, low, high), FLOW, steps), karras)
    exponential = [*np.exp(np.linspace(math.log(high), math.log(low), steps)), 0]
    assert np.allclose(sigmas(Exponential(low, high), FLOW, steps), exponential)
    down = np.linspace(1, 0, steps) ** rho
    poly = [*np.exp(down * (math.log(high) - math.log(low)) + math.log(low)), 0]
    assert np.allclose(sigmas(Exponential(low, high, rho), FLOW, steps), poly)


def beta(a, b, p):
    return torch.from_numpy(beta_quantiles(a, b, p.numpy()))


def test_beta_quantiles_have_closed_forms():
    small = torch.logspace(-12, -1, 50, dtype=torch.float64)
    u = torch.cat([torch.linspace(0, 1, 101, dtype=torch.float64), small])
    assert torch.allclose(beta(1, 1, u), u, rtol=1e-13, atol=0)
    assert torch.allclose(beta(2, 1, u), u.sqrt(), rtol=1e-13, atol=0)
    assert torch.allclose(beta(1, 3, u), 1 - (1 - u) ** (1 / 3), rtol=1e-12, atol=1e-15)
    arcsine = (0.5 * math.pi * u).sin() ** 2
    assert torch.allclose(beta(0.5, 0.5, u), arcsine, rtol=1e-12, atol=0)


@given(a=LAW, b=LAW, p=st.floats(1e-6, 1 - 1e-6))
def test_beta_quantiles_invert_the_distribution_function(a, b, p):
    mpmath = pytest.importorskip("mpmath")

    def quantile(a, b, p):
        return float(beta(a, b, torch.tensor([p], dtype=torch.float64)))

    x = quantile(a, b, p)
    if x > 0.5:
        a, b, p, x, mirrored = b, a, 1 - p, quantile(b, a, 1 - p), x
        assert mirrored == pytest.approx(1 - x, rel=1e-14)
    assert 0 < x <= 0.5 + 1e-12
    assert float(mpmath.betainc(a, b, 0, x, regularized=True)) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_beta_spaces_what_diffusers_spaces(steps, monkeypatch):
    module = pytest.importorskip("diffusers.schedulers.scheduling_euler_discrete")

    class stats:
        class beta:
            @staticmethod
            def ppf(p, a, b):
                return beta(a, b, torch.tensor([p], dtype=torch.float64)).item()

    monkeypatch.setattr(module, "scipy", type("scipy", (), {"stats": stats}), raising=False)
    peer = module.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # fmt: skip
    levels = peer._convert_to_beta(np.array([15.0, 0.03]), steps)
    ours = sigmas(Beta(0.6, 0.6, "eps", -2 * math.log(15), -2 * math.log(0.03)), FLOW, steps)
    assert np.allclose(ours, [*levels, 0])


@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [1, 5, 18])
def test_ramps_on_stable_diffusion_are_diffusers(kind, steps):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        timestep_spacing="linspace", **{f"use_{kind}_sigmas": True},
    )  # fmt: skip
    peer.set_timesteps(steps)
    if steps == 1:  # diffusers' linspace with one step starts at index 0: the least noise
        assert float(peer.sigmas[0]) < 0.03
        return
    assert np.allclose(sigmas(GRIDS[kind], SD, steps), peer.sigmas.numpy(), rtol=2e-4)


# ---------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("model", "peer", "schedule"),
    [("sd15", "StableDiffusion", SD), ("sdxl", "StableDiffusionXL", SD),
     ("svd", "StableDiffusionVideo", EDM(sigma_max=700.0))],
)  # fmt: skip
def test_ays_is_the_authors_table_and_interpolation(model, peer, schedule):
    utils = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    table = utils.AysSchedules[f"{peer}Sigmas"]
    ours = sigmas(AYS(model), schedule, 10)
    assert np.allclose(ours, table, rtol=5e-5) and ours[-1] == 0
    assert np.allclose(sigmas(AYS(model), FLOW, 10), table, rtol=1e-14)
    last = 0.002 if model == "svd" else 0.029
    for steps in (1, 4, 20, 33):
        logs = np.log([*table[:-1], last])
        positions = np.linspace(0, 10, steps + 1)[:-1]
        expected = np.exp(np.interp(positions, np.arange(11), logs))
        assert np.allclose(sigmas(AYS(model), FLOW, steps), [*expected, 0], rtol=1e-12)
    assert float(AYS(model).logsnrs(schedule, 7)[0]) == schedule.logsnr_min
    with pytest.raises(ValueError, match="which covers"):
        AYS(model).logsnrs(Betas((0.1, 0.2, 0.3, 0.5)), 10)


def peers(spacing, offset=0, final="data", **options):
    diffusers = pytest.importorskip("diffusers")
    common = dict(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        timestep_spacing=spacing, steps_offset=offset, **options,
    )  # fmt: skip
    ddim = diffusers.DDIMScheduler(**common, set_alpha_to_one=final == "data")
    return ddim, diffusers.EulerDiscreteScheduler(**common)


@pytest.mark.parametrize(
    ("spacing", "offset", "final"),
    [("leading", 0, "data"), ("leading", 1, "first"), ("leading", 1, "data"),
     ("trailing", 0, "data"), ("trailing", 0, "first"), ("linspace", 0, "data")],
)  # fmt: skip
def test_indices_are_those_diffusers_visits(spacing, offset, final):
    ddim, euler = peers(spacing, offset, final)
    grid = Indices(spacing, offset, final)
    for steps in (1, 2, 3, 4, 7, 10, 18, 20, 30, 48, 50, 64, 96, 100, 333, 500, 640):
        ddim.set_timesteps(steps)
        euler.set_timesteps(steps)
        nodes = grid.logsnrs(SD, steps)
        assert is_legal(nodes, steps)
        ours = 999 * SD.time(nodes[:-1]).numpy()
        assert np.array_equal(np.round(ours), ddim.timesteps.numpy()), steps
        assert np.abs(ours - np.round(ours)).max() < 1e-9
        if spacing != "linspace":  # which Euler does not round
            assert np.array_equal(np.round(ours), euler.timesteps.numpy()), steps
            expected = euler.sigmas[:-1].numpy()
            assert np.allclose((-0.5 * nodes[:-1]).exp().numpy(), expected, rtol=2e-4)
        alpha_bar = float(torch.sigmoid(nodes[-1]))
        assert alpha_bar == pytest.approx(float(ddim.final_alpha_cumprod), rel=1e-6)
        if spacing == "leading":  # where DDIM's own previous index is the next one
            back = ddim.timesteps[:-1] - 1000 // steps
            assert torch.equal(back, ddim.timesteps[1:])


def test_indices_where_diffusers_goes_below_zero():
    """np.arange overruns: 61 trailing steps become 62 there, the last at index -1."""
    ddim, _ = peers("trailing")
    for steps in (61, 103, 121, 201):
        ddim.set_timesteps(steps)
        assert len(ddim.timesteps) == steps + 1 and ddim.timesteps[-1] == -1
        assert np.array_equal(Indices("trailing").indices(1000, steps), ddim.timesteps[:-1])


def test_indices_on_zero_terminal_snr_start_without_signal():
    schedule = ScaledLinear(zero_terminal_snr=True)
    assert float(Indices("trailing").logsnrs(schedule, 7)[0]) == -INF
    assert Indices().logsnrs(schedule, 7)[0] > -INF  # leading never sees the last index


@given(
    schedule=st.sampled_from(TABULATED),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    steps=STEPS,
)
def test_indices_on_any_discrete_schedule(schedule, spacing, steps):
    grid = Indices(spacing)
    if steps > schedule.count:
        with pytest.raises(ValueError, match="indices give 1"):
            grid.logsnrs(schedule, steps)
        return
    nodes = grid.logsnrs(schedule, steps)
    assert is_legal(nodes, steps)
    picked = grid.indices(schedule.count, steps).astype(int)
    assert torch.allclose(nodes[:-1], schedule.table[picked], atol=1e-9)
    again = schedule.with_scaling("flow")
    assert torch.allclose(grid.logsnrs(again, steps), nodes, atol=1e-9)
    moved = grid.logsnrs(schedule.shifted(2), steps)
    assert torch.allclose(moved, nodes - 2 * math.log(2), atol=1e-9)


# ---------------------------------------------------------------------------- shifts


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_is_diffusers_static_shift(steps, shift):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    peer.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    ours = FLOW.time(ShiftedGrid(UniformTime(), shift).logsnrs(FLOW, steps))
    assert np.allclose(ours, peer.sigmas, atol=1e-6)
    if steps > 1:
        # Without sigmas diffusers shifts its smallest time twice.
        peer.set_timesteps(steps)
        end = shift * 0.001 / (1 + (shift - 1) * 0.001)
        grid = ShiftedGrid(ThenData(UniformTime(end=end)), shift)
        assert np.allclose(FLOW.time(grid.logsnrs(FLOW, steps)), peer.sigmas, atol=1e-6)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9216])
def test_flux_shift_is_diffusers_dynamic_shift(tokens):
    diffusers = pytest.importorskip("diffusers")
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    peer.set_timesteps(sigmas=np.linspace(1, 1 / 28, 28).tolist(), mu=mu)
    assert flux_shift(tokens) == pytest.approx(math.exp(mu), rel=1e-14)
    ours = FLOW.time(ShiftedGrid(UniformTime(), flux_shift(tokens)).logsnrs(FLOW, 28))
    assert np.allclose(ours, peer.sigmas, atol=1e-6)


def test_resolution_shift_composes():
    assert resolution_shift(64, 16) * resolution_shift(16, 4) == resolution_shift(64, 4) == 4
    twice = ShiftedGrid(ShiftedGrid(Karras(), 2), 3).logsnrs(FLOW, 5)
    assert torch.allclose(twice, ShiftedGrid(Karras(), 6).logsnrs(FLOW, 5), atol=1e-12)


@given(factor=st.floats(0.1, 10), schedule=SCHEDULE, steps=STEPS)
def test_shifted_stays_inside_the_schedule_or_says_so(factor, schedule, steps):
    low, high = schedule.logsnr_min, schedule.logsnr_max
    base = UniformTime().logsnrs(schedule, steps)
    inside = bool(((base[:-1] - 2 * math.log(factor)) >= low - 1e-6 * (1 + abs(low))).all())
    inside &= bool(((base[:-1] - 2 * math.log(factor)) <= high + 1e-6 * (1 + abs(high))).all())
    if low == -INF and high == INF:
        assert inside
    if not inside:
        with pytest.raises(ValueError, match="which covers"):
            ShiftedGrid(UniformTime(), factor).logsnrs(schedule, steps)
        return
    nodes = ShiftedGrid(UniformTime(), factor).logsnrs(schedule, steps)
    assert is_legal(nodes, steps) and torch.allclose(nodes, base - 2 * math.log(factor))


@given(steps=STEPS)
def test_then_data_is_levels_and_the_data(steps):
    nodes = ThenData(UniformTime()).logsnrs(SD, steps)
    assert is_legal(nodes, steps) and nodes[-1] == INF
    levels = torch.linspace(1, 0, steps, dtype=torch.float64)
    assert torch.allclose(nodes[:-1], SD.logsnr(levels))
    exponential = ThenData(UniformLogSNR()).logsnrs(EDM(), steps)
    assert torch.allclose(exponential, Exponential().logsnrs(EDM(), steps), atol=1e-12)


# ---------------------------------------------------------------------------- densities, entropy


@given(steps=STEPS, low=st.floats(-8, -1), high=st.floats(1, 8))
def test_quantiles_of_known_densities(steps, low, high):
    uniform = Quantiles((-9, 0, 9), (2, 2, 2), low, high).logsnrs(FLOW, steps)
    assert torch.allclose(uniform, UniformLogSNR(low, high).logsnrs(FLOW, steps), atol=1e-12)
    knots = np.linspace(-40, 40, 8001)
    flow = Quantiles(tuple(knots), tuple(np.cosh(knots / 4) ** -2)).logsnrs(FLOW, steps)
    assert torch.allclose(flow, UniformTime().logsnrs(FLOW, steps), atol=1e-3)


def test_quantiles_skip_empty_gaps():
    grid = Quantiles((-3, -2, -1, 1, 2, 3), (0, 1, 0, 0, 1, 0), -4, 4)
    nodes = grid.logsnrs(FLOW, 8)
    assert is_legal(nodes, 8)
    assert bool(((nodes[1:4] > -3) & (nodes[1:4] < -1)).all())
    assert bool(((nodes[5:8] > 1) & (nodes[5:8] < 3)).all())


def gaussian_errors(c, knots):
    r2 = np.exp(-np.asarray(knots))
    return tuple(c * c * r2 / (c * c + r2))


@given(c=st.floats(0.1, 3), steps=STEPS)
def test_entropic_is_arctan_on_gaussian_data(c, steps):
    schedule = EDM()
    knots = tuple(np.linspace(schedule.logsnr_min, schedule.logsnr_max, 201))
    errors = gaussian_errors(c, knots)
    rescaled = Entropic(knots, errors).logsnrs(schedule, steps)
    assert torch.allclose(rescaled, Arctan(c).logsnrs(schedule, steps), atol=1e-3)
    # H[x|z] = log(c^2 r^2 / (c^2 + r^2)) / 2 plus a constant.
    entropy = Entropic(knots, errors, rescaled=False).logsnrs(schedule, steps).numpy()
    steps_of = np.diff(np.log(gaussian_errors(c, entropy)))
    assert np.allclose(steps_of, steps_of.mean(), rtol=1e-3)


def test_entropic_measures_a_denoiser():
    c, dims = 0.7, 64
    oracle = GaussianMixture([1.0], [[0.0] * dims], torch.eye(dims)[None] * c * c)
    oracle.schedule = EDM()
    data = oracle.sample(512, seed=0)
    grid = measure_entropic(oracle, data, seed=3)
    assert np.allclose(grid.errors, gaussian_errors(c, grid.knots), rtol=0.03)
    assert grid == measure_entropic(oracle, data, seed=3) != measure_entropic(oracle, data, seed=4)
    optimal = Arctan(c).logsnrs(EDM(), 10)
    assert torch.allclose(grid.logsnrs(EDM(), 10), optimal, atol=0.1)
    few = measure_entropic(oracle, data, knots=(-3, 0, 3), rescaled=False)
    assert few.knots == (-3, 0, 3) and not few.rescaled


def test_entropic_measures_in_the_networks_units():
    def network(z, t, shift):
        return z * t[:, None] + shift

    data = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    plain = Denoiser(network, "u")
    scaled = Denoiser(network, "u", data_mean=1.0, data_std=2.0)
    expected = measure_entropic(plain, (data - 1) / 2, shift=0.5)
    assert measure_entropic(scaled, data, shift=0.5) == expected


# ---------------------------------------------------------------------------- refusals

NAN = math.nan
SQUARE = (0.0, 1.0), (1.0, 1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UniformTime(start=NAN), "start > end"),
        (lambda: UniformTime(start=0.2, end=0.2), "start > end"),
        (lambda: UniformTime(start=1.2), "start > end"),
        (lambda: Uniform("v"), "no variable"),
        (lambda: Uniform("velocity"), "no variable"),
        (lambda: Uniform("score"), "no variable"),
        (lambda: Uniform("sigma"), "unknown output"),
        (lambda: Uniform("u", 3, 3), "start < end"),
        (lambda: Uniform("u", start=NAN), "start < end"),
        (lambda: Uniform("u", start=INF), "start < end"),
        (lambda: Uniform("u", end=-INF), "start < end"),
        (lambda: Uniform("u", start=9).logsnrs(Betas((0.1, 0.2)), 3), "noise to data"),
        (lambda: Uniform("t", start=-9).logsnrs(SD, 3), "inside the schedule"),
        (lambda: UniformLogSNR(2, NAN), "start < end"),
        (lambda: Arctan(0.0), "deviation"),
        (lambda: Arctan(INF), "deviation"),
        (lambda: Arctan(NAN), "deviation"),
        (lambda: Arctan(1.0, 4.0, 2.0), "start < end"),
        (lambda: Karras(NAN), "rho"),
        (lambda: Karras(sigma_max=INF), "> 0"),
        (lambda: Karras(sigma_min=0.0), "0 is added last"),
        (lambda: Karras(sigma_min=2.0, sigma_max=1.0), "noise to data"),
        (lambda: Karras(sigma_min=100.0).logsnrs(EDM(), 4), "noise to data"),
        (lambda: Exponential(0.0), "0 is added last"),
        (lambda: Exponential(rho=-1.0), "rho"),
        (lambda: Exponential(3.0, 3.0), "noise to data"),
        (lambda: Beta(0.0), "a, b > 0"),
        (lambda: Beta(1.0, NAN), "a, b > 0"),
        (lambda: Beta(1.0, INF), "a, b > 0"),
        (lambda: Beta(variable="F"), "no variable"),
        (lambda: Beta(start=2.0, end=1.0), "start < end"),
        (lambda: Beta(variable="eps").logsnrs(FLOW, 3), "finite logsnr_min"),
        (lambda: AYS("flux"), "no AYS table"),
        (lambda: AYS("svd").logsnrs(SD, 10), "which covers"),
        (lambda: ThenData(UniformTime()).logsnrs(FLOW, 3), "use it alone"),
        (lambda: Given((0.0, NAN)), "NaN"),
        (lambda: Given.sigmas([1.0, -0.5]), ">= 0"),
        (lambda: Given.sigmas([1.0, NAN]), ">= 0"),
        (lambda: Indices("middle"), "spacing is"),
        (lambda: Indices(final="last"), "final is"),
        (lambda: Indices(offset=-1), "whole number >= 0"),
        (lambda: Indices("trailing", 1), "only spacing='leading'"),
        (lambda: Indices().logsnrs(FLOW, 4), "has no indices"),
        (lambda: Indices().logsnrs(VPLinear().shifted(2), 4), "has no indices"),
        (lambda: Indices().logsnrs(SD, 1001), "1 ... 1000 steps"),
        (lambda: Indices(offset=1).logsnrs(SD, 1000), "lower the offset"),
        (lambda: Indices(final="first").logsnrs(SD, 5), "final='data'"),
        (lambda: Indices("linspace", final="first").logsnrs(SD, 5), "final='data'"),
        (lambda: Indices("trailing", final="first").logsnrs(SD, 1000), "final='data'"),
        (lambda: ShiftedGrid(Karras(), 0.0), "positive"),
        (lambda: ShiftedGrid(Karras(), NAN), "positive"),
        (lambda: ShiftedGrid(Karras(), INF), "positive"),
        (lambda: ShiftedGrid(Karras(), 2.0).logsnrs(EDM(), 4), "which covers"),
        (lambda: resolution_shift(0, 4), "positive"),
        (lambda: resolution_shift(4, NAN), "positive"),
        (lambda: flux_shift(NAN), "tokens > 0"),
        (lambda: flux_shift(9, (5, 1), (5, 2)), "two points"),
        (lambda: Quantiles((0, 1), (1, 1, 1)), "for each of two or more"),
        (lambda: Quantiles((0,), (1,)), "for each of two or more"),
        (lambda: Quantiles((1, 0), (1, 1)), "increasing"),
        (lambda: Quantiles((0, NAN), (1, 1)), "increasing"),
        (lambda: Quantiles((0, INF), (1, 1)), "increasing"),
        (lambda: Quantiles((0, 1), (1, NAN)), "finite, >= 0"),
        (lambda: Quantiles((0, 1), (1, -1)), "finite, >= 0"),
        (lambda: Quantiles((0, 1), (0, 0)), "not all 0"),
        (lambda: Quantiles(*SQUARE, start=2, end=1), "start < end"),
        (lambda: Quantiles(*SQUARE, start=2).logsnrs(FLOW, 3), "extend the table"),
        (lambda: Entropic((0, 1), (0, 1)), "error of 0"),
        (lambda: Entropic((0, 1), (1, NAN)), "finite, >= 0"),
        (lambda: Entropic(*SQUARE, start=NAN), "start < end"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError):
        UniformTime(Cosine)
    for name in ("uniform(3)", "uniform-time(0.9)", "karras(1, 2, 3, 4)"):
        with pytest.raises(ValueError, match=name.split("(")[0]):
            named("grid", name, GRIDS)
