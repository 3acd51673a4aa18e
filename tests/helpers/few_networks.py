"""Tiny networks of diffusers' with random weights, and flow maps of them that have learned."""

import diffusers
import torch

import twosides as ts
from twosides.integrations.diffusers.networks import PipelineNetwork

TEXT = {"encoder_hidden_states": torch.ones(2, 5, 16)}


def randomised(network):
    """Zero-initialised layers get values, so that what enters them is seen in the answer."""
    with torch.no_grad():
        for number, p in enumerate(network.parameters()):
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    return network.eval()


def unet_xl():
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
        attention_head_dim=4, cross_attention_dim=16, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip


def unet2d():
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip


SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4}
NETWORKS = {
    "UNet2DModel": (unet2d, (4, 8, 8), {}),
    "UNet2DConditionModel": (
        unet_xl,
        (4, 8, 8),
        {**TEXT, "added_cond_kwargs": {"text_embeds": torch.ones(2, 16),
                               "time_ids": torch.ones(2, 6)}},
    ),
    "DiT": (
        lambda: diffusers.DiTTransformer2DModel(
            **SMALL, num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=10
        ),
        (4, 8, 8),
        {"class_labels": torch.tensor([1, 2])},
    ),
    "PixArt": (
        lambda: diffusers.PixArtTransformer2DModel(
            **SMALL, num_layers=2, sample_size=8, patch_size=2, cross_attention_dim=16,
            caption_channels=16, use_additional_conditions=False,
        ),
        (4, 8, 8),
        TEXT,
    ),
    "SD3": (
        lambda: diffusers.SD3Transformer2DModel(
            **SMALL, sample_size=8, patch_size=2, num_layers=2, joint_attention_dim=16,
            caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
        ),
        (4, 8, 8),
        {**TEXT, "pooled_projections": torch.ones(2, 16)},
    ),
    "FLUX": (
        flux,
        (16, 4),
        {**TEXT, "pooled_projections": torch.ones(2, 16), "img_ids": torch.zeros(16, 3),
         "txt_ids": torch.zeros(5, 3), "guidance": torch.ones(2)},
    ),
    "Sana": (
        lambda: diffusers.SanaTransformer2DModel(
            **SMALL, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=16, sample_size=8, patch_size=1,
        ),
        (4, 8, 8),
        TEXT,
    ),
    "Qwen": (
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
        ),
        (16, 4),
        {**TEXT, "encoder_hidden_states_mask": torch.ones(2, 5, dtype=torch.long),
         "img_shapes": [(1, 4, 4)] * 2},
    ),
    "Wan": (
        lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2,
            rope_max_seq_len=32,
        ),
        (4, 1, 8, 8),
        TEXT,
    ),
    "Lumina2": (
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
            num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16,
            scaling_factor=1.0, axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=16,
        ),
        (4, 8, 8),
        {**TEXT, "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool)},
    ),
    "AuraFlow": (
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, out_channels=4,
            pos_embed_max_size=64,
        ),
        (4, 8, 8),
        TEXT,
    ),
}  # fmt: skip


def built(name):
    """A network as a denoiser, a state of two samples, and what it is told."""
    build, shape, given = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomised(build())
    if not isinstance(network, diffusers.UNet2DModel):
        network = PipelineNetwork(network)
    teacher = ts.Denoiser(network, "u", ts.FlowMatching(), "1000t").eval()
    return teacher, torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)), given


def trained(flow_map):
    """The flow map with gates that are no longer zero, as after some training."""
    with torch.no_grad():
        for number, gate in enumerate(flow_map.network.gates):
            gate.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return flow_map
