"""What was reported of diffusers' schedulers: each thread as a test, with theirs where it still errs.

Numbers are those of issues at github.com/huggingface/diffusers. The truth is known: of data
N(0.3, 0.5^2) the exact network, hence the probability-flow ODE's map and every level's spread.
"""

import copy
import inspect
import json
import math
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from test_scheduler import DATA, MODES, SD, exact_velocity, far, loop, normal, ours
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines import (
    CASES,
    SHIFTED,
    Case,
    inputs,
    network,
    of,
    plain_unet2d,
    sd3,
    square,
    tame,
    text,
    unet,
    vae,
)
from twosides.integrations.diffusers import Scheduler
from twosides.sampling.grids import GRIDS, Karras
from twosides.sampling.noise import Churn
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams

diffusers.logging.set_verbosity_error()
# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

FLOAT64 = torch.float64
FlowMatchEuler = diffusers.FlowMatchEulerDiscreteScheduler
FLOW_FLAGS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ODE = [name for name, made in samplers.items() if not made.stochastic]

# ---------------------------------------------------------------------------- truth


def exact(scheduler, told, z):
    """The exact network of the data, in this scheduler's words."""
    notation = scheduler.notation
    level = notation.schedule.level(notation.clock.logsnr(told.double(), notation.schedule))
    return DATA.predict(z, level.floats(), notation.output)


def arrival(scheduler, noise):
    """Where the probability-flow ODE leads from where a run starts, and where the run ends."""
    plan = scheduler._runs.current.whole.plan
    start = plan.levels[0]
    z = noise * scheduler.init_noise_sigma
    unit = (z - start.alpha * 0.3) / math.hypot(start.alpha * 0.5, start.sigma)
    end = plan.levels[-1]
    return end.alpha * 0.3 + math.hypot(end.alpha * 0.5, end.sigma) * unit


def error(scheduler, steps=None, **arguments):
    """The distance of a run of ours from there."""
    noise = normal(64, 1, dtype=FLOAT64)
    got = loop(scheduler, noise, steps, lambda z, t: exact(scheduler, t, z), arguments)
    scheduler.set_timesteps(steps, **arguments)
    return far(got, arrival(scheduler, noise))


def flow_error(scheduler, steps, **arguments):
    """Of any flow scheduler's that starts from pure noise."""
    noise = normal(64, 1, dtype=FLOAT64)
    return far(loop(scheduler, noise, steps, exact_velocity, arguments), 0.3 + 0.5 * noise)


def swapped(name, scheduler):
    """A pipeline with this scheduler, given its own."""
    pipe = CASES[name].build()
    pipe.scheduler = scheduler(pipe)
    return pipe


@cache
def solved(name):
    """The latents that a pipeline's own scheduler would end at in many steps."""
    return CASES[name].run(CASES[name].build(), 100)


# ---------------------------------------------------------------------------- flow models


def mismatch(scheduler, steps, step=None):
    """The greatest gap of a state's spread from that of the level which the network is told."""
    gaps = []

    def watched(z, t):
        time = float(t) / 1000
        gaps.append(float(z.std()) / math.hypot(0.5 * (1 - time), time) - 1)
        return exact_velocity(z, t)

    loop(scheduler, normal(5_000, 1, dtype=FLOAT64), steps, watched, step=step)
    return max(map(abs, gaps))


def test_8549_sd3_churn_evaluates_the_network_where_the_state_is():
    """SD3's churn raises the noise, but asks the network at the level below: x_t, not x_hat.

    Since then FlowMatchEuler takes s_churn and does nothing with it; FlowMatchHeun's is as reported.
    """
    generator = torch.Generator().manual_seed(1)
    native = FlowMatchEuler(shift=3.0)
    for name in ("edm(40)", "churn"):  # what is left is the steps' error
        assert mismatch(ours(native, name), 100, {"generator": generator}) < 0.08
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    assert mismatch(heun, 100, {"s_churn": 40.0, "generator": generator}) > 0.3
    noise = normal(8, 1, dtype=FLOAT64)
    runs = [loop(native, noise, 10, exact_velocity, step={"s_churn": c}) for c in (0.0, 40.0)]
    assert torch.equal(*runs)


