"""Things to train on by name: the data, their shape and classes, and a network that suits them.

A task is a row of `TASKS`; adding one is adding it here. Any other data set is an import path
"package.module:function" of a function that returns a Task.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from twosides.data.glyphs import Glyphs
from twosides.naming import unknown
from twosides.oracle import GaussianMixture


@dataclass(frozen=True)
class Task:
    """Data as dictionaries with "x" of `shape`, and the description of a network for them.

    `classes` names the labels 0, 1, ... one character each; `null` is the conditioning that
    classifier-free guidance drops, with its null value.
    """

    data: Dataset[Any]
    shape: tuple[int, ...]
    network: dict[str, Any]
    time: str = "t"
    classes: str = ""
    null: Mapping[str, int] = field(default_factory=dict)


class Points(Dataset[dict[str, Tensor]]):
    """Rows of a tensor as a data set."""

    def __init__(self, x: Tensor) -> None:
        """x is (N, ...)."""
        self.x = x

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row."""
        return {"x": self.x[index]}


def unet(size: int, channels: tuple[int, ...], classes: int) -> dict[str, Any]:
    """A small class-conditional diffusers UNet for grey images; one class more is the null one."""
    last = len(channels) - 1
    down = ["AttnDownBlock2D" if i == last else "DownBlock2D" for i in range(len(channels))]
    config = {
        "sample_size": size,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": list(channels),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "norm_num_groups": 8,
        "attention_head_dim": 16,
        "num_class_embeds": classes + 1,
    }
    return {"class": "diffusers.UNet2DModel", "config": config}


def _glyphs(size: int, channels: tuple[int, ...]) -> Task:
    data = Glyphs(size)
    classes = data.classes
    network = unet(size, channels, len(classes))
    null = {"class_labels": len(classes)}
    return Task(data, (1, size, size), network, "1000t", classes, null)


def _ring() -> Task:
    data = Points(GaussianMixture.ring(8).sample(20_000, seed=0).float())
    return Task(data, (2,), {"class": "MLP", "config": {"dim": 2}})


TASKS: dict[str, Callable[[], Task]] = {
    "glyphs": lambda: _glyphs(16, (32, 64)),
    "glyphs-32": lambda: _glyphs(32, (32, 64, 64)),
    "ring": _ring,
}


def task_named(name: str) -> Task:
    """A task by name or by import path "package.module:function"."""
    if name in TASKS:
        return TASKS[name]()
    if ":" not in name:
        raise unknown("data set", name, TASKS)
    module, _, function = name.partition(":")
    task = getattr(importlib.import_module(module), function)()
    if not isinstance(task, Task):
        raise TypeError(f"{name} must return a twosides.data.tasks.Task, got {type(task).__name__}")
    return task
