"""Noise that depends on who asks, not on how many ask at once.

Sample i of a run draws from its own generator, seeded by (seed, stream, i): the same pictures come
out for any batch size, order or number of processes, and the global generator is never touched.
Numbers are made on the CPU, so they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from twosides.placement import check_floating


def fresh_seed() -> int:
    """A seed from the operating system."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])


class PerSample:
    """One generator per sample: `indices` are the samples' global numbers.

    `stream` separates uses of one seed (such as training steps); `total` is the size of the global
    batch over which `strata` spreads its points, by default the number of indices.

        >>> whole, part = PerSample(7, range(4)), PerSample(7, [2])
        >>> torch.equal(whole.normal((3,), torch.float64)[2:3], part.normal((3,), torch.float64))
        True
    """

    def __init__(
        self, seed: int, indices: Iterable[int], stream: int = 0, total: int | None = None
    ) -> None:
        """Seeds are any non-negative integers."""
        if seed < 0:
            raise ValueError(f"a seed is a non-negative integer, got {seed}")
        self.seed, self.indices = seed, list(indices)
        self.total = total or len(self.indices)
        self._shared = _generator(seed, stream)
        # SeedSequence pads keys with zeros, so a last key of 0 would be the shared generator.
        self._own = [_generator(seed, stream, 1 + index) for index in self.indices]

    def normal(
        self,
        event: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal noise (number of indices, *event)."""
        check_floating(dtype, "noise")
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        noise = torch.empty((len(self._own), *event), dtype=exact)
        rows = noise.view(len(self._own), -1).numpy()
        for row, generator in zip(rows, self._own, strict=True):
            generator.standard_normal(dtype=row.dtype, out=row)
        return noise.to(device or "cpu", dtype)

    def strata(self) -> Tensor:
        """One point of (0, 1) per sample, `(u + i / total) mod 1` with a shared uniform u.

        Each is uniform; together they are evenly spread over the global batch [Kingma+ 2021,
        appendix I.1].
        """
        shared = self._shared.random()
        return centred((shared + torch.tensor(self.indices).double() / self.total) % 1)

    def uniform(self) -> Tensor:
        """One independent point of (0, 1) per sample."""
        return centred(torch.tensor([own.random() for own in self._own], dtype=torch.float64))


class Shared:
    """The same questions answered by one `torch.Generator`, for a batch of `count`."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        """Numbers are drawn on the generator's device."""
        self.generator, self.count = generator, count

    def normal(
        self,
        event: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normal noise (count, *event)."""
        where, shape = self.generator.device, (self.count, *event)
        noise = torch.randn(shape, generator=self.generator, dtype=dtype, device=where)
        return noise.to(device) if device is not None else noise

    def strata(self) -> Tensor:
        """`(u + i / count) mod 1`, i = 0 ... count - 1."""
        shared = self._rand(1)
        return centred((shared + torch.arange(self.count).double() / self.count) % 1)

    def uniform(self) -> Tensor:
        """Independent points of (0, 1)."""
        return centred(self._rand(self.count))

    def _rand(self, count: int) -> Tensor:
        where = self.generator.device
        return torch.rand(count, generator=self.generator, dtype=torch.float64, device=where).cpu()


def centred(u: Tensor) -> Tensor:
    """Points of [0, 1) moved to the middle of their 2^-52 cell: never 0, never 1."""
    return ((u * 2.0**52).floor().clamp(max=2.0**52 - 1) + 0.5) * 2.0**-52


def _generator(*key: int) -> np.random.Generator:
    # Torch's generator keeps 32 bits of a seed: among 50,000 samples two would likely be one.
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(key)))
