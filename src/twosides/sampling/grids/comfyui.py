"""The levels that ComfyUI's schedulers visit, by their names there.

ComfyUI knows a model by a rising table of N sigmas: r = sigma / alpha at the indices of a discrete
model, and of a flow model its time, shifted, at t = 1/N ... 1. Its schedulers pick indices k of the
table, or sigmas between its ends; the data, sigma = 0, come last. For n steps, i = 0 ... n - 1:

| name               | level i                                                | source             |
|--------------------|--------------------------------------------------------|--------------------|
| "simple"           | k = N - 1 - floor(i N / n)                             | comfy/samplers.py  |
| "ddim_uniform"     | k = 1, 1 + N // n, 1 + 2 (N // n), ..., falling        | the same           |
| "normal"           | n equal steps of the time, both ends among them        | the same           |
| "sgm_uniform"      | the first n of n + 1 of them                           | the same           |
| "beta", "beta57"   | k = round((N - 1) I^-1(1 - i / n; a, b)), no repeats   | 2407.12173         |
| "kl_optimal"       | equal steps of arctan(sigma), both ends among them     | 2404.14507, eq. 13 |
| "linear_quadratic" | 1 - sigma: linear to 0.025 in n // 2 steps, then a     | Mochi, Genmo 2024  |
|                    | parabola to 1, with one slope where they meet          |                    |
| "bong_tangent"     | two arcs of arctan, 1 to 1/2 and 1/2 to 0              | RES4LYF            |

a = b = 0.6 for "beta", a = 0.5 and b = 0.7 for "beta57". Sigmas of the last two are parts of the
largest one; RES4LYF's own begin at sigma = 1 whatever the model, which is the same on flow models,
and the middle of the way on Stable Diffusion. "ddim_uniform" makes more than n steps where n is no
divisor of N, and the Beta laws make fewer where indices would be visited twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.sampling.frames import Array
from twosides.sampling.grids.beta import beta_quantiles
from twosides.sampling.grids.grid import Grid, append_data, check_covered, check_steps
from twosides.sampling.grids.indices import discrete_base
from twosides.schedules import Schedule

LAWS = {"beta": (0.6, 0.6), "beta57": (0.5, 0.7)}
INDICES = ("simple", "ddim_uniform", *LAWS)
TIMES = ("normal", "sgm_uniform")
SIGMAS = ("kl_optimal", "linear_quadratic", "bong_tangent")


@dataclass(frozen=True)
class ComfyUI(Grid):
    """The levels of one of ComfyUI's schedulers, see above; the last level is the data.

    name: "simple", "normal", "sgm_uniform", "ddim_uniform", "beta", "beta57", "kl_optimal",
        "linear_quadratic" or "bong_tangent".
    count: the size N of the table on models that have none: 1000, and 10,000 for FLUX.

    >>> from twosides.schedules import FlowMatching
    >>> flow = FlowMatching()
    >>> flow.time(ComfyUI("simple").logsnrs(flow, 4))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    name: str = "simple"
    count: int = 1000

    def __post_init__(self) -> None:
        """ValueError for a name that ComfyUI does not know, or a table of less than two levels."""
        if self.name not in (*INDICES, *TIMES, *SIGMAS):
            raise unknown("scheduler of ComfyUI's", self.name, (*INDICES, *TIMES, *SIGMAS))
        if not self.count >= 2:
            raise ValueError(f"a table has at least two levels, got {self.count}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The levels; ValueError where a table has fewer, or does not reach those of a formula."""
        check_steps(steps)
        table = _Table(schedule, self.count)
        if self.name in SIGMAS:
            nodes = table.of_sigmas(_sigmas(self.name, table, steps))
        elif self.name in TIMES:
            last = steps + (self.name == "sgm_uniform")
            nodes = table.of_times(np.linspace(1, table.least_time, last)[:steps])
        else:
            if steps > table.count:
                raise ValueError(f"{table.count} indices give 1 ... {table.count} steps: {self}")
            nodes = table.of_indices(_picked(self.name, table.count, steps))
        for end in (schedule.logsnr_min, schedule.logsnr_max):  # to the last digit
            nodes = torch.where((nodes - end).abs() < 1e-9 * max(1.0, abs(end)), end, nodes)
        return check_covered(append_data(nodes), schedule)


class _Table:
    """A model as ComfyUI knows it: `count` levels by their index, rising in noise."""

    def __init__(self, schedule: Schedule, count: int) -> None:
        base, half = discrete_base(schedule), schedule.level(0.0).floats()
        self.schedule, self.discrete = schedule, base is not None
        self.count = count if base is None else base.count
        # A flow model's sigma is its time; any other's is in units of the data.
        self.flow = not self.discrete and half.alpha + half.sigma == 1.0

    def of_indices(self, indices: Array) -> Tensor:
        """The log-SNRs of indices."""
        if self.discrete:
            return self.of_times(indices / (self.count - 1))
        return self.of_times((indices + 1) / self.count)

    def of_times(self, times: Array) -> Tensor:
        """The log-SNRs of the schedule's times."""
        return self.schedule.logsnr(torch.from_numpy(np.asarray(times, dtype=np.float64)))

    def of_sigmas(self, sigmas: Array) -> Tensor:
        """The log-SNRs of sigmas."""
        with np.errstate(divide="ignore"):
            rest = np.log1p(-sigmas) if self.flow else 0.0
            return torch.from_numpy(2 * (rest - np.log(sigmas)))

    def sigma(self, index: int) -> float:
        """The sigma of an index."""
        half = -0.5 * float(self.of_indices(np.array([float(index)]))[0])
        if self.flow:
            return 1.0 if half == math.inf else 1 / (1 + math.exp(-half))
        return math.exp(half) if half < 700 else math.inf

    @property
    def least_time(self) -> float:
        """Where "normal" ends: ComfyUI takes the least sigma of a flow model for its time."""
        return 0.0 if self.discrete else self.sigma(0) if self.flow else 1 / self.count


def _picked(name: str, count: int, steps: int) -> Array:
    """The indices, falling."""
    if name == "simple":
        return count - 1 - np.floor(np.arange(steps) * (count / steps))
    if name == "ddim_uniform":
        return np.arange(1, count, count // steps)[::-1].astype(np.float64)
    part = beta_quantiles(*LAWS[name], 1 - np.arange(steps) / steps)
    return np.unique(np.rint(part * (count - 1)))[::-1].copy()


def _sigmas(name: str, table: _Table, steps: int) -> Array:
    """The `steps` sigmas, falling."""
    low, high = table.sigma(0), table.sigma(table.count - 1)
    if not math.isfinite(high):
        raise ValueError(
            f"{name} begins at the largest sigma, which is infinite on {table.schedule}; take "
            "'simple' or another that goes by indices, or state a finite logsnr_min"
        )
    if name == "kl_optimal":
        return np.tan(np.linspace(math.atan(high), math.atan(low), steps))
    parts = _linear_quadratic(steps) if name == "linear_quadratic" else _bong_tangent(steps)
    return high * parts


def _linear_quadratic(steps: int, threshold: float = 0.025) -> Array:
    """1 - q: q rises evenly to the threshold, then as the parabola with that slope, to 1 at n."""
    if steps == 1:
        return np.ones(1)
    i, first = np.arange(steps, dtype=np.float64), steps // 2
    slope, rest = threshold / first, steps - first
    beyond = np.maximum(i - first, 0)
    bend = (1 - threshold - slope * rest) / rest**2
    return 1 - (slope * i + bend * beyond**2)


def _bong_tangent(steps: int) -> Array:
    """The arcs about 3/5 of the way, of n + 2 points, the one where they meet counted twice."""
    if steps == 1:
        return np.ones(1)
    points = steps + 2
    pivot, slope = int(points * 0.6), 0.2 * 40 / points

    def arc(count: int, centre: int, start: float, end: float) -> Array:
        fall = np.arctan(slope * (centre - np.arange(count, dtype=np.float64)))
        return end + (start - end) * (fall - fall[-1]) / (fall[0] - fall[-1])

    both = (arc(pivot, pivot, 1.0, 0.5)[:-1], arc(points - pivot, 0, 0.5, 0.0)[:-1])
    return np.concatenate(both)
