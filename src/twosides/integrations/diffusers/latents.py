"""Images to latents and back, by a pipeline's VAE, in the units of its network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_latents(vae: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] as a pipeline's latents: the posterior's mean, in the network's units."""
    return posterior(vae, images)[0]


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of the latents of images, in the network's units.

    vae: the pipeline's VAE. The deviation is 0 for one without noise.
    images: images in [-1, 1], of shape (B, 3, H, W).
    """
    answer = _require_vae(vae).encode(images.to(vae.device, vae.dtype))
    dist = getattr(answer, "latent_dist", None)
    raw = dist.mode() if dist is not None else answer.latent
    std = torch.zeros_like(raw) if dist is None else dist.std.expand_as(raw)
    shift, scale = _units(vae, raw)
    return ((raw - shift) * scale).to(images.dtype), (std * abs(scale)).to(images.dtype)


@torch.no_grad()
def to_images(vae: Any, latents: Tensor) -> Tensor:
    """A pipeline's latents (B, C, ...) as images, not clamped; ValueError for packed latents."""
    config = _require_vae(vae).config
    channels = config.get("latent_channels") or config.get("z_dim")
    if latents.ndim < 4 or latents.shape[1] != channels:
        raise ValueError(
            f"the VAE decodes latents (B, {channels}, ...), got {tuple(latents.shape)}; bring them "
            "into that form first, packed ones with the pipeline's _unpack_latents"
        )
    raw = latents.to(vae.device, vae.dtype)
    shift, scale = _units(vae, raw)
    return vae.decode(raw / scale + shift).sample.to(latents.dtype)


def _require_vae(vae: Any) -> Any:
    if vae is None:
        raise ValueError("this pipeline has no VAE: its network's data are the data themselves")
    return vae


def _units(vae: Any, like: Tensor) -> tuple[Any, Any]:
    """The (shift, scale) of the network's latents, `(raw - shift) scale`."""
    known = {**vae.config, **dict(vae.named_buffers(recurse=False))}
    scale = known.get("scaling_factor") or 1.0
    if known.get("latents_mean") is None:
        return known.get("shift_factor") or 0.0, scale
    shape = (1, -1, *(1 for _ in like.shape[2:]))
    mean, std = (
        torch.as_tensor(known[key]).to(like).reshape(shape)
        for key in ("latents_mean", "latents_std")
    )
    return mean, scale / std
