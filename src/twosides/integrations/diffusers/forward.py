"""Forward diffusion by a scheduler, which training scripts and image to image use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twosides.integrations.diffusers.levels import shift_of
from twosides.integrations.diffusers.notation import Config, Notation
from twosides.schedules import Tabulated, along_batch
from twosides.schedules.level import _float64


def training_levels(config: Config, notation: Notation) -> tuple[Tensor, Tensor]:
    """The model's own timesteps, falling, and their sigmas, into which training scripts index."""
    count = config["num_train_timesteps"]
    if notation.path == "flow":
        t = torch.arange(count, 0, -1, dtype=torch.float64) / count
        shift = 1.0 if config["use_dynamic_shifting"] else shift_of(config, None)
        sigmas = shift * t / (1 + (shift - 1) * t)
        return (count * sigmas).float(), sigmas.float()
    if notation.path == "vp":
        timesteps = torch.arange(count - 1, -1, -1)
        logsnrs = notation.clock.logsnr(timesteps.double(), notation.schedule)
    else:
        t = torch.linspace(1, 0, count, dtype=torch.float64)
        logsnrs = notation.schedule.logsnr(t)
        timesteps = notation.clock.read(logsnrs, notation.schedule).float()
    sigmas = (-0.5 * logsnrs).exp().float()
    return timesteps, torch.cat([sigmas, sigmas.new_zeros(1)])


def kept_shares(config: Config, notation: Notation) -> Tensor:
    """The shares alpha^2 / (alpha^2 + sigma^2) of the training timesteps 0 ... N - 1, float32."""
    if notation.path not in ("vp", "flow"):
        sigmas = training_levels(config, notation)[1][:-1].double()
        return torch.sigmoid(-2 * sigmas.log()).flip(0).float()
    schedule, count = notation.schedule, config["num_train_timesteps"]
    count = schedule.count if isinstance(schedule, Tabulated) else count
    timesteps = torch.arange(count, dtype=torch.float64)
    return torch.sigmoid(notation.clock.logsnr(timesteps, schedule)).float()


def coefficients(notation: Notation, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) of the latents at any real timesteps, one or one per sample.

    ValueError where there is no timestep.
    """
    given = torch.as_tensor(timesteps)
    if not given.numel():
        raise ValueError(
            "there is no timestep to add noise at: a strength of less than one step leaves nothing "
            "to do; raise it, or take more steps"
        )
    logsnr = notation.clock.logsnr(_float64(given), notation.schedule)
    level = notation.latents.level(logsnr)
    alpha, sigma = (along_batch(v.to(like.device, like.dtype), like) for v in level[1:])
    return alpha, sigma