def pipeline_arguments(steps):
    """What FLUX passes."""
    return {"sigmas": np.linspace(1, 1 / steps, steps), "mu": 0.9}


@pytest.mark.parametrize("name", ODE)
def test_9607_every_sampler_on_a_flow_model(name):
    """FlowMatch schedulers: Euler is all there is, Heun takes neither mu nor sigmas."""
    native, made = FlowMatchEuler(use_dynamic_shifting=True), samplers[name]
    scheduler, arguments = ours(native, name), pipeline_arguments(16)
    euler, reached = flow_error(native, None, **arguments), error(scheduler, **arguments)
    assert reached == pytest.approx(euler, rel=1e-3) if made.order == 1 else reached < euler / 2
    if made.nfe_per_step == 1 and not made.solver.even:
        assert torch.allclose(scheduler.timesteps, native.timesteps, rtol=1e-5)


def test_9607_sigmas_and_shift_of_the_caller():
    """Sigmas of one's own choice, shifted by mu, are where every sampler goes."""
    sigmas, factor = np.array([1.0, 0.7, 0.55, 0.2, 0.05]), math.exp(0.9)
    shifted = factor * sigmas / (1 + (factor - 1) * sigmas)
    for name in ("ddim", "unipc", "kab3c", "ddpm"):
        scheduler = ours(FlowMatchEuler(use_dynamic_shifting=True), name)
        for given in (sigmas, sigmas.tolist(), torch.from_numpy(sigmas)):
            scheduler.set_timesteps(sigmas=given, mu=0.9)
            assert np.allclose(scheduler.timesteps / 1000, shifted, atol=1e-6)
            assert np.allclose(scheduler.sigmas, [*shifted, 0], atol=1e-6)
    with pytest.raises(TypeError):
        diffusers.FlowMatchHeunDiscreteScheduler().set_timesteps(sigmas=sigmas, mu=0.9)


@pytest.mark.parametrize("pipeline", ["sd3", "flux"])
def test_9924_dpm_solver_on_flow_models(pipeline):
    """DPM++ of an SD3 or FLUX config gives garbage: it reads velocities as noise."""
    case, kind = CASES[pipeline], diffusers.DPMSolverMultistepScheduler
    pipe = swapped(pipeline, lambda pipe: ours(pipe.scheduler, "dpmpp-2m"))
    assert far(case.run(pipe, 20), solved(pipeline)) < 0.02
    wrong = swapped(pipeline, lambda pipe: kind.from_config(pipe.scheduler.config))
    if pipeline == "sd3":
        assert far(case.run(wrong, 20), solved(pipeline)) > 0.5
    else:
        with pytest.raises(ValueError, match="does not support custom sigmas"):
            case.run(wrong, 20)


def test_9971_deis_on_flux_with_sigmas():
    """DEIS on FLUX: "does not support custom sigmas schedules"."""
    case, sigmas = CASES["flux"], np.linspace(1, 0.02, 20) ** 1.2
    pipe = swapped("flux", lambda pipe: ours(pipe.scheduler, "deis"))
    for chosen in (None, sigmas):
        assert far(case.run(pipe, 20, sigmas=chosen), solved("flux")) < 0.02
    deis = swapped(
        "flux", lambda pipe: diffusers.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    )
    with pytest.raises(ValueError, match="does not support custom sigmas"):
        case.run(deis, 20)


INDEXED = {"leading", "trailing", "linspace"}
REFUSED = {(grid, mode) for grid in INDEXED for mode in ("flow", "edm")}
REFUSED |= {("uniform-logsnr", "flow"), ("ays-svd", "vp"), ("ays-svd", "edm")}  # beyond its ends
# Made for single models of ComfyUI: in 12 steps they leave out most of what these mixtures need.
COARSE = {"bong_tangent", "linear_quadratic"}


