"""The conditioning without which a network of diffusers does not run, by name."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from twosides.integrations.diffusers.networks import row_of

# Arguments that are needed although their default is None.
_NEEDED: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("class_labels",),
    "PixArtTransformer2DModel": ("encoder_hidden_states",),
    "SD3Transformer2DModel": ("encoder_hidden_states", "pooled_projections"),
    "FluxTransformer2DModel": (
        "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids"
    ),
    "QwenImageTransformer2DModel": ("encoder_hidden_states", "encoder_hidden_states_mask"),
}  # fmt: skip


NOT_CONDITIONING = ("self", "sample", "hidden_states", "timestep")
"""The arguments of a network that every sampler gives: the state and its level."""


def required_names(network: Any) -> list[str]:
    """The conditioning that a known network needs, with "." between nested names."""
    config, row = network.config, row_of(network)
    call = inspect.signature(getattr(diffusers, row or "", type(network)).forward)
    names = [
        name
        for name, parameter in call.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    names = [name for name in names if name not in NOT_CONDITIONING]
    names += [name for name in _NEEDED.get(row or "", ()) if name not in names]
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        names.append("class_labels")
    if config.get("guidance_embeds"):
        names.append("guidance")
    if config.get("addition_embed_type") == "text_time":
        names += ["added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"]
    return names
