"""Networks of diffusers pipelines as denoisers, and back."""

import functools
import json

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

import twosides as ts
from pipelines import CASES, network, of, plain_unet2d, sd3, vae
from twosides.integrations.diffusers import (
    Scheduler,
    explain,
    load_denoiser,
    save_as_pipeline,
    to_pipeline,
)
from twosides.integrations.diffusers.networks import ADAPTERS, GuidedPipeline, PipelineDenoiser
from twosides.integrations.diffusers.pipelines import load_pipeline

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

FAMILIES = [name for name in CASES if name != "svd" and not name.endswith(("-img2img", "-inpaint"))]
# Guidance as it is written in papers: what these pipelines do to it afterwards is turned off.
PLAIN = {"lumina2": {"cfg_normalization": False}, "qwen": {"true_cfg_scale": 1.0}}
UNGUIDED = ("ddpm", "flux", "qwen")


def overheard(name, pipe, steps):
    """The states of a pipeline's run, and its network's conditioning: positive and negative."""
    calls, states = [], []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def watched(answer, t, sample, *rest, **options):
        after = step(answer, t, sample, *rest, **options)
        states.extend((sample, after[0]))
        return after

    def hear(_, shown, given):
        rows = len(shown[0] if shown else given["hidden_states"])
        spoken = ("sample", "hidden_states", "timestep", "return_dict")
        given = {key: value for key, value in given.items() if key not in spoken}
        halves = (slice(rows // 2, rows), slice(rows // 2)) if rows > 1 else (slice(None),)
        calls.extend(cut(given, rows, half) for half in halves)

    pipe.scheduler.step = watched
    hook = network(pipe).register_forward_pre_hook(hear, with_kwargs=True)
    CASES[name].run(pipe, steps, **PLAIN.get(name, {}))
    hook.remove()
    positive, negative = calls[0], calls[1] if name not in UNGUIDED else {}
    if name == "dit":  # it puts the prompt before the null
        positive, negative = negative, positive
    differing = {key: v for key, v in negative.items() if isinstance(v, torch.Tensor | dict)}
    return states, positive, {f"negative_{key}": value for key, value in differing.items()}


def cut(value, rows, half):
    """The rows of one half of a doubled batch."""
    if isinstance(value, dict):
        return {key: cut(item, rows, half) for key, item in value.items()}
    batched = isinstance(value, torch.Tensor) and value.ndim and len(value) == rows
    return value[half] if batched else value


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_the_pipelines_own(name, sampler):
    """Same network, same noise, same levels, same guidance: same latents, by two ways."""
    pipe = CASES[name].build()
    if name == "sana":
        network(pipe).register_to_config(timestep_scale=0.3)
    pipe.scheduler = Scheduler.from_pipeline(pipe, sampler, clip_sample=False)
    states, positive, negative = overheard(name, pipe, 4)
    guided = {"guidance_scale": 2.0, **negative} if negative else {}
    denoiser = load_denoiser(pipe, **positive, **guided)
    plan = pipe.scheduler._runs.current.whole.plan
    noise = states[0] / np.linalg.norm(plan.noise[0])
    x = plan.levels[-1].alpha * ts.sample(denoiser, noise.shape, sampler=plan, init=noise)
    assert torch.allclose(x, states[-1], rtol=1e-4, atol=1e-5 * float(x.abs().max()))
    assert isinstance(denoiser, GuidedPipeline if guided else PipelineDenoiser)


# ---------------------------------------------------------------------------- loading


def same(a, b, shape=(2, 3, 8, 8), **conditioning):
    """Whether two denoisers know the same of the same states, to the last digit."""
    z = noise_of(shape)
    level = ts.FlowMatching().at(torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        pairs = zip(a(z, level, **conditioning), b(z, level, **conditioning), strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def noise_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_unet(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return plain_unet2d(**options)


def text_to_image():
    """Stable Diffusion 3 without what reads text, of diffusers' own classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        coder = functools.partial(vae, channels=16, shift_factor=0.1)
        return of(diffusers.StableDiffusion3Pipeline, "sd3", transformer=sd3, vae=coder)()


SPOKEN = {"encoder_hidden_states": noise_of((2, 4, 16)), "pooled_projections": noise_of((2, 16))}


def test_a_folder_is_its_pipeline(tmp_path):
    pipe = text_to_image()
    pipe.save_pretrained(tmp_path / "pipe")
    denoiser, stored = load_denoiser(pipe, **SPOKEN), load_denoiser(str(tmp_path / "pipe"))
    assert same(denoiser, stored, (2, 16, 8, 8), **SPOKEN)
    assert isinstance(stored.network, nn.Module) and not stored.training
    parts = tmp_path / "pipe" / "transformer", tmp_path / "pipe" / "scheduler"
    assert same(denoiser, load_denoiser(parts[0], scheduler=parts[1]), (2, 16, 8, 8), **SPOKEN)
    bare = load_denoiser(pipe.transformer, scheduler=pipe.scheduler)
    assert same(denoiser, bare, (2, 16, 8, 8), **SPOKEN)


def test_dtype_and_what_the_call_says():
    """Networks of half precision are still told the time in float32."""
    pipe = text_to_image()
    half = load_denoiser(pipe.transformer, scheduler=pipe.scheduler, dtype=torch.bfloat16)
    told = []
    half.network.network.register_forward_pre_hook(
        lambda _, args, given: told.append(given["timestep"]), with_kwargs=True
    )
    words = {key: value.bfloat16() for key, value in SPOKEN.items()}
    x = half(noise_of((2, 16, 8, 8)), ts.FlowMatching().at(0.999), **words).x
    assert x.dtype == torch.float32 and told[0].tolist() == pytest.approx([999.0, 999.0])


def test_the_call_overrules():
    """Conditioning may be given at once, later, or instead."""
    pipe = text_to_image()
    other = {name: -value for name, value in SPOKEN.items()}
    bound, free = load_denoiser(pipe, **other), load_denoiser(pipe)
    z, level = noise_of((2, 16, 8, 8)), ts.FlowMatching().at(0.5)
    with torch.no_grad():
        assert torch.equal(bound(z, level).x, free(z, level, **other).x)
        assert torch.equal(bound(z, level, **SPOKEN).x, free(z, level, **SPOKEN).x)
        negative = {f"negative_{name}": value for name, value in other.items()}
        strong, weak = free(z, level, **SPOKEN).x, free(z, level, **other).x
        wanted = weak + 3 * (strong - weak)
        for earlier in ({}, other):
            guided = load_denoiser(pipe, guidance_scale=3.0, **negative, **earlier)
            assert torch.allclose(guided(z, level, **SPOKEN).x, wanted, atol=1e-5, rtol=1e-5)


def test_a_learned_variance_is_left_out():
    """DeepFloyd's UNets predict one too, as DiT and PixArt do."""
    unet = tiny_unet(in_channels=3, out_channels=6)
    denoiser = load_denoiser(unet, scheduler=diffusers.DDPMScheduler(variance_type="learned"))
    z, time = noise_of((2, 3, 8, 8)), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        assert torch.equal(denoiser.predict(z, time), unet(z, time).sample[:, :3])


def test_pickles_are_refused(tmp_path):
    pipe = diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="allow_pickle=True"):
        load_denoiser(tmp_path)
    assert same(load_denoiser(pipe), load_denoiser(tmp_path, allow_pickle=True))


def test_code_beside_the_weights_is_not_run(tmp_path):
    pipe = diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "unet" / "evil.py").write_text("raise SystemExit('was run')")
    for unet in (["evil", "Evil"], ["diffusers", "DDPMScheduler"], ["os", "system"]):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"unet": unet}))
        with pytest.raises(ValueError, match="which is no model of diffusers"):
            load_denoiser(tmp_path)


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(
        TypeError, match="UNetSpatioTemporalConditionModel is called.*Denoiser|wrap"
    ):
        load_denoiser(CASES["svd"].build())
    pipe = text_to_image()
    with pytest.raises(ValueError, match="guidance takes both guidance_scale=... and"):
        load_denoiser(pipe, guidance_scale=2.0, **SPOKEN)
    with pytest.raises(ValueError, match="negative_pooled_projections"):
        load_denoiser(pipe, negative_pooled_projections=SPOKEN["pooled_projections"])
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        load_denoiser(tmp_path)
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(TypeError, match="transformer, transformer_2"):
        load_denoiser(pipe)
    with pytest.raises(TypeError, match="neither"):
        load_denoiser(object())


