"""The divergence of a vector field u(z), exact or by random probes.

    div_z u = sum_n v_n . (du/dz) v_n

where the v_n are the axes, one derivative per dimension [Chen+ 2018]; or, without bias, its mean
over vectors of random signs [Hutchinson 1990, Grathwohl+ 2019], some derivatives of any dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.randomness import PerSample
from twosides.sampling.sample import check_indices

Directions = Callable[[Tensor], Iterator[Tensor]]


@dataclass(frozen=True)
class Exact:
    """The divergence itself, by one derivative per dimension.

    chunk: derivatives per backward pass, >= 1; 1 for networks that `torch.vmap` cannot batch.
    """

    chunk: int = 32

    def __post_init__(self) -> None:
        _require_positive(chunk=self.chunk)

    def directions(self, like: Tensor) -> Directions:
        """The axes of one sample, (n, B, ...) at a time."""
        return self._axes

    def _axes(self, z: Tensor) -> Iterator[Tensor]:
        dims = z[0].numel()
        for first in range(0, dims, self.chunk):
            rows = z.new_zeros(min(self.chunk, dims - first), dims)
            rows[:, first : first + self.chunk].fill_diagonal_(1.0)
            yield rows.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape)


@dataclass(frozen=True)
class Hutchinson:
    """An estimate without bias: the mean of `v . (du/dz) v` over random sign vectors v.

    probes: how many vectors, >= 1; they stay the same for a whole run.
    seed: those of sample i depend on (seed, indices[i]) only.
    indices: the numbers of the samples, by default 0 ... B - 1.
    chunk: derivatives per backward pass, >= 1; 1 for networks that `torch.vmap` cannot batch.
    """

    probes: int = 1
    seed: int = 0
    indices: Sequence[int] | None = None
    chunk: int = 32

    def __post_init__(self) -> None:
        _require_positive(probes=self.probes, chunk=self.chunk)

    def directions(self, like: Tensor) -> Directions:
        """The probes / sqrt(their number) for a batch like this, (n, B, ...) at a time."""
        # A stream of its own: of the samples' noise of this seed, v would be the signs.
        own = PerSample(self.seed, check_indices(self.indices, len(like)), stream=1)
        event = like.shape[1:]
        drawn = [own.normal(event, like.dtype, like.device).sign() for _ in range(self.probes)]
        vectors = torch.stack(drawn) / math.sqrt(self.probes)
        return lambda z: iter(vectors.split(self.chunk))


DIVERGENCES = {"exact": Exact, "hutchinson": Hutchinson}


def divergence_named(divergence: str | Exact | Hutchinson) -> Exact | Hutchinson:
    """The divergence of a name; ValueError for others than "exact" and "hutchinson"."""
    if not isinstance(divergence, str):
        return divergence
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    return DIVERGENCES[divergence]()


def quadratic_forms(u: Tensor, z: Tensor, vectors: Tensor, recorded: bool = False) -> Tensor:
    """`sum_n v_n . (du/dz) v_n` (B,), for vectors (n, B, ...) and a graph from z to u.

    recorded: whether gradients flow through the result.
    """
    kept = {"retain_graph": True, "create_graph": recorded}
    if len(vectors) == 1:
        (slopes,) = torch.autograd.grad(u, z, vectors[0], **kept)
        return (vectors[0] * slopes).reshape(len(u), -1).sum(1)
    (slopes,) = torch.autograd.grad(u, z, vectors, is_grads_batched=True, **kept)
    return (vectors * slopes).reshape(*vectors.shape[:2], -1).sum((0, 2))


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
