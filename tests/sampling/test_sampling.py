import itertools
import json
import math
import weakref

import numpy as np
import pytest
import torch

from instances import CLOSED, Norm
from twosides import dynamics
from twosides.conversion import convert
from twosides.denoiser import Denoiser, as_denoiser
from twosides.oracle import GaussianMixture
from twosides.randomness import PerSample
from twosides.sampling.grids import Given, Karras, UniformLogSNR, UniformTime
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.noise import (
    Churn,
    DDIMEta,
    Diffusion,
    EDMChurn,
    Epsilon,
    Eta,
    LargeVariance,
    Step,
    Tau,
)
from twosides.sampling.noise import convert as convert_noise
from twosides.sampling.plan import Plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sample import Trajectory, sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, Euler, EulerMaruyama
from twosides.schedules import EDM, Cosine, FlowMatching, FromFunctions, ScaledLinear, VPLinear

FLOAT64 = torch.float64
RING = GaussianMixture.ring(8, std=0.2)


def net(z, t):
    """A network without structure: equivalences must hold for it too."""
    return torch.sin(3 * z.flip(1)) + t.reshape(-1, *[1] * (z.ndim - 1)) * z


# ---------------------------------------------------------------------------- plans


def test_a_plan_run_is_the_textbook_loop():
    """DDIM on a random v network, against its formula written out."""
    schedule, n = Cosine(), 9
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    z = noise.clone()
    for i in range(n):
        t, s = 1 - i / n, 1 - (i + 1) / n
        a, b = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
        v = net(z, torch.full((4,), t, dtype=FLOAT64))
        x, eps = a * z - b * v, b * z + a * v
        z = math.cos(math.pi * s / 2) * x + math.sin(math.pi * s / 2) * eps
    ours = sample(Denoiser(net, "v", schedule), (4, 2), init=noise, steps=n, dtype=FLOAT64)
    assert torch.allclose(ours, z, atol=1e-13)


def test_flow_euler_is_the_textbook_loop():
    n = 7
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    z = noise.clone()
    for i in range(n):
        z = z - net(z, torch.full((4,), 1 - i / n, dtype=FLOAT64)) / n
    denoiser = Denoiser(net, "u", FlowMatching())
    ours = sample(denoiser, (4, 2), sampler="flow-euler", init=noise, steps=n, dtype=FLOAT64)
    assert torch.allclose(ours, z, atol=1e-13)


def test_edm_churn_is_karras_algorithm():
    """Algorithm 2 of Karras+ 2022 without its second-order correction, written out."""
    n, churn = 8, 12.0
    ramp = [
        (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)
    ]
    sigmas = [*ramp, 0.0]
    draws = iter(torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64))
    kept = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=FLOAT64)
    x, copy = kept * math.sqrt(80**2 + 1), iter(list(draws))
    draws = iter(torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64))
    for sigma, after in itertools.pairwise(sigmas):
        gamma = min(churn / n, math.sqrt(2) - 1)
        hat = sigma * (1 + gamma)
        x = x + math.sqrt(hat**2 - sigma**2) * 1.003 * next(draws)
        level = EDM().level(-2 * math.log(hat)).floats()
        x = x + (after - hat) * (x - RING(x, level).x) / hat
    sampler = Sampler(Karras(), Euler("eps"), EDMChurn(churn, sigma_max=math.inf, noise=1.003))
    ours = run(sampler.plan(EDM(), n), RING, kept, lambda: next(copy))
    assert torch.allclose(ours, x, atol=1e-10)


def test_euler_ancestral_is_k_diffusions():
    """sample_euler_ancestral's sigma_up, sigma_down, written out, eta = 0.7."""
    sigmas = [20.0, 8.0, 3.0, 1.0, 0.3, 0.0]
    noise = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    x, draws = noise[0] * math.sqrt(401), iter(noise[1:])
    for sigma, after in itertools.pairwise(sigmas):
        up = min(after, 0.7 * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - up**2)
        level = EDM().level(-2 * math.log(sigma)).floats()
        x = x + (down - sigma) * (x - RING(x, level).x) / sigma
        if after > 0:
            x = x + next(draws) * up
    again = iter(noise[1:])
    sampler = Sampler(Given.sigmas(sigmas), Euler("eps"), DDIMEta(0.7))
    ours = run(sampler.plan(EDM(), 5), RING, noise[0], lambda: next(again))
    assert torch.allclose(ours, x, atol=1e-11)