def test_every_family_is_a_class_of_diffusers():
    assert all(issubclass(getattr(diffusers, name), nn.Module) for name in ADAPTERS)


# ---------------------------------------------------------------------------- latents


@pytest.mark.parametrize(
    "units",
    [
        {},
        {"shift_factor": 0.3},
        {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 0.7]},
    ],
)
def test_latents_are_in_the_units_of_the_network(units):
    """What the pipelines write out: `latents / scale + shift`, or with a mean and std each."""
    pipe = CASES["sd"].build()
    coder = pipe.vae
    coder.register_to_config(scaling_factor=0.18215, **units)
    denoiser = load_denoiser(pipe, encoder_hidden_states=noise_of((1, 4, 16)))
    images = noise_of((1, 3, 16, 16)).clamp(-1, 1)
    with torch.no_grad():
        raw = coder.encode(images).latent_dist.mean
        mean = torch.tensor(units.get("latents_mean", [units.get("shift_factor", 0.0)] * 4))
        std = torch.tensor(units.get("latents_std", [1.0] * 4))
        wanted = (raw - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1) * 0.18215
        latents = denoiser.encode(images)
        assert torch.allclose(latents, wanted, atol=1e-6)
        assert torch.allclose(denoiser.decode(latents), coder.decode(raw).sample, atol=1e-5)
    guided = load_denoiser(pipe, guidance_scale=2.0, negative_encoder_hidden_states=0.0)
    assert torch.equal(guided.encode(images), latents)
    assert torch.equal(guided.decode(latents), denoiser.decode(latents))
    assert "vae" not in " ".join(denoiser.state_dict())


