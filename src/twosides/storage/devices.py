"""Where what is read from disk is put: the accelerator, or the device that a user names."""

from __future__ import annotations

import torch

from twosides.naming import unknown


def accelerator() -> torch.device | None:
    """The kind of accelerator that torch finds on this machine, None if there is none."""
    return torch.accelerator.current_accelerator(check_available=True)


def device_named(name: str = "auto") -> torch.device:
    """The device that a user means.

    name: "auto" is the accelerator that torch finds (CUDA, MPS, XPU, ...), or else the CPU; "cpu",
        "cuda", "cuda:1", "mps", "xpu", ... are those devices.

    ValueError for a device that torch does not know, or that this machine has not.

    >>> device_named("cpu")
    device(type='cpu')
    """
    there = accelerator() or torch.device("cpu")
    if name == "auto":
        return there
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu"]) from None
    if device.type not in ("cpu", there.type):
        raise ValueError(f"device={name} was asked, but torch finds none here: pass device={there}")
    if device.type != "cpu" and (device.index or 0) >= (count := torch.accelerator.device_count()):
        raise ValueError(f"device={name} was asked, but there are {count}, numbered from 0")
    return device
