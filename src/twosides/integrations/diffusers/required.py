"""The conditioning without which a network of diffusers' does not run, by name."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from twosides.integrations.diffusers.networks import row_of

# What is needed and not in the call's signature, which says None; or only with a configuration.
_NEEDED: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("class_labels",),
    "PixArtTransformer2DModel": ("encoder_hidden_states",),
    "SD3Transformer2DModel": ("encoder_hidden_states", "pooled_projections"),
    "FluxTransformer2DModel": (
        "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids"
    ),
    "QwenImageTransformer2DModel": ("encoder_hidden_states", "encoder_hidden_states_mask"),
}  # fmt: skip


SPOKEN = ("self", "sample", "hidden_states", "timestep")
"""What a network is told by whoever samples: the state and its level."""


def required(network: Any) -> list[str]:
    """The conditioning that a known network cannot do without, "." between nested names."""
    config, row = network.config, row_of(network)
    call = inspect.signature(getattr(diffusers, row or "", type(network)).forward)
    names = [
        name
        for name, parameter in call.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    names = [name for name in names if name not in SPOKEN]
    names += [name for name in _NEEDED.get(row or "", ()) if name not in names]
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        names.append("class_labels")
    if config.get("guidance_embeds"):
        names.append("guidance")
    if config.get("addition_embed_type") == "text_time":
        names += ["added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"]
    return names
