"""Arrays in files, and data sets of anyone's own, as tasks.

A *task* is data together with what is needed to train on them: the shape of a sample, its classes,
and a small network that suits it (`data.tasks`). The names of tasks that are made here are

    array:moons.npy               rows (N, ...) of numbers
    array:cifar10.npz             rows called x or arr_0, and their classes, called class_labels,
                                  labels, label or y
    package.module:function       a function that returns a Task, or anything that `dataset_of`
                                  takes

Pictures (C, H, W) with one channel or three are trained on as they are. Their values should lie in
[-1, 1], to which the bytes of pictures in .npy and .npz files are scaled. All other data are
standardised while training: their mean is subtracted, and they are divided by their standard
deviation, each number of a sample by its own.
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

TORCH = (".pt", ".pth")  # the files of torch.save
LABELS = ("class_labels", "labels", "label", "y")  # names of the classes, the first is preferred
MEASURED = 10_000  # the rows at most of which mean and standard deviation are taken


class Labelled(Dataset[dict[str, Tensor]]):
    """A data set of samples with a class each, as {"x": ..., "class_labels": ...}."""

    def __init__(self, samples: Any, labels: Tensor, path: Path) -> None:
        """Put samples and classes together.

        samples: a data set of N rows {"x": ...}.
        labels: the classes (N,), a whole number for each sample; ValueError for other shapes and
            for fractions.
        path: the file that they are from, which an error names.
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
    """The task of the rows of a file, or of the files of a folder.

    path: a .npy, .npz, .safetensors, .pt or .pth file, or a folder of files of the first three
        kinds, which are read one after the other.
    labels: whether to take classes from an array called class_labels, labels, label or y that lies
        beside the samples in a single .npz or .safetensors file. In a file of torch.save classes
        are called class_labels, and are taken whatever this says.

    ValueError for numbers that are neither floats nor the bytes of pictures, for labels that do not
    fit the samples, and for files of torch.save that hold more than tensors. FileNotFoundError if
    there is nothing at the path.
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
    # A packed .npz would be unpacked from its beginning for each row.
    packed = any(each.suffix.lower() == ".npz" for each in stored.files)
    samples = Points(stored.in_memory()) if packed else stored
    found = columns(file, LABELS) if labels and file.is_file() else None
    return task_of(samples if found is None else Labelled(samples, found, file))


def _tensors(path: Path) -> Any:
    """The tensors in a file of torch.save: one, or a dictionary, tuple or list of them.

    No code in the file is run; ValueError for a file that holds anything that would need it.
    """
    try:
        return torch.load(require_file(path), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # for files of other kinds torch's reader raises nearly anything
        raise ValueError(
            f"{path} holds more than tensors, and a file of torch.save can run code when all of it "
            "is read; save the tensors alone, {'x': ..., 'class_labels': ...}, or as .npz"
        ) from error


def task_of(data: Any) -> Task:
    """A task of anything that `dataset_of` takes, with the small network that suits it.

    The classes have the names in the attribute `classes` of the data set, as in data sets of
    torchvision, or else the numbers 0, 1, ... up to the largest label. There is no small network
    for rows that have more than a sample and its class, nor for shapes that `suited_network` does
    not know; the description of the task's network is then empty.

    data: the data. If classes have no names, all rows may be read to find them; some rows are read
        for the mean and the standard deviation of what is no picture. Masks are not looked at:
        padding counts as data there.

    ValueError for data with negative labels, with numbers that are not finite, and for endless data
    with labels whose classes have no names.

    >>> task = task_of((torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))
    >>> task.shape, task.classes
    ((2,), ('0', '1'))
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
    """The names of the classes 0, 1, ...

    data: rows with "class_labels".
    named: the names that the data set states, if it does; else the labels are read and counted.

    ValueError for negative labels, and for endless data, whose labels cannot be counted.
    """
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
    """The mean and the standard deviation of each number of a sample, both of a sample's shape.

    They are taken over at most `MEASURED` rows, spread evenly over the data. A number that never
    changes gets the deviation 1, so that it can be divided by.

    ValueError for rows with NaN or infinite numbers.
    """
    count = len(data)
    chosen = range(0, count, math.ceil(count / MEASURED))
    rows = torch.stack([data[index]["x"] for index in chosen]).double()
    bad = (~rows.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"row {chosen[bad[0]]} of the data holds NaN or infinite numbers")
    std = rows.std(0, correction=0)
    return rows.mean(0).float(), torch.where(std > 0, std, 1.0).float()