@pytest.mark.parametrize("name", samplers)
def test_the_matrix_predicts_the_run(name):
    """States are the plan's matrix times (initial noise, network outputs, injected noises)."""
    schedule = VPLinear().with_scaling("flow")
    made = plan(name, schedule, 6)
    count = made.noise.shape[1]
    noise = torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(3), dtype=FLOAT64)
    draws, seen, states = iter(noise[1:]), [], []

    def spy(z, t):
        states.append(z)
        seen.append(net(z, t))
        return seen[-1]

    last = run(made, Denoiser(spy, "u", schedule), noise[0], lambda: next(draws))
    columns = torch.stack([noise[0], *seen, *noise[1:]])
    predicted = torch.einsum("sc,cbe->sbe", torch.from_numpy(made.matrix("u")), columns)
    assert torch.allclose(predicted, torch.stack([*states, last]), atol=1e-9)
    weights = made.weights("u")
    final = weights.initial * noise[0]
    final = final + torch.einsum(
        "c,cbe->be", torch.from_numpy(weights.predictions), torch.stack(seen)
    )
    final = final + torch.einsum("c,cbe->be", torch.from_numpy(weights.noises), noise[1:])
    assert torch.allclose(final, last, atol=1e-9)


@pytest.mark.parametrize("name", samplers)
def test_files_bring_plans_back_exactly(name, tmp_path):
    made = plan(name, VPLinear(), 5)
    made.to_npz(tmp_path / "plan.npz")
    for back in (Plan.from_json(made.to_json()), Plan.from_npz(tmp_path / "plan.npz")):
        assert back.name == made.name
        for part in ("logsnr", "alpha", "sigma", "x", "eps", "noise"):
            assert np.array_equal(getattr(back, part), getattr(made, part)), part


def test_broken_plan_files_are_refused(tmp_path):
    text = plan("ddpm", FlowMatching(), 3).to_json()
    content = json.loads(text)

    def broken(**change):
        return json.dumps({**content, **change})

    bad_row = [{**content["rows"][0], "x": [[7, 1.0]]}, *content["rows"][1:]]
    future = [{**content["rows"][0], "x": [[2, 1.0]]}, *content["rows"][1:]]
    for wrong in (text[:-20], "[]", broken(version=2), broken(rows=bad_row), broken(rows=future),
                  broken(alpha=[1.0]), broken(logsnr=["x"] * 4), broken(noises=-5)):  # fmt: skip
        with pytest.raises(ValueError, match="plan"):
            Plan.from_json(wrong)
    path = tmp_path / "plan.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        Plan.from_npz(path)


# ---------------------------------------------------------------------------- stochasticity


@pytest.mark.parametrize("schedule", [FlowMatching(), Cosine(), VPLinear(), EDM(), ScaledLinear()])
def test_coordinates_convert_exactly(schedule):
    step = Step.between(schedule, 0.7, 0.66, steps=20)
    q = 0.6 * step.gain
    rho = math.exp(-q / 2)
    for kind in (Eta, Tau, Churn, DDIMEta, Epsilon, Diffusion, EDMChurn):
        value = kind(kind.value_of(q, step))
        for other in (Eta, Tau, Churn, DDIMEta, Epsilon, Diffusion, EDMChurn):
            there = convert_noise(value, other, step)
            back = convert_noise(there, kind, step)
            assert back.at(step) == pytest.approx(value.at(step), rel=1e-12)
    eta = Eta.value_of(q, step)
    churn = convert_noise(Eta(eta), Churn, step)
    assert churn.at(step) == pytest.approx(eta**2 / (1 + eta**2), rel=1e-14)
    ddim = DDIMEta.value_of(q, step)
    posterior = 1 - math.exp(-step.gain)
    assert 1 - rho**2 == pytest.approx(ddim**2 * posterior, rel=1e-12)
    gamma = EDMChurn.value_of(q, step) / 20
    assert rho == pytest.approx(1 / (1 + gamma), rel=1e-14)


