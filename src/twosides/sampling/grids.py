"""Where a sampler steps: log-SNRs from noise to data, `steps + 1` of them.

A grid is a frozen dataclass with `logsnrs(schedule, steps)`; adding one is adding it here. Every
grid can be walked on any schedule by any solver. With r = sigma / alpha = exp(-logsnr / 2):

| grid                    | nodes                                        | known from             |
|-------------------------|----------------------------------------------|------------------------|
| `UniformTime`           | equal steps in t                             | DDIM, flow matching    |
| `UniformLogSNR`         | equal steps in logsnr                        | DPM-Solver             |
| `Uniform(variable)`     | equal steps in t, logsnr, angle or an eta    | the post, `frames`     |
| `Arctan(c)`             | equal steps in arctan(r / c)                 | Align Your Steps       |
| `Karras(rho)`           | equal steps in r^(1 / rho), then r = 0       | EDM                    |
| `Exponential`           | equal steps in log r, then r = 0             | k-diffusion            |
| `Beta(a, b)`            | quantiles of a Beta law in a variable, r = 0 | Beta Sampling          |
| `AYS(model)`            | optimised tables for SD 1.5, SDXL and SVD    | Align Your Steps       |
| `Indices(spacing)`      | a discrete model's indices                   | DDPM, Stable Diffusion |
| `Quantiles`             | equal shares of a density of logsnr          |                        |
| `Entropic`              | equal information, from denoising errors     | Stancevic+ 2025        |
| `Given`                 | yours                                        |                        |
| `Shifted(grid, factor)` | another grid's, moved by -2 log(factor)      | SD3, FLUX              |
| `ThenData(grid)`        | another grid's `steps` levels, then r = 0    | diffusers              |
| `Restart`               | another grid's, with jumps back to noise     | Xu+ 2023               |

An end that is not given is the schedule's own. Infinite log-SNRs are ordinary nodes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides import schedules
from twosides.denoiser import Denoises, describes
from twosides.outputs import Output
from twosides.randomness import PerSample
from twosides.sampling.frames import Array, Variable, variable_named
from twosides.schedules import FlowMatching, Schedule, Tabulated


class Grid(abc.ABC):
    """A rule for the nodes of a run."""

    @property
    def renoises(self) -> bool:
        """Whether falling nodes are meant: forward diffusion takes the state back there."""
        return False

    def over(self, base: Grid) -> Grid:
        """Its jumps back to noise along another grid; that grid itself if there are none."""
        return base

    @abc.abstractmethod
    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The nodes, increasing (noise to data), float64 (steps + 1,); +-inf are legal ends."""


def _fractions(steps: int, count: int | None = None) -> Tensor:
    """1 ... 0 in `count` numbers with equal gaps, by default steps + 1; a single one is 1."""
    if steps < 1:
        raise ValueError(f"a grid has a whole number of steps >= 1, got {steps}")
    count = count or steps + 1
    return 1 - torch.arange(count, dtype=torch.float64) / max(count - 1, 1)


def _between(
    grid: Grid, variable: Variable, ends: tuple[float, float], fractions: Tensor
) -> Tensor:
    """logsnr where the variable is `end + fraction (start - end)`; the ends are exact."""
    start, end = ends
    if not start < end:
        raise ValueError(
            f"{grid} does not go from noise to data: it would start at logsnr {start:.6g} and end "
            f"at {end:.6g}; the end must be the larger"
        )
    with np.errstate(all="ignore"):
        first, last = variable.of(np.array(ends, dtype=np.float64))
    for value, at, remedy in ((first, start, "min (start=-10)"), (last, end, "max (end=10)")):
        if not math.isfinite(value):
            raise ValueError(
                f"the variable of {grid} is infinite at its end, logsnr {at:.6g}; state a finite "
                f"logsnr_{remedy} inside the schedule, or a variable that is finite there ('u')"
            )
    with np.errstate(divide="ignore"):
        nodes = variable.logsnr(last + fractions.numpy() * (first - last))
    inside = torch.where(fractions == 1, start, torch.from_numpy(nodes))
    return torch.where(fractions == 0, end, inside)


