"""Optimizers and the course of the learning rate, by name.

The rate rises linearly over the `warmup` steps, then follows `decay` to the last step. With s, the
share of the steps after the warm-up that is done, its factor is

    constant    1
    linear      1 - s
    cosine      (1 + cos(pi s)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from twosides.naming import unknown
from twosides.storage.trust import import_object

Make = Callable[..., Optimizer]


def _sgd(parameters: Iterable[Tensor], lr: float) -> Optimizer:
    """Stochastic gradient descent with the usual momentum of 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


OPTIMIZERS: dict[str, Make] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": _sgd,
}
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


def optimizer_named(name: str, *, trust_code: bool = False) -> str | Make:
    """The name itself if it is one of `OPTIMIZERS`, else the class of an import path.

    name: a key of `OPTIMIZERS`, or "package.module:Class".
    trust_code: whether code may be imported by this path.
    """
    if name in OPTIMIZERS:
        return name
    if ":" not in name:
        raise unknown("optimizer", name, [*OPTIMIZERS, "package.module:Class"])
    make: Any = import_object(name, "optimizer", trust_code=trust_code)
    if not isinstance(make, type) or not issubclass(make, Optimizer):
        raise ValueError(f"{name} is no subclass of torch.optim.Optimizer")
    return make


def rate(step: int, warmup: int, steps: int, decay: str) -> float:
    """The factor of the learning rate in a step, counted from 0."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    done = (step - warmup) / max(steps - warmup, 1)
    return rise * DECAYS[decay](min(max(done, 0.0), 1.0))