def test_latents_that_no_vae_decodes():
    flux = load_denoiser(CASES["flux"].build())
    with pytest.raises(ValueError, match="_unpack_latents"):
        flux.decode(noise_of((1, 16, 16)))
    with pytest.raises(ValueError, match="no VAE"):
        load_denoiser(CASES["ddpm"].build()).encode(noise_of((1, 3, 8, 8)))


# ---------------------------------------------------------------------------- other uses


def test_training_sees_the_same_network():
    """The loss of a pipeline's network, and its gradients, are those of the bare network."""
    unet = tiny_unet()
    pipe = diffusers.DDPMPipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler())
    ours = load_denoiser(pipe)
    bare = ts.Denoiser(unet, "u", ts.FlowMatching(), "1000t")
    objective, x = ts.recipes["flow-matching"].objective(), noise_of((4, 3, 8, 8))
    losses, gradients = [], []
    for denoiser in (ours, bare):
        losses.append(objective(denoiser, x, generator=torch.Generator().manual_seed(1)).mean())
        gradients.append(torch.autograd.grad(losses[-1], list(unet.parameters())))
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_inversion_and_likelihood_see_the_same_network():
    """Guidance of scale 1 included: it is the conditional network."""
    unet = tiny_unet(num_class_embeds=5)
    pipe = diffusers.DDPMPipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler())
    labels, null = {"class_labels": torch.tensor([1, 3])}, torch.tensor([4, 4])
    bare = ts.Denoiser(unet, "u", ts.FlowMatching(), "1000t")
    ours = load_denoiser(pipe, **labels)
    guided = load_denoiser(pipe, guidance_scale=1.0, negative_class_labels=null, **labels)
    x = noise_of((2, 3, 8, 8))
    wanted = ts.log_likelihood(bare, x, steps=2, divergence="hutchinson", **labels)
    noise = ts.encode(bare, x, steps=2, **labels).noise
    for denoiser in (ours, guided):
        found = ts.log_likelihood(denoiser, x, steps=2, divergence="hutchinson")
        assert torch.allclose(found.nats, wanted.nats, rtol=1e-5)
        assert torch.allclose(ts.encode(denoiser, x, steps=2).noise, noise, atol=1e-5)


