"""Arrays in files, and data sets of anyone's own, as tasks: what a researcher has first.

    array:moons.npy               rows (N, ...) of numbers
    array:cifar10.npz             rows called x, or arr_0, and their classes called y or labels
    package.module:function       a function that returns a Task, or anything `dataset_of` takes

Pictures (C, H, W) with one channel or three are trained on as they are and should lie in [-1, 1],
as bytes are scaled here. From all else its mean and standard deviation are taken while training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from twosides.data.stored import Stored, columns
from twosides.data.tasks import Points, Task, dataset_of, first_row, is_stream, suited_network
from twosides.storage.reading import require_file

TORCH = (".pt", ".pth")
LABELS = ("class_labels", "labels", "label", "y")
MEASURED = 10_000  # rows that moments are taken of


class Labelled(Dataset[dict[str, Tensor]]):
    """Samples with a class each."""

    def __init__(self, samples: Any, labels: Tensor, path: Path) -> None:
        """Put the two together.

        samples: a data set of {"x": ...}.
        labels: whole numbers (N,), one for each sample; ValueError for others.
        path: of the file that they are from.
        """
        if labels.shape != (len(samples),) or labels.is_floating_point():
            raise ValueError(
                f"{path} holds {len(samples)} samples, and labels of shape {tuple(labels.shape)} "
                f"and {labels.dtype}; labels are a whole number for each sample"
            )
        self.samples, self.labels = samples, labels.long()

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample and its class."""
        return {**self.samples[index], "class_labels": self.labels[index]}


def array(path: str, *, labels: bool = True) -> Task:
    """The rows of .npy, .npz, .safetensors or .pt files.

    path: a file, or a folder of them.
    labels: whether to take classes from an array called class_labels, labels, label or y that lies
        beside the samples in a .npz or .safetensors file.
    """
    file = Path(path)
    if file.suffix.lower() in TORCH:
        return task_of(_tensors(file))
    stored = Stored(file)
    if not stored.dtype.is_floating_point:
        raise ValueError(
            f"{path} holds {stored.dtype} of shape {stored.shape}; save floats, or pictures as "
            "bytes (N, H, W, 3)"
        )
    packed = any(each.suffix.lower() == ".npz" for each in stored.files)
    samples = Points(stored.in_memory()) if packed else stored
    found = columns(file, LABELS) if labels and file.is_file() else None
    return task_of(samples if found is None else Labelled(samples, found, file))


def _tensors(path: Path) -> Any:
    """What torch.save wrote of tensors; nothing else is read from the file, and no code is run."""
    try:
        return torch.load(require_file(path), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # its reader raises nearly anything for other files
        raise ValueError(
            f"{path} holds more than tensors, and a file of torch.save can run code when all of it "
            "is read; save the tensors alone, {'x': ..., 'class_labels': ...}, or as .npz"
        ) from error


def task_of(data: Any) -> Task:
    """A task of anything that `dataset_of` takes, with the small network that suits it.

    Classes are named by the data set's attribute `classes`, as torchvision's data sets have it, or
    else by the numbers of the labels in it.
    """
    named = getattr(data, "classes", None)
    data = dataset_of(data)
    first = first_row(data)
    shape = tuple(first["x"].shape)
    names = _classes(data, named) if "class_labels" in first else ()
    told = first.keys() - {"x", "class_labels"}
    network, time = ({}, "t") if told else suited_network(shape, len(names))
    pictured = len(shape) == 3 and shape[0] in (1, 3)
    return Task(
        data,
        shape,
        network,
        time,
        names,
        {"class_labels": len(names)} if names else {},
        moments=None if pictured or is_stream(data) else _moments(data),
    )


def _classes(data: Any, named: Any) -> tuple[str, ...]:
    """The names of the classes; ValueError where they would have to be counted in endless data."""
    if isinstance(named, Sequence) and named:
        return tuple(str(name) for name in named)
    if is_stream(data):
        raise ValueError(
            "endless data with class_labels do not say how many classes there are; give them an "
            "attribute `classes`, the names of the classes 0, 1, ..."
        )
    labels = getattr(data, "labels", None)
    if not isinstance(labels, Tensor):
        labels = torch.tensor([int(data[i]["class_labels"]) for i in range(len(data))])
    if int(labels.min()) < 0:
        raise ValueError(f"the class label {int(labels.min())} is negative; classes count from 0")
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def _moments(data: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number of a row, over at most `MEASURED` rows.

    A number that never changes has a deviation of 1 here, so that it can be divided by.
    """
    count = len(data)
    chosen = range(0, count, math.ceil(count / MEASURED))
    rows = torch.stack([data[index]["x"] for index in chosen]).double()
    bad = (~rows.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"row {chosen[bad[0]]} of the data holds NaN or infinite numbers")
    std = rows.std(0, correction=0)
    return rows.mean(0).float(), torch.where(std > 0, std, 1.0).float()
