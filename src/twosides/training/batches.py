"""The samples that each process trains on: a function of (seed, optimizer step) and nothing else.

The batch of a step has `batch` places. Micro-batch m takes the m-th block of them, and process r of
W every W-th place of a block, from r on. Both the sample and its noise follow from the place, so
that the same global batch is trained on for any number of processes, micro-batches and workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from twosides.data.tasks import Data, Endless, Stream, is_stream
from twosides.training.settings import Settings


class Batches(IterableDataset):
    """The micro-batches of a data set from a given optimizer step on.

    A map-style data set, which has a length and an order, is shuffled anew each epoch. A `Stream`
    is read in its own order: place p of a step gets the sample of number `step * batch + p`.
    """

    def __init__(
        self, data: Data, settings: Settings, start: int, rank: int = 0, world: int = 1
    ) -> None:
        """Prepare the share of one process in each global batch.

        data: a map-style data set or a Stream.
        settings: the settings of the run, of which batch, accumulate, seed and workers count.
        start: the optimizer step to begin with.
        rank, world: the number of this process, and that of all processes.
        """
        if settings.workers and isinstance(data, Endless):
            raise ValueError(
                f"workers is {settings.workers}, but data that can only be iterated over are read "
                "by one process; use workers=0, or give a Dataset or a Stream"
            )
        self.data, self.settings, self.start = data, settings, start
        self.rank, self.world, self.micro = rank, world, settings.micro_batch(world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Micro-batches without end, each with its step and the places of its rows in the batch."""
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batch, accumulate = self.settings.batch, self.settings.accumulate
        read = self._read()
        for number in itertools.count(mine, workers):  # the loader takes from its workers in turn
            step, part = self.start + number // accumulate, number % accumulate
            first = part * self.micro * self.world + self.rank
            places = [first + self.world * k for k in range(self.micro)]
            rows = [read(step * batch + place) for place in places]
            yield {"batch": default_collate(rows), "step": step, "places": places}

    def _read(self) -> Callable[[int], Any]:
        """A function that reads the sample at a position; positions are asked in rising order."""
        if is_stream(self.data):
            return _read_stream(self.data, self.start * self.settings.batch)
        return _read_shuffled(self.data, self.settings.seed)  # pyright: ignore[reportArgumentType]


def _read_shuffled(data: Dataset[Any], seed: int) -> Callable[[int], Any]:
    count, epochs = len(data), {}  # pyright: ignore[reportArgumentType]

    def read(position: int) -> Any:
        epoch = position // count
        if epoch not in epochs:
            epochs.clear()
            epochs[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
        return data[int(epochs[epoch][position % count])]

    return read


def _read_stream(stream: Stream, start: int) -> Callable[[int], Any]:
    numbered = enumerate(stream.items(start), start)

    def read(position: int) -> Any:
        for number, item in numbered:
            if number == position:
                return item
        raise ValueError(f"{stream} ended before sample {position}; it must repeat without end")

    return read
