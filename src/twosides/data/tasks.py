"""Tasks: data to train on, with their shape and classes, and a network that suits them.

`named` makes tasks of names; `dataset_of` makes data sets of tensors, arrays and loaders.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    default_collate,
    get_worker_info,
)


@runtime_checkable
class Stream(Protocol):
    """Endless data: samples start, start + 1, ..., each a function of its number."""

    def items(self, start: int) -> Iterator[dict[str, Any]]:
        """The samples from `start` on, which are the same in every call and every process."""
        ...


Data = Dataset[Any] | Stream


def is_stream(data: Any) -> TypeGuard[Stream]:
    """Whether data are a `Stream`; data with a length are none, whatever attributes they have."""
    return callable(getattr(data, "items", None)) and not hasattr(data, "__len__")


@dataclass(frozen=True)
class Task:
    """Data as dictionaries with "x", and what is needed to train on them.

    What else a row has is told the network, but for "loss_mask", the weights of the elements in the
    loss (`losses.masks`).

    data: a data set, or a `Stream` of endless data.
    shape: the shape of a sample.
    network: the description of a network for them, as `storage.models` reads it, or {}.
    time: how that network is told the level, a name of `clocks`.
    classes: the names of the labels 0, 1, ...: a character each, or a tuple of words.
    null: the conditioning that classifier-free guidance drops, with its null value, a number or one
        row (1, ...).
    validation: makes data of the same kind that training never sees; None if there are none.
    moments: the mean and the standard deviation by which data are standardised while training.
    pipeline: the notes on the pipeline that encoded latents, `Latents.pipeline`.
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
        """The notes for a model of this task: shape, classes, and null values that are numbers."""
        null = {name: value for name, value in self.null.items() if isinstance(value, int)}
        notes = {"shape": list(self.shape), "classes": self.classes, "null": null}
        return notes | ({"pipeline": dict(self.pipeline)} if self.pipeline else {})

    def rows(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Some samples by their numbers; of an endless stream all up to the last are read."""
        if is_stream(self.data):
            wanted = list(indices)
            first = list(itertools.islice(self.data.items(0), max(wanted, default=-1) + 1))
            return [first[i] for i in wanted]
        return [self.data[i] for i in indices]  # pyright: ignore[reportIndexIssue]

    @property
    def size(self) -> int | None:
        """The number of samples; None for an endless stream."""
        return None if is_stream(self.data) else len(self.data)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------- data of other forms


def dataset_of(data: Any) -> Any:
    """A data set for training, made of one of these:

    - a tensor or an array (N, ...), or a dictionary or tuple of them, row by row
    - a data set with a length: of dictionaries, of tensors, or of tuples (x,) and (x, class label)
    - a DataLoader, of which only the data set is used
    - a `Stream`, or anything that can be iterated over again and again, such as an IterableDataset

    ValueError or TypeError says what was given, and what it would have to be.
    """
    if isinstance(data, Task):
        return dataset_of(data.data)
    if isinstance(data, DataLoader):
        return dataset_of(_without_loader(data))
    if isinstance(data, str | Path):
        raise TypeError(f"{str(data)!r} is a name, not data; pass task_named({str(data)!r}).data")
    if isinstance(data, Tensor | np.ndarray):
        data = Columns({"x": data})
    elif isinstance(data, Mapping) and data:
        data = Columns(data)
    elif isinstance(data, tuple) and data and all(isinstance(c, Tensor | np.ndarray) for c in data):
        data = Columns(dict(enumerate(data)))
    if is_stream(data):
        _check_first(next(iter(data.items(0)), None), data)
        return data
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if not len(data):
            raise ValueError(f"the data are empty: {_kind(data)} of length 0")
        first = data[0]
        _check_first(first, data)
        same = (
            isinstance(data, Dataset) and isinstance(first, dict) and isinstance(first["x"], Tensor)
        )
        return data if same else Rows(data)
    if hasattr(data, "__next__"):
        raise TypeError(
            f"{_kind(data)} can be read only once, and training reads data again and again; pass "
            "a list, a Dataset or an IterableDataset"
        )
    if not hasattr(data, "__iter__"):
        raise TypeError(
            f"{_kind(data)} is no data: pass a Dataset, a tensor or an array, or a Stream with "
            "`items(start)`"
        )
    data = Endless(data)
    first_row(data)
    return data


def first_row(data: Data) -> dict[str, Any]:
    """The first sample."""
    if is_stream(data):
        return next(iter(data.items(0)))
    return data[0]  # pyright: ignore[reportIndexIssue]


def as_row(item: Any) -> dict[str, Any]:
    """A sample as a dictionary with "x", a floating-point tensor; ValueError for anything else."""
    if isinstance(item, Tensor | np.ndarray):
        item = {"x": item}
    elif isinstance(item, tuple | list):
        item = _name_parts(item)
    if not isinstance(item, Mapping):
        raise TypeError(
            f'a row of the data is {_kind(item)}; it must be a dictionary with a tensor "x" and '
            "the conditioning that the network takes"
        )
    if "x" not in item:
        names = ", ".join(map(str, item)) or "nothing"
        raise ValueError(
            f'a row of the data has {names}, but no "x", on which a model is trained: rename the '
            'column, or map rows to {"x": tensor, ...}'
        )
    row = {str(name): _tensor(value) for name, value in item.items()}
    x = row["x"]
    if not isinstance(x, Tensor):
        raise TypeError(f'"x" of the data is {_kind(x)}; it must be a tensor or an array')
    if not x.is_floating_point():
        raise ValueError(f'"x" of the data has dtype {x.dtype}; scale it to floats, as [-1, 1]')
    return row


def _check_first(item: Any, data: Any) -> None:
    if item is None:
        raise ValueError(f"the data are empty: {_kind(data)} has no first row")
    try:
        default_collate([as_row(item)] * 2)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"the rows of {_kind(data)} make no batch: {error}") from None


def _without_loader(loader: DataLoader[Any]) -> Any:
    warnings.warn(
        "only the data set of the DataLoader is used: batches, order and workers follow from "
        "Settings (batch, seed, workers), and its sampler and collate_fn are not called",
        stacklevel=4,
    )
    return loader.dataset


def _name_parts(item: tuple[Any, ...] | list[Any]) -> dict[str, Any]:
    """The dictionary of a tuple (x,) or (x, label)."""
    whole = len(item) == 2 and not np.ndim(item[1])
    if len(item) == 1 or (whole and float(item[1]) == int(item[1])):
        label = {} if len(item) == 1 else {"class_labels": int(item[1])}
        return {"x": item[0], **label}
    kinds = ", ".join(_kind(value) for value in item)
    raise ValueError(
        f'a row of the data is ({kinds}); rows are dictionaries with "x", or tuples (x,) and '
        "(x, class label)"
    )


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, list):  # tables of files have lists
        return torch.tensor(value)
    return value


def _kind(value: Any) -> str:
    kind = type(value)
    shape = getattr(value, "shape", None)
    shown = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}{shown}"


class Rows(Dataset[dict[str, Any]]):
    """A data set of tensors, tuples or dictionaries as one of dictionaries."""

    def __init__(self, data: Any) -> None:
        """Wrap anything that has a length and items."""
        self.data = data

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row as a dictionary."""
        return as_row(self.data[index])


class Columns(Dataset[dict[str, Any]]):
    """Arrays of one length by names, or by the numbers 0 and 1 for x and class labels."""

    def __init__(self, columns: Mapping[Any, Any]) -> None:
        """ValueError for lengths that differ."""
        self.columns = {name: _tensor(column) for name, column in columns.items()}
        bad = [name for name, column in self.columns.items() if not np.ndim(column)]
        if bad:
            raise ValueError(f"the data are columns of rows, but {bad[0]!r} has no rows")
        self.lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(self.lengths.values())) > 1:
            counts = ", ".join(f"{name}: {count}" for name, count in self.lengths.items())
            raise ValueError(f"the columns of the data have different lengths: {counts}")

    def __len__(self) -> int:
        """The number of rows."""
        return next(iter(self.lengths.values()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row as a dictionary."""
        row = {name: column[index] for name, column in self.columns.items()}
        return as_row(tuple(row.values()) if 0 in row else row)


class Endless:
    """Data that can only be iterated over, as a `Stream` that begins again after their end."""

    def __init__(self, data: Any) -> None:
        """Wrap an iterable that gives the same samples in the same order each time."""
        self.data = data

    def items(self, start: int) -> Iterator[dict[str, Any]]:
        """The samples `start`, `start + 1`, ...; those before are read, too, and left out."""
        if get_worker_info() is not None:
            raise ValueError(
                f"{_kind(self.data)} would be split among the processes that read: use workers=0, "
                "or give a Stream, whose items(start) can begin anywhere"
            )
        number = 0
        while True:
            before = number
            for item in self.data:
                if number >= start:
                    yield as_row(item)
                number += 1
            if number == before:
                raise ValueError(f"the data are empty: {_kind(self.data)} has no rows")


class Points(Dataset[dict[str, Tensor]]):
    """The rows of a tensor as a data set."""

    def __init__(self, x: Tensor) -> None:
        """Wrap a tensor (N, ...)."""
        self.x = x

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row as a dictionary."""
        return {"x": self.x[index]}


def hold_out(task: Task, share: float) -> Task:
    """The task without some of its rows, which are kept for validation.

    share: of the rows, below 1; or their number. Which ones they are is the same every time.

    ValueError for endless data, whose rows cannot be chosen.
    """
    if task.size is None:
        raise ValueError("endless data have no rows to hold out; name other data for validation")
    count = round(share * task.size) if share < 1 else int(share)
    if not 0 < count < task.size or (share >= 1 and count != share):
        raise ValueError(
            f"holdout={share:g} of {task.size} rows leaves nothing to train on or to validate "
            "with; give a share between 0 and 1, or a number of rows"
        )
    order = torch.randperm(task.size, generator=torch.Generator().manual_seed(0)).tolist()
    held, kept = sorted(order[:count]), sorted(order[count:])
    data: Any = task.data
    return replace(task, data=Subset(data, kept), validation=lambda: Subset(data, held))


def suited_network(shape: tuple[int, ...], classes: int) -> tuple[dict[str, Any], str]:
    """The description of a small network for samples of this shape, and how it is told the time.

    An MLP for vectors, a UNet for square pictures of one channel or three, and {} for all else.
    """
    if len(shape) == 1:
        config = {"dim": shape[0], "classes": classes + 1 if classes else 0}
        return {"class": "MLP", "config": config}, "t"
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]:
        return unet(shape[1], widths(shape[1]), classes, shape[0]), "1000t"
    return {}, "t"


def widths(size: int) -> tuple[int, ...]:
    """Down to 8 pixels, in as many halvings as the size allows."""
    halvings = 0
    while halvings < 3 and size % 2 ** (halvings + 1) == 0 and size >= 16 * 2**halvings:
        halvings += 1
    return (32, *[64] * halvings)


def unet(
    size: int, channels: tuple[int, ...], classes: int, colours: int = 1, text: int = 0
) -> dict[str, Any]:
    """The description of a small diffusers UNet for images.

    size: the pixels a side.
    channels: the channels at each resolution, from the finest on.
    classes: the number of classes, to which a null class is added; 0 for none.
    colours: the channels of an image.
    text: the width of the tokens that the network attends to; 0 for none.
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
