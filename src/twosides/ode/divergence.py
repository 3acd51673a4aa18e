"""The divergence of a vector field u(z), exact or estimated by random probes.

Along an ODE the log-density falls at the rate of the divergence of the velocity (`likelihood`). The
divergence is

    div_z u = sum_n v_n . (du/dz) v_n

if the v_n are the axes, which takes one derivative per dimension [Chen+ 2018,
arxiv.org/abs/1806.07366]. For a vector v of random signs, v . (du/dz) v has the divergence as its
mean. The mean of some such vectors is an estimate without bias, which takes as many derivatives as
there are vectors, whatever the dimension [Hutchinson 1990; Grathwohl+ 2019,
arxiv.org/abs/1810.01367].
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

# A function of the states z (B, ...) that gives the vectors v_n of all samples, some (n, B, ...) at
# a time; the quadratic forms of all of them add up to the divergence.
Directions = Callable[[Tensor], Iterator[Tensor]]


@dataclass(frozen=True)
class Exact:
    """The divergence itself, by one derivative per dimension.

    chunk: the number of derivatives that one backward pass takes, >= 1. More need more memory and
        fewer passes. 1 is for networks that `torch.vmap` cannot batch. ValueError below 1.

    >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> u = z * torch.tensor([3.0, 4.0])
    >>> [quadratic_forms(u, z, vectors) for vectors in Exact().directions(z)(z)]
    [tensor([7.])]
    """

    chunk: int = 32

    def __post_init__(self) -> None:
        _require_positive(chunk=self.chunk)

    def directions(self, like: Tensor) -> Directions:
        """A function that gives the axes, some (n, B, ...) at a time, the same for all samples.

        like: the data (B, ...). It is not read; `Hutchinson` needs it in this place.
        """
        return self._axes

    def _axes(self, z: Tensor) -> Iterator[Tensor]:
        dims = z[0].numel()
        for first in range(0, dims, self.chunk):
            rows = z.new_zeros(min(self.chunk, dims - first), dims)
            rows[:, first : first + self.chunk].fill_diagonal_(1.0)
            yield rows.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape)


@dataclass(frozen=True)
class Hutchinson:
    """An estimate without bias: the mean of `v . (du/dz) v` over vectors v of random signs.

    probes: the number of vectors for each sample, >= 1. The variance of the estimate falls as
        1 / probes. The vectors stay the same for a whole run, so that a solver sees a smooth
        function of time.
    seed: an integer >= 0. The vectors of sample i depend on (seed, indices[i]) only.
    indices: the numbers of the samples, one for each; by default 0 ... B - 1.
    chunk: as in `Exact`.

    ValueError for probes or chunk below 1. In this example the estimate is exact, because each
    number of u depends on the same number of z only:

    >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> u = z * torch.tensor([3.0, 4.0])
    >>> [quadratic_forms(u, z, vectors) for vectors in Hutchinson().directions(z)(z)]
    [tensor([7.])]
    """

    probes: int = 1
    seed: int = 0
    indices: Sequence[int] | None = None
    chunk: int = 32

    def __post_init__(self) -> None:
        _require_positive(probes=self.probes, chunk=self.chunk)

    def directions(self, like: Tensor) -> Directions:
        """A function that gives the vectors, divided by sqrt(probes), some (n, B, ...) at a time.

        The division makes the sum of the quadratic forms their mean.

        like: the data (B, ...), which give the shape, the dtype and the device. ValueError if there
            are not as many indices as samples.
        """
        # The noise of sampling with this seed is in stream 0. From the same stream v would be the
        # signs of that noise, and not independent of the samples.
        own = PerSample(self.seed, check_indices(self.indices, len(like)), stream=1)
        event = like.shape[1:]
        drawn = [own.normal(event, like.dtype, like.device).sign() for _ in range(self.probes)]
        vectors = torch.stack(drawn) / math.sqrt(self.probes)
        return lambda z: iter(vectors.split(self.chunk))


DIVERGENCES = {"exact": Exact, "hutchinson": Hutchinson}


def divergence_named(divergence: str | Exact | Hutchinson) -> Exact | Hutchinson:
    """The divergence of this name; an `Exact` or a `Hutchinson` is returned as it is.

    divergence: "exact", or "hutchinson" for one probe with seed 0; ValueError for other names.

    >>> divergence_named("exact")
    Exact(chunk=32)
    """
    if not isinstance(divergence, str):
        return divergence
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    return DIVERGENCES[divergence]()


def quadratic_forms(u: Tensor, z: Tensor, vectors: Tensor, recorded: bool = False) -> Tensor:
    """The sums `sum_n v_n . (du/dz) v_n` (B,), one for each sample.

    Samples must be independent: u of a sample may depend on z of the same sample only.

    u: the field (B, ...), computed from z by operations that autograd recorded.
    z: the states (B, ...), which require a gradient.
    vectors: the vectors v_n of all samples (n, B, ...).
    recorded: whether gradients flow through the result; the field is then differentiated twice.
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
