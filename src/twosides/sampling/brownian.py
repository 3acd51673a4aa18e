"""Injected noise that is one Brownian path, whatever the number of steps.

While x is held, the reverse SDE moves the noise of `z = alpha x + sigma e` only. With a constant
eta this is

    e = W(c) / sqrt(c),      c = SNR^(eta^2)      W: a standard Brownian motion

so what a step from logsnr a to b injects is the increment of W between the clocks of its ends,
divided by its standard deviation (`stochasticity`). Zero SNR is c = 0, where all noise is fresh;
zero noise is c = infinity, where none is injected. For any plan the clock is read off its rows: two
noises compare as they weigh in a later state if x is held.

When steps are halved, W is refined and not drawn again. Of n = m 2^k steps, m odd, each of the m
coarse cells has one draw, and every halving of a cell turns its draw w and a new one, u, into two
[Levy's construction]:

    left = sqrt(p) w + sqrt(1 - p) u,    right = sqrt(1 - p) w - sqrt(p) u,    p: left part of clock

a rotation: all n noises are independent and of unit variance. Depth first, log2(n) of them are held
at a time, each step draws once, and the draws of one depth come in order, so that one generator per
sample and depth serves: runs of n and of 2n steps draw the same numbers for what they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from twosides.randomness import PerSample
from twosides.sampling.plan import Array, Plan

_BEFORE = 255  # the "depth" of noise that comes before the first step (EDM's churn)


class Brownian:
    """A source of noise for one run of a plan, in the order of its steps.

    indices: the samples' global numbers, sample i depends on (seed, i) only; event: the shape of
    one. Runs of n, 2n, 4n ... steps follow the same path, exactly (where x is held) for a constant
    eta on grids that keep their nodes when n is doubled, and in the limit of short steps otherwise
    (EDM's churn, whose noise comes before the call and in the initial state, only loosely).

        >>> from twosides.sampling.named import plan
        >>> path = Brownian(plan("ddpm", "cosine", 10), 0, range(4), (2,))
        >>> len([path() for _ in range(9)])  # the tenth step ends at the data
        9
    """

    def __init__(
        self,
        plan: Plan,
        seed: int,
        indices: Iterable[int],
        event: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """ValueError for plans that inject noise more than once in a step."""
        clock = Clock(plan)
        odd = clock.steps // (clock.steps & -clock.steps)
        indices, sources = list(indices), dict[int, PerSample]()

        def draw(depth: int) -> Tensor:
            if depth not in sources:
                sources[depth] = PerSample(seed, indices, stream=(odd << 8) + depth)
            return sources[depth].normal(event, dtype, device)

        def noises() -> Iterator[Tensor]:
            if -1 in clock.noisy:
                yield draw(_BEFORE)
            path = increments(clock.steps, clock.shares, draw)
            yield from (noise for step, noise in enumerate(path) if step in clock.noisy)

        self._noises, self._name = noises(), plan.name

    def __call__(self) -> Tensor:
        """The next noise of the run, (number of indices, *event); ValueError after the last."""
        noise = next(self._noises, None)
        if noise is None:
            raise ValueError(
                f"all noises of the plan {self._name} have been drawn; each run needs a Brownian "
                "of its own"
            )
        return noise


class Clock:
    """A plan's steps, and how much of Brownian time each takes.

    steps: their number. noisy: those that inject noise, in order; -1 is noise in the initial state.
    ValueError unless each injects once and the log-SNR rises from step to step.
    """

    def __init__(self, plan: Plan) -> None:
        """Noise ends a step; before the first and after the last, steps are taken to be as long."""
        injected = plan.noise[:, 1:] != 0
        columns = injected.any(0).nonzero()[0]
        columns = columns[injected.argmax(0)[columns].argsort(kind="stable")]
        rows = injected.argmax(0)[columns].tolist()
        first, last = (rows[0], rows[-1]) if rows else (0, 0)
        calls = max(np.diff(rows).tolist(), default=first) or plan.nfe
        others = {*range(first % calls, first, calls), *range(last, plan.nfe, calls), 0, plan.nfe}
        ends: list[int] = []
        for row in sorted({*rows, *others}, reverse=True):
            if not ends or plan.logsnr[row] < plan.logsnr[ends[0]]:
                ends.insert(0, row)
        if ends[0] != 0 or len(set(rows)) < len(rows) or not set(rows) <= set(ends):
            raise ValueError(
                f"the plan {plan.name} injects noise more than once in a step, or goes back to "
                "noise, and no Brownian path tells such noises apart; use the seed's plain noise"
            )
        self.steps = len(ends) - 1
        self.noisy = [ends.index(row) - 1 for row in rows]
        # One row per node and one column per step; noise in the initial state has no step.
        self._weights = np.zeros((len(ends), self.steps + 1))
        self._weights[:, self.noisy] = _held(plan)[np.ix_(ends, columns)]

    def shares(self, first: int, middle: int, last: int) -> tuple[float, float]:
        """sqrt(p) and sqrt(1 - p), where p of the clock from node `first` to `last` is before.

        It is what the noises of the two parts weigh in the state at `last`. A run's end without
        noise counts as infinitely late: with more steps it has noise.
        """
        weights = self._weights[last]
        before, after = math.hypot(*weights[first:middle]), math.hypot(*weights[middle:last])
        total = math.hypot(before, after)
        quiet = not self.noisy or last > self.noisy[-1] + 1 or total == 0
        return (0.0, 1.0) if quiet else (before / total, after / total)


def _held(plan: Plan) -> Array:
    """What each injected noise weighs in each state (n + 1, m) if the denoiser's x is held."""
    weights = plan.noise[:, 1:].copy()
    for i, k in np.argwhere(plan.eps).tolist():
        weights[i] += plan.eps[i, k] / plan.sigma[k] * weights[k]
    return weights


def increments(
    steps: int,
    shares: Callable[[int, int, int], tuple[float, float]],
    draw: Callable[[int], Tensor],
) -> Iterator[Tensor]:
    """The increments of W over `steps` steps, each divided by its standard deviation, in order.

    shares(first, middle, last): sqrt(p) and sqrt(1 - p), see `Clock`. draw(depth): new standard
    normals, depth 0 for coarse cells and d for their d-th halving.
    """
    size = steps & -steps
    for start in range(0, steps, size):
        waiting = [(start, start + size, draw(0))]
        while waiting:
            first, last, whole = waiting.pop()
            while last - first > 1:
                middle = (first + last) // 2
                left, right = shares(first, middle, last)
                fresh = draw((size // (last - first)).bit_length())
                waiting.append((middle, last, (right * whole).sub_(fresh, alpha=left)))
                whole, last = fresh.mul_(right).add_(whole, alpha=left), middle
            yield whole
