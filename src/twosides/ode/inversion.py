"""Inversion: data to noise and back, with any deterministic sampler.

The probability-flow ODE runs both ways. `encode` walks a sampler's grid from data to noise of unit
variance, which `decode` and `sample(..., init=)` turn into data again:

    z = alpha x at the data end,    noise = z / sqrt(alpha^2 + sigma^2) at the noise end

A step backwards asks the network at the other end of the interval, so what a round trip loses falls
with the order of the sampler. Two-step rules that are their own inverse lose nothing but rounding,
`Leapfrog` [Wang+ 2024] and `BDIA(1)` [Zhang+ 2023]:

    z_(i+1) = F(z_(i-1), z_i, o_i)    <=>    z_(i-1) = F^-1(z_(i+1), z_i, o_i)

Their code is a pair, the noise and the state before it, and `decode` starts from both.
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
    """Data as noise, and how it was made.

    noise: (B, ...), of unit variance where the denoiser is right about the data.
    before: for samplers that run backwards exactly, the state one step nearer to the data.
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
    """Data x (B, ...), in the data's own units, to noise.

    sampler: any deterministic one; "leapfrog" and "bdia" are undone exactly by `decode`.
    schedule: where to walk, by default the denoiser's own.

    The network is asked about the data themselves, at the last level of the grid. Where that is
    zero noise (flow matching, cosine) a network that predicts x says nothing and is refused: end
    the grid inside, `Sampler(UniformTime(end=0.01), Leapfrog())`. ValueError also for samplers
    with noise, and for a two-step rule whose frame is infinite on the grid.
    """
    made = sampler_named(sampler)
    walked = schedule_named(schedule or as_denoiser(denoiser).schedule)
    table = plan(made, walked, steps, encode=True)
    last: list[Tensor] = []

    def keep(visit: Visit) -> None:
        last[:] = [visit.z]

    exact = runs_backwards(made, walked, steps)
    start, watch = standardised(denoiser, x), keep if exact else None
    noise = run(table, denoiser, start, watch=watch, conditioning=conditioning)
    noise = noise / spread(table.levels[-1])
    return Encoded(noise, last[0] if exact else None, made, walked, operator.index(steps))


def decode(denoiser: Denoises, encoded: Encoded, **conditioning: Any) -> Tensor:
    """The data again (B, ...), along the same grid; another conditioning edits them."""
    noise, before, sampler, schedule, steps = encoded
    return sample(
        denoiser,
        noise.shape,
        sampler=plan(sampler, schedule, steps) if before is None else _retraced(encoded),
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


def _retraced(encoded: Encoded) -> Plan:
    """The way back, from two states: the initial noise and, as injected noise, the state before."""
    _, _, sampler, schedule, steps = encoded
    noisy, *levels = sampler.levels(schedule, steps)

    def retrace(initial: Any, more: Callable[[], Any]) -> Any:
        memory = [(noisy, initial * spread(noisy))]
        route = sampler.stochasticity.route(schedule, levels)
        return walk(sampler.solver, more(), route, (levels[0], levels[-1]), more, memory)

    return trace(retrace, levels[-1], f"{type(sampler.solver).__name__}, retraced on {schedule}")


def standardised(denoiser: Denoises, x: Tensor) -> Tensor:
    """Data in the network's units; ValueError for what is not a batch of finite numbers."""
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"data are floating-point numbers of shape (B, ...), got {x.dtype} of {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the data contain NaN or infinite values, which have no noise")
    return as_denoiser(denoiser).standardise(x)


def spread(level: Level) -> float:
    """`sqrt(alpha^2 + sigma^2)`: the standard deviation of z for standardised data."""
    return math.hypot(level.alpha, level.sigma)
