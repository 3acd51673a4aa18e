"""Noise and states that a caller gives, at the beginning of a run or on the way: checked here.

Noise of another shape would be broadcast, so that samples share it, and integers would be rounded
noise; both give pictures, and wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twosides.placement import check_floating


def check_noise(noise: Any, shape: tuple[int, ...], name: str = "init") -> Tensor:
    """Noise of this shape; TypeError or ValueError for anything else, NaN and infinity included.

    name: what it is called in the error. Values are looked at on the CPU only, where that waits for
    no device.
    """
    if not isinstance(noise, Tensor):
        raise TypeError(f"{name} is a tensor, got {type(noise).__name__}")
    check_floating(noise.dtype, name)
    if tuple(noise.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(noise.shape)}, but shape={shape} was asked")
    if noise.device.type == "cpu" and not bool(torch.isfinite(noise).all()):
        raise ValueError(f"{name} contains NaN or infinite values; it is noise of unit variance")
    return noise


def replaced(z: Tensor, edited: Tensor | None) -> Tensor:
    """The state that a function of the caller's made of z, if any; ValueError for another shape."""
    if edited is None:
        return z
    if edited.shape != z.shape:
        raise ValueError(
            f"edit made a state of shape {tuple(edited.shape)} of one of {tuple(z.shape)}; it "
            "returns a state of the same shape, or None"
        )
    return edited


def injected(noise: Callable[[], Any], like: Tensor) -> Callable[[], Tensor]:
    """The noise that a function of the caller's gives, each time checked, and moved to the state's.

    like: a state.
    """
    return lambda: check_noise(noise(), tuple(like.shape), "noise").to(like)
