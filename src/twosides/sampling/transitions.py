"""Sampling as a chain of Gaussian transitions: what fine-tuning by reward needs.

Each row of a stochastic plan is `state = mean + std n`: the mean is what the row makes of the
network's answers so far, std the norm of its noise coefficients. So a run has a density,

    log p(states | initial) = sum_i log N(state_i; mean_i, std_i^2)

and its gradient in the network's parameters is a policy gradient, of DDPO [Black+ 2023] with "ddpm"
and of Flow-GRPO [Liu+ 2025] with `Epsilon` noise: `rollout` draws, `log_probs` asks again under
other parameters, and `exp(new - old)` is the ratio of importance. States that are reached without
noise (stages of a step, stretches without noise, most last steps) have no density: they are
functions of those before, and computed anew.

    >>> from twosides.denoiser import Denoiser
    >>> shift = torch.zeros(2, requires_grad=True)
    >>> policy = Denoiser(lambda z, t: shift.expand_as(z), output="-u")
    >>> for seed in range(20):  # a reward for large first coordinates
    ...     drawn = rollout(policy, (256, 2), sampler="ddpm", steps=4, seed=seed)
    ...     advantage = drawn.sample[:, 0] - drawn.sample[:, 0].mean()
    ...     new = log_probs(policy, drawn.states, drawn.plan)
    ...     gain = (advantage[:, None] * (new - drawn.log_probs).exp()).mean()
    ...     shift.data += 0.1 * torch.autograd.grad(gain, shift)[0]
    >>> bool(shift[0] > 10 * shift[1].abs())
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import Denoises, as_denoiser
from twosides.placement import device_of
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.named import plan
from twosides.sampling.plan import Plan
from twosides.sampling.run import Execution, combine, lower
from twosides.sampling.sample import check_indices, check_shape, to_data
from twosides.sampling.sampler import Sampler
from twosides.schedules import Level, Schedule


class Transition(NamedTuple):
    """One row of a plan: how state `number`, at `level`, came from those before.

    log_prob (B,) is the log-density of `state` under N(mean, std^2), summed over an event's
    numbers; None where std is 0 and the state is the mean.
    """

    number: int
    level: Level
    mean: Tensor
    std: float
    state: Tensor
    log_prob: Tensor | None


@dataclass
class Rollout:
    """A run that was drawn: samples in the data's units, and how likely its noisy steps were.

    `states` are the plan's n + 1, log_probs (B, number of noisy rows). Flow-GRPO's ratio is that of
    densities per dimension, `exp((new - old) / sample[0].numel())`.
    """

    plan: Plan
    sample: Tensor
    states: list[Tensor]
    log_probs: Tensor


@torch.no_grad()
def rollout(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    sampler: str | Sampler | Plan = "ddpm",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    seed: int | None = None,
    indices: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **conditioning: Any,
) -> Rollout:
    """Draw samples of shape (B, ...) like `sample`, the same for the same seed, with log-densities.

    ValueError where no row injects noise, or one noise serves several rows.
    """
    denoiser, table = as_denoiser(denoiser), sampler
    if not isinstance(table, Plan):
        table = plan(table, schedule or denoiser.schedule, steps)
    sizes = check_shape(shape)
    rows = check_indices(indices, sizes[0])
    own = PerSample(fresh_seed() if seed is None else seed, rows)
    place = dtype, device_of(denoiser) if device is None else device

    def add_noise(number: int, mean: Tensor | None) -> Tensor:
        terms = [
            (own.normal(sizes[1:], *place), value)
            for (kind, _), value in sorted(table.rows[number].items())
            if kind == "noise"
        ]
        terms = terms if mean is None else [(mean, 1.0), *terms]
        return combine(terms, terms[0][0])

    first = add_noise(0, None)
    made = list(_chain(table, denoiser, first, add_noise, conditioning))
    return Rollout(
        table,
        to_data(denoiser, made[-1].state, table.levels[-1]),
        [first, *(transition.state for transition in made)],
        _stack(made),
    )


def log_probs(
    denoiser: Denoises,
    states: Sequence[Tensor],
    plan: Plan,
    **conditioning: Any,
) -> Tensor:
    """log N(state; mean, std^2) of a run's noisy rows under this denoiser: (B, number of them).

    `states` are the n + 1 of a `Rollout` or of `sample(..., trajectory=True)`; those reached
    without noise are not read. Differentiable in the denoiser's parameters; calls after the last
    noise are not made. For one step's graph at a time, iterate over `transitions`.
    """
    noisy = np.flatnonzero(deviations_of(plan))
    return _stack(islice(transitions(denoiser, states, plan, conditioning), int(noisy.max())))


def transitions(
    denoiser: Denoises,
    states: Sequence[Tensor],
    plan: Plan,
    conditioning: dict[str, Any] | None = None,
) -> Iterator[Transition]:
    """The transitions of a run that happened, asked again one by one: rows 1 ... n of its plan."""
    if len(states) != plan.nfe + 1:
        raise ValueError(
            f"a run of {plan.nfe} calls has {plan.nfe + 1} states, the first call's input and the "
            f"result included, got {len(states)}; pass those of a Rollout or a Trajectory"
        )
    deviations = deviations_of(plan)

    def recall(number: int, mean: Tensor) -> Tensor:
        return states[number] if deviations[number] else mean

    return _chain(plan, denoiser, states[0], recall, conditioning or {})


def _chain(
    plan: Plan,
    denoiser: Denoises,
    first: Tensor,
    reach: Callable[[int, Tensor], Tensor],
    conditioning: dict[str, Any],
) -> Iterator[Transition]:
    """A run in which `reach(number, mean)` makes each state after the first of its mean."""
    denoiser = as_denoiser(denoiser)
    execution = Execution(lower(plan, denoiser, first.dtype, first.device))
    deviations, state = deviations_of(plan), first
    for number, call in enumerate(execution.program.calls, 1):
        execution.answer(*denoiser.ask(state, call, conditioning))
        mean, std = execution.mean(first), deviations[number]
        state = reach(number, mean)
        log_prob = _log_normal(state, mean, std) if std else None
        yield Transition(number, plan.levels[number], mean, std, state, log_prob)


def deviations_of(plan: Plan) -> list[float]:
    """The deviation of the noise that each row adds, 0 where none; ValueError if there is none."""
    noises = [
        {k: value for (kind, k), value in row.items() if kind == "noise" and value}
        for row in plan.rows
    ]
    if not any(noises[1:]):
        raise ValueError(
            f"no row of the plan {plan.name} injects noise, its states have no density; "
            "use a stochastic sampler, such as 'ddpm'"
        )
    if len({k for row in noises for k in row}) < sum(map(len, noises)):
        raise ValueError(
            f"a noise of the plan {plan.name} serves several rows, which have no density each"
        )
    return [math.hypot(*row.values()) for row in noises]


def _log_normal(state: Tensor, mean: Tensor, std: float) -> Tensor:
    numbers = -0.5 * ((state - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    return numbers.flatten(1).sum(1)


def _stack(made: Iterable[Transition]) -> Tensor:
    densities = (transition.log_prob for transition in made)
    return torch.stack([density for density in densities if density is not None], 1)
