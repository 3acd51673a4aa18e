"""Sampling: noise in, data out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from twosides.denoiser import BaseDenoiser, Denoises, as_denoiser
from twosides.display.progress import Progress, teller
from twosides.outputs import Estimate
from twosides.placement import device_of
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.brownian import Brownian
from twosides.sampling.given import check_noise, injected
from twosides.sampling.named import plan
from twosides.sampling.plan import Plan
from twosides.sampling.run import Visit, run
from twosides.sampling.sampler import Sampler
from twosides.schedules import Level, Schedule


@dataclass
class Trajectory:
    """A run: the samples, and what happened on the way.

    plan: the plan that was run.
    sample: the samples, in the units of the data.
    levels, states: one for each network call and one for the result, in the network's units.
    predictions: the estimate of each call, in the units of the network.
    """

    plan: Plan
    sample: Tensor
    levels: list[Level] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    predictions: list[Estimate] = field(default_factory=list)


def sample(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    sampler: str | Sampler | Plan = "ddim",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    seed: int | None = None,
    indices: Sequence[int] | None = None,
    init: Tensor | None = None,
    noise: Callable[[], Tensor] | Literal["brownian"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    trajectory: bool = False,
    differentiable: bool = False,
    progress: bool | Progress = False,
    edit: Callable[[int, Tensor, Level], Tensor | None] | None = None,
    **conditioning: Any,
) -> Any:
    """Draw samples of shape (B, ...) from a denoiser.

    shape: (number of samples, ...).
    sampler: a name (`named.sampler_named` says which there are), a Sampler, or a Plan, whose own
        schedule and steps then count.
    steps: the number of steps, >= 1.
    schedule: where to sample, by default on the denoiser's own; another gives its grid and scaling.
    seed: sample i depends on (seed, indices[i]) only; by default a fresh one.
    indices: the numbers of the samples, by default 0 ... B - 1.
    init: noise of unit variance and this shape, instead of that of the seed.
    noise: a function that gives the injected noise, instead of that of the seed; or "brownian" for
        the path of the seed, which is the same for any number of steps (`sampling.brownian`).
    dtype, device: of the state; the network keeps its own, and its device is the default.
    trajectory: whether to return a Trajectory instead of the samples.
    differentiable: whether gradients flow to parameters, `init` and conditioning; takes memory.
    progress: True for a bar with the time left (needs `rich`), or a function (done, total).
    edit: may replace the state before each call, see `run.run`; `posterior` inpaints better.
    conditioning: passed to the network as it is, tensors of B rows.

    Nothing is clamped. ValueError for impossible pairs (eps at zero SNR), TypeError for integers.
    """
    denoiser, sizes = as_denoiser(denoiser), check_shape(shape)
    device = torch.device(device) if device is not None else device_of(denoiser)
    whole = isinstance(sampler, Plan)
    table = sampler if whole else plan(sampler, schedule or denoiser.schedule, steps)
    own = PerSample(fresh_seed() if seed is None else seed, check_indices(indices, sizes[0]))
    if noise == "brownian":
        noise = Brownian(table, own.seed, own.indices, sizes[1:], dtype=dtype, device=device)
    drawn = own.normal(sizes[1:], dtype, device)
    start = drawn if init is None else check_noise(init, sizes).to(device, dtype)
    record = Trajectory(table, start)
    with teller(progress, table.nfe) as tell, torch.set_grad_enabled(differentiable):
        state = run(
            table,
            denoiser,
            start,
            injected(noise, start) if noise else (lambda: own.normal(sizes[1:], dtype, device)),
            edit=edit,
            watch=_watcher(record if trajectory else None, tell, table.nfe),
            conditioning=conditioning,
        )
        record.sample = to_data(denoiser, state, table.levels[-1])
    record.states.append(state)
    record.levels.append(table.levels[-1])
    return record if trajectory else record.sample


def to_data(denoiser: BaseDenoiser, state: Tensor, level: Level) -> Tensor:
    """A final state in the units of the data: without the scale alpha, and not standardised."""
    return denoiser.unstandardise(state if level.alpha == 1.0 else state / level.alpha)


def _watcher(
    record: Trajectory | None, tell: Progress | None, total: int
) -> Callable[[Visit], None] | None:
    """The function that sees each call of a run, if anybody wants to know."""
    if record is None and tell is None:
        return None

    def watch(visit: Visit) -> None:
        if record is not None:
            record.levels.append(visit.level)
            record.states.append(visit.z)
            record.predictions.append(visit.estimate())
        if tell is not None:
            tell(visit.number + 1, total)

    return watch


def check_shape(shape: Sequence[SupportsIndex]) -> tuple[int, ...]:
    """The shape as whole numbers; ValueError unless they are positive."""
    sizes = tuple(operator.index(size) for size in (shape if hasattr(shape, "__iter__") else ()))
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape is (number of samples, ...), positive integers, got {shape}")
    return sizes


def check_indices(indices: Sequence[int] | None, count: int) -> Sequence[int]:
    """The numbers of the samples, by default 0 ... count - 1; ValueError for others in number."""
    rows = range(count) if indices is None else indices
    if len(rows) != count:
        raise ValueError(f"{len(rows)} indices were given for {count} samples")
    return rows
