"""Sampling paths of one-dimensional data under a scaling between flow matching and VP."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import twosides as ts
from twosides.explorer import problems
from twosides.sampling.run import run

Array = NDArray[np.float64]
TRUTH, FINE = "kab3c", 32  # the sampler and the steps of exact paths: third order, equal steps


@functools.lru_cache(256)
def plan(sampler: str, k: float, steps: int) -> Any:
    """The plan of a sampler on `steps` equal steps of time."""
    return ts.plan(sampler, problems.ScaledFlow(k), steps)


@functools.lru_cache(64)
def problem(name: str, variance: float) -> Any:
    """The data, which are made once for all paths of a view."""
    return problems.mixture(name, variance)


@functools.lru_cache(512)
def path(name: str, variance: float, sampler: str, k: float, steps: int, particles: int) -> Array:
    """The states (particles, steps + 1) of 1-D data, started at `linspace(-2, 2, particles)`."""
    start = torch.linspace(-2, 2, particles, dtype=torch.float64)[:, None]
    states: list[torch.Tensor] = []
    # `run` is used in place of `sample`, because neither noise nor estimates are needed.
    last = run(
        plan(sampler, k, steps),
        problem(name, variance),
        start,
        watch=lambda visit: states.append(visit.z),
    )
    return torch.cat([*states, last], 1).numpy()


def exact(name: str, variance: float, k: float, particles: int) -> Array:
    """The exact paths: FINE steps of TRUTH on flow matching, times S."""
    t = 1 - nodes(FINE)[0]
    return path(name, variance, TRUTH, 0.0, FINE, particles) * (
        1 + k * (1 / np.hypot(1 - t, t) - 1)
    )


def nodes(steps: int, particles: int = 1) -> Array:
    """The times `1 - t` of the states, (particles, steps + 1): the axis of the post's figures."""
    return np.repeat(np.linspace(0, 1, steps + 1)[None], particles, 0)


PYTHON = """import torch
import twosides as ts
from twosides.explorer import problems

data = problems.mixture({name!r}, {variance!r})
start = torch.linspace(-2, 2, {particles}, dtype=torch.float64)[:, None]


def path(sampler, k, steps):
    run = ts.sample(
        data, start.shape, sampler=sampler, steps=steps,
        schedule=problems.ScaledFlow(k),  # flow matching at k = 0, VP at k = 1
        init=start, seed=0, dtype=torch.float64, trajectory=True,
    )
    return torch.cat(run.states, 1).numpy()

"""
