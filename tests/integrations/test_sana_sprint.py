"""SANA-Sprint's scheduler, SCM: angles of the cosine schedule, latents in units of sigma_data.

SANA-Sprint: One-Step Diffusion with Continuous-Time Consistency Distillation, Chen+ 2025,
arxiv.org/abs/2503.09641
"""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch

from pipelines import noise, tame
from text_pipelines import deep_vae
from twosides.integrations.diffusers import Scheduler, load_denoiser

diffusers.logging.set_verbosity_error()
LATENTS = (2, 4, 8, 8)


def sprint():
    model = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=8, guidance_embeds=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    return tame(model, "proj_out", 1.0)


def pipeline():
    with torch.random.fork_rng(devices=[]):
        parts = {"transformer": sprint(), "vae": deep_vae(), "scheduler": diffusers.SCMScheduler()}
    made = diffusers.SanaSprintPipeline(tokenizer=None, text_encoder=None, **parts)
    made.set_progress_bar_config(disable=True)
    return made


TEXT = {
    "prompt_embeds": noise(1, 1, 4, 16),
    "prompt_attention_mask": torch.ones(1, 4, dtype=torch.long),
}


def pictures(pipe, steps, intermediate=1.3):
    return pipe(
        **TEXT, num_inference_steps=steps, intermediate_timesteps=intermediate,
        generator=torch.Generator().manual_seed(5), height=32, width=32,
        use_resolution_binning=False, output_type="latent",
    ).images  # fmt: skip


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize(("steps", "second"), [(1, None), (2, 1.3), (2, None), (4, None)])
def test_steps_are_those_of_the_class(steps, second, sigma_data):
    """LCM, i.e. all noise renewed in each step, is what the class computes."""
    native = diffusers.SCMScheduler(sigma_data=sigma_data)
    mine = Scheduler.from_pipeline(SimpleNamespace(scheduler=native), "lcm")
    after = []
    for scheduler in (native, mine):
        scheduler.set_timesteps(steps, intermediate_timesteps=second)
        drawn, z = torch.Generator().manual_seed(0), sigma_data * noise(3, *LATENTS)
        for t in scheduler.timesteps[:-1]:
            answer = torch.tanh(z * 0.7 + t)
            z = scheduler.step(answer, t, z, generator=drawn, return_dict=False)[0]
        after.append(z)
    assert torch.allclose(native.timesteps, mine.timesteps, atol=1e-5)
    assert torch.allclose(*after, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_pipeline_makes_the_same_pictures(steps):
    pipe, second = pipeline(), 1.3 if steps == 2 else None
    native = pictures(pipe, steps, second)
    pipe.scheduler = Scheduler.from_pipeline(pipe, "lcm")
    assert torch.allclose(pictures(pipe, steps, second), native, atol=2e-5)


def test_the_network_alone_is_a_flow_model():
    """What the pipeline computes around it is the conversion of u to v, and of the scaling."""
    pipe = pipeline()
    guidance = torch.full((2,), 4.5 * pipe.transformer.config.guidance_embeds_scale)
    told = {"encoder_hidden_states": TEXT["prompt_embeds"].expand(2, -1, -1)}
    denoiser = load_denoiser(pipe, guidance=guidance, **told)
    assert denoiser.output.name == "u"
    scheduler = Scheduler.from_pipeline(pipe, "lcm")
    scheduler.set_timesteps(2)
    data = pipe.scheduler.config.sigma_data
    t, z = scheduler.timesteps[1], noise(3, *LATENTS)
    level = scheduler.notation.latents.level(
        scheduler.notation.clock.logsnr(t.double(), scheduler.notation.schedule)
    )
    time = torch.sin(t) / (torch.cos(t) + torch.sin(t))
    shown = z * torch.sqrt(time**2 + (1 - time) ** 2)
    with torch.no_grad():
        u = pipe.transformer(shown, timestep=time.expand(2), guidance=guidance, **told).sample
        v = (1 - 2 * time) * shown + (1 - 2 * time + 2 * time**2) * u
        v = v / torch.sqrt(time**2 + (1 - time) ** 2)
        estimate = denoiser(z, level)
    x = scheduler.step(data * v, t, data * z).pred_original_sample / data
    assert torch.allclose(estimate.x, x, atol=1e-5)


def test_words_that_mean_nothing_are_refused():
    scheduler = Scheduler.from_pipeline(pipeline(), "lcm")
    with pytest.raises(ValueError, match=r"max_timesteps is an angle in \(0, pi / 2\], got 2"):
        scheduler.set_timesteps(4, max_timesteps=2.0)
    with pytest.raises(ValueError, match="must fall strictly"):
        scheduler.set_timesteps(2, max_timesteps=1.2, intermediate_timesteps=1.3)
    assert "sigma_data" in scheduler.config
    taken = inspect.signature(diffusers.SCMScheduler.set_timesteps).parameters
    assert taken.keys() <= inspect.signature(Scheduler.set_timesteps).parameters.keys()