def test_a_converted_network_is_the_same_function():
    pipe = CASES["sd"].build()
    denoiser = load_denoiser(pipe, encoder_hidden_states=noise_of((2, 4, 16)))
    flow = ts.convert(denoiser, "u", ts.FlowMatching())
    level = ts.FlowMatching().at(torch.tensor([0.2, 0.9]))
    z = noise_of((2, 4, 8, 8))
    with torch.no_grad():
        estimate = denoiser(z, level)
        again = ts.Denoiser(flow, "u", ts.FlowMatching())(z, level)
        velocity = flow(z, torch.tensor([0.2, 0.9]))
    assert torch.allclose(velocity, estimate.eps - estimate.x, atol=1e-5)
    assert torch.allclose(again.x, estimate.x, atol=1e-5)


def test_a_converted_network_is_saved_and_read(tmp_path):
    """UNets as they are; networks that are called in their own way by what calls them."""
    unet = load_denoiser(diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler()))
    flow = ts.Denoiser(ts.convert(unet, "u", ts.FlowMatching()), "u", ts.FlowMatching())
    ts.save(flow, tmp_path / "unet")
    assert same(flow, ts.load(tmp_path / "unet"))
    transformer = load_denoiser(text_to_image())
    v = ts.Denoiser(ts.convert(transformer, "v", ts.Cosine()), "v", ts.Cosine())
    ts.save(v, tmp_path / "transformer")
    assert same(v, ts.load(tmp_path / "transformer", trust_code=True), (2, 16, 8, 8), **SPOKEN)


# ---------------------------------------------------------------------------- export

SAID = {
    "u": ("u", ts.FlowMatching(), "1000t"),
    "eps": ("eps", ts.ScaledLinear(), "index"),
    "v": ("v", ts.ScaledLinear(zero_terminal_snr=True), "index"),
    "x": ("x", ts.ScaledLinear(power=1.0, beta_start=1e-4, beta_end=0.02), "index"),
}