@pytest.mark.parametrize("mode", ["vp", "flow", "edm"])
@pytest.mark.parametrize("grid", sorted({*GRIDS} - {"restart"}))
def test_10511_every_sigma_schedule_with_every_scheduler(grid, mode):
    """Sigma schedules are written into each scheduler anew, or missing from it."""
    made = [Scheduler(name, grid=grid, **MODES[mode]) for name in ("ddim", "unipc", "heun")]
    if (grid, mode) in REFUSED:
        with pytest.raises(ValueError, match="has no indices|is infinite at its end|which covers"):
            made[0].set_timesteps(12)
    else:
        first, *higher = (error(scheduler, 12) for scheduler in made)
        assert first < (1.0 if grid in COARSE else 0.3) and max(higher) < first


def test_10511_diffusers_has_them_here_and_there():
    """DDIM and Euler ancestral have no karras sigmas, EDM no beta sigmas, FlowMatchHeun none."""
    asked = {
        "DDIMScheduler": "use_karras_sigmas",
        "EulerAncestralDiscreteScheduler": "use_karras_sigmas",
        "EDMEulerScheduler": "use_beta_sigmas",
        "FlowMatchHeunDiscreteScheduler": "use_karras_sigmas",
    }
    for name, option in asked.items():
        native = getattr(diffusers, name)
        assert option not in inspect.signature(native.__init__).parameters
        mine = ours(native(), "ddim", **{option: True})
        mine.set_timesteps(8)
        plain = ours(native(), "ddim")
        plain.set_timesteps(8)
        assert len(mine.timesteps) == 8 and not torch.equal(mine.sigmas, plain.sigmas)


def test_13243_shifted_once():
    """set_timesteps(n) of FlowMatchEuler shifts its last time twice."""
    even = np.linspace(1, 1e-3, 10)
    meant = 3 * even / (1 + 2 * even)
    native = FlowMatchEuler(shift=3.0)
    for scheduler, right in ((ours(native), True), (native, False)):
        for arguments in ({"num_inference_steps": 10}, {"sigmas": even}):
            scheduler.set_timesteps(**arguments)
            same = np.allclose(scheduler.sigmas[:-1], meant, rtol=1e-4)
            assert same == (right or "sigmas" in arguments)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep"])
def test_12108_qwen_with_schedulers_that_are_told_to_flow(kind):
    """Qwen-Image and Chroma refuse schedulers with prediction_type="flow_prediction".

    UniPC has learned to take sigmas since; DPM-Solver has not.
    """
    native = getattr(diffusers, f"{kind}Scheduler")(**FLOW_FLAGS, flow_shift=3.16)
    case, name = CASES["qwen"], "dpmpp-2m" if kind.startswith("DPM") else "unipc"
    dense = swapped("qwen", lambda _: ours(native, "kab3c"))
    pipe = swapped("qwen", lambda _: ours(native, name))
    assert far(case.run(pipe, 12), case.run(dense, 40)) < 0.03
    if kind.startswith("DPM"):
        with pytest.raises(ValueError, match="does not support custom sigmas"):
            case.run(swapped("qwen", lambda _: native), 12)


def chroma():
    model = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return tame(model, "proj_out", 1.0)


# Its own module imports FluxPosEmbed from where diffusers deprecates it.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_12108_chroma_too():
    """The levels that its pipeline asks for, shifted as the scheduler's config says."""
    build = of(diffusers.ChromaPipeline, "sd3", transformer=chroma, vae=SHIFTED)
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    masks = dict.fromkeys(names, torch.ones(1, 4))
    case = Case("chroma", build, inputs(text, lambda: masks, guidance_scale=2.0, **square(16)))
    pipe = case.build()
    euler = case.run(pipe, 6)
    native = diffusers.DPMSolverMultistepScheduler(**FLOW_FLAGS, flow_shift=3.0)
    pipe.scheduler = ours(native, "flow-euler")
    assert far(case.run(pipe, 6), euler) < 1e-3
    pipe.scheduler = ours(native, "dpmpp-2m")
    assert case.run(pipe, 6).isfinite().all()
    pipe.scheduler = native
    with pytest.raises(ValueError, match="does not support custom sigmas"):
        case.run(pipe, 6)


# ---------------------------------------------------------------------------- levels