def test_epsilon_is_eta_g_for_short_steps():
    schedule = Cosine()
    step = Step.between(schedule, 0.5, 0.5 - 1e-6)
    eta = convert_noise(Epsilon(0.8), Eta, step).at(step)
    assert eta == pytest.approx(0.8 / float(dynamics.g(schedule, 0.5)), rel=1e-5)
    assert convert_noise(Diffusion(0.32), Epsilon, step).at(step) == pytest.approx(0.8, rel=1e-12)
    strengths = {
        Eta: 0.4**2, Churn: 0.4 / 0.6, DDIMEta: 0.4**2,
        Epsilon: (0.4 / float(dynamics.g(schedule, 0.5))) ** 2,
        Diffusion: 2 * 0.4 / float(dynamics.g(schedule, 0.5)) ** 2,
    }  # fmt: skip
    for kind, strength in strengths.items():
        assert kind(0.4).overshoot(step) / step.gain == pytest.approx(strength, rel=1e-4), kind


def test_epsilon_is_integrated_exactly():
    """Flow matching: int dt / t^2 = 1/s - 1/t."""
    step = Step.between(FlowMatching(), 0.9, 0.001)
    assert Epsilon(0.5).overshoot(step) == pytest.approx(0.25 * (1000 - 1 / 0.9), rel=1e-12)


def test_values_may_be_functions_of_time():
    step = Step.between(FlowMatching(), 0.5, 0.4)
    assert Eta(lambda t: 2 * t).overshoot(step) == Eta(1.0).overshoot(step)
    made = Sampler(stochasticity=Epsilon(lambda t: t)).plan(FlowMatching(), 10)
    assert made.stochastic and np.isfinite(made.noise).all()
    first = Sampler(stochasticity=Eta(lambda t: float(t < 0.5))).plan(FlowMatching(), 10)
    assert not first.noise[:6, 1:].any() and first.noise[7, 1:].any()


@pytest.mark.parametrize(
    ("noise", "words"),
    [(Churn(1.0), "0.5 is DDPM"), (Eta(-1.0), ">= 0"), (DDIMEta(1.2), "Eta may be larger"),
     (Epsilon(float("nan")), "finite"), (EDMChurn(-1.0), ">= 0")],
)  # fmt: skip
def test_impossible_noise_is_named(noise, words):
    with pytest.raises(ValueError, match=words):
        Sampler(stochasticity=noise).plan(FlowMatching(), 4)


def test_conversion_at_infinite_levels_is_refused():
    with pytest.raises(ValueError, match="finite levels"):
        convert_noise(Eta(1.0), Churn, Step.between(FlowMatching(), 1.0, 0.9))


# ---------------------------------------------------------------------------- grids