def _covered(nodes: Tensor, schedule: Schedule) -> Tensor:
    """The nodes; ValueError where the network would be asked outside the schedule's range."""
    schedule.time(nodes[:-1])
    return nodes


def _then_data(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_full((1,), math.inf)])


def _power(rho: float) -> Variable:
    """r^(1 / rho) as a variable."""
    return Variable(
        lambda logsnr: np.exp(-0.5 * logsnr / rho), lambda root: -2 * rho * np.log(root)
    )


def _whole(grid: Grid, name: str, least: int) -> None:
    """Make a field an int (numbers that people type arrive as floats)."""
    value = getattr(grid, name)
    if not (value >= least and value % 1 == 0):
        raise ValueError(f"{name} must be a whole number >= {least}: {grid}")
    object.__setattr__(grid, name, int(value))


# ---------------------------------------------------------------------------- equal steps


@dataclass(frozen=True)
class UniformTime(Grid):
    """Equal steps in the time t of a schedule, from `start` (noise) to `end` (data).

    `schedule` is the clock, by default the one that is sampled on: the same grid can be walked in
    any scaling, and a cosine grid can be walked on a flow-matching model.
    """

    schedule: Schedule | None = None
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        """ValueError for times that do not fall inside [0, 1]."""
        if not isinstance(self.schedule, Schedule | None):
            raise TypeError(f"UniformTime's schedule is a Schedule, got {self.schedule!r}")
        if not 1 >= self.start > self.end >= 0:
            raise ValueError(f"UniformTime runs from start to end, 1 >= start > end >= 0: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """logsnr at start ... end."""
        times = self.end + (self.start - self.end) * _fractions(steps)
        return (self.schedule or schedule).logsnr(times)


class _Ranged(Grid):
    """A grid from one log-SNR to another, by default between the ends of the schedule."""

    start: float | None
    end: float | None

    def __post_init__(self) -> None:
        """ValueError for an empty range."""
        start = -math.inf if self.start is None else self.start
        if not start < (math.inf if self.end is None else self.end):
            raise ValueError(f"a grid goes from noise to data, logsnr start < end: {self}")

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        start = schedule.logsnr_min if self.start is None else self.start
        return start, schedule.logsnr_max if self.end is None else self.end


@dataclass(frozen=True)
class Uniform(_Ranged):
    """Equal steps in a variable, from logsnr `start` (noise) to `end` (data).

    variable: "logsnr", "t", "angle" = arctan(r), or the eta of an output with constant
    coefficients (`sampling.frames`), r / (1 + k r) for "kappa(k)": "u" is the flow-matching time,
    "eps" is r itself, and "kappa(1/s)" is flow matching's grid shifted by s.

        >>> Uniform("kappa(0.5)").logsnrs(FlowMatching().shifted(2), 2).exp()
        tensor([0.0000, 0.2500,    inf], dtype=torch.float64)
        >>> Uniform("t").logsnrs(FlowMatching().shifted(2), 2).exp()
        tensor([0.0000, 0.2500,    inf], dtype=torch.float64)
    """

    variable: str | Output = "u"
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for an empty range, or an output that is no variable."""
        super().__post_init__()
        if not isinstance(self.variable, str | Output):
            raise TypeError(f"a variable is a name such as 'u' or 'logsnr', got {self.variable!r}")
        variable_named(self.variable, FlowMatching())

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """start ... end; ValueError where the variable is infinite at an end."""
        variable = variable_named(self.variable, schedule)
        return _between(self, variable, self._ends(schedule), _fractions(steps))


@dataclass(frozen=True)
class UniformLogSNR(Grid):
    """Equal steps in logsnr; ends by default the schedule's, which must then be finite."""

    logsnr_min: float | None = None
    logsnr_max: float | None = None

    def __post_init__(self) -> None:
        """ValueError for an empty range."""
        self._uniform()

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """logsnr_min ... logsnr_max."""
        return self._uniform().logsnrs(schedule, steps)

    def _uniform(self) -> Uniform:
        return Uniform("logsnr", self.logsnr_min, self.logsnr_max)


@dataclass(frozen=True)
class Arctan(_Ranged):
    """The optimal schedule for data N(0, c^2) [Sabour+ 2024, arXiv 2404.14507, theorem 3.1].

        r = c tan(angle),  equal steps in the angle

    It brings DDIM's standard deviation closest to c in any number of steps. c = 1 is the cosine
    schedule, "kl_optimal" elsewhere; c is the data's standard deviation in the network's units.

        >>> Arctan(2.0).logsnrs(FlowMatching(), 2).exp()
        tensor([0.0000, 0.2500,    inf], dtype=torch.float64)
    """

    c: float = 1.0
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for a c that is no standard deviation, or an empty range."""
        super().__post_init__()
        if not 0 < self.c < math.inf:
            raise ValueError(f"Arctan's c is the data's standard deviation, > 0 and finite: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """`-2 log(c tan(angle))`."""
        angle, move = variable_named("angle", schedule), 2 * math.log(self.c)
        moved = Variable(
            lambda logsnr: angle.of(logsnr + move), lambda value: angle.logsnr(value) - move
        )
        return _between(self, moved, self._ends(schedule), _fractions(steps))


# ---------------------------------------------------------------------------- levels, then data


class _Ramp(Grid):
    """`steps` levels from sigma_max to sigma_min, in units of alpha, and the data."""

    rho: float
    sigma_min: float | None
    sigma_max: float | None

    def __post_init__(self) -> None:
        """ValueError for values that are not positive, or fall the wrong way."""
        name, values = type(self).__name__, (self.rho, self.sigma_min, self.sigma_max)
        if not all(value is None or 0 < value < math.inf for value in values):
            raise ValueError(f"{name} needs rho, sigma_min, sigma_max > 0; 0 is added last: {self}")
        if self.sigma_min and self.sigma_max and not self.sigma_min < self.sigma_max:
            raise ValueError(f"{name} goes from noise to data, sigma_max > sigma_min: {self}")

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        def end(sigma: float | None, own: float, default: float) -> float:
            use_own = sigma is None and math.isfinite(own)
            return own if use_own else -2 * math.log(sigma or default)

        start = end(self.sigma_max, schedule.logsnr_min, 80.0)
        return start, end(self.sigma_min, schedule.logsnr_max, 0.002)


@dataclass(frozen=True)
class Karras(_Ramp):
    """Karras et al. 2022 (eq. 5): equal steps in (sigma/alpha)^(1/rho), then sigma = 0.

    `steps` levels from sigma_max to sigma_min and the data. Ends that are not given are the
    schedule's where finite, else EDM's 0.002 and 80.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """-2 log sigma of the ramp, and +inf."""
        ramp = _fractions(steps, steps)
        return _then_data(_between(self, _power(self.rho), self._ends(schedule), ramp))


@dataclass(frozen=True)
class Exponential(_Ramp):
    """Equal steps in log(sigma/alpha), then sigma = 0: k-diffusion's get_sigmas_exponential.

        log sigma = log(sigma_min) + ramp^rho (log(sigma_max) - log(sigma_min)),  ramp = 1 ... 0

    rho other than 1 is its get_sigmas_polyexponential. Ends as for Karras.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 1.0

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """-2 log sigma of the ramp, and +inf."""
        ramp = _fractions(steps, steps) ** self.rho
        variable = variable_named("logsnr", schedule)
        return _then_data(_between(self, variable, self._ends(schedule), ramp))


@dataclass(frozen=True)
class Beta(_Ranged):
    """Quantiles of a Beta(a, b) law in a variable, denser at both ends [Lee+ 2024, 2407.12173].

        variable = end + I^-1(1 - i / (n - 1); a, b) (start - end),   i = 0 ... n - 1,  then data

    `steps` levels and the data; where the range already ends at the data, `steps + 1` quantiles.
    The paper spaces time; diffusers and A1111 space r (variable="eps") on Stable Diffusion, t on
    flow models. ComfyUI rounds quantiles of the time to indices and drops repeats; this does not.
    """

    a: float = 0.6
    b: float = 0.6
    variable: str | Output = "t"
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for a law that is none, an empty range, or an output that is no variable."""
        Uniform(self.variable, self.start, self.end)
        if not (0 < self.a <= 100 and 0 < self.b <= 100):
            raise ValueError(f"a Beta law needs a, b > 0, at most 100 here: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The quantiles, and +inf."""
        ends = self._ends(schedule)
        whole = ends[1] == math.inf
        ramp = beta_quantiles(self.a, self.b, _fractions(steps, steps + 1 if whole else steps))
        levels = _between(self, variable_named(self.variable, schedule), ends, ramp)
        return levels if whole else _then_data(levels)


def beta_quantiles(a: float, b: float, p: Tensor) -> Tensor:
    """The x with I_x(a, b) = p, for a, b up to 100.

        I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) sum_n x^n (a + b)_n / (a + 1)_n     DLMF 8.17.8

    All terms are positive, and soon halve where x <= 1/2; beyond, I_x(a, b) = 1 - I_{1-x}(b, a).

        >>> beta_quantiles(2.0, 1.0, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    middle = float(_beta_cdf(a, b, p.new_full((1,), math.log(0.5))))
    low = _beta_quantiles_below_half(a, b, p.clamp(max=middle))
    high = 1 - _beta_quantiles_below_half(b, a, (1 - p).clamp(max=1 - middle))
    inside = torch.where(p <= middle, low, high)
    return torch.where((p == 0) | (p == 1), p, inside)


def _beta_quantiles_below_half(a: float, b: float, p: Tensor) -> Tensor:
    """By bisection in log x, so that small ones are accurate too."""
    low, high = torch.full_like(p, -745.0), torch.full_like(p, math.log(0.5))
    for _ in range(64):
        centre = 0.5 * (low + high)
        below = _beta_cdf(a, b, centre) < p
        low, high = torch.where(below, centre, low), torch.where(below, high, centre)
    return high.exp()


def _beta_cdf(a: float, b: float, log_x: Tensor) -> Tensor:
    n = torch.arange(128 + 4 * math.ceil(b), dtype=torch.float64)
    terms = torch.cat([n.new_ones(1), ((a + b + n) / (a + 1 + n)).cumprod(0)[:-1]])
    total = (log_x[:, None] * n).exp() @ terms
    log_scale = math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b)
    return (a * log_x + b * torch.log1p(-log_x.exp()) + log_scale).exp() * total


_AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class AYS(Grid):
    """Align Your Steps' tables of r for "sd15", "sdxl" and "svd" [Sabour+ 2024, 2404.14507].

    Ten steps are the authors'; other numbers of steps interpolate log r linearly in the index, as
    the authors do. The last level is the data. The tables start at the models' sigma_max, rounded:
    a schedule that starts there keeps its own.
    """

    model: str = "sd15"

    def __post_init__(self) -> None:
        """ValueError for a model without a table."""
        if self.model not in _AYS:
            raise ValueError(f"there is no AYS table for {self.model!r}, only for {list(_AYS)}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The table, interpolated; ValueError on schedules that do not reach its noise."""
        table = -2 * np.log(_AYS[self.model])
        if abs(table[0] - schedule.logsnr_min) < 1e-3:
            table[0] = schedule.logsnr_min
        positions = (len(table) - 1) * (1 - _fractions(steps)[:-1])
        nodes = torch.from_numpy(np.interp(positions, np.arange(len(table)), table))
        return _covered(_then_data(nodes), schedule)


@dataclass(frozen=True)
class ThenData(Grid):
    """`steps` levels of another grid, then the data: the zero that diffusers appends.

    >>> ThenData(UniformLogSNR(-6, 6)).logsnrs(FlowMatching(), 3)
    tensor([-6.,  0.,  6., inf], dtype=torch.float64)
    """

    grid: Grid

    @property
    def renoises(self) -> bool:
        """The grid's."""
        return self.grid.renoises

    def over(self, base: Grid) -> Grid:
        """The grid's."""
        return self.grid.over(base)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The grid's nodes, and +inf."""
        nodes = self.grid.logsnrs(schedule, max(steps - 1, 1))
        nodes = nodes[:1] if steps == 1 else nodes
        if nodes[-1] == math.inf:
            raise ValueError(f"{self.grid} ends at the data already on {schedule}; use it alone")
        return _then_data(nodes)


# ---------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Given(Grid):
    """Nodes given as log-SNRs, increasing; `steps` must be their number minus one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError for NaN."""
        if any(math.isnan(value) for value in self.values):
            raise ValueError(f"nodes are log-SNRs from noise to data, but one is NaN: {self}")

    @classmethod
    def times(cls, schedule: Schedule, times: list[float]) -> Given:
        """Nodes given as times of a schedule, from noise to data."""
        return cls(tuple(schedule.logsnr(torch.tensor(times, dtype=torch.float64)).tolist()))

    @classmethod
    def sigmas(cls, sigmas: list[float]) -> Given:
        """Nodes given as sigma/alpha, from noise to data (0 is the data)."""
        if not all(value >= 0 for value in sigmas):
            raise ValueError(f"sigma/alpha is a number >= 0 (0 is the data), got {sigmas}")
        return cls(tuple(math.inf if value == 0 else -2 * math.log(value) for value in sigmas))

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The values."""
        if steps != len(self.values) - 1:
            raise ValueError(
                f"this grid has {len(self.values)} nodes, that is {len(self.values) - 1} steps, "
                f"but {steps} steps were asked"
            )
        return torch.tensor(self.values, dtype=torch.float64)


@dataclass(frozen=True)
class Indices(Grid):
    """A discrete model's indices k of 0 ... N - 1, as diffusers' `timestep_spacing` picks them.

        "leading"    k = i (N // n) + offset                i = n - 1 ... 0, DDPM, Stable Diffusion
        "trailing"   k = round(N (n - i) / n) - 1           i = 0 ... n - 1  [Lin+ 2023]
        "linspace"   k = round((N - 1) (n - 1 - i) / (n - 1))

    The last level is the data (DDIMScheduler with set_alpha_to_one, EulerDiscreteScheduler) or,
    with final="first", index 0 (set_alpha_to_one=False, as Stable Diffusion has it, with its
    steps_offset=1). diffusers' Euler does not round "linspace"; that is ThenData(UniformTime()),
    up to its interpolation of sigma between indices.

        >>> sd = schedules.ScaledLinear()
        >>> 999 * sd.time(Indices("leading", offset=1, final="first").logsnrs(sd, 4))
        tensor([751., 501., 251.,   1.,   0.], dtype=torch.float64)
    """

    spacing: str = "leading"
    offset: int = 0
    final: str = "data"

    def __post_init__(self) -> None:
        """ValueError for unknown words, and for ends that would be visited twice."""
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"spacing is 'leading', 'trailing' or 'linspace': {self}")
        if self.final not in ("data", "first"):
            raise ValueError(f"final is 'data' or 'first' (index 0): {self}")
        _whole(self, "offset", 0)
        if self.offset and self.spacing != "leading":
            raise ValueError(f"only spacing='leading' has an offset: {self}")

    def indices(self, count: int, steps: int) -> Array:
        """The `steps` indices of a model with `count` of them, falling."""
        if not 1 <= steps <= count:
            raise ValueError(f"{count} indices give 1 ... {count} steps, but {steps} were asked")
        if self.spacing == "leading":
            picked = np.arange(steps - 1, -1, -1) * (count // steps) + self.offset
        elif self.spacing == "trailing":
            # Stepping by arange rounds ties as diffusers does; it may add a spurious -1.
            picked = np.round(np.arange(count, 0, -count / steps))[:steps] - 1
        else:
            picked = np.round(np.linspace(0, count - 1, steps))[::-1]
        if picked[0] >= count or (self.final == "first" and picked[-1] == 0):
            raise ValueError(
                f"{self} in {steps} steps visits index {picked[0]:.0f} ... {picked[-1]:.0f} of "
                f"0 ... {count - 1}, then {self.final}; lower the offset or take final='data'"
            )
        return picked.astype(np.float64)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The levels of the indices, and the final one."""
        discrete = schedule
        while isinstance(discrete, schedules.Shifted | schedules.Rescaled):
            discrete = discrete.base
        if not isinstance(discrete, Tabulated):
            raise ValueError(
                f"{schedule} has no indices; use UniformTime(), or sample on a discrete schedule "
                "such as ScaledLinear()"
            )
        picked = self.indices(discrete.count, steps)
        t = torch.tensor([*picked, 0.0], dtype=torch.float64) / (discrete.count - 1)
        nodes = schedule.logsnr(t)
        return _then_data(nodes[:-1]) if self.final == "data" else nodes


def _tables(
    grid: Grid, knots: Sequence[float], values: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A checked table, as tuples."""
    at, value = np.array(knots, dtype=np.float64), np.array(values, dtype=np.float64)
    if not (at.ndim == 1 and at.shape == value.shape and len(at) >= 2):
        raise ValueError(
            f"{type(grid).__name__} needs a value for each of two or more log-SNRs, got "
            f"{value.shape} values for {at.shape} knots"
        )
    if not (np.isfinite(at).all() and (np.diff(at) > 0).all()):
        raise ValueError(f"knots are finite log-SNRs, increasing (noise to data), got {knots}")
    if not (np.isfinite(value).all() and (value >= 0).all() and value.any()):
        raise ValueError(
            f"the values of {type(grid).__name__} must be finite, >= 0 and not all 0, got {values}"
        )
    return tuple(at.tolist()), tuple(value.tolist())


@dataclass(frozen=True)
class Quantiles(_Ranged):
    """Nodes with equal shares of a density of logsnr, tabulated at `knots` (increasing).

    The distribution function is the trapezoid rule's, linear between knots, inside the range that
    is walked. The first and last node are that range's ends, which may lie outside the table.

        >>> Quantiles((-2, 0, 2), (1, 1, 1), start=-2, end=2).logsnrs(FlowMatching(), 4)
        tensor([-2., -1.,  0.,  1.,  2.], dtype=torch.float64)
    """

    knots: tuple[float, ...]
    density: tuple[float, ...]
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for tables that are no density, or an empty range; lists become tuples."""
        super().__post_init__()
        knots, density = _tables(self, self.knots, self.density)
        object.__setattr__(self, "knots", knots)
        object.__setattr__(self, "density", density)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """start, the quantiles 1/n ... (n - 1)/n, end; ValueError if nothing lies between."""
        start, end = self._ends(schedule)
        density = np.array(self.density)
        shares = np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(self.knots))
        mass = np.concatenate([[0.0], shares / shares[-1]])
        low, high = np.interp([start, end], self.knots, mass)
        if not low < high:
            raise ValueError(
                f"the table covers logsnr [{self.knots[0]:.6g}, {self.knots[-1]:.6g}] and has no "
                f"mass in [{start:.6g}, {end:.6g}], which is to be walked; extend the table"
            )
        wanted = high - _fractions(steps)[1:-1].numpy() * (high - low)
        nodes = [start, *np.interp(wanted, mass, self.knots), end]
        return torch.tensor(nodes, dtype=torch.float64)


@dataclass(frozen=True)
class Entropic(_Ranged):
    """Equal information per step [Stancevic+ 2025, arXiv 2504.13612], from denoising errors.

        dphi = mse dr / r^2   (rescaled),      dphi = mse dr / r^3   (the entropy H[x|z] itself)

    with mse = E|x - x_hat|^2 per dimension at the log-SNRs `knots`, such as a validation loss
    (between knots log mse is linear). For data N(0, c^2) the rescaled one is Arctan(c). The paper
    finds it good for DDIM in few steps and harmful to solvers of second order.

        >>> import twosides as ts
        >>> data = ts.oracle.GaussianMixture.ring(8)
        >>> grid = Entropic.measure(data, data.sample(256, seed=0))
        >>> grid.logsnrs(FlowMatching(), 5).shape
        torch.Size([6])
    """

    knots: tuple[float, ...]
    errors: tuple[float, ...]
    rescaled: bool = True
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for tables that hold no errors, or an empty range; lists become tuples."""
        super().__post_init__()
        knots, errors = _tables(self, self.knots, self.errors)
        if not all(errors):
            raise ValueError(f"an error of 0 ends all information; leave such knots out: {errors}")
        object.__setattr__(self, "knots", knots)
        object.__setattr__(self, "errors", errors)

    @classmethod
    def measure(
        cls,
        denoiser: Denoises,
        data: Tensor,
        *,
        knots: Sequence[float] | None = None,
        rescaled: bool = True,
        seed: int = 0,
        **conditioning: Any,
    ) -> Entropic:
        """The table of a denoiser on a batch of data (B, ...), one call per knot.

        knots: by default 49, equally spaced over the part of [-12, 12] that the denoiser covers.
        seed: of the noise, which is the same at all knots and depends on (seed, row) only.
        """
        schedule = describes(denoiser)
        ends = max(schedule.logsnr_min, -12.0), min(schedule.logsnr_max, 12.0)
        at = tuple(np.linspace(*ends, 49).tolist() if knots is None else knots)
        standardise = getattr(denoiser, "standardise", None)
        x = standardise(data) if standardise else data
        eps = PerSample(seed, range(len(x))).normal(x.shape[1:], x.dtype, x.device)

        def error(logsnr: float) -> float:
            level = schedule.level(logsnr).floats()
            estimate = denoiser(level.mix(x, eps), level, **conditioning)
            return float(((estimate.x - x).double() ** 2).mean())

        with torch.no_grad():
            return cls(at, tuple(error(logsnr) for logsnr in at), rescaled)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The quantiles of dphi/dlogsnr."""
        fine = np.linspace(self.knots[0], self.knots[-1], 4097)
        errors = np.interp(fine, self.knots, np.log(self.errors))
        density = np.exp(errors + fine * (0.5 if self.rescaled else 1.0))
        grid = Quantiles(tuple(fine), tuple(density), self.start, self.end)
        return grid.logsnrs(schedule, steps)


# ---------------------------------------------------------------------------- grids of grids


@dataclass(frozen=True)
class Shifted(Grid):
    """Another grid with `logsnr - 2 log(factor)`: more steps at high noise for factor > 1.

        t' = s t / (1 + (s - 1) t)       on flow matching's clock

    SD3's static shift (factor 3) [Esser+ 2024], FLUX's dynamic one (`flux_shift`). Infinite ends
    stay; on schedules with finite ones the nodes may not leave them, and Uniform("kappa(1/s)")
    is the grid of the same kind that fits between. A model whose schedule is shifted already,
    FlowMatching().shifted(3), is not to be shifted again.

        >>> FlowMatching().time(Shifted(UniformTime(), 3).logsnrs(FlowMatching(), 2))
        tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """

    grid: Grid
    factor: float

    def __post_init__(self) -> None:
        """ValueError for factors that are not positive."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"a grid is shifted by a positive, finite factor: {self}")

    @property
    def renoises(self) -> bool:
        """The grid's."""
        return self.grid.renoises

    def over(self, base: Grid) -> Grid:
        """Itself without jumps; ValueError for shifted ones, whose ends are not the base's."""
        if self.renoises:
            raise ValueError(f"{self} shifts its jumps; make Restart the outermost grid")
        return base

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The grid's nodes, moved; ValueError where a network call leaves the schedule's range."""
        nodes = self.grid.logsnrs(schedule, steps)
        return _covered(nodes - 2 * math.log(self.factor), schedule)


def resolution_shift(tokens: float, base_tokens: float) -> float:
    """SD3's factor for `tokens` pixels or tokens, `sqrt(tokens / base_tokens)` [Esser+ 2024].

    >>> resolution_shift(4096, 1024)
    2.0
    """
    if not (0 < tokens < math.inf and 0 < base_tokens < math.inf):
        raise ValueError(f"numbers of tokens are positive, got {tokens} and {base_tokens}")
    return math.sqrt(tokens / base_tokens)


def flux_shift(
    tokens: float,
    base: tuple[float, float] = (256, 0.5),
    top: tuple[float, float] = (4096, 1.15),
) -> float:
    """FLUX's factor exp(mu), mu linear in the number of tokens between two (tokens, mu).

    >>> round(math.log(flux_shift(4096)), 12)
    1.15
    """
    if not (0 < tokens < math.inf and base[0] != top[0]):
        raise ValueError(f"flux_shift needs tokens > 0 and two points, got {tokens}, {base}, {top}")
    part = (tokens - base[0]) / (top[0] - base[0])
    return math.exp(base[1] + part * (top[1] - base[1]))


@dataclass(frozen=True)
class Restart(Grid):
    """Restart sampling [Xu+ 2023, arXiv 2306.14878]: noise is added again, and removed again.

    When the main grid reaches its node nearest to logsnr `high` (after `low`), forward diffusion
    jumps back to `low` and `steps` sub-steps, equal in r^(1 / rho), lead up again; `times` times.
    Nodes fall at a jump, which costs no network call: the calls are the main grid's and those of
    `times` x `steps` sub-steps, the nodes are `steps + 1` and `times (self.steps + 1)` more. A main
    grid too coarse to have a node between low and the data is walked as it is.

    The defaults are the paper's first for CIFAR-10, from r = 0.06 back to 0.30. Several intervals
    are nested grids, the noisiest innermost.

        >>> Restart(0, 4, steps=1, times=1, grid=UniformLogSNR(-4, 8)).logsnrs(FlowMatching(), 3)
        tensor([-4.,  0.,  4.,  0.,  4.,  8.], dtype=torch.float64)
    """

    low: float = 2.408
    high: float = 5.627
    times: int = 2
    steps: int = 2
    grid: Grid = field(default_factory=Karras)
    rho: float = 7.0

    def __post_init__(self) -> None:
        """ValueError for levels that do not rise, or numbers that are not whole."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"Restart goes back from logsnr high to low, low < high: {self}")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"Restart's rho is positive and finite, as Karras's: {self}")
        _whole(self, "times", 1)
        _whole(self, "steps", 1)

    @property
    def renoises(self) -> bool:
        """True."""
        return True

    def over(self, base: Grid) -> Grid:
        """These jumps, along another grid."""
        return replace(self, grid=self.grid.over(base))

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The main grid's nodes, with `low ... high` repeated after the one nearest to high."""
        nodes = self.grid.logsnrs(schedule, steps)
        if not nodes[0] <= self.low:
            raise ValueError(
                f"{self} would jump back to logsnr {self.low}, noisier than its start at "
                f"{float(nodes[0]):.6g}; raise low"
            )
        gaps = torch.where(nodes > self.low, (nodes - self.high).abs(), math.inf)
        turn = len(nodes) - 1 - int(gaps.flip(0).argmin())
        if gaps[turn] == math.inf:
            return nodes
        ends = self.low, float(nodes[turn])
        again = _between(self, _power(self.rho), ends, _fractions(self.steps))
        return torch.cat([nodes[: turn + 1], again.repeat(self.times), nodes[turn + 1 :]])


GRIDS: dict[str, Grid] = {
    "uniform-time": UniformTime(),
    "uniform-logsnr": UniformLogSNR(),
    "uniform": Uniform(),
    "arctan": Arctan(),
    "karras": Karras(),
    "exponential": Exponential(),
    "beta": Beta(),
    "ays-sd15": AYS("sd15"),
    "ays-sdxl": AYS("sdxl"),
    "ays-svd": AYS("svd"),
    "leading": Indices("leading"),
    "trailing": Indices("trailing"),
    "linspace": Indices("linspace"),
    "restart": Restart(),
}