def strayed(scheduler, steps):
    """How far states are from the level of their timestep, where all data are 0.

    There DDIM is exact on any timesteps, if only it goes where the next one says.
    """
    kept, gaps = scheduler.alphas_cumprod.double(), []
    scheduler.set_timesteps(steps)
    noise = normal(4, 1, dtype=FLOAT64)
    z = noise * (1 - kept[int(scheduler.timesteps[0])]).sqrt()
    for t in scheduler.timesteps:
        sigma = (1 - kept[int(t)]).sqrt()
        gaps.append(far(z, sigma * noise))
        z = scheduler.step(z / sigma, t, z, return_dict=False)[0]
    return max(gaps)


@pytest.mark.parametrize(
    ("spacing", "steps"), [("linspace", 10), ("linspace", 7), ("trailing", 13), ("trailing", 7)]
)
def test_11347_and_9261_ddim_steps_to_the_next_timestep(spacing, steps):
    """DDIM steps by 1000 // n, where "linspace" and "trailing" visit other timesteps."""
    native = diffusers.DDIMScheduler(**SD, timestep_spacing=spacing, clip_sample=False)
    mine = ours(native)
    assert strayed(mine, steps) < 1e-4
    assert strayed(native, steps) > 1e-3
    assert torch.equal(mine.timesteps, native.timesteps)


