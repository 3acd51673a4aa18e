"""The drop-in scheduler against diffusers' contract, its own schedulers, and exact distributions.

The tests of the first part say in our words what diffusers' SchedulerCommonTest asks of a scheduler.
"""

import copy
import json
import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from instances import published
from twosides.denoiser import Denoiser
from twosides.integrations.diffusers import Scheduler
from twosides.oracle import GaussianMixture
from twosides.sampling.grids import Karras
from twosides.sampling.noise import Churn
from twosides.sampling.presets import samplers
from twosides.sampling.sample import sample as sampled
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams
from twosides.schedules import FlowMatching, ScaledLinear, along_batch

diffusers.logging.set_verbosity_error()
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # NumPy on torch tensors
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]
FLOAT64 = torch.float64
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODES = {
    "vp": {},
    "vp-v": {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "flow": {"prediction_type": "flow_prediction", "shift": 3.0},
    "flow-origin": {"origin": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "edm": {"origin": "EDMEulerScheduler", "sigma_schedule": "karras"},
}


def stand_in(scheduler):
    """What from_pipeline looks at."""
    return SimpleNamespace(scheduler=scheduler)


def ours(native, sampler="ddim", **options):
    return Scheduler.from_pipeline(stand_in(native), sampler, **options)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(z, t):
    """Any smooth function of both."""
    return torch.tanh(0.7 * z + t / 1000)


def loop(scheduler, z, steps=None, model=network, arguments=None, step=None):
    """What every pipeline does."""
    scheduler.set_timesteps(steps, **(arguments or {}))
    z = z * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
        z = scheduler.step(model(shown, t), t, z, **(step or {}), return_dict=False)[0]
    return z


def far(a, b):
    return float((a - b).norm() / b.norm())


# ---------------------------------------------------------------------------- the contract


@pytest.fixture(params=MODES)
def config(request):
    return MODES[request.param]


@pytest.mark.parametrize("timestep", [0, 1, 10, 49, 500])
@pytest.mark.parametrize("sampler", ["ddim", "unipc", "ddpm", "heun"])
def test_saved_and_loaded_schedulers_step_alike(config, sampler, timestep, tmp_path):
    scheduler = Scheduler(sampler, **config)
    scheduler.save_config(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    z, answers = normal(4, 3, 8, 8), []
    for one in (scheduler, again):
        one.set_timesteps(50)
        assert one.scale_model_input(z, 0).shape == z.shape
        told = timestep / 500 if config.get("origin", "").startswith("EDM") else timestep
        generator = torch.Generator().manual_seed(0)
        answers.append(one.step(0.1 * z, told, z, generator=generator).prev_sample)
    assert torch.equal(*answers) and answers[0].shape == z.shape


def test_configs_survive_files_and_other_schedulers(config, tmp_path):
    scheduler = Scheduler(sampler="unipc", grid="karras", seed=3, **config)
    scheduler.save_pretrained(tmp_path)
    saved = dict(scheduler.config)
    saved.pop("_use_default_values")
    read = dict(Scheduler.from_pretrained(tmp_path).config)
    read.pop("_use_default_values")  # which diffusers leaves out for other classes
    assert read == saved
    again = Scheduler.from_config(Scheduler("unipc", **config).config)
    assert again.config["sampler"] == "unipc"  # given by position
    assert diffusers.DDIMScheduler in scheduler.compatibles
    there = diffusers.DDIMScheduler.from_config(scheduler.config)
    back = Scheduler.from_config(there.config)
    names = {*saved} - {"_class_name", "_diffusers_version"}
    assert {name: back.config[name] for name in names} == {name: saved[name] for name in names}


def test_a_sampler_given_whole_survives_files(tmp_path):
    sampler = Sampler(Karras(5.0, 0.01, 50.0), Adams(3, "eps", "logsnr"), Churn(0.2))
    scheduler = Scheduler(sampler)
    scheduler.save_pretrained(tmp_path)
    json.loads((tmp_path / "scheduler_config.json").read_text())
    assert Scheduler.from_pretrained(tmp_path)._sampler() == sampler


def test_tuples_and_outputs_say_the_same(config):
    scheduler, z = Scheduler("ddim", **config), normal(4, 3, 8, 8)
    told = 0.3
    scheduler.set_timesteps(50)
    output = scheduler.step(0.1 * z, told, z)
    scheduler.set_timesteps(50)
    (alone, *more) = scheduler.step(0.1 * z, told, z, return_dict=False)
    assert (
        torch.equal(alone, output.prev_sample) and next(iter(output.values())) is output.prev_sample
    )
    assert not more or torch.equal(more[0], output.pred_original_sample)


def test_one_step_predicts_the_data_in_a_tuple():
    scheduler = Scheduler()
    scheduler.set_timesteps(1)
    z = normal(2, 3)
    state, x = scheduler.step(z, scheduler.timesteps[0], z, return_dict=False)
    assert torch.allclose(state, x, atol=1e-4)  # from pure noise, of two numbers 157 times z


def test_attributes_are_there_before_and_after_a_run_is_laid_out(config):
    scheduler, z = Scheduler(**config), normal(4, 3, 8, 8)
    for steps in (None, 100):
        if steps:
            scheduler.set_timesteps(steps)
        t = scheduler.timesteps[5][None]
        assert scheduler.add_noise(z, normal(4, 3, 8, 8, seed=1), t).shape == z.shape
        assert scheduler.scale_noise(z, t, normal(4, 3, 8, 8, seed=1)).shape == z.shape
        assert scheduler.get_velocity(z, normal(4, 3, 8, 8, seed=1), t).shape == z.shape
        assert scheduler.scale_model_input(z, 0.0).shape == z.shape
        assert math.isfinite(scheduler.init_noise_sigma) and scheduler.order == 1
        assert len(scheduler.alphas_cumprod) == len(scheduler) == 1000
        assert bool((scheduler.alphas_cumprod.diff() < 0).all())
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 100
    assert len(scheduler.sigmas) == 101 and scheduler.sigmas.device.type == "cpu"


def test_trained_betas_survive_files(tmp_path):
    scheduler = Scheduler(trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert scheduler.betas.tolist() == again.betas.tolist() == pytest.approx([0.1, 0.3])


def test_unknown_attributes_are_attribute_errors():
    scheduler = Scheduler()
    scheduler.dummy_attribute = 5
    scheduler.register_to_config(test_attribute=5)
    assert scheduler.dummy_attribute == 5
    with pytest.warns(FutureWarning):
        assert scheduler.test_attribute == 5
    with pytest.raises(
        AttributeError, match="'Scheduler' object has no attribute 'does_not_exist'"
    ):
        scheduler.does_not_exist  # noqa: B018


def test_what_means_nothing_is_refused():
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    refused = [
        (lambda: Scheduler("dimm"), "did you mean 'ddim'"),
        (lambda: Scheduler(grid="karas"), "did you mean 'karras'"),
        (lambda: Scheduler(origin="FooScheduler"), "unknown scheduler class"),
        (lambda: Scheduler(prediction_type="epsilom"), "did you mean 'epsilon'"),
        (lambda: Scheduler(beta_schedule="cubic"), "unknown beta_schedule"),
        (lambda: Scheduler.from_config(Scheduler().config, samplr="ddim"), "samplr"),
        (
            lambda: ours(diffusers.CMStochasticIterativeScheduler()),
            "CMStochasticIterativeScheduler is not a scheduler that can be read",
        ),
        (lambda: ours(flow).set_timesteps(4), "pass mu"),
        (lambda: Scheduler().set_timesteps(0), "whole number >= 1"),
        (lambda: Scheduler().set_timesteps(4, timesteps=[900, 100]), "2 timesteps"),
        (lambda: Scheduler().set_timesteps(timesteps=[100, 900]), "must fall strictly"),
        (lambda: Scheduler().set_timesteps(timesteps=[float("nan")]), "finite numbers"),
        (lambda: Scheduler(**MODES["flow"]).set_timesteps(sigmas=[3.0, 1.0]), r"in \[0, 1\]"),
        (lambda: Scheduler().step(normal(1), 5, normal(1)), "call set_timesteps"),
    ]
    for act, message in refused:
        with pytest.raises((ValueError, TypeError), match=message):
            act()
    with pytest.raises(ValueError, match="shape|answered"):
        scheduler = Scheduler()
        scheduler.set_timesteps(2)
        scheduler.step(normal(2, 6), scheduler.timesteps[0], normal(2, 3))


# ---------------------------------------------------------------------------- native results

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
EXACT = {"sigmas": np.linspace(1, 0.001, 10)}  # what FlowMatch* take when nothing is passed
NATIVE = {
    "ddim-sd": ("DDIM", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, "ddim"),
    "ddim-clip": ("DDIM", {"timestep_spacing": "trailing"}, "ddim"),
    "ddim-cosine": ("DDIM", {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, "ddim"),
    "ddim-zero-snr": ("DDIM", {**SD, "clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "ddim"),
    "cogvideox": ("CogVideoXDDIM", {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, "ddim"),
    "euler": ("EulerDiscrete", {**SD}, "edm-euler"),
    "euler-sdxl": ("EulerDiscrete", {**SD, "timestep_spacing": "leading", "steps_offset": 1}, "edm-euler"),
    "euler-exponential": ("EulerDiscrete", {**SD, "timestep_spacing": "trailing", "use_exponential_sigmas": True, "sigma_min": 0.0292, "sigma_max": 14.6146}, "edm-euler"),
    "heun": ("HeunDiscrete", {**SD}, "heun"),
    "dpm++2m": ("DPMSolverMultistep", {**SD}, "dpmpp-2m"),
    "dpm++2m-trailing": ("DPMSolverMultistep", {**SD, "timestep_spacing": "trailing"}, "dpmpp-2m"),
    "dpm++2m-karras": ("DPMSolverMultistep", {**SD, "use_karras_sigmas": True}, "dpmpp-2m"),
    "unipc": ("UniPCMultistep", {**SD}, "unipc"),
    "unipc-leading": ("UniPCMultistep", {**SD, "timestep_spacing": "leading", "steps_offset": 1}, "unipc"),
    "unipc-3": ("UniPCMultistep", {**SD, "solver_order": 3}, "unipc-3"),
    "deis": ("DEISMultistep", {**SD, "solver_order": 3}, "deis"),
    "flow-euler": ("FlowMatchEulerDiscrete", {"shift": 3.0}, "flow-euler"),
    "flow-euler-karras": ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_karras_sigmas": True}, "flow-euler"),
    "flow-euler-terminal": ("FlowMatchEulerDiscrete", {"shift": 3.0, "shift_terminal": 0.1}, "flow-euler"),
    "mochi": ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "flow-euler"),
    "edm-euler": ("EDMEuler", {}, "edm-euler"),
    "edm-dpm++2m": ("EDMDPMSolverMultistep", {}, "dpmpp-2m"),
    "svd": ("EulerDiscrete", {**SD, "timestep_spacing": "leading", "timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}, "edm-euler"),
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_native_results_at_equal_steps(name):
    """To 4 digits; what is left is float32, and EDM's sqrt(sigma^2 + 1) for its starting noise."""
    kind, config, sampler = NATIVE[name]
    native = getattr(diffusers, f"{kind}Scheduler")(**config)
    arguments = EXACT if kind.startswith("FlowMatch") else {}
    steps, z = None if arguments else 10, normal(2, 4, 8, 8)
    mine = ours(native, published(sampler))
    # Clipped data need their own eps: without this, DDIM's keeps that of the data before clipping.
    step = {"use_clipped_model_output": True} if name == "ddim-clip" else {}
    theirs = loop(native, z, steps, arguments=arguments, step=step)
    assert far(loop(mine, z, steps, arguments=arguments), theirs) < 1e-4
    assert torch.allclose(mine.timesteps.double(), native.timesteps.double(), atol=0.5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep"])
def test_native_flow_solvers_where_they_do_not_round_timesteps(kind):
    """diffusers truncates flow timesteps to integers; with a network blind to them, all agree."""
    native = getattr(diffusers, f"{kind}Scheduler")(**FLOW)
    sampler = "unipc" if kind.startswith("Uni") else "dpmpp-2m"

    def blind(z, t):
        return torch.tanh(0.7 * z)

    z = normal(2, 4, 8, 8)
    got = loop(ours(native, published(sampler)), z, 10, blind)
    start = 1e-4 if kind.startswith("Uni") else 0.0  # theirs starts at 1 - 1e-6, ours at 1
    assert far(got, loop(native, z, 10, blind)) < 1e-4 + start


def test_stochastic_steps_take_the_noise_that_diffusers_draws():
    ancestral = diffusers.EulerAncestralDiscreteScheduler(**SD)
    ddim = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    sde = diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++")
    rows = [(ancestral, "euler-a", {}), (sde, "dpmpp-2m-sde", {}), (ddim, "ddim", {"eta": 0.7})]
    for native, sampler, step in rows:
        z = normal(2, 4, 8, 8)
        generators = [{"generator": torch.Generator().manual_seed(5)} for _ in range(2)]
        theirs = loop(native, z, 10, step=step | generators[0])
        got = loop(ours(native, published(sampler)), z, 10, step=step | generators[1])
        assert far(got, theirs) < 1e-4, sampler


def test_a_run_is_the_librarys_own():
    """The Scheduler inside a loop is `sample` outside of it."""
    schedule, noise = ScaledLinear(), normal(3, 5, dtype=FLOAT64)
    denoiser = Denoiser(lambda z, t: network(z, t[:, None]), "eps", schedule, "index")
    for name in ("unipc", "kab3c", "flow-heun", "dpmpp-2m", "dpm-2"):
        scheduler = Scheduler(name, grid="uniform-time", **SD, set_alpha_to_one=False)
        got = loop(scheduler, noise, 7, lambda z, t: network(z, t.double()))
        expected = sampled(
            denoiser,
            (3, 5),
            sampler=Sampler(solver=samplers[name].solver),
            steps=7,
            init=noise,
            dtype=FLOAT64,
        )
        last = schedule.level(schedule.logsnr_max)
        assert far(got / float(last.alpha), expected) < 2e-6, name


# ---------------------------------------------------------------------------- distributions

DATA = GaussianMixture([1.0], [[0.3]], [[[0.25]]])


def exact_velocity(z, t):
    level = FlowMatching().at(t.double() / 1000)
    x, eps = DATA(z, level)
    return eps - x


def moments(scheduler, steps, step=None, count=20_000):
    z = loop(scheduler, normal(count, 1, dtype=FLOAT64), steps, exact_velocity, step=step)
    return float(z.mean()), float(z.std())


STOCHASTIC = [name for name, made in samplers.items() if made.stochastic]


NOT_HERE = {"consistency", "lcm"}  # exact for one-step models only; no sampler of a denoiser
FROM_INSIDE = {"euler-maruyama"}  # refuses to start at zero SNR


@pytest.mark.parametrize("name", sorted({*STOCHASTIC} - NOT_HERE - FROM_INSIDE))
def test_stochastic_presets_reach_the_datas_moments_on_flow_paths(name):
    """N(0.3, 0.5^2) by its exact network; of 20,000 samples the mean is known to 0.011 (3 sigma)."""
    generator = torch.Generator().manual_seed(1)  # not the initial noise's
    mean, std = moments(Scheduler(name, **MODES["flow"]), 400, {"generator": generator})
    assert abs(mean - 0.3) < 0.015 and abs(std - 0.5) < 0.015, (mean, std)


def test_euler_maruyama_says_why_it_cannot_start_at_pure_noise():
    with pytest.raises(ValueError, match="reverse SDE is infinite at logsnr -inf"):
        Scheduler("euler-maruyama", **MODES["flow"]).set_timesteps(10)


def test_diffusers_stochastic_flow_schedulers_do_not():
    """So the table says more than that anything passes."""
    collapsed = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    churned = diffusers.FlowMatchHeunDiscreteScheduler()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert moments(collapsed, 100)[1] < 0.4
        mean, std = moments(churned, 100, {"s_churn": 4.0})
    assert abs(mean - 0.3) > 0.1 and std > 0.55


def test_edm_churn_announces_the_level_at_which_the_network_is_asked():
    scheduler = Scheduler("edm(40)", **MODES["flow"])
    plain = Scheduler("heun", **MODES["flow"])
    for one in (scheduler, plain):
        one.set_timesteps(10)
    told, grid = (one.timesteps.double() / 1000 for one in (scheduler, plain))
    grown = (told / (1 - told)) / (grid / (1 - grid))
    raised = told > grid
    assert int(raised.sum()) >= 3 and bool((told >= grid).all())
    assert torch.allclose(grown[raised], torch.tensor(2.0, dtype=FLOAT64).sqrt(), rtol=1e-4)


# ---------------------------------------------------------------------------- where runs begin


def strength(scheduler, begin, x, noise, steps=30, told=True):
    """Image to image as pipelines do it."""
    scheduler.set_timesteps(steps)
    left = scheduler.timesteps[begin * scheduler.order :]
    if told:
        scheduler.set_begin_index(begin * scheduler.order)
    z = scheduler.add_noise(x, noise, left[:1])
    for t in left:
        z = scheduler.step(exact_velocity(z, t), t, z, return_dict=False)[0]
    return z


@pytest.mark.parametrize("name", ["ddim", "unipc", "kab3c", "heun", "rk4", "dpm-3", "leapfrog"])
@pytest.mark.parametrize("told", [True, False])
def test_image_to_image_follows_the_exact_flow(name, told):
    """From the middle, the data N(m, s^2) are carried by an affine map that is known."""
    scheduler = Scheduler(name, **MODES["flow"])
    scheduler.set_timesteps(200)
    first = scheduler.timesteps[80 * scheduler.order]
    t = float(first) / 1000
    x, noise = normal(64, 1, dtype=FLOAT64), normal(64, 1, seed=1, dtype=FLOAT64)
    got = strength(scheduler, 80, x, noise, 200, told)
    state = (1 - t) * x + t * noise
    spread = math.hypot((1 - t) * 0.5, t)
    expected = 0.3 + 0.5 * (state - (1 - t) * 0.3) / spread
    assert far(got, expected) < (0.02 if name in ("ddim", "leapfrog") else 1e-3)


def test_a_run_may_begin_between_timesteps():
    scheduler = Scheduler("unipc", **MODES["flow"])
    scheduler.set_timesteps(200)
    z = normal(64, 1, dtype=FLOAT64)
    t = torch.tensor(617.3)
    left = [t, *scheduler.timesteps[scheduler.timesteps < t]]
    for told in left:
        z = scheduler.step(exact_velocity(z, told), told, z, return_dict=False)[0]
    start = normal(64, 1, dtype=FLOAT64)
    spread = math.hypot((1 - 0.6173) * 0.5, 0.6173)
    assert far(z, 0.3 + 0.5 * (start - (1 - 0.6173) * 0.3) / spread) < 1e-3


def test_noise_is_added_at_any_real_timestep():
    x, noise = normal(5, 2, dtype=FLOAT64), normal(5, 2, seed=1, dtype=FLOAT64)
    flow, vp = Scheduler(**MODES["flow"]), Scheduler(**SD)
    times = torch.tensor([0.0, 0.5, 250.25, 999.999, 1000.0])
    t = times.double()[:, None] / 1000
    for prepared in (False, True):
        if prepared:
            flow.set_timesteps(7), vp.set_timesteps(7)
        assert torch.allclose(flow.scale_noise(x, times, noise), (1 - t) * x + t * noise, atol=1e-7)
        indices = torch.tensor([0.0, 0.5, 250.25, 998.5, 999.0])
        level = ScaledLinear().at(indices.double() / 999)
        alpha, sigma = (along_batch(v, x) for v in level[1:])
        assert torch.allclose(vp.add_noise(x, noise, indices), alpha * x + sigma * noise)
        whole = diffusers.DDIMScheduler(**SD).add_noise(
            x, noise, torch.tensor([0, 1, 250, 998, 999])
        )
        assert torch.allclose(
            vp.add_noise(x, noise, torch.tensor([0, 1, 250, 998, 999])), whole, atol=1e-5
        )


# ---------------------------------------------------------------------------- noise and runs


def test_own_seed_makes_noise_that_does_not_depend_on_the_batch():
    z = normal(4, 3)
    whole = loop(Scheduler("ddpm", seed=7), z, 5)
    assert torch.equal(whole, loop(Scheduler("ddpm", seed=7), z, 5))
    assert torch.allclose(whole[:2], loop(Scheduler("ddpm", seed=7), z[:2], 5))
    assert not torch.allclose(whole, loop(Scheduler("ddpm", seed=8), z, 5))


def test_generators_one_or_one_per_sample():
    z = normal(2, 3)

    def run(z, seeds):
        made = [torch.Generator().manual_seed(seed) for seed in seeds]
        return loop(Scheduler("ddpm"), z, 5, step={"generator": made if len(made) > 1 else made[0]})

    both = run(z, [1, 2])
    assert torch.allclose(both[:1], run(z[:1], [1])) and torch.allclose(both[1:], run(z[1:], [2]))


def test_eta_replaces_the_noise_and_may_not_change():
    z = normal(2, 3)
    a = loop(Scheduler("ddim", seed=0), z, 5, step={"eta": 1.0})
    assert torch.allclose(a, loop(Scheduler("ddpm", seed=0), z, 5), atol=1e-5)
    b = loop(Scheduler("ddpm", seed=0), z, 5, step={"eta": 0.0})  # what pipelines pass by default
    assert torch.allclose(b, a, atol=1e-5)
    scheduler = Scheduler("ddim", seed=0)
    scheduler.set_timesteps(5)
    scheduler.step(z, scheduler.timesteps[0], z, eta=0.5)
    with pytest.raises(ValueError, match="eta changed"):
        scheduler.step(z, scheduler.timesteps[1], z, eta=0.7)


def test_interleaved_runs_of_one_scheduler_do_not_meet():
    scheduler, a, b = Scheduler("unipc"), normal(2, 3), normal(2, 3, seed=1)
    alone = [loop(Scheduler("unipc"), z, steps) for z, steps in ((a, 7), (b, 7))]
    scheduler.set_timesteps(7)
    first = scheduler.timesteps
    scheduler.set_timesteps(7)
    second = scheduler.timesteps
    for s, t in zip(first, second, strict=True):
        a = scheduler.step(network(a, s), s, a, return_dict=False)[0]
        b = scheduler.step(network(b, t), t, b, return_dict=False)[0]
    assert torch.equal(a, alone[0]) and torch.equal(b, alone[1])


def test_copies_go_on_by_themselves():
    scheduler, z = Scheduler("unipc"), normal(2, 3)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        z = scheduler.step(network(z, t), t, z, return_dict=False)[0]
    twin, ends = copy.deepcopy(scheduler), []
    for one in (scheduler, twin):
        state = z
        for t in one.timesteps[3:]:
            state = one.step(network(state, t), t, state, return_dict=False)[0]
        ends.append(state)
    assert torch.equal(*ends)
    assert torch.equal(ends[0], loop(Scheduler("unipc"), normal(2, 3), 6))


def test_half_precision_latents_are_updated_in_float32():
    scheduler = Scheduler("unipc")
    z = normal(2, 3)
    got = loop(scheduler, z.bfloat16(), 6)
    assert got.dtype == torch.bfloat16 and far(got.float(), loop(scheduler, z, 6)) < 0.03


@pytest.mark.parametrize("name", ["langevin", "restart", "edm", "sa-solver", "rk4", "leapfrog"])
@pytest.mark.parametrize("mode", MODES)
def test_unusual_samplers_run_everywhere(name, mode):
    if mode == "vp-v" and name == "leapfrog":
        name = "bdia"
    scheduler = Scheduler(name, **MODES[mode], seed=1)
    z = loop(scheduler, normal(2, 3), 8)
    assert z.isfinite().all() and torch.equal(z, loop(scheduler, normal(2, 3), 8))
