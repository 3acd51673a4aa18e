"""Trials: many tables are run from the same noises, and compared with a teacher's runs.

A *table* is a sampler as numbers, levels and weights (`tables`). The *noises* are initial states of
unit variance. x_j is where the run of a table ends from noise j, x*_j where that of the *teacher*
ends, which makes many network calls (`teacher`). The error and the loss of the table are

    e_j = |x_j - x*_j| / rms |x*|,      rho = mean_j delta^2 log(1 + e_j^2 / delta^2)

with delta = 0.1. rho is robust: a run that has gone to another mode than the teacher's, which no
table can mend, counts little. The mean square would worsen all other runs for the sake of this one.

    >>> round(float(robust(torch.tensor([0.01, 1.0]))), 5)
    0.02313
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.conditioning import flat, nested
from twosides.denoiser import BaseDenoiser
from twosides.sampling.frames import unit
from twosides.schedules import Level, along_batch
from twosides.schedules.level import _float64
from twosides.tuning.tables import Tables

DELTA = 0.1  # delta: errors well below it count by their squares
ELSEWHERE = 0.5  # a run with a larger error has ended at other data than the teacher's


def robust(errors: Tensor) -> Tensor:
    """The loss rho: the mean over the last axis of `delta^2 log(1 + e^2 / delta^2)`.

    errors: e, >= 0, (..., b).
    """
    return (DELTA**2 * torch.log1p((errors / DELTA) ** 2)).mean(-1)


@dataclass
class Account:
    """Counts network evaluations: each row of a batch is one, and under guidance a pair is one.

    The account refuses nothing. Whoever asks the network looks at `left` first.

    limit: how many evaluations there may be.
    used: how many there were.
    tell: a function (used, limit) that shows progress; None for none.

    >>> account = Account(100)
    >>> account.add(30)
    >>> account.left
    70
    """

    limit: int
    used: int = 0
    tell: Callable[[int, int], None] | None = None

    @property
    def left(self) -> int:
        """How many evaluations there may still be; negative if there were too many."""
        return self.limit - self.used

    def add(self, count: int) -> None:
        """Count some evaluations."""
        self.used += count
        if self.tell is not None:
            self.tell(min(self.used, self.limit), self.limit)


@dataclass
class Network:
    """A denoiser, and a loop that runs many tables on it at once.

    denoiser: the denoiser that is asked, with its guidance.
    conditioning: what the network is told, nested; its tensors have `rows` rows, and the noise of
        number j is told row `j % rows`.
    rows: the number of these rows, >= 1.
    batch: the most rows that the denoiser is asked at once, >= 1.
    account: counts the network evaluations; by default without a limit that matters.
    """

    denoiser: BaseDenoiser
    conditioning: dict[str, Any]
    rows: int
    batch: int
    account: Account = field(default_factory=lambda: Account(2**62))

    def told(self, numbers: Tensor) -> dict[str, Any]:
        """The conditioning of the noises of these numbers, nested, a row for each number."""
        every = flat(self.conditioning)
        return nested(
            {
                name: value[(numbers % self.rows).to(value.device)]
                if isinstance(value, Tensor) and value.ndim
                else value
                for name, value in every.items()
            }
        )

    @torch.no_grad()
    def ends(self, tables: Tables, noise: Tensor, numbers: Tensor) -> Tensor:
        """Where the run of each table ends from each noise, (q, b, *event).

        tables: a batch of q tables.
        noise: the initial noises, of unit variance, (b, *event).
        numbers: the numbers of the noises, which say what the network is told of them, (b,).
        """
        count, width = len(tables.logsnr), len(noise)
        made = noise.new_empty((count * width, *noise.shape[1:]))
        for start in range(0, count * width, self.batch):
            rows = torch.arange(start, min(start + self.batch, count * width))
            table, own = rows // width, rows % width
            picked = Tables(*(part[table.numpy()] for part in tables))
            own = own.to(noise.device)
            made[start : start + len(rows)] = self._run(picked, noise[own], numbers[own])
        return made.reshape(count, width, *noise.shape[1:])

    def _run(self, tables: Tables, z: Tensor, numbers: Tensor) -> Tensor:
        """The ends of runs from z, (b, *event), each row by a table of its own.

        tables: a batch of b tables.
        z: the initial noises.
        numbers: the numbers of the noises, (b,).
        """
        told = self.told(numbers)
        alpha, sigma = unit(tables.logsnr)
        xs, epses = list[Tensor](), list[Tensor]()

        def column(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values))

        for i in range(tables.steps):
            level = Level(*(column(part[:, i]) for part in (tables.logsnr, alpha, sigma)))
            estimate = self.denoiser(z, level, **told)
            self.account.add(len(z))
            xs.append(estimate.x.to(z.dtype))
            epses.append(estimate.eps.to(z.dtype))
            # The step: DDIM and differences, written as a sum over the estimates. The weight of the
            # newest is what makes the weights of x sum to alpha, and those of eps to sigma.
            z = torch.zeros_like(z)
            for part, end, found in ((tables.x, alpha, xs), (tables.eps, sigma, epses)):
                weights = part[:, i, : i + 1].copy()
                weights[:, i] = end[:, i + 1] - weights[:, :i].sum(1)
                for k in np.flatnonzero((weights != 0).any(0)):
                    z = z + along_batch(column(weights[:, k]), z) * found[k]
        return z


@dataclass(frozen=True, eq=False)
class Noises:
    """Initial noises, and where the teacher's runs end from them.

    start: the noises, of unit variance, (b, *event).
    ends: the ends x* of the teacher's runs, (b, *event), standardised as the denoiser has data.
    numbers: the numbers of the noises, (b,).
    size: rms |x*|, the unit of errors: the root mean square of the norms of the ends.
    """

    start: Tensor
    ends: Tensor
    numbers: Tensor
    size: float

    def __len__(self) -> int:
        return len(self.start)

    def first(self, count: int) -> Noises:
        """The first `count` noises; the size stays that of all."""
        return Noises(self.start[:count], self.ends[:count], self.numbers[:count], self.size)

    def blocks(self, width: int) -> Iterator[Noises]:
        """All noises in parts of `width`; the size stays that of all."""
        for at in range(0, len(self), width):
            part = slice(at, at + width)
            yield Noises(self.start[part], self.ends[part], self.numbers[part], self.size)

    def gaps(self, network: Network, tables: Tables) -> Tensor:
        """The residuals `(x - x*) / size` of all tables, (q, b, d), d the numbers of a sample.

        They are in float64, on the CPU if the device has none.

        network: what runs the tables.
        tables: a batch of q tables.
        """
        x = network.ends(tables, self.start, self.numbers)
        gaps = (x - self.ends).flatten(2) / self.size
        return _float64(gaps)

    def errors(self, network: Network, tables: Tables) -> Tensor:
        """The errors e of all tables from all noises, (q, b), in float64 on the CPU.

        Where a run is not finite the error is infinite, or so large that rho is.

        network: what runs the tables.
        tables: a batch of q tables.
        """
        width = max(1, network.batch // len(tables.logsnr))
        found = [each.gaps(network, tables).norm(dim=2).cpu() for each in self.blocks(width)]
        return torch.nan_to_num(torch.cat(found, 1).double(), nan=torch.inf)