def test_grids():
    flow = FlowMatching()
    assert torch.allclose(
        flow.time(UniformTime().logsnrs(flow, 4)), torch.linspace(1, 0, 5).double()
    )
    inside = UniformTime(start=0.9, end=0.1).logsnrs(flow, 4)
    assert torch.allclose(flow.time(inside), torch.linspace(0.9, 0.1, 5).double())
    equal = UniformLogSNR(-6, 8).logsnrs(flow, 7)
    assert torch.allclose(equal, torch.linspace(-6, 8, 8).double())
    sigmas = (-0.5 * Karras().logsnrs(EDM(), 18)).exp()
    ramp = torch.tensor(
        [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    )
    assert torch.allclose(sigmas[:-1], ramp.double()) and float(sigmas[-1]) == 0
    assert Given.times(flow, [1.0, 0.5, 0.0]).values == (-math.inf, 0.0, math.inf)
    with pytest.raises(ValueError, match="finite logsnr_min"):
        UniformLogSNR().logsnrs(flow, 3)
    with pytest.raises(ValueError, match="3 nodes"):
        plan(Sampler(Given((-1.0, 0.0, 1.0))), flow, 3)
    with pytest.raises(ValueError, match="start > end"):
        UniformTime(start=0.2, end=0.3).logsnrs(flow, 3)


def test_a_grid_of_one_schedule_can_be_walked_on_another():
    sampler = Sampler(UniformTime(schedule=FlowMatching()))
    a, b = sampler.plan(FlowMatching(), 10), sampler.plan(Cosine(), 10)
    assert np.allclose(a.logsnr[1:-1], b.logsnr[1:-1], atol=1e-14)


# ---------------------------------------------------------------------------- sample


def test_sample_i_depends_on_seed_and_i_only():
    denoiser = Denoiser(lambda z, t: torch.sin(z))
    for sampler in ("ddim", "ddpm"):
        whole = sample(denoiser, (6, 2, 7), sampler=sampler, seed=3)
        parts = [
            sample(denoiser, (1, 2, 7), sampler=sampler, seed=3, indices=[i]) for i in range(6)
        ]
        assert torch.equal(whole, torch.cat(parts))
        back = sample(denoiser, (3, 2, 7), sampler=sampler, seed=3, indices=[5, 0, 2])
        assert torch.equal(back, whole[[5, 0, 2]])
        assert not torch.equal(whole, sample(denoiser, (6, 2, 7), sampler=sampler, seed=4))
    assert not torch.equal(*(sample(denoiser, (2, 2)) for _ in range(2)))


def test_trajectory_tells_what_happened():
    seen = []
    record = sample(RING, (5, 2), steps=6, seed=0, dtype=FLOAT64, trajectory=True,
                    progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert isinstance(record, Trajectory) and seen == [(i, 6) for i in range(1, 7)]
    assert len(record.states) == len(record.levels) == 7 and len(record.predictions) == 6
    for z, level, estimate in zip(record.states, record.levels, record.predictions, strict=False):
        assert torch.allclose(level.mix(*estimate), z, atol=1e-12)
        assert torch.allclose(RING(z, level).x, estimate.x, atol=1e-12)
    assert torch.equal(record.sample, record.states[-1])


def test_editing_the_state_replaces_what_the_network_sees():
    """Inpainting: the known half is set to its noisy truth before each call."""
    known = torch.tensor([0.0, 1.0], dtype=FLOAT64)
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)

    def edit(_, z, level):
        z = z.clone()
        z[:, 0] = level.alpha * known[0] + level.sigma * noise[:, 0]
        return z

    x = sample(RING, (200, 2), sampler="ddpm", steps=100, seed=0, dtype=FLOAT64, edit=edit)
    assert float((x[:, 1].abs() - 1).abs().mean()) < 0.25
    assert torch.equal(
        sample(RING, (3, 2), seed=0, edit=lambda *_: None), sample(RING, (3, 2), seed=0)
    )


def test_data_statistics_bring_samples_back_to_the_datas_units():
    data = GaussianMixture.gaussian([0.0], [[1.0]])
    denoiser = Denoiser(convert(data, "u"), data_mean=5.0, data_std=0.1)
    x = sample(denoiser, (4000, 1), steps=60, seed=0)
    assert float(x.mean()) == pytest.approx(5, abs=0.01)
    assert float(x.std()) == pytest.approx(0.1, rel=0.05)


def test_samplers_are_differentiable():
    weight = torch.tensor(0.5, requires_grad=True)
    made = plan("ddim", FlowMatching(), 5)
    run(made, Denoiser(lambda z, t: weight * z), torch.ones(2, 2)).sum().backward()
    assert weight.grad is not None and float(weight.grad) != 0


def test_one_network_any_state_dtype():
    exact = sample(RING, (50, 2), seed=0, dtype=FLOAT64)
    single = sample(RING, (50, 2), init=sample_noise(), dtype=torch.float32)
    double = sample(RING, (50, 2), init=sample_noise(), dtype=FLOAT64)
    assert single.dtype == torch.float32 and exact.dtype == FLOAT64
    assert torch.allclose(single.double(), double, atol=2e-5)


def sample_noise():
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(9), dtype=FLOAT64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"init": torch.full((2, 2), math.nan)}, "NaN"),
        ({"init": torch.zeros(3, 2)}, "shape"),
        ({"seed": -1}, "seed"),
        ({"indices": [1]}, "indices"),
        ({"schedule": FlowMatching().with_scaling("ve")}, "infinite"),
        (
            {"sampler": Sampler(solver=EulerMaruyama(), stochasticity=Eta())},
            "reverse SDE is infinite",
        ),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        sample(RING, (2, 2), **options)


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="wrap the network"):
        as_denoiser(net)
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        sample(Denoiser(net), (2, 2), stepz=3)
    with pytest.raises(ValueError, match="shape"):
        sample(RING, (0, 2))
    with pytest.raises(ValueError, match="injects noise"):
        run(plan("ddpm", FlowMatching(), 3), RING, torch.zeros(1, 2))


