"""What is measured: tables of a batch of plans run on noises, and how far they end from the truth.

    e_j = |x_j - x*_j| / rms |x*|,      rho = mean_j delta^2 log(1 + e_j^2 / delta^2)

x* is where a teacher's run ends. rho is robust: a run that has gone to another mode, which no plan
can mend, counts little, while the mean square would spoil all others for its sake.

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
from twosides.tuning.tables import Tables

DELTA = 0.1
ELSEWHERE = 0.5  # an error from which on a run has ended elsewhere


def robust(errors: Tensor) -> Tensor:
    """`delta^2 log(1 + e^2 / delta^2)`, the mean over the last axis."""
    return (DELTA**2 * torch.log1p((errors / DELTA) ** 2)).mean(-1)


@dataclass
class Account:
    """Network evaluations: each row of a batch is one, and with guidance the pair is one.

    limit: how many there may be.
    used: how many there were.
    tell: a function (used, limit) that shows them.
    """

    limit: int
    used: int = 0
    tell: Callable[[int, int], None] | None = None

    @property
    def left(self) -> int:
        """How many there may still be."""
        return self.limit - self.used

    def add(self, count: int) -> None:
        """Count some."""
        self.used += count
        if self.tell is not None:
            self.tell(min(self.used, self.limit), self.limit)


@dataclass
class Network:
    """A denoiser that runs many tables at once.

    denoiser: what is asked.
    conditioning: of the noises, tensors of as many rows as are repeated over the noises.
    rows: how many rows these have.
    batch: the most rows that are asked at once.
    account: counts what is asked.
    """

    denoiser: BaseDenoiser
    conditioning: dict[str, Any]
    rows: int
    batch: int
    account: Account = field(default_factory=lambda: Account(2**62))

    def told(self, numbers: Tensor) -> dict[str, Any]:
        """The conditioning of the noises of these numbers."""
        every = flat(self.conditioning)
        return nested(
            {name: value[(numbers % self.rows).to(value.device)]
             if isinstance(value, Tensor) else value for name, value in every.items()}
        )  # fmt: skip

    @torch.no_grad()
    def ends(self, tables: Tables, noise: Tensor, numbers: Tensor) -> Tensor:
        """Where each table leads from each noise, (q, b, *event).

        noise: (b, *event), of unit variance.
        numbers: (b,), which rows of the conditioning are theirs.
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
        """One table for each row of z."""
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
            z = torch.zeros_like(z)
            for part, end, found in ((tables.x, alpha, xs), (tables.eps, sigma, epses)):
                weights = part[:, i, : i + 1].copy()
                weights[:, i] = end[:, i + 1] - weights[:, :i].sum(1)
                for k in np.flatnonzero((weights != 0).any(0)):
                    z = z + along_batch(column(weights[:, k]), z) * found[k]
        return z


@dataclass(frozen=True, eq=False)
class Noises:
    """Noises and where the teacher leads from them.

    start: (b, *event), of unit variance.
    ends: the same shape.
    numbers: (b,), of the noises; row `number % rows` of the conditioning is theirs.
    size: the root mean square of |x*|, by which errors are counted.
    """

    start: Tensor
    ends: Tensor
    numbers: Tensor
    size: float

    def __len__(self) -> int:
        return len(self.start)

    def first(self, count: int) -> Noises:
        """The first of them."""
        return Noises(self.start[:count], self.ends[:count], self.numbers[:count], self.size)

    def blocks(self, width: int) -> Iterator[Noises]:
        """All of them, `width` at a time."""
        for at in range(0, len(self), width):
            part = slice(at, at + width)
            yield Noises(self.start[part], self.ends[part], self.numbers[part], self.size)

    def gaps(self, network: Network, tables: Tables) -> Tensor:
        """`(x - x*) / size` of all tables, (q, b, d), in float64 where the device has it."""
        x = network.ends(tables, self.start, self.numbers)
        gaps = (x - self.ends).flatten(2) / self.size
        return gaps if gaps.device.type == "mps" else gaps.double()

    def errors(self, network: Network, tables: Tables) -> Tensor:
        """e of all tables on all noises, (q, b) on the CPU; infinite where a run is not finite."""
        width = max(1, network.batch // len(tables.logsnr))
        found = [each.gaps(network, tables).norm(dim=2).cpu() for each in self.blocks(width)]
        return torch.nan_to_num(torch.cat(found, 1).double(), nan=torch.inf)