def test_12771_cosine_betas_with_karras_sigmas():
    """IndexError: several of DPM-Solver's timesteps, rounded, are one."""
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    native = diffusers.DPMSolverMultistepScheduler(**config)
    errors = [error(ours(native, "dpmpp-2m"), steps) for steps in (20, 50, 100)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02
    with pytest.raises(IndexError):
        loop(native, normal(4, 1), 20)


@pytest.mark.parametrize("kind", ["DDIM", "DDPM"])
def test_3851_noise_networks_at_zero_snr_are_refused(kind):
    """Zero terminal SNR with prediction_type="epsilon": infinite after a step, without a word."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    native = getattr(diffusers, f"{kind}Scheduler")(**config, clip_sample=False)
    with pytest.raises(ValueError, match="says nothing about the data at zero SNR"):
        ours(native).set_timesteps(10)
    native.set_timesteps(10)
    z, generator = normal(4, 1), torch.Generator().manual_seed(0)
    extra = {"generator": generator}
    assert not native.step(z, native.timesteps[0], z, **extra).prev_sample.isfinite().any()


@pytest.mark.parametrize("steps", [5, 8, 11, 14])
def test_9007_singlestep_order_3_in_3n_minus_1_steps(steps):
    """DPMSolverSinglestep of order 3 ended in NaN; now it does where the last sigma comes twice."""
    ends = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    config = {"solver_order": 3, "lower_order_final": False, **ends}
    native = diffusers.DPMSolverMultistepScheduler(**SD, **config)
    assert not loop(native, normal(4, 1), steps).isfinite().any()
    for origin in (native, diffusers.DPMSolverSinglestepScheduler(**SD, solver_order=3)):
        for name in ("dpm-3", "dpmpp-3m"):
            assert error(ours(origin, name), steps) < error(ours(origin, "ddim"), steps)


# ---------------------------------------------------------------------------- forward diffusion


class Ops(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket._qualified_op_name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


SEARCHES = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal"}


def noised(scheduler, count):
    """What is done to noise a batch at timesteps of its own."""
    told = scheduler.timesteps[torch.arange(count) * 7]
    add = getattr(scheduler, "scale_noise", None)
    with Ops() as seen:
        if add is not None:
            add(normal(count, 3), told, normal(count, 3, seed=1))
        else:
            scheduler.add_noise(normal(count, 3), normal(count, 3, seed=1), told)
    return seen.counts


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscrete", "EulerDiscrete", "UniPCMultistep"])
def test_9417_noise_is_added_without_a_search(kind):
    """One nonzero() for each sample of a training batch; and timesteps off the grid raise."""
    native = getattr(diffusers, f"{kind}Scheduler")()
    mine = ours(native)
    few, many = noised(mine, 2), noised(mine, 64)
    assert few == many and "nonzero" not in many
    assert noised(native, 64)["nonzero"] - noised(native, 2)["nonzero"] == 62
    x, noise, told = normal(3, 1), normal(3, 1, seed=1), torch.tensor([0.5, 500.5, 998.25])
    below, got, above = (mine.add_noise(x, noise, told + shift) for shift in (-0.5, 0.0, 0.5))
    assert torch.allclose(got, (below + above) / 2, atol=2e-3)


@pytest.mark.parametrize(
    "kind", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"]
)
def test_add_noise_before_set_timesteps_is_not_reversed(kind):
    """Fresh from their constructors, these add the noise of 999 - t."""
    native = getattr(diffusers, f"{kind}Scheduler")(**SD)
    mine, told = ours(native), torch.tensor([0, 100, 500, 900, 999])
    x, noise = normal(5, 1), normal(5, 1, seed=1)
    meant = diffusers.DDPMScheduler(**SD).add_noise(x, noise, told)
    assert torch.allclose(mine.add_noise(x, noise, told), meant, atol=1e-5)
    mine.set_timesteps(20)
    assert torch.allclose(mine.add_noise(x, noise, told), meant, atol=1e-5)
    reversed_ = native.add_noise(0 * x, torch.ones(5, 1), told)
    assert bool((reversed_.diff(dim=0) < 0).all())


# ---------------------------------------------------------------------------- runs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ddim", "unipc", "kab3c", "heun", "ddpm", "edm(40)", "restart"])
def test_steps_do_not_look_at_values(name, mode):
    """DtoH sync: with CUDA, each search of a timestep and each item() waits for the network."""
    scheduler, z = Scheduler(name, seed=0, **MODES[mode]), normal(2, 3)
    scheduler.set_timesteps(6)
    with Ops() as seen:
        for t in scheduler.timesteps:
            z = scheduler.step(0.1 * z, t, z, return_dict=False)[0]
    assert z.isfinite().all() and not SEARCHES & seen.counts.keys()


def test_diffusers_steps_look_at_values():
    """So the table above says something."""
    for native in (diffusers.DDIMScheduler(), FlowMatchEuler()):
        native.set_timesteps(6)
        z = normal(2, 3)
        with Ops() as seen:
            for t in native.timesteps:
                z = native.step(0.1 * z, t, z, return_dict=False)[0]
        assert SEARCHES & seen.counts.keys()


def together(scheduler, noises, steps=6):
    """Runs of one scheduler in as many threads, whose networks wait for each other."""
    barrier = threading.Barrier(len(noises), timeout=20)

    def model(z, t):
        barrier.wait()
        return exact_velocity(z, t)

    def run(z):
        try:
            return loop(scheduler, z, steps, model)
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(noises)) as pool:
        futures = [pool.submit(run, z) for z in noises]
        return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("name", ["ddim", "unipc", "kab3c", "heun", "ddpm"])
def test_3672_threads_share_a_scheduler(name):
    """Two requests at once to one pipeline: "index 51 is out of bounds"."""
    native = FlowMatchEuler(shift=3.0)
    noises = [normal(4, 1, seed=seed, dtype=FLOAT64) for seed in range(4)]
    alone = [loop(ours(native, name, seed=0), z, 6, exact_velocity) for z in noises]
    for got, expected in zip(together(ours(native, name, seed=0), noises), alone, strict=True):
        assert torch.equal(got, expected)
    assert any(isinstance(end, Exception) for end in together(native, noises))


@pytest.mark.parametrize("pipeline", ["sd", "flux"])
def test_3672_threads_share_a_pipeline(pipeline):
    """Requests of different lengths, switched between as often as Python can."""
    case = CASES[pipeline]
    pipe = swapped(pipeline, lambda pipe: ours(pipe.scheduler, "unipc", seed=0))
    requests = [(steps, seed) for seed, steps in enumerate((3, 4, 5, 6))]
    alone = [case.run(pipe, *request) for request in requests]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            at_once = list(pool.map(lambda request: case.run(pipe, *request), requests))
    finally:
        sys.setswitchinterval(interval)
    for got, expected in zip(at_once, alone, strict=True):
        assert torch.equal(got, expected)


def test_generators_of_samples_through_a_pipeline():
    """A batch with a generator for each sample is what each would be alone."""
    for name in ("sd", "sdxl", "pixart"):
        case = CASES[name]
        pipe = swapped(name, lambda pipe: ours(pipe.scheduler, "ddpm"))

        def seeded(*seeds):
            return [torch.Generator().manual_seed(seed) for seed in seeds]

        both = case.run(pipe, 4, generator=seeded(1, 2), **case.repeated(2))
        alone = [case.run(pipe, 4, generator=seeded(seed)) for seed in (1, 2)]
        assert far(both, torch.cat(alone)) < 1e-4, name
        assert far(*alone) > 0.1


@pytest.mark.parametrize("pipeline", ["flux", "sd3", "wan"])
def test_a_seed_where_pipelines_pass_no_generator(pipeline):
    """102 of 115 flow pipelines keep `generator` from their scheduler: no two runs are alike."""
    case = CASES[pipeline]

    def run(sampler="ddpm", global_seed=0, **options):
        seed = options.pop("seed", 7)
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            pipe = swapped(pipeline, lambda pipe: ours(pipe.scheduler, sampler, seed=seed))
            return case.run(pipe, 4, **options)

    alone = run()
    assert torch.equal(alone, run(global_seed=1))
    assert far(alone, run(seed=8)) > 0.01
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]  # equal noise to begin with
    both = run(generator=generators, **case.repeated(2))
    assert far(both[:1], alone) < 1e-4 and far(both[1:], alone) > 0.01
    assert far(run(seed=None), run(seed=None, global_seed=1)) > 0.01


def halved(value):
    """Floating-point inputs in bfloat16."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if is_float else value


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "qwen", "wan", "cogvideox"])
def test_bfloat16_pipelines(name):
    """Finite, and near what float32 gives."""
    case = CASES[name]
    inputs = {key: halved(value) for key, value in case.inputs().items()}
    full = case.run(swapped(name, lambda pipe: ours(pipe.scheduler, "unipc")), 6)
    pipe = swapped(name, lambda pipe: ours(pipe.scheduler, "unipc")).to(torch.bfloat16)
    got = case.run(pipe, 6, **inputs)
    assert network(pipe).dtype == torch.bfloat16 and got.isfinite().all()
    assert far(got.float(), full) < 0.15