def test_presets_state_what_they_are():
    for name, preset in samplers.items():
        route = preset.stochasticity.route(VPLinear(), preset.levels(VPLinear(), 7))
        made, nfe = plan(name, VPLinear(), 7), preset.solver.nfe
        calls = sum(nfe if leg.there.logsnr > leg.here.logsnr else 1 for leg in route)
        # The step to zero noise, and steps too long for the order, take fewer calls.
        assert preset.paper and len(route) <= made.nfe <= calls, name
        careless = (preset.published or preset).plan(VPLinear(), 7)
        assert calls - nfe < careless.nfe <= calls, name
        assert preset.stochastic == made.stochastic, name
        assert sampler_named(name) is preset
    assert isinstance(samplers["ddim"].solver, DDIM)


@pytest.mark.parametrize("name", CLOSED)
def test_every_frame_is_ddim_on_every_schedule(name):
    schedule = CLOSED[name]
    sampler = Sampler(UniformTime(start=0.97, end=0.02))
    a = sampler.plan(schedule, 9).matrix("u")
    for output in ("x", "eps", "v", "u", "score", "F(0.5)", "velocity"):
        b = Sampler(sampler.grid, Euler(output)).plan(schedule, 9).matrix("u")
        assert np.abs(a - b).max() < 1e-11 * np.abs(a).max(), output


# ---------------------------------------------------------------------------- regressions

FINITE = FromFunctions(lambda t: 1 - 0.99 * t, lambda t: 0.01 + t)


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "ddpm-large", "churn", "euler-ancestral", "consistency"]
)
def test_overshoots_may_leave_a_schedule_that_ends_before_the_data(name):
    """The same sampler as on a schedule of the same levels that reaches further."""
    nodes = Given(tuple(FINITE.logsnr(torch.linspace(1, 0, 6)).tolist()))
    preset = samplers[name]
    sampler = Sampler(nodes, preset.solver, preset.stochasticity)
    a, b = sampler.plan(FINITE, 5), sampler.plan(Cosine(), 5)
    assert (
        np.abs(
            a.matrix() / (a.alpha + a.sigma)[:, None] - b.matrix() / (b.alpha + b.sigma)[:, None]
        ).max()
        < 1e-9
    )


def test_euler_maruyama_keeps_the_schedules_scaling():
    schedule = FlowMatching().with_scaling(Norm())
    grid = UniformTime(start=0.999)
    made = Sampler(grid, EulerMaruyama(), Eta(0.5)).plan(schedule, 2000)
    first = made.levels[0]
    total = first.alpha**2 * 0.25 + first.sigma**2
    data, states = GaussianMixture.gaussian([0.0], [[0.25]]), total
    for k, level in enumerate(made.levels[:-1]):
        total = level.alpha**2 * 0.25 + level.sigma**2
        gain = (made.x[k + 1, k] * level.alpha * 0.25 + made.eps[k + 1, k] * level.sigma) / total
        states = gain**2 * states + float((made.noise[k + 1, 1:] ** 2).sum())
    assert states / made.alpha[-1] ** 2 == pytest.approx(float(data.covariance), rel=0.02)


