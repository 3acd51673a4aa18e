"""Things to train on by name: the data, their shape and classes, and a network that suits them.

A task is a row of `TASKS`; adding one is adding it here. Data of one's own are a name of `sources`,
"folder:photos?size=64", or an import path "package.module:function" of a function that returns a
Task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Dataset


@runtime_checkable
class Stream(Protocol):
    """Endless data: samples start, start + 1, ..., each a function of its number."""

    def items(self, start: int) -> Iterator[dict[str, Any]]:
        """The samples from `start` on: the same whenever and wherever they are asked."""
        ...


Data = Dataset[Any] | Stream


@dataclass(frozen=True)
class Task:
    """Data as dictionaries with "x" of `shape`, and the description of a network for them, or {}.

    `classes` names the labels 0, 1, ...: a character each, or a tuple of words. `null` is the
    conditioning that classifier-free guidance drops, with its null value, a number or one row
    (1, ...). Instead of a data set, `data` may be endless: `data.items(start)` iterates over
    samples start, start + 1, ... `validation` makes data of the same kind that training never sees.
    `moments`, mean and standard deviation, are taken off while training. `pipeline` says
    which one encoded latents, `Latents.pipeline`.
    """

    data: Data
    shape: tuple[int, ...]
    network: dict[str, Any]
    time: str = "t"
    classes: str | tuple[str, ...] = ""
    null: Mapping[str, int | Tensor] = field(default_factory=dict)
    validation: Callable[[], Dataset[Any]] | None = None
    moments: tuple[Tensor, Tensor] | None = None
    pipeline: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, Any]:
        """What a model of it says about itself: its shape, classes, and nulls that are numbers."""
        null = {name: value for name, value in self.null.items() if isinstance(value, int)}
        notes = {"shape": list(self.shape), "classes": self.classes, "null": null}
        return notes | ({"pipeline": dict(self.pipeline)} if self.pipeline else {})

    def rows(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Some samples by their numbers; of an endless stream it reads all up to the last."""
        if isinstance(self.data, Stream):
            wanted = list(indices)
            first = list(itertools.islice(self.data.items(0), max(wanted, default=-1) + 1))
            return [first[i] for i in wanted]
        return [self.data[i] for i in indices]

    @property
    def size(self) -> int | None:
        """The number of samples; None of an endless stream."""
        return None if isinstance(self.data, Stream) else len(self.data)  # pyright: ignore[reportArgumentType]


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


def unet(
    size: int, channels: tuple[int, ...], classes: int, colours: int = 1, text: int = 0
) -> dict[str, Any]:
    """A small diffusers UNet for images of `colours` channels, conditional on what there is.

    That is `classes`, of which one more is the null one, or tokens of width `text`.
    """
    last = len(channels) - 1
    attention = "CrossAttnDownBlock2D" if text else "AttnDownBlock2D"
    down = [attention if i == last else "DownBlock2D" for i in range(len(channels))]
    config = {
        "sample_size": size,
        "in_channels": colours,
        "out_channels": colours,
        "layers_per_block": 1,
        "block_out_channels": list(channels),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "norm_num_groups": 8,
        "attention_head_dim": 16,
    }
    if text:
        config |= {"attention_head_dim": 4, "cross_attention_dim": text}
        return {"class": "diffusers.UNet2DConditionModel", "config": config}
    if classes:
        config["num_class_embeds"] = classes + 1
    return {"class": "diffusers.UNet2DModel", "config": config}
