"""A network's answer as a scheduler takes it: without its variance, and with clipped data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twosides.schedules import along_batch


def read_answer(
    config: Mapping[str, Any], x_z: float, x_o: float, answer: Tensor, sample: Tensor
) -> Tensor:
    """What of an answer is a prediction, changed so that the data lie where the config wants them.

    config: the scheduler's; it says whether the network predicts a variance, too
        (`variance_type`), and whether the data are clipped (`clip_sample`, `thresholding`).
    x_z, x_o: the data are predicted as `x_z * sample + x_o * answer`.

    ValueError for an answer that is not of the latents' shape.
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


def why_eager(config: Mapping[str, Any]) -> str:
    """What of a config only the step that is not compiled does; "" where there is nothing."""
    asked = {
        "a seed": config["seed"] is not None,
        "a learned variance": predicts_variance(config),
        "clipped data": clips(config),
    }
    return ", ".join(name for name, is_asked in asked.items() if is_asked)


def clips(config: Mapping[str, Any]) -> bool:
    """Whether data are clipped. CogVideoX's classes take the word, and do not look at it."""
    asked = config["clip_sample"] and not (config["origin"] or "").startswith("CogVideoX")
    return bool(asked or config["thresholding"])


def _clip(config: Mapping[str, Any], x: Tensor) -> Tensor:
    """x within +-clip_sample_range, or by dynamic thresholding [Saharia+ 2022, section 2.3]."""
    if not config["thresholding"]:
        return x.clamp(-config["clip_sample_range"], config["clip_sample_range"])
    flat = x.flatten(1).abs().float()
    limit = torch.quantile(flat, config["dynamic_thresholding_ratio"], dim=1)
    limit = along_batch(limit.clamp(1.0, config["sample_max_value"]).to(x), x)
    return x.clamp(-limit, limit) / limit
