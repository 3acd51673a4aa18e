"""Tiny pipelines that read text: random weights, with tokenizers and text encoders of their own.

    pipe = PIPELINES["sdxl"]()
    pipe.save_pretrained(folder)

Pictures of 16 pixels a side are latents of 8, for Sana 32 and 8. Whatever needs more letters than
these tokenizers have is an unknown token.
"""

from functools import partial

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

from pipelines import UNCHECKED, flux, lumina2, of, pixart, sana, sd3, unet, unet_xl, vae

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
    return network.eval()


def umt5():
    config = UMT5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval()


small_clip = partial(clip, CLIPTextModelWithProjection, 8)
PIXART = {
    "transformer": partial(pixart, diffusers.PixArtTransformer2DModel),
    "vae": vae,
    "tokenizer": t5_tokenizer,
    "text_encoder": t5,
}
PIPELINES = {
    "sd": of(
        diffusers.StableDiffusionPipeline,
        "sd",
        flags=UNCHECKED,
        unet=partial(unet, diffusers.UNet2DConditionModel),
        vae=vae,
        tokenizer=clip_tokenizer,
        text_encoder=clip,
    ),
    "sdxl": of(
        diffusers.StableDiffusionXLPipeline,
        "sdxl",
        unet=partial(unet_xl, diffusers.UNet2DConditionModel),
        vae=vae,
        tokenizer=clip_tokenizer,
        tokenizer_2=clip_tokenizer,
        text_encoder=partial(clip, width=8),
        text_encoder_2=small_clip,
    ),
    "sd3": of(
        diffusers.StableDiffusion3Pipeline,
        "sd3",
        transformer=sd3,
        vae=partial(vae, channels=16, shift_factor=0.5),
        tokenizer=clip_tokenizer,
        tokenizer_2=clip_tokenizer,
        tokenizer_3=t5_tokenizer,
        text_encoder=partial(small_clip, projection=8),
        text_encoder_2=partial(small_clip, projection=8),
        text_encoder_3=t5,
    ),
    "pixart-alpha": of(diffusers.PixArtAlphaPipeline, "pixart", **PIXART),
    "pixart-sigma": of(diffusers.PixArtSigmaPipeline, "pixart", **PIXART),
    "sana": of(
        diffusers.SanaPipeline,
        "sana",
        transformer=sana,
        vae=deep_vae,
        tokenizer=gemma_tokenizer,
        text_encoder=gemma,
    ),
    "lumina2": of(
        diffusers.Lumina2Pipeline,
        "lumina2",
        transformer=partial(lumina2, tokens=300),
        vae=vae,
        tokenizer=gemma_tokenizer,
        text_encoder=gemma,
    ),
    "aura-flow": of(
        diffusers.AuraFlowPipeline,
        "aura-flow",
        transformer=aura_flow,
        vae=vae,
        tokenizer=llama_tokenizer,
        text_encoder=umt5,
    ),
    "flux": of(
        diffusers.FluxPipeline,
        "flux",
        transformer=flux,
        vae=vae,
        tokenizer=clip_tokenizer,
        tokenizer_2=t5_tokenizer,
        text_encoder=clip,
        text_encoder_2=t5,
    ),
}


def saved(name, folder):
    """A pipeline's folder, of the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        PIPELINES[name]().save_pretrained(folder)
    return folder