def test_edm_churn_at_zero_snr_keeps_the_noise_of_unit_variance():
    made = Sampler(stochasticity=EDMChurn(40.0)).plan(FlowMatching(), 10)
    assert float((made.noise[0] ** 2).sum()) == pytest.approx(1.0, rel=1e-14)


def test_infinite_levels_are_not_taken_for_finite_ends():
    for schedule in (EDM(), ScaledLinear()):
        for end in (-math.inf, math.inf):
            with pytest.raises(ValueError, match="covers"):
                schedule.time(end)
    with pytest.raises(ValueError, match="covers"):
        sample(Denoiser(net, "v", ScaledLinear(), "index"), (2, 2), schedule=FlowMatching())


def test_no_two_generators_of_a_run_are_alike():
    own = PerSample(5, range(6), stream=3)
    firsts = [float(own.strata()[0]), *own.uniform().tolist()]
    assert len({round(value, 6) for value in firsts}) == 7


@pytest.mark.parametrize("name", ["consistency", "ddim", "ddpm"])
@pytest.mark.parametrize("output", ["x", "u"])
def test_nothing_unused_is_kept(name, output):
    alive = []

    def network(z, t):
        out = net(z, t)
        alive.append(weakref.ref(out))
        assert sum(ref() is not None for ref in alive) <= 2
        return out

    sample(Denoiser(network, output, Cosine(-9, 9)), (2, 2), sampler=name, steps=20, seed=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plan(Sampler(Given((5.0, 0.0, -5.0)), stochasticity=Eta(1.0)), Cosine(), 2), "noise to data"),
        (lambda: plan(Sampler(Karras(sigma_min=80, sigma_max=0.002)), Cosine(), 4), "noise to data"),
        (lambda: plan(Sampler(UniformLogSNR(9, -9)), Cosine(), 4), "noise to data"),
        (lambda: plan(Sampler(Given((0.0, math.nan))), Cosine(), 1), "noise to data"),
        (lambda: Karras(rho=0), "rho"),
        (lambda: Karras(sigma_min=-1.0), "sigma_min"),
        (lambda: convert_noise(LargeVariance(), Eta, Step.between(Cosine(), 0.6, 0.5)), "scales its noise"),
    ],
)  # fmt: skip
def test_impossible_grids_and_conversions_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_hostile_plan_files_are_refused(tmp_path):
    good = plan("ddpm", FlowMatching(), 3)
    content = json.loads(good.to_json())
    flipped = {**content, "alpha": [-a for a in content["alpha"]]}
    wrongs = [{**content, **change} for change in (
        {"noises": 10**10}, {"noises": 1e400}, {"noises": -1}, {"logsnr": ["nan", 0, 1, 2]},
        {"alpha": [10**400] * 4}, {"logsnr": [1, 2, 3, 4]}, {"rows": None},
    )]  # fmt: skip
    for text in ("[" * 200_000, *map(json.dumps, wrongs)):
        with pytest.raises(ValueError, match="plan"):
            Plan.from_json(text)
    assert Plan.from_json(json.dumps(flipped)).alpha[1] < 0  # a sign is a convention, not a lie
    path = tmp_path / "plan.npz"
    good.to_npz(path)
    data = path.read_bytes()
    for broken in (data[:-30], b"garbage", data[:100] + b"x" + data[101:], b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="plan"):
            Plan.from_npz(path)


def test_names_stand_for_schedules_everywhere():
    assert Denoiser(net, "v", "cosine(-9, 9)").schedule == Cosine(-9.0, 9.0)
    assert plan("ddim", "cosine", np.int64(3)).nfe == 3
    x = sample(RING, (np.int64(2), 2), schedule="cosine", seed=0)
    assert torch.equal(x, sample(RING, (2, 2), schedule=Cosine(), seed=0))
    with pytest.raises(KeyError, match="did you mean 'ddim'"):
        samplers["dimm"]


def test_the_progress_bar_closes_when_the_network_fails():
    import threading

    def network(z, t):
        raise RuntimeError("no")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no"):
        sample(Denoiser(network), (2, 2), progress=True)
    assert threading.active_count() == before
