"""The two sides of a measurement: samples from files or a model, and data as a yardstick.

Samples are read or drawn a batch at a time, and only their features are kept.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.data.glyphs import Glyphs
from twosides.data.named import TASKS, task_named
from twosides.data.stored import Stored
from twosides.data.tasks import Stream, Task
from twosides.display.progress import bar
from twosides.generation.notes import Notes
from twosides.generation.request import Request
from twosides.metrics.extractors import BATCH, Extractor, extract_batches, extractor_named
from twosides.metrics.measures import METRICS, Measured, measure
from twosides.storage import models

COUNT = 1000  # the samples of a model that are measured by default


def data_named(data: str | Task) -> Task:
    """The task of a name, as in `twosides train`, or of samples in a file or a folder of files."""
    if isinstance(data, Task):
        return data
    if data not in TASKS and ":" not in data and Path(data).exists():
        stored = Stored(data)
        return Task(stored, stored.shape, {})
    return task_named(data)


@dataclass(frozen=True, eq=False)
class Yardstick:
    """The features of data, against which samples are measured.

    extractor, name: the function from samples to features, and its name.
    shape: the shape of one row of data.
    reference: the features of the rows with which samples are compared.
    other: the features of as many rows of the same data, disjoint from the reference: measuring
        them gives the values of a perfect model. None where the data have not so many rows.
    labels: the names of the classes of the other rows, or of the reference if there are none; empty
        for data without classes.
    """

    extractor: Extractor
    name: str
    shape: tuple[int, ...]
    reference: Tensor
    other: Tensor | None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        data: str | Task,
        count: int,
        extractor: str | None = None,
        *,
        seed: int = 0,
        trust_code: bool = False,
    ) -> Yardstick:
        """The yardstick of `count` rows of data, drawn without replacement.

        data: a task, or its name as in `data_named`.
        count: the number of rows.
        extractor: a name as in `extractor_named`, by default "reader" for letters and "pixels" for
            all else.
        seed: the seed of the choice of rows.
        trust_code: whether an extractor may be imported.
        """
        task = data_named(data)
        size = task.size or 2 * count
        if not 1 <= count <= size:
            raise ValueError(
                f"the reference needs {count} rows, but the data have {size}; measure fewer "
                f"samples, count={size}"
            )
        name = extractor or ("reader" if isinstance(task.data, Glyphs) else "pixels")
        chosen = extractor_named(name, trust_code=trust_code)
        pick = np.random.default_rng(seed).permutation(size)[: 2 * count]
        # Rows are read in the data's order, because streams and archives go forwards only.
        order = np.argsort(pick)
        labels = list[str]()
        sorted_rows = extract_batches(
            _batches(task, pick[order].tolist(), labels), chosen, len(pick)
        )
        place = np.argsort(order)
        rows = sorted_rows[torch.from_numpy(place)]
        other = rows[count:] if len(rows) == 2 * count else None
        named = [labels[i] for i in place] if len(labels) == len(pick) else []
        compared = named[:count] if other is None else named[count:]
        return cls(chosen, name, task.shape, rows[:count], other, tuple(compared))

    def features(self, batches: Iterable[Tensor], count: int) -> Tensor:
        """The features of `count` samples that come in batches (B, *shape)."""
        return extract_batches(self._check_batches(batches), self.extractor, count)

    def _check_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for x in batches:
            check_shape(tuple(x.shape[1:]), self.shape)
            yield x

    def measure(
        self, features: Tensor, metrics: Sequence[str] = tuple(METRICS), *, seed: int = 0
    ) -> dict[str, Measured]:
        """Metrics of samples, given as features, with a progress bar."""
        with bar("measuring", 1) as tell:
            return measure(features, self.reference, metrics, seed=seed, progress=tell)

    def perfect(
        self, metrics: Sequence[str] = tuple(METRICS), *, seed: int = 0
    ) -> dict[str, Measured]:
        """Metrics of other data against the reference; none where there are no other data."""
        return {} if self.other is None else measure(self.other, self.reference, metrics, seed=seed)

    def ask_alike(self, request: Request, notes: Notes) -> Request:
        """The request for samples of a model that have the numbers and classes of the data.

        There are as many samples as rows, and their classes are those of the other rows, so that
        each class is as frequent as in the data. A warning says where the model's classes are not
        those of the data; then all of them are drawn equally often.

        request: how to sample.
        notes: the notes of the model, for its classes.
        """
        request = replace(request, count=len(self.reference))
        if not notes.classes or request.labels is not None:
            return request
        if self.labels and set(self.labels) <= set(notes.classes):
            return replace(request, labels=self.labels)
        warnings.warn(
            "the classes of the data are not known as classes of the model, so the model draws all "
            "of its classes equally often",
            stacklevel=2,
        )
        return request


def check_shape(samples: tuple[int, ...], data: tuple[int, ...]) -> None:
    """ValueError for samples that have not the shape of the data."""
    if samples != tuple(data):
        raise ValueError(
            f"samples have shape {samples}, but the data {tuple(data)}; "
            "name the data that they should look like"
        )


def _batches(task: Task, numbers: Sequence[int], labels: list[str]) -> Iterator[Tensor]:
    """The rows of these rising numbers, in batches, with a bar; their classes go into `labels`."""
    rows = _rows(task, numbers)
    with bar("reading data", len(numbers)) as tell:
        done = 0
        while some := list(itertools.islice(rows, BATCH)):
            if task.classes:
                given = (row["class_labels"] for row in some if "class_labels" in row)
                labels += [task.classes[int(label)] for label in given]
            yield torch.stack([row["x"] for row in some])
            done += len(some)
            tell(done, len(numbers))


def _rows(task: Task, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of these rising numbers, one after the other; a stream is read once."""
    data: Any = task.data
    if not isinstance(data, Stream):
        yield from (data[number] for number in numbers)
        return
    wanted, last = set(numbers), max(numbers, default=-1)
    for number, row in enumerate(itertools.islice(data.items(0), last + 1)):
        if number in wanted:
            yield row


def read_batches(stored: Stored, count: int) -> Iterator[Tensor]:
    """The first `count` samples of files, in batches, with a progress bar."""
    with bar("reading samples", count) as tell:
        for start in range(0, count, BATCH):
            end = min(start + BATCH, count)
            yield torch.stack([stored[number]["x"] for number in range(start, end)])
            tell(end, count)


def is_model(source: Path) -> bool:
    """Whether this is the folder of a model or of a run."""
    try:
        models.model_folder(source)
    except FileNotFoundError:
        return False
    return True
