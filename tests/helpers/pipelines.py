"""Tiny pipelines of diffusers with random weights, each with the scheduler it is published with.

    case = CASES["flux"]
    pipe = case.build()
    pipe.scheduler = another
    latents = case.run(pipe, 4, seed=1)

`run` is the pipeline's own `__call__` on embeddings of a prompt, so neither tokenizers nor text
encoders nor files are needed. What makes the networks fit to compare samplers with:

    their ODE is smooth     they hear only the slow part of the clock (at its full rate, a random
                            network changes from each of the 1000 timesteps to the next)
    every level counts      noise networks answer with their input plus a little, as trained ones
                            do under much noise; with eps near 0 the data would be z_T / alpha_T,
                            and nothing after the first steps would be seen in it
    outputs are moderate    the last layer has a gain

A `Trial` runs a case with its own scheduler and with samplers in its place:

    trial = Trial(CASES["flux"])
    difference(trial.latents(100, "kab2c"), trial.limit((250, 500)))

The global generator is as it was after `build` and `run`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from twosides.integrations.diffusers import Scheduler
from twosides.sampling.noise import Restart
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler

diffusers.logging.set_verbosity_error()

# ---------------------------------------------------------------------------- cases

Pipeline = diffusers.DiffusionPipeline
Build = Callable[[], Any]


def first(pipe: Pipeline, answer: Any) -> Tensor:
    """The latents a pipeline answers with: in a tuple, or (videos of SVD) as they are."""
    return answer if isinstance(answer, Tensor) else answer[0]


@dataclass(frozen=True)
class Case:
    """A pipeline, what it is called with, and where its last latents are."""

    name: str
    pipeline: Callable[[], Pipeline]
    inputs: Callable[[], dict[str, Any]]
    latents: Callable[[Pipeline, Any], Tensor] = first

    def build(self) -> Pipeline:
        """The pipeline with its own scheduler; each call gives new modules of the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Pipeline, steps: int, seed: int = 0, **extra: Any) -> Tensor:
        """The latents after `steps`; `extra` is passed to the pipeline and may replace any input."""
        call = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
        call |= self.inputs() | {"num_inference_steps": steps, "return_dict": False} | extra
        return self.latents(pipe, pipe(**call))

    def repeated(self, count: int) -> dict[str, Any]:
        """Inputs of `count` samples of the same, for `run`: a list of generators needs as many."""

        def several(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.repeat(count, *[1] * (value.ndim - 1))
            return value * count if isinstance(value, list) or name == "batch_size" else value

        return {name: several(name, value) for name, value in self.inputs().items()}


def network(pipe: Pipeline) -> nn.Module:
    """The denoiser of a pipeline."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


# ---------------------------------------------------------------------------- networks


class PlusInput(ModelMixin):
    """A network of noise that answers with its input plus a little."""

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(sample, *args, **kwargs)
        output[0][:, : sample.shape[1]] += sample  # what is left is a learned variance
        return output


class NoiseUNet2D(PlusInput, diffusers.UNet2DModel):
    pass


class NoiseUNet2DCondition(PlusInput, diffusers.UNet2DConditionModel):
    pass


class NoiseDiT(PlusInput, diffusers.DiTTransformer2DModel):
    pass


class NoisePixArt(PlusInput, diffusers.PixArtTransformer2DModel):
    pass


class RecordingVAE(diffusers.AutoencoderKL):
    """Keeps the latents that it decodes: DiT's pipeline returns only clamped images."""

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.decoded = z
        return super().decode(z, *args, **kwargs)


def tame(
    model: nn.Module, last: str, gain: float, *, span: float = 1000, loud: float = 1
) -> nn.Module:
    """Weights that keep the size of signals, and a gain of the last layer.

    Of the clock, whose times span `span`, only rates below 10 / `span` stay, `loud` times as loud.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                module.weight *= 3**0.5  # by default their variance is 1 / (3 fan-in)
            if isinstance(module, TimestepEmbedding) and "time" in name:
                half = module.linear_1.in_features // 2
                rates = 10000.0 ** -(torch.arange(half) / half)
                module.linear_1.weight *= loud * (rates < 10 / span).repeat(2)
        for parameter in model.get_submodule(last).parameters():
            parameter *= gain
    return model.eval()


def unet2d() -> nn.Module:
    model = NoiseUNet2D(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return tame(model, "conv_out", 0.12)


def plain_unet2d(**options: Any) -> nn.Module:
    """Of a class that diffusers has, so that it can be read back, and with its own weights."""
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        **options,
    ).eval()


def unet(kind: type = NoiseUNet2DCondition, span: float = 1000, **options: Any) -> nn.Module:
    model = kind(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        **options,
    )
    return tame(model, "conv_out", 0.5, span=span)


def unet_xl(kind: type = NoiseUNet2DCondition, **options: Any) -> nn.Module:
    return unet(
        kind,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        **options,
    )


def dit(kind: type = NoiseDiT) -> nn.Module:
    model = kind(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=4,
        sample_size=8,
    )
    return tame(model, "proj_out_2", 0.2)


def pixart(kind: type = NoisePixArt) -> nn.Module:
    model = kind(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    return tame(model, "proj_out", 0.2)


def sd3() -> nn.Module:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    return tame(model, "proj_out", 1.0)


def flux() -> nn.Module:
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return tame(model, "proj_out", 1.0)


def wan() -> nn.Module:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=16,
    )
    return tame(model, "proj_out", 1.0)


def ltx() -> nn.Module:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    return tame(model, "proj_out", 1.0)


def qwen() -> nn.Module:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    return tame(model, "proj_out", 1.0)


def sana() -> nn.Module:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    return tame(model, "proj_out", 1.0)


def lumina2(tokens: int = 16) -> nn.Module:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(tokens, 16, 16),
        cap_feat_dim=16,
    )
    return tame(model, "norm_out.linear_2", 0.4, span=1, loud=4)


def cogvideox() -> nn.Module:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=16,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=4,
    )
    return tame(model, "proj_out", 0.5)


def unet_video() -> nn.Module:
    model = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        # Its norms have 32 groups: of one channel each, they would take away what the clock adds.
        block_out_channels=(64,),
        down_block_types=("CrossAttnDownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        num_frames=2,
    )
    return tame(model, "conv_out", 0.5, span=1)


def vae(kind: type = diffusers.AutoencoderKL, channels: int = 4, **options: Any) -> nn.Module:
    return kind(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=1.0,
        **options,
    ).eval()


def vae_video() -> nn.Module:
    return diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    ).eval()


def clip() -> nn.Module:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


# ---------------------------------------------------------------------------- schedulers

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SD = {**SCALED, "steps_offset": 1, "timestep_spacing": "leading"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def euler_flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def dynamic(**options: Any) -> Any:
    return euler_flow(use_dynamic_shifting=True, **options)


SCHEDULERS = {
    "ddpm": partial(diffusers.DDPMScheduler, **LINEAR, variance_type="fixed_large"),
    "dit": partial(diffusers.DDIMScheduler, **LINEAR, clip_sample=False),
    "sd": partial(diffusers.PNDMScheduler, **SD, skip_prk_steps=True),
    "sd-ddim": partial(diffusers.DDIMScheduler, **SD, clip_sample=False, set_alpha_to_one=False),
    "sdxl": partial(diffusers.EulerDiscreteScheduler, **SD),
    "playground": partial(diffusers.EDMDPMSolverMultistepScheduler, sigma_max=80.0),
    "flow": euler_flow,
    "sd3": partial(euler_flow, shift=3.0),
    "flux": partial(dynamic, shift=3.0),
    "pixart": partial(diffusers.DPMSolverMultistepScheduler, **LINEAR),
    "wan": partial(diffusers.UniPCMultistepScheduler, **FLOW),
    "ltx": partial(
        dynamic, base_image_seq_len=1024, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    ),
    "qwen": partial(dynamic, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02),
    "sana": partial(diffusers.DPMSolverMultistepScheduler, **FLOW),
    "lumina2": partial(euler_flow, shift=6.0),
    "aura-flow": partial(euler_flow, shift=1.73),
    "cogvideox": partial(
        diffusers.CogVideoXDDIMScheduler,
        **SCALED,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    ),
    "svd": partial(
        diffusers.EulerDiscreteScheduler,
        **SD,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ),
}

# ---------------------------------------------------------------------------- pipelines


def of(kind: type, scheduler: str, *, flags: dict[str, Any] | None = None, **parts: Build) -> Build:
    """Builds a pipeline of these parts; whatever else it names is None."""

    def build() -> Pipeline:
        absent = dict.fromkeys(kind._get_signature_keys(kind)[0])
        made = {name: part() for name, part in parts.items()}
        return kind(**absent | made | (flags or {}) | {"scheduler": SCHEDULERS[scheduler]()})

    return build


# ---------------------------------------------------------------------------- inputs


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text() -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 1, 4, 16), "negative_prompt_embeds": noise(2, 1, 4, 16)}


def pooled() -> dict[str, Any]:
    return {
        "pooled_prompt_embeds": noise(3, 1, 16),
        "negative_pooled_prompt_embeds": noise(4, 1, 16),
    }


def masks() -> dict[str, Any]:
    ones = torch.ones(1, 4, dtype=torch.long)
    # Some pipelines ask for the negative prompt "" where none is given, besides its embeddings.
    return {
        "prompt_attention_mask": ones,
        "negative_prompt_attention_mask": ones,
        "negative_prompt": None,
    }


def image() -> dict[str, Any]:
    return {"image": noise(5, 1, 3, 16, 16).sigmoid(), "strength": 0.7}


def hole() -> dict[str, Any]:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    return image() | {"mask_image": mask}


def qwen_masks() -> dict[str, Any]:
    ones = torch.ones(1, 4, dtype=torch.long)
    return {"prompt_embeds_mask": ones, "negative_prompt_embeds_mask": ones}


def frame() -> dict[str, Any]:
    return {"image": image()["image"]}


def inputs(*parts: Build, **options: Any) -> Build:
    """Inputs of these kinds, and fixed options."""

    def made() -> dict[str, Any]:
        return {name: value for part in parts for name, value in part().items()} | options

    return made


def square(size: int, frames: int | None = None) -> dict[str, int]:
    return {"height": size, "width": size} | ({"num_frames": frames} if frames else {})


# ---------------------------------------------------------------------------- the cases

GUIDED = {"guidance_scale": 2.0}
UNBINNED = {"use_resolution_binning": False}


def family(name: str, builds: Iterable[Build], *parts: Build, **options: Any) -> list[Case]:
    """Pipelines from text, from text and an image, and from those and a hole in the image."""
    given = (("", ()), ("-img2img", (image,)), ("-inpaint", (hole,)))
    return [
        Case(name + suffix, build, inputs(*parts, *more, **options))
        for build, (suffix, more) in zip(builds, given, strict=True)
    ]


STABLE_DIFFUSION = {
    diffusers.StableDiffusionPipeline: "sd",
    diffusers.StableDiffusionImg2ImgPipeline: "sd-ddim",
    diffusers.StableDiffusionInpaintPipeline: "sd-ddim",
}
STABLE_DIFFUSION_XL = (
    diffusers.StableDiffusionXLPipeline,
    diffusers.StableDiffusionXLImg2ImgPipeline,
    diffusers.StableDiffusionXLInpaintPipeline,
)
STABLE_DIFFUSION_3 = (
    diffusers.StableDiffusion3Pipeline,
    diffusers.StableDiffusion3Img2ImgPipeline,
    diffusers.StableDiffusion3InpaintPipeline,
)
FLUX = (
    diffusers.FluxPipeline,
    diffusers.FluxImg2ImgPipeline,
    diffusers.FluxInpaintPipeline,
)
WIDE = partial(vae, channels=16, shift_factor=0.0)
SHIFTED = partial(vae, shift_factor=0.0)
UNCHECKED = {"requires_safety_checker": False}

FAMILIES = [
    *family(
        "sd",
        [of(k, s, flags=UNCHECKED, unet=unet, vae=vae) for k, s in STABLE_DIFFUSION.items()],
        text,
        **GUIDED,
    ),
    *family(
        "sdxl",
        [of(kind, "sdxl", unet=unet_xl, vae=vae) for kind in STABLE_DIFFUSION_XL],
        text,
        pooled,
        **GUIDED,
    ),
    *family(
        "sd3",
        [of(kind, "sd3", transformer=sd3, vae=WIDE) for kind in STABLE_DIFFUSION_3],
        text,
        pooled,
        **GUIDED,
        **square(16),
    ),
    *family(
        "flux",  # guidance is distilled: a number that the network hears
        [of(kind, "flux", transformer=flux, vae=SHIFTED) for kind in FLUX],
        text,
        pooled,
        **GUIDED,
        **square(16),
    ),
]

SINGLE = [
    Case(
        "ddpm",
        of(diffusers.DDPMPipeline, "ddpm", unet=unet2d),
        inputs(output_type="pt", batch_size=1),
        lambda pipe, answer: 2 * answer[0] - 1,  # from [0, 1], where the pipeline clamps it
    ),
    Case(
        "dit",
        of(diffusers.DiTPipeline, "dit", transformer=dit, vae=partial(vae, RecordingVAE)),
        inputs(class_labels=[3], output_type="pt", **GUIDED),
        lambda pipe, answer: pipe.vae.decoded,
    ),
    Case(
        "pixart",
        of(diffusers.PixArtAlphaPipeline, "pixart", transformer=pixart),
        inputs(text, masks, **GUIDED, **UNBINNED, **square(64)),
    ),
    Case(
        "wan",
        of(diffusers.WanPipeline, "wan", transformer=wan),
        inputs(text, **GUIDED, **square(32, frames=5)),
    ),
    Case(
        "ltx",
        of(diffusers.LTXPipeline, "ltx", transformer=ltx),
        inputs(text, masks, **GUIDED, **square(128, frames=9)),
    ),
    Case(
        "qwen",
        of(diffusers.QwenImagePipeline, "qwen", transformer=qwen),
        inputs(text, qwen_masks, true_cfg_scale=2.0, **square(64)),
    ),
    Case(
        "sana",
        of(diffusers.SanaPipeline, "sana", transformer=sana),
        inputs(text, masks, **GUIDED, **UNBINNED, **square(256)),
    ),
    Case(
        "lumina2",
        of(diffusers.Lumina2Pipeline, "lumina2", transformer=lumina2),
        inputs(text, masks, **GUIDED, **square(64)),
    ),
    Case(
        "cogvideox",
        of(diffusers.CogVideoXPipeline, "cogvideox", transformer=cogvideox),
        inputs(text, **GUIDED, **square(32, frames=5)),
    ),
    Case(
        "playground",
        of(
            diffusers.StableDiffusionXLPipeline,
            "playground",
            unet=partial(unet_xl, diffusers.UNet2DConditionModel, span=1),
            vae=vae,
        ),
        inputs(text, pooled, **GUIDED),
    ),
    Case(
        "svd",
        of(
            diffusers.StableVideoDiffusionPipeline,
            "svd",
            unet=unet_video,
            vae=vae_video,
            image_encoder=clip,
            feature_extractor=CLIPImageProcessor,
        ),
        inputs(frame, max_guidance_scale=2.0, **square(16)),
    ),
]

CASES: dict[str, Case] = {case.name: case for case in (*FAMILIES, *SINGLE)}

# ---------------------------------------------------------------------------- samplers on them

ALIASES = ("euler-ancestral", "lcm", "ipndm-v")
PRESETS = [name for name in samplers if name not in ALIASES]
QUIET = [name for name in PRESETS if not samplers[name].stochastic]
NOISY = [name for name in PRESETS if samplers[name].stochastic]


def difference(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|."""
    return float((got - expected).norm() / expected.norm())


def noisy_steps(sampler: str, steps: int = 10) -> int:
    """At least 40 where noise comes late: Restart needs nodes at little noise to go back from."""
    return max(steps, 40) if isinstance(samplers[sampler].stochasticity, Restart) else steps


class Trial:
    """A case with its own scheduler, and with samplers in its place.

    `native` is deterministic: for DDPM's pipeline it is DDIM, without clipping, whose limit is the
    ODE's.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.pipe = case, case.build()
        self.native = self.pipe.scheduler
        if isinstance(self.native, diffusers.DDPMScheduler):
            config = self.native.config
            self.native = diffusers.DDIMScheduler.from_config(config, clip_sample=False)

    def latents(
        self,
        steps: int,
        sampler: str | Sampler | None = None,
        seed: int | None = None,
        **extra: Any,
    ) -> Tensor:
        """By a sampler, or by the native scheduler; `seed` is our Scheduler's."""
        self.pipe.scheduler = self.native
        if sampler is not None:
            self.pipe.scheduler = Scheduler.from_pipeline(self.pipe, sampler, seed=seed)
        return self.case.run(self.pipe, steps, **extra)

    def limit(self, steps: tuple[int, int], sampler: str | Sampler | None = None) -> Tensor:
        """Of infinitely many steps, from the results of two numbers of steps: without c / steps.

        That is the error of first-order samplers, and of runs that begin a little later the fewer
        steps they have ("leading" spacing).
        """
        few, many = (self.latents(count, sampler) for count in steps)
        return many + (many - few) / (steps[1] / steps[0] - 1)

    def fault(self, sampler: str, steps: int, like: Tensor) -> str:
        """What is wrong with a stochastic sampler; "" if nothing.

        The initial noise is the same in three runs, that of the steps in two: without a generator
        it depends on `seed`. `like` has the size that results should have, within a factor of 4.
        """
        runs = []
        for seed in (1, 1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                runs.append(self.latents(steps, sampler, seed, generator=None))
        first, again, other = runs
        if not first.isfinite().all():
            return "not finite"
        if not torch.equal(first, again):
            return "another result with the same seed"
        if difference(other, first) < 1e-3:
            return "the same result with another seed"
        size = float(first.norm() / like.norm())
        return "" if 0.25 < size < 4 else f"{size:.2g} times as large as without noise"
