"""Inversion: from data to noise and back, with any deterministic sampler.

The probability-flow ODE can be solved in both directions. `encode` goes along the levels of a
sampler's grid from data to noise of unit variance, which `decode` and `sample(..., init=)` turn
into data again:

    z = alpha x at the data end,    noise = z / sqrt(alpha^2 + sigma^2) at the noise end

A step backwards asks the network at the other end of the interval, so that a round trip has an
error, which falls with the order of the sampler. Two-step rules that are their own inverse lose
nothing but rounding: `Leapfrog` [Wang+ 2024] and `BDIA(1)` [Zhang+ 2023],

    z_(i+1) = F(z_(i-1), z_i, o_i)    <=>    z_(i-1) = F^-1(z_(i+1), z_i, o_i)

With such a rule data become two states, the noise and the state before it, and `decode` starts from
both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from twosides.denoiser import Denoises, as_denoiser
from twosides.sampling.frames import Frame
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.plan import Plan, trace
from twosides.sampling.run import Visit, run
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import BDIA, Leapfrog, walk
from twosides.schedules import Level, Schedule, schedule_named


class Encoded(NamedTuple):
    """Data as noise, and how the noise was made.

    noise: the noise (B, ...), which has unit variance where the denoiser is right about the data.
    before: for samplers that are their own inverse the state one step nearer to the data, else
        None.
    sampler, schedule, steps: what `encode` was called with, for `decode`.
    """

    noise: Tensor
    before: Tensor | None
    sampler: Sampler
    schedule: Schedule
    steps: int


@torch.no_grad()
def encode(
    denoiser: Denoises,
    x: Tensor,
    *,
    sampler: str | Sampler = "leapfrog",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    **conditioning: Any,
) -> Encoded:
    """Encode data as noise.

    denoiser: the denoiser. It is asked about the data themselves, at the last level of the grid.
        Where that is zero noise (flow matching, cosine) a network that predicts x has no answer and
        is refused: end the grid inside, `Sampler(UniformTime(end=0.01), Leapfrog())`.
    x: the data (B, ...), in their own units.
    sampler: any deterministic one; "leapfrog" and "bdia" are undone exactly by `decode`.
    steps: the number of steps, >= 1 (2 for "leapfrog" and "bdia").
    schedule: the schedule whose levels are passed, by default the denoiser's own.
    conditioning: what else the network is told.

    ValueError for samplers with noise, for networks that cannot answer at the last level, and for a
    two-step rule whose frame is infinite on the grid.
    """
    made = sampler_named(sampler)
    walked = schedule_named(schedule or as_denoiser(denoiser).schedule)
    table = plan(made, walked, steps, encode=True)
    last: list[Tensor] = []

    def keep(visit: Visit) -> None:
        last[:] = [visit.z]

    exact = runs_backwards(made, walked, steps)
    start, watch = standardise(denoiser, x), keep if exact else None
    noise = run(table, denoiser, start, watch=watch, conditioning=conditioning)
    noise = noise / spread(table.levels[-1])
    return Encoded(noise, last[0] if exact else None, made, walked, operator.index(steps))


def decode(denoiser: Denoises, encoded: Encoded, **conditioning: Any) -> Tensor:
    """Decode noise to data (B, ...), along the grid of `encode`.

    conditioning: what else the network is told. Another conditioning than that of `encode` edits
        the data.
    """
    noise, before, sampler, schedule, steps = encoded
    return sample(
        denoiser,
        noise.shape,
        sampler=plan(sampler, schedule, steps) if before is None else _way_back(encoded),
        init=noise,
        noise=None if before is None else lambda: before,
        seed=0,
        dtype=noise.dtype,
        device=noise.device,
        **conditioning,
    )


def runs_backwards(sampler: Sampler, schedule: Schedule, steps: SupportsIndex) -> bool:
    """Whether the sampler is its own inverse; ValueError where only the grid prevents it."""
    solver, levels = sampler.solver, sampler.levels(schedule, steps)
    if not isinstance(solver, Leapfrog) and solver != BDIA(1):
        return False
    if len(levels) < 3:
        raise ValueError(f"{type(solver).__name__} is a two-step rule: it needs steps >= 2")
    if isinstance(solver, Leapfrog):
        _require_regular(solver, schedule, levels)
    return True


def _require_regular(solver: Leapfrog, schedule: Schedule, levels: list[Level]) -> None:
    for before, here, there in zip(levels, levels[1:], levels[2:], strict=False):
        frame = Frame.regular(solver.output, here, schedule)
        gaps = [frame.gap(here, level.logsnr) for level in (before, there)] if frame else [math.inf]
        if not math.isfinite(sum(gaps)):
            raise ValueError(
                f"between {before} and {there} the frame of {solver} is infinite, and the step it "
                "takes there, DDIM's, is not its own inverse; use Leapfrog('u'), or end the grid "
                "inside, UniformTime(start=0.99, end=0.01)"
            )


def _way_back(encoded: Encoded) -> Plan:
    """The plan of the way back, which starts from two states.

    It takes the noise as its initial state and the state before it as its only injected noise.
    """
    _, _, sampler, schedule, steps = encoded
    noisy, *levels = sampler.levels(schedule, steps)

    def retrace(initial: Any, more: Callable[[], Any]) -> Any:
        memory = [(noisy, initial * spread(noisy))]
        route = sampler.stochasticity.route(schedule, levels)
        return walk(sampler.solver, more(), route, (levels[0], levels[-1]), more, memory)

    return trace(retrace, levels[-1], f"{type(sampler.solver).__name__}, retraced on {schedule}")


def standardise(denoiser: Denoises, x: Tensor) -> Tensor:
    """Data in the network's units; ValueError unless they are a batch of finite numbers."""
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"data are floating-point numbers of shape (B, ...), got {x.dtype} of {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the data contain NaN or infinite values; no noise belongs to them")
    return as_denoiser(denoiser).standardise(x)


def spread(level: Level) -> float:
    """The standard deviation of z for standardised data, `sqrt(alpha^2 + sigma^2)`."""
    return math.hypot(level.alpha, level.sigma)