@pytest.mark.parametrize("sampler", [None, "dpmpp-2m"])
@pytest.mark.parametrize("said", SAID)
def test_checkpoint_to_pipeline_and_back(said, sampler, tmp_path):
    ts.save(ts.Denoiser(tiny_unet(), *SAID[said]), tmp_path / "model")
    denoiser = ts.load(tmp_path / "model")
    folder = save_as_pipeline(denoiser, tmp_path / "pipe", sampler)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []
    back = load_denoiser(folder)
    z, level = noise_of((2, 3, 8, 8)), ts.FlowMatching().at(torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        ours, theirs = denoiser(z, level), back(z, level)
    assert torch.allclose(ours.x, theirs.x, atol=1e-6) and back.output == denoiser.output
    assert type(load_pipeline(folder).scheduler).__name__ in (
        ("Scheduler",) if sampler else ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler")
    )


@pytest.mark.parametrize("said", ["u", "eps"])
def test_the_pipeline_draws_what_the_model_draws(said, tmp_path):
    """With diffusers' own scheduler, whose levels are handed to our sampler."""
    denoiser = ts.Denoiser(tiny_unet(), *SAID[said])
    pipe = load_pipeline(save_as_pipeline(denoiser, tmp_path / "pipe"))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    (images,) = pipe(2, generator, 5, output_type="pt", return_dict=False)
    if said == "u":
        grid = ts.grids.Given.times(ts.FlowMatching(), pipe.scheduler.sigmas.tolist())
    else:
        times = [*(pipe.scheduler.timesteps.double() / 999).tolist()]
        nodes = denoiser.schedule.logsnr(torch.tensor(times, dtype=torch.float64)).tolist()
        grid = ts.grids.Given((*nodes, float("inf")))
    sampler = ts.Sampler(solver=ts.solvers.DDIM(), grid=grid)
    noise = noise_of((2, 3, 8, 8), seed=3)
    plan = ts.plan(sampler, denoiser.schedule, 5)
    noise = noise / np.linalg.norm(plan.noise[0])
    x = ts.sample(denoiser, noise.shape, sampler=plan, init=noise)
    assert torch.allclose((x / 2 + 0.5).clamp(0, 1), images, atol=1e-4)


def test_class_conditional_parts_survive(tmp_path):
    """The folder is read by us; a DDPMPipeline passes no labels."""
    denoiser = ts.Denoiser(tiny_unet(num_class_embeds=5), *SAID["u"])
    folder = save_as_pipeline(denoiser, tmp_path / "pipe")
    labels = {"class_labels": torch.tensor([1, 4])}
    assert same(denoiser, load_denoiser(folder), **labels)
    with pytest.raises(ValueError, match="class_labels"):
        load_pipeline(folder)(1, torch.Generator().manual_seed(0), 2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: ts.Denoiser(tiny_unet(), "v", ts.Cosine(), "1000t"),
            ValueError,
            "no scheduler of diffusers has v",
        ),
        (lambda: ts.Denoiser(tiny_unet(), "u", ts.FlowMatching(), "t"), ValueError, "'1000t'"),
        (lambda: ts.Denoiser(tiny_unet(), *SAID["u"], data_std=0.5), ValueError, "data_std"),
        (lambda: ts.Denoiser(nn.Identity(), *SAID["u"]), TypeError, "not of Identity"),
    ],
)
def test_what_diffusers_has_no_words_for(build, error, message):
    with pytest.raises(error, match=message):
        to_pipeline(build())


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="new folder"):
        save_as_pipeline(ts.Denoiser(tiny_unet(), *SAID["u"]), tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers.DDPMPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        save_as_pipeline(ts.Denoiser(tiny_unet(), *SAID["u"]), tmp_path / "pipe")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- explain

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOWS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def trapped(case, name, **config):
    """A pipeline of tests.pipelines with another scheduler."""

    def build():
        pipe = CASES[case].build()
        pipe.scheduler = getattr(diffusers, name)(**config)
        return pipe

    return build


def alone(name, **config):
    return lambda: getattr(diffusers, name)(**config)


def halved(case):
    def build():
        pipe = CASES[case].build()
        network(pipe).to(torch.bfloat16)
        return pipe

    return build


TRAPS = {
    "applied twice": (
        CASES["sd3"].build,
        trapped("sd3", "FlowMatchEulerDiscreteScheduler", shift=1.0),
    ),
    "clip_sample=True": (
        trapped("dit", "DDIMScheduler"),
        trapped("dit", "DDIMScheduler", clip_sample=False),
    ),
    "means EDM's network output F": (CASES["playground"].build, CASES["svd"].build),
    "epsilon at zero SNR": (
        alone("DDIMScheduler", **ZERO),
        alone("DDIMScheduler", prediction_type="v_prediction", **ZERO),
    ),
    "sampling starts at timestep 951": (
        alone("DDIMScheduler", steps_offset=1, **SD),
        alone("DDIMScheduler", timestep_spacing="trailing", **SD),
    ),
    "draws all of the noise anew": (
        alone("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True),
        alone("FlowMatchEulerDiscreteScheduler"),
    ),
    "timesteps are whole numbers": (
        alone("UniPCMultistepScheduler", flow_shift=3.0, **FLOWS),
        alone("FlowMatchEulerDiscreteScheduler", shift=3.0),
    ),
    "rounds timesteps to bfloat16": (halved("flux"), halved("sd3")),
    "is a network of flow matching": (
        trapped("flux", "EulerDiscreteScheduler"),
        CASES["flux"].build,
    ),
    "is a network of variance-preserving diffusion": (
        trapped("dit", "FlowMatchEulerDiscreteScheduler"),
        CASES["dit"].build,
    ),
    "away from where the next one begins": (
        alone("DDIMScheduler", timestep_spacing="linspace"),
        alone("DDPMScheduler", timestep_spacing="linspace"),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_seen_where_they_are_and_only_there(trap):
    caught, free = (explain(build()) for build in TRAPS[trap])
    assert trap in str(caught) and trap not in str(free)
    (found,) = (each for each in caught.traps if trap in each.what)
    assert found.why and found.remedy


@pytest.mark.parametrize("name", FAMILIES)
def test_our_scheduler_falls_into_none_of_its_own(name):
    """Swapped in, what is left is the network's: where it is told to start, what F means."""
    pipe = CASES[name].build()
    pipe.scheduler = Scheduler.from_pipeline(pipe, clip_sample=False)
    left = [trap.what for trap in explain(pipe).traps]
    assert all("sampling starts" in what or "EDM" in what for what in left)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen", "lumina2", "ltx", "sdxl", "cogvideox"])
def test_the_levels_reported_are_those_of_the_run(name):
    pipe, told = CASES[name].build(), []
    pipe.set_progress_bar_config(disable=True)
    step = pipe.scheduler.step

    @functools.wraps(step)
    def watched(answer, t, *rest, **options):
        told.append(float(t))
        return step(answer, t, *rest, **options)

    pipe.scheduler.step = watched
    before = pipe.scheduler.timesteps
    CASES[name].run(pipe, 4)
    mu = shift_used(pipe)
    assert not torch.equal(before, pipe.scheduler.timesteps)
    assert explain(pipe, 4, mu=mu).timesteps == pytest.approx(told, rel=1e-6)


def shift_used(pipe):
    """mu as the pipeline found it, from the second sigma: shift s / (1 + (shift - 1) s)."""
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        return None
    after = pipe.scheduler.sigmas.double()
    last = pipe.scheduler.config.get("shift_terminal")
    if not last:
        t = float(after[1])
        return float(np.log(t / (1 - t) * (1 - 0.75) / 0.75))
    # Stretched: one unknown, found by bisection on what the report itself would say.
    low, high = -3.0, 5.0
    for _ in range(60):
        mid = (low + high) / 2
        below = explain(pipe, 4, mu=mid).sigmas[1] < float(after[1])
        low, high = (mid, high) if below else (low, mid)
    return low


def test_one_step_from_pure_noise_has_no_such_traps():
    """Its only level is 1, shifted or not, which bfloat16 holds."""
    assert not explain(TRAPS["applied twice"][0](), 1).traps
    assert not explain(TRAPS["rounds timesteps to bfloat16"][0](), 1).traps


def test_explain_refuses_what_is_not_gaussian(tmp_path):
    pipe = diffusers.DDPMPipeline(tiny_unet(), diffusers.CMStochasticIterativeScheduler())
    pipe.save_pretrained(tmp_path)
    for source in (tmp_path, pipe):
        with pytest.raises(ValueError, match="not a scheduler .*can be read here"):
            explain(source)


def test_explain_reads_folders(tmp_path):
    pipe = text_to_image()
    pipe.transformer.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path)
    assert str(explain(tmp_path)) == str(explain(pipe))
    assert "predicts u on FlowMatching()" in str(explain(tmp_path))
    pipe.scheduler = Scheduler.from_pipeline(pipe, "unipc")
    pipe.save_pretrained(tmp_path / "ours")
    assert "traps: none found" in str(explain(tmp_path / "ours"))
