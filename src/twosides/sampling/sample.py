"""Sampling: noise in, data out."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from twosides.denoiser import Denoises, describes
from twosides.outputs import Estimate
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.brownian import Brownian
from twosides.sampling.plan import Plan, Visit, run
from twosides.sampling.samplers import Sampler, plan
from twosides.schedules import Level, Schedule

Progress = Callable[[int, int], None]


@dataclass
class Trajectory:
    """A run: the samples, and what happened on the way.

    `states` and `levels` have one entry per network call and one for the result, `predictions` one
    per call. States and predictions are in the network's units of data, `sample` in the data's.
    """

    plan: Plan
    sample: Tensor
    levels: list[Level] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    predictions: list[Estimate] = field(default_factory=list)


@torch.no_grad()
def sample(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    sampler: str | Sampler | Plan = "ddim",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    compat: str | None = None,
    seed: int | None = None,
    indices: Sequence[int] | None = None,
    init: Tensor | None = None,
    noise: Callable[[], Tensor] | Literal["brownian"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    trajectory: bool = False,
    progress: bool | Progress = False,
    edit: Callable[[int, Tensor, Level], Tensor | None] | None = None,
    **conditioning: Any,
) -> Any:
    """Draw samples of shape (B, ...) from a denoiser.

    sampler: a preset's name, a Sampler, or a Plan (then `steps` and `schedule` are the plan's).
    compat: "published" for a preset as its authors' code has it, known errors included.
    schedule: where to sample, by default the denoiser's own; any other gives its grid and scaling.
    seed, indices: sample i depends on (seed, indices[i]) only; default a fresh seed and 0 ... B-1.
    init: noise of unit variance and this shape, instead of the seed's.
    noise: a source of the injected noise, instead of the seed's; "brownian" for the seed's path,
        the same for any number of steps (`sampling.brownian`).
    dtype, device: of the state; the network keeps its own dtype. Device: by default the network's.
    trajectory: return a Trajectory instead of the samples.
    progress: True for a bar with the time left (needs `rich`), or a function (done, total).
    edit: may replace the state before each call (inpainting), see `sampling.plan.run`.
    conditioning: passed to the network as is, tensors of B rows.

    Nothing is clamped; ValueError for impossible pairs, such as eps-prediction at zero SNR, and for
    non-finite initial noise.
    """
    sizes = _checked_shape(shape)
    device = torch.device(device) if device is not None else _device_of(denoiser)
    table = (
        sampler if isinstance(sampler, Plan) else _plan(denoiser, sampler, schedule, steps, compat)
    )
    rows = range(sizes[0]) if indices is None else indices
    if len(rows) != sizes[0]:
        raise ValueError(f"{len(rows)} indices were given for {sizes[0]} samples")
    seed = fresh_seed() if seed is None else seed
    own = PerSample(seed, rows)
    if noise == "brownian":
        noise = Brownian(table, seed, rows, sizes[1:], dtype=dtype, device=device)
    drawn = own.normal(sizes[1:], dtype, device)
    start = drawn if init is None else _checked_init(init, sizes).to(device, dtype)
    record = Trajectory(table, start)

    def watch(tell: Progress | None, visit: Visit) -> None:
        if trajectory:
            record.levels.append(visit.level)
            record.states.append(visit.z)
            record.predictions.append(visit.estimate())
        if tell is not None:
            tell(visit.number + 1, table.nfe)

    with teller(progress, table.nfe) as tell:
        state = run(
            table,
            denoiser,
            start,
            noise or (lambda: own.normal(sizes[1:], dtype, device)),
            edit=edit,
            watch=partial(watch, tell) if trajectory or tell else None,
            conditioning=conditioning,
        )
    last = table.levels[-1]
    restore = getattr(denoiser, "unstandardise", None)
    data = state if last.alpha == 1.0 else state / last.alpha
    record.sample = restore(data) if restore else data
    record.states.append(state)
    record.levels.append(last)
    return record if trajectory else record.sample


def _plan(
    denoiser: Denoises,
    sampler: str | Sampler,
    schedule: str | Schedule | None,
    steps: SupportsIndex,
    compat: str | None,
) -> Plan:
    own = describes(denoiser)
    return plan(sampler, schedule or own, steps, compat=compat)


def _checked_shape(shape: Sequence[SupportsIndex]) -> tuple[int, ...]:
    sizes = tuple(operator.index(size) for size in shape)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"shape is (number of samples, ...), positive integers, got {shape}")
    return sizes


def _checked_init(init: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(init.shape) != shape:
        raise ValueError(f"init has shape {tuple(init.shape)}, but shape={shape} was asked")
    if init.device.type == "cpu" and not bool(torch.isfinite(init).all()):
        raise ValueError("init contains NaN or infinite values; it is noise of unit variance")
    return init


def _device_of(denoiser: Any) -> torch.device:
    first = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    return first.device if first is not None else torch.device("cpu")


def teller(
    progress: bool | Progress, total: int, task: str = "sampling"
) -> contextlib.AbstractContextManager[Progress | None]:
    """A function (done, total) while inside: a bar for True, the caller's own, or None."""
    if progress is not True:
        return contextlib.nullcontext(progress or None)
    from twosides.display.progress import bar

    return bar(task, total)