# ---------------------------------------------------------------------------- files and blocks


def stock(kind):
    """A pipeline of diffusers' own classes, so that it can be read back; and what it lacks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ddpm":
            return diffusers.DDPMPipeline(plain_unet2d(), diffusers.DDPMScheduler()), {}
        pipeline, parts = {
            "sd": (
                diffusers.StableDiffusionPipeline,
                {"unet": unet(diffusers.UNet2DConditionModel), "vae": vae()},
            ),
            "sd3": (
                diffusers.StableDiffusion3Pipeline,
                {"transformer": sd3(), "vae": vae(channels=16, shift_factor=0.0)},
            ),
        }[kind]
        made = CASES[kind].build().scheduler
        names = {*pipeline._get_signature_keys(pipeline)[0]} - {*parts, "scheduler"}
        absent = dict.fromkeys(names)
        flags = {"requires_safety_checker": False} if kind == "sd" else {}
        return pipeline(**parts, **absent, scheduler=made, **flags), absent


WHOLE = Sampler(Karras(5.0, 0.03, 14.0), Adams(3, "eps", "logsnr"), Churn(0.2))


@pytest.mark.parametrize("kind", ["ddpm", "sd", "sd3"])
@pytest.mark.parametrize("sampler", ["kab2(0.5, 3)", WHOLE], ids=["name", "whole"])
def test_pipelines_are_saved_and_loaded_with_the_scheduler(kind, sampler, tmp_path):
    """Custom schedulers are lost, or need remote code; this one is imported by its module's name."""
    pipe, absent = stock(kind)
    pipe.scheduler = Scheduler.from_pipeline(pipe, sampler, grid="sampler", seed=3)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["twosides.integrations.diffusers.scheduler", "Scheduler"]
    again = type(pipe).from_pretrained(tmp_path, **absent)
    assert type(again.scheduler) is Scheduler
    left_out = {"_use_default_values", "_class_name", "_diffusers_version", "_name_or_path"}
    before, after = (
        {name: value for name, value in one.scheduler.config.items() if name not in left_out}
        for one in (pipe, again)
    )
    assert before == after and again.scheduler._sampler() == pipe.scheduler._sampler()
    case, outcomes = CASES[kind], []
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
        outcomes.append(case.run(one, 4))
    assert outcomes[0].isfinite().all() and torch.allclose(*outcomes, atol=1e-5)


