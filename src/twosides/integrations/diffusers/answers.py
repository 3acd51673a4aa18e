"""The answers of a pipeline's network, without channels of a variance, and with clipped data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twosides.integrations.diffusers.notation import origin
from twosides.schedules import along_batch


def read_answer(
    config: Mapping[str, Any], x_z: float, x_o: float, answer: Tensor, sample: Tensor
) -> Tensor:
    """The prediction in an answer, changed so that the predicted data are in the config's range.

    config: the scheduler's config; it states whether the network predicts a variance, too
        (`variance_type`), and whether the data are clipped (`clip_sample`, `thresholding`).
    x_z, x_o: the data are predicted as `x_z * sample + x_o * answer`.
    answer: the network's answer.
    sample: the latents that the network was shown.

    ValueError for an answer that has not the shape of the latents.
    """
    if predicts_variance(config) and answer.shape[1] == 2 * sample.shape[1]:
        answer = answer.chunk(2, dim=1)[0]
    if answer.shape != sample.shape:
        raise ValueError(
            f"the network answered {tuple(answer.shape)} to latents {tuple(sample.shape)}"
        )
    if not clips(config):
        return answer
    x = x_z * sample + x_o * answer
    return answer + (_clip(config, x) - x) / x_o if x_o else answer


def predicts_variance(config: Mapping[str, Any]) -> bool:
    """Whether the network has channels for a variance beside those of its prediction."""
    return (config["variance_type"] or "").startswith("learned")


def obstacles_to_compiling(config: Mapping[str, Any]) -> str:
    """The settings of a config that a compiled step does not support; "" if there are none."""
    asked = {
        "a seed": config["seed"] is not None,
        "a learned variance": predicts_variance(config),
        "clipped data": clips(config),
        "noise in the unit of sigma_data": origin(config) == "SCM",
    }
    return ", ".join(name for name, is_asked in asked.items() if is_asked)


def clips(config: Mapping[str, Any]) -> bool:
    """Whether data are clipped. The classes of CogVideoX take the setting, and ignore it."""
    asked = config["clip_sample"] and not (config["origin"] or "").startswith("CogVideoX")
    return bool(asked or config["thresholding"])


def _clip(config: Mapping[str, Any], x: Tensor) -> Tensor:
    """The data within +-clip_sample_range, or by dynamic thresholding [Saharia+ 2022, 2.3]."""
    if not config["thresholding"]:
        return x.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    flat = x.flatten(1).abs().float()
    limit = torch.quantile(flat, config["dynamic_thresholding_ratio"], dim=1)
    limit = along_batch(limit.clamp(1.0, config["sample_max_value"]).to(x), x)
    return x.clamp(-limit, limit) / limit
