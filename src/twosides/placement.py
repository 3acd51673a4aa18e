"""The device and the dtype in which a network wants its input: decided here and nowhere else.

The first parameter does not speak for a network. A transformer in bfloat16 may keep a few tables in
float32 and name them first; the weights of an offloaded network wait on another device than the one
that computes; quantised weights have a dtype in which nothing can be computed. What the network and
the hooks on it say themselves therefore comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def check_floating(dtype: torch.dtype, what: str) -> None:
    """TypeError unless this is a dtype of real floats, in which alone there is noise."""
    if not dtype.is_floating_point:
        raise TypeError(f"{what} must be floating-point numbers, got {dtype}; pass .float() of it")


def device_of(network: Any) -> torch.device:
    """The device on which a network, or a denoiser around one, wants its input.

    The first of: the device on which accelerate's hooks let the network compute, the network's own
    `.device`, its first parameter's, the CPU. It looks at every module: ask once per run.
    """
    modules = network.modules() if isinstance(network, nn.Module) else ()
    hooked = (device for module in modules for device in _execution_devices(module))
    for device in hooked:
        return torch.device(device)
    own = getattr(network, "device", None)
    if isinstance(own, torch.device):
        return own
    first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def dtype_of(network: Any) -> torch.dtype | None:
    """The dtype in which a network wants its input; None if it takes the state's own.

    The first of: the network's own `.dtype`, that of its first floating-point parameter wider than
    one byte. A network with an attribute `any_dtype = True`, and whatever is no module and has no
    `.dtype`, takes any.
    """
    if getattr(network, "any_dtype", False):
        return None
    own = getattr(network, "dtype", None)
    if _computes(own):
        return own
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    return next((p.dtype for p in parameters if _computes(p.dtype)), None)


# torch.compile takes the answer as it is, instead of reading the code of the network's `.dtype`;
# `torch.compiler.assume_constant_result` would import the compiler, which takes seconds.
dtype_of.__dict__["_dynamo_marked_constant"] = True


def _computes(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def _execution_devices(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        device = getattr(each, "execution_device", None)
        if device is not None:
            yield device