def modular(pipe):
    """FLUX's blocks from embeddings to latents."""
    made = FluxCoreDenoiseStep().init_pipeline()
    made.update_components(transformer=pipe.transformer, scheduler=pipe.scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def test_modular_pipelines_take_the_scheduler():
    """`update_components(scheduler=...)` of Modular diffusers, whatever class the blocks expect."""
    pipe = CASES["flux"].build()
    inputs = CASES["flux"].inputs()
    given = {name: value for name, value in inputs.items() if not name.startswith("negative")}

    def run(made, steps):
        generator = torch.Generator().manual_seed(0)
        return made(num_inference_steps=steps, generator=generator, output="latents", **given)

    made = modular(pipe)
    native = {steps: run(made, steps) for steps in (6, 60)}
    for name, steps, reference, bound in (
        ("flow-euler", 6, 6, 1e-5),
        ("unipc", 12, 60, 0.02),
        ("heun", 12, 60, 0.02),
        ("kab3c", 12, 60, 0.02),
    ):
        mine = Scheduler.from_pipeline(pipe, name)
        made.update_components(scheduler=mine)
        assert made.scheduler is mine
        assert far(run(made, steps), native[reference]) < bound, name
    assert Scheduler.from_pipeline(made).notation == Scheduler.from_pipeline(pipe).notation
    made.update_components(scheduler=Scheduler.from_pipeline(pipe, "ddpm", seed=1))
    assert torch.equal(run(made, 5), run(made, 5))


# ---------------------------------------------------------------------------- training scripts


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
def test_text_to_image_training(prediction, zero):
    """What train_text_to_image.py asks of its DDPMScheduler, and min-SNR weights."""
    native = diffusers.DDPMScheduler(**SD, rescale_betas_zero_snr=zero)
    mine = ours(native, "unipc")
    x, noise = normal(16, 4, 2, 2), normal(16, 4, 2, 2, seed=1)
    answers = []
    for scheduler in (native, mine):
        scheduler.register_to_config(prediction_type=prediction)
        generator = torch.Generator().manual_seed(0)
        count = scheduler.config.num_train_timesteps
        told = torch.randint(0, count, (16,), generator=generator).long()
        told[0], told[1] = 0, count - 1
        snr = compute_snr(scheduler, told)
        weights = snr.clamp(max=5.0) / (snr + 1)
        noisy = scheduler.add_noise(x, noise, told)
        velocity = scheduler.get_velocity(x, noise, told)
        assert scheduler.config.prediction_type == prediction
        answers.append((noisy, velocity, snr, weights))
    for theirs, got in zip(*answers, strict=True):
        assert torch.allclose(got, theirs, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [{"shift": 3.0}, {"use_dynamic_shifting": True, "shift": 3.0}], ids=["sd3", "flux"]
)
@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "none"])
def test_flow_training(config, scheme):
    """What train_dreambooth_sd3.py and _flux.py ask of their FlowMatchEuler."""
    x, noise, answers = normal(16, 4, 2, 2), normal(16, 4, 2, 2, seed=1), []
    native = FlowMatchEuler(**config)
    mine = ours(native, "unipc")
    for scheduler in (native, mine):
        kept = copy.deepcopy(scheduler)
        u = compute_density_for_timestep_sampling(
            scheme, 16, 0.0, 1.0, 1.29, generator=torch.Generator().manual_seed(0)
        )
        indices = (u * kept.config.num_train_timesteps).long()
        told = kept.timesteps[indices]
        places = [(kept.timesteps == t).nonzero().item() for t in told]
        sigmas = kept.sigmas[places][:, None, None, None]
        noisy = (1 - sigmas) * x + sigmas * noise
        assert torch.allclose(mine.scale_noise(x, told, noise), noisy, atol=1e-5)
        answers.append((told, sigmas, noisy))
    for theirs, got in zip(*answers, strict=True):
        assert torch.allclose(got, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(mine.get_velocity(x, noise, answers[0][0]), noise - x)
