"""Tiny pipelines that read text: random weights, with tokenizers and text encoders of their own.

    pipe = PIPELINES["sdxl"]()
    pipe.save_pretrained(folder)

Pictures of 16 pixels a side are latents of 8, for Sana 32 and 8. Whatever needs more letters than
these tokenizers have is an unknown token.
"""

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from pipelines import SCHEDULERS, flux, lumina2, pixart, sana, sd3, unet, unet_xl, vae

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer():
    words = [*LETTERS, *(f"{x}</w>" for x in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def clip(kind=CLIPTextModel, width=16, projection=16):
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return kind(config).eval()


def t5_tokenizer():
    vocabulary = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(word, -float(i)) for i, word in enumerate(("\u2581", *LETTERS), 1)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=20)


def t5(width=16):
    config = T5Config(
        vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def gemma_tokenizer():
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)


def gemma():
    config = Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Gemma2Model(config).eval()


def stable_diffusion():
    return diffusers.StableDiffusionPipeline(
        unet=unet(diffusers.UNet2DConditionModel),
        vae=vae(),
        scheduler=SCHEDULERS["sd"](),
        tokenizer=clip_tokenizer(),
        text_encoder=clip(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(**options):
    return diffusers.StableDiffusionXLPipeline(
        unet=unet_xl(diffusers.UNet2DConditionModel),
        vae=vae(),
        scheduler=SCHEDULERS["sdxl"](),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        text_encoder=clip(width=8),
        text_encoder_2=clip(CLIPTextModelWithProjection, 8),
        **options,
    )


def stable_diffusion_3():
    return diffusers.StableDiffusion3Pipeline(
        transformer=sd3(),
        vae=vae(channels=16, shift_factor=0.5),
        scheduler=SCHEDULERS["sd3"](),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        text_encoder=clip(CLIPTextModelWithProjection, 8, 8),
        text_encoder_2=clip(CLIPTextModelWithProjection, 8, 8),
        text_encoder_3=t5(),
    )


def pixart_alpha(kind=diffusers.PixArtAlphaPipeline):
    return kind(
        transformer=pixart(diffusers.PixArtTransformer2DModel),
        vae=vae(),
        scheduler=SCHEDULERS["pixart"](),
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
    )


def pixart_sigma():
    return pixart_alpha(diffusers.PixArtSigmaPipeline)


def deep_vae():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(4, 4, 8),
        decoder_block_out_channels=(4, 4, 8),
        encoder_qkv_multiscales=((),) * 3,
        decoder_qkv_multiscales=((),) * 3,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        scaling_factor=0.5,
    ).eval()


def sana_pipeline():
    return diffusers.SanaPipeline(
        transformer=sana(),
        vae=deep_vae(),
        scheduler=SCHEDULERS["sana"](),
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
    )


def lumina2_pipeline():
    return diffusers.Lumina2Pipeline(
        transformer=lumina2(tokens=300),
        vae=vae(),
        scheduler=SCHEDULERS["lumina2"](),
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
    )


def llama_tokenizer():
    words = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    return LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<unk>", model_max_length=256)


def aura_flow():
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    config = UMT5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return diffusers.AuraFlowPipeline(
        transformer=network.eval(),
        vae=vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        tokenizer=llama_tokenizer(),
        text_encoder=UMT5EncoderModel(config).eval(),
    )


def flux_pipeline():
    return diffusers.FluxPipeline(
        transformer=flux(),
        vae=vae(),
        scheduler=SCHEDULERS["flux"](),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        text_encoder=clip(),
        text_encoder_2=t5(),
    )


PIPELINES = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
    "sana": sana_pipeline,
    "lumina2": lumina2_pipeline,
    "aura-flow": aura_flow,
    "flux": flux_pipeline,
}


def saved(name, folder):
    """A pipeline's folder, of the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        PIPELINES[name]().save_pretrained(folder)
    return folder
