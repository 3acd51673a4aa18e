"""The runs of a scheduler: which of its interleaved ones a step belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.integrations.diffusers.passes import Band, Pass
from twosides.randomness import PerSample

_MOST = 8  # unfinished runs that are remembered besides each thread's last: they keep latents


@dataclass(eq=False)
class _Run:
    """A pass over `timesteps`: `index` is the next one's number, None before the first step."""

    whole: Pass
    timesteps: Tensor
    sigmas: Tensor
    walk: Pass  # what is left of the whole where the run begins later
    order: int
    band: Band
    eager: str  # why it cannot be compiled, if it cannot
    begin: int | None = None
    index: int | None = None
    eta: float = 0.0
    own: PerSample | None = None

    def __post_init__(self) -> None:
        """Where the timesteps are stored."""
        first = self.timesteps.data_ptr()
        self._stored = range(first, first + self.timesteps.nbytes, self.timesteps.itemsize)

    def position(self, timestep: Any) -> int | None:
        """Its number, if it is an element of the very tensor that was handed out.

        Pipelines iterate over that tensor, so this needs no look at values: no search, no sync.
        """
        if not isinstance(timestep, Tensor):
            return None
        place = timestep.data_ptr()
        return self._stored.index(place) if place in self._stored else None


def _merely_equal(sigmas: Any) -> bool:
    """Whether these are 1 ... 1/n, which pipelines pass when nobody chose anything."""
    values = np.asarray(sigmas, dtype=np.float64)
    return np.allclose(values, np.linspace(1, 1 / len(values), len(values)), atol=1e-6)


def _checked(nodes: Tensor) -> tuple[float, ...]:
    values = tuple(nodes.tolist())
    for here, there in pairwise(values):
        if not there > here:
            raise ValueError(
                f"timesteps and sigmas must fall strictly, from noise to data, but logsnr "
                f"{here:.6g} is followed by {there:.6g}"
            )
    return values


def _interpolated(walk: Pass, timesteps: Any) -> Tensor:
    """What the network is told at each call, where both timesteps and sigmas are given."""

    def time(logsnr: Any) -> Any:
        return 1 / (1 + np.exp(0.5 * np.asarray(logsnr)))

    told = np.asarray(timesteps, dtype=np.float64)
    nodes = time(walk.nodes[: len(told)])
    calls = time([call.level.logsnr for call in walk.calls])
    return torch.from_numpy(np.interp(-calls, -nodes, told)).float()


def _position(run: _Run, timestep: Any) -> int | None:
    """Which of the timesteps this is; None if it is none of them."""
    place = run.position(timestep)
    if place is not None:
        return place
    found = (run.timesteps == torch.as_tensor(timestep, device=run.timesteps.device)).nonzero()
    # Of two calls at one level, the second begins a step.
    return int(found[:2][-1]) if len(found) else None
