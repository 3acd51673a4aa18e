"""Densities and weightings that follow the error measured while training.

One table serves all: bins of logsnr with running means of the eps-error e = |eps_hat - eps|^2 (mean
over elements) and of w e, updated with each step's losses. The following are made of it:

| name           | levels drawn from          | w that is trained   |                              |
|----------------|----------------------------|---------------------|------------------------------|
| "adaptive"     | p ~ w E[e]                 | w, as stated        | VDM++ [Kingma & Gao 2023]    |
| "entropy-rate" | p ~ E[e]                   | w p / base p        | InfoNoise [Raya+ 2026]       |
| "uncertainty"  | the recipe's p             | p / E[e]            | EDM2 [Karras+ 2024, eq. 21]  |

and a sampling grid with equal information per step, `LevelBins.grid` [Stancevic+ 2025].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from twosides.denoiser import Denoises, as_denoiser
from twosides.losses.densities import Density
from twosides.losses.weightings import Weighting
from twosides.naming import unknown
from twosides.placement import check_floating
from twosides.randomness import PerSample
from twosides.sampling.grids import Entropic

WARMUP = 10  # the samples per bin, on average, from which on the bins are used
TINY = torch.finfo(torch.float32).tiny  # stands for an error of 0, which has no logarithm
TARGETS = ("loss", "error")


class LevelBins(nn.Module):
    """Running means over equal bins of logsnr: of w e (`loss`), of e (`error`), and `visits`.

        m <- d^n m + (1 - d^n) mean        of the n samples of a step that fall into the bin

    and a bin's first samples are copied. Levels outside [low, high] count in the bins at the ends.
    The result depends on the samples of each step, not on their order. Everything is in the
    state_dict. The tables stay in float64 on the CPU, where levels are drawn, when the module
    around them is moved.

        >>> bins = LevelBins(-10, 10)
        >>> at = torch.tensor([-20.0, 3.0], dtype=torch.float64)
        >>> bins.update(at, loss=torch.ones_like(at), error=torch.tensor([0.1, 0.4]))
        >>> bins.error_at(torch.tensor([-10.0, 10.0]))
        tensor([0.1000, 0.4000], dtype=torch.float64)
    """

    edges: Tensor
    loss: Tensor
    error: Tensor
    visits: Tensor

    def __init__(self, low: float, high: float, count: int = 100, decay: float = 0.99) -> None:
        """Empty bins.

        low, high: the range of log-SNR, finite.
        count: the number of bins, >= 1.
        decay: d, how much a mean keeps at each sample, in [0, 1); 0.99 remembers about 100 samples.
        """
        super().__init__()
        if not (-math.inf < low < high < math.inf and count >= 1 and 0 <= decay < 1):
            raise ValueError(
                f"bins need finite low < high, count >= 1 and 0 <= decay < 1; got {low}, {high}, "
                f"{count}, {decay}"
            )
        self.decay = decay
        self.register_buffer("edges", torch.linspace(low, high, count + 1, dtype=torch.float64))
        for name in ("loss", "error"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))
        self.register_buffer("visits", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def over(cls, density: Density, tail: float = 1e-4, count: int = 100) -> LevelBins:
        """Bins over the range of a density.

        density: the density.
        tail: the probability beyond the bins, at an end of the density that is infinite.
        count: the number of bins.
        """
        ends = density.logsnr(torch.tensor([1.0, 0.0], dtype=torch.float64))
        inner = density.logsnr(torch.tensor([1 - tail, tail], dtype=torch.float64))
        low, high = torch.where(torch.isfinite(ends), ends, inner).tolist()
        return cls(low, high, count)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> LevelBins:
        """Nothing: the bins stay on the CPU in float64 when the network is moved or cast."""
        return self

    @property
    def centres(self) -> Tensor:
        """The middles of the bins."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def ready(self) -> bool:
        """Whether the bins have seen enough samples to be used, 10 each on average."""
        return int(self.visits.sum()) >= WARMUP * len(self.visits)

    def update(self, logsnr: Tensor, *, loss: Tensor, error: Tensor) -> None:
        """Take in the samples of one step.

        logsnr, loss, error: their levels, w e and e, (N,) each. Those that are not finite are left
            out.
        """
        logsnr, loss, error = (
            value.detach().to("cpu", torch.float64).flatten() for value in (logsnr, loss, error)
        )
        fine = torch.isfinite(loss) & torch.isfinite(error) & ~logsnr.isnan()
        inner = self.edges[1:-1].contiguous()
        index = torch.searchsorted(inner, logsnr[fine].contiguous(), right=True)
        count = torch.bincount(index, minlength=len(self.visits))
        keep = torch.where(self.visits > 0, self.decay ** count.double(), 0.0)
        for table, values in ((self.loss, loss[fine]), (self.error, error[fine])):
            # Summed by size: sums then do not depend on the order of the samples.
            order = values.argsort()
            total = torch.bincount(index[order], values[order], minlength=len(table))
            mean = total / count.clamp(min=1)
            table.copy_(torch.where(count > 0, keep * table + (1 - keep) * mean, table))
        self.visits += count

    def loss_at(self, logsnr: Tensor) -> Tensor:
        """The mean of w e at levels: linear between centres of visited bins, constant beyond."""
        return self._interpolate(logsnr, self.loss)

    def error_at(self, logsnr: Tensor) -> Tensor:
        """The mean of e at levels: its logarithm is linear between centres, constant beyond."""
        return self._interpolate(logsnr, self.error.clamp(min=TINY).log()).exp()

    def _interpolate(self, logsnr: Tensor, values: Tensor) -> Tensor:
        seen = (self.visits > 0).numpy()
        if not seen.any():
            raise ValueError("these bins have seen no sample; train, or update them, first")
        at, known = self.centres.numpy()[seen], values.numpy()[seen]
        where = logsnr.detach().to("cpu", torch.float64).numpy()
        return torch.from_numpy(np.asarray(np.interp(where, at, known)))

    def grid(self, *, rescaled: bool = True) -> Entropic:
        """The sampling grid of the visited bins: equal steps of entropy [Stancevic+ 2025].

            dH = 1/2 E|eps_hat - eps|^2 dlogsnr,    rescaled: exp(-logsnr / 2) dH

        It goes from end to end of the schedule it is used on. It is a tuple of numbers, so that a
        file of a sampler can hold it.

        rescaled: which of the two; True is the choice of the paper.
        """
        seen = (self.visits > 0) & (self.error > 0)
        at = self.centres[seen]
        mse = self.error[seen] * (-at).exp()  # |x_hat - x|^2 = exp(-logsnr) |eps_hat - eps|^2
        return Entropic(tuple(at.tolist()), tuple(mse.tolist()), rescaled)


class _Line(NamedTuple):
    """A normalised density that is linear between knots.

    knots, heights: where the pieces meet, and the density there, (K,) each.
    masses: the probabilities of the pieces, (K - 1,).
    """

    knots: Tensor
    heights: Tensor
    masses: Tensor

    def above(self, part: Tensor) -> Tensor:
        """The point above which the share `part` of the mass lies."""
        below = torch.cat([self.masses.new_zeros(1), self.masses.cumsum(0)])
        wanted = (1 - part) * below[-1]
        i = (torch.searchsorted(below, wanted.contiguous()) - 1).clamp(0, len(self.masses) - 1)
        rest, height = wanted - below[i], self.heights[i]
        slope = self.heights.diff()[i] / self.knots.diff()[i]
        # The solution s of height s + slope s^2 / 2 = rest, in the form that does not cancel.
        root = (height**2 + 2 * slope * rest).clamp(min=0).sqrt()
        return torch.minimum(self.knots[i] + 2 * rest / (height + root), self.knots[i + 1])

    def height(self, logsnr: Tensor) -> Tensor:
        """The density at points inside."""
        i = (torch.searchsorted(self.knots, logsnr.contiguous()) - 1).clamp(0, len(self.masses) - 1)
        part = (logsnr - self.knots[i]) / self.knots.diff()[i]
        return torch.lerp(self.heights[i], self.heights[i + 1], part)


@dataclass(frozen=True)
class Adaptive(Density):
    """A density that is large where the error is: p follows the bins, in place of `base`.

        p ~ (1 - floor) m(logsnr) / integral of m + floor / (high - low)     on [low, high]

    with m the running mean of w e or of e, linear between the centres of the bins. Outside the
    bins' range (with `LevelBins.over` this has probability 0, or 1e-4 at an infinite end) levels
    are drawn from the base, and so are all until the bins are `ready`.

    base: the density from which levels are drawn at first.
    bins: the running means, inside the range of the base.
    target: "loss" for m of w e. p ~ w E[e] is near w sqrt(E[e^2]), the density of least variance
        [Kingma & Gao 2023, appendix F]. "error" for m of e, the rate of conditional entropy,
        `dI/dlogsnr = E[e] / 2`, which InfoNoise follows [Raya+ 2026].
    compensate: whether the loss is divided by p, so that the objective is that of the base and only
        its variance falls. If not, it is divided by the base's density, and the weighting that is
        trained is w p / base.
    floor: the share of uniform levels, in (0, 1], so that none is forgotten.
    """

    base: Density
    bins: LevelBins
    target: str = "loss"
    compensate: bool = True
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """ValueError for an unknown target, a floor outside (0, 1], or bins beyond the base."""
        if self.target not in TARGETS:
            raise unknown("target of an adaptive density", self.target, TARGETS)
        if not 0 < self.floor <= 1:
            raise ValueError(f"an adaptive density needs a floor in (0, 1], got {self.floor}")
        ends = self.bins.edges[[0, -1]]
        if not bool(torch.isfinite(self.base.log_prob(ends)).all()):
            raise ValueError(
                f"the bins cover logsnr {ends.tolist()}, but {self.base} has no density at their "
                "ends; use LevelBins.over(base)"
            )
        inner = self.bins.centres
        gaps = inner[~torch.isfinite(self.base.log_prob(inner))]
        if len(gaps) and not self.compensate:
            raise ValueError(
                f"{self.base} draws nothing around logsnr {float(gaps[0]):.4g}, where levels that "
                "are not compensated would have an infinite weight; use a base without gaps"
            )

    @functools.cached_property
    def _shares(self) -> tuple[float, float]:
        """The probabilities of the base above the bins, and above their lower end."""
        low, high = self.bins.edges[[0, -1]].tolist()
        return self.base.share_above(high), self.base.share_above(low)

    def _line(self) -> _Line:
        bins = self.bins
        knots = torch.cat([bins.edges[:1], bins.centres, bins.edges[-1:]])
        shape = bins.loss_at(knots) if self.target == "loss" else bins.error_at(knots)
        total, width = torch.trapezoid(shape, knots), knots[-1] - knots[0]
        share = torch.where(total > 0, (1 - self.floor) * shape / total, (1 - self.floor) / width)
        heights = share + self.floor / width
        return _Line(knots, heights, 0.5 * (heights[1:] + heights[:-1]) * knots.diff())

    def logsnr(self, u: Tensor) -> Tensor:
        """The inverse distribution function, exactly; that of the base until the bins are ready."""
        given = self.base.logsnr(u)
        if not self.bins.ready:
            return given
        above, below = self._shares
        part = ((u - above) / (below - above)).clamp(0, 1)
        return torch.where((u >= above) & (u <= below), self._line().above(part), given)

    def log_prob(self, logsnr: Tensor) -> Tensor:
        """The log-density from which levels are drawn at present."""
        given = self.base.log_prob(logsnr)
        if not self.bins.ready:
            return given
        (above, below), edges = self._shares, self.bins.edges
        inside = (logsnr >= edges[0]) & (logsnr <= edges[-1])
        drawn = self._line().height(logsnr.clamp(edges[0], edges[-1])).log()
        return torch.where(inside, drawn + math.log(below - above), given)

    def log_divisor(self, logsnr: Tensor) -> Tensor:
        """The log-density by which the loss is divided: p if compensated, otherwise the base's."""
        return (self if self.compensate else self.base).log_prob(logsnr)

    def shifted(self, factor: float) -> Density:
        """ValueError: the levels follow the error, so that a shift would be undone."""
        raise ValueError("an adaptive density follows the error; shift its base instead")

    def __str__(self) -> str:
        return f"{self.base}, then where the {self.target} is"


@dataclass(frozen=True)
class Uncertainty(Weighting):
    """EDM2's learned uncertainty: every level contributes 1 to the loss [Karras+ 2024, eq. 21].

        loss / exp(u) + u,    minimal at u(logsnr) = log E[loss] of the level

    EDM2 trains a small network for u; here it is read from the bins. As its gradient does not reach
    the denoiser, `+ u` is left out and the loss stays near 1: watch a validation loss instead. With
    loss = w e / p the weighting that is trained is p / E[e], whatever w is. Until the bins are
    ready u = 0.

    base: w.
    density: p.
    bins: the running means of e.
    """

    base: Weighting
    density: Density
    bins: LevelBins

    def u(self, logsnr: Tensor) -> Tensor:
        """The logarithm of the mean loss, log E[w e / p]."""
        if not self.bins.ready:
            return torch.zeros_like(logsnr)
        ratio = self.base.log(logsnr) - self.density.log_prob(logsnr)
        return ratio + self.bins.error_at(logsnr).log()

    def log(self, logsnr: Tensor) -> Tensor:
        """`log w - u`; a level without weight stays without."""
        base = self.base.log(logsnr)
        return torch.where(torch.isneginf(base), base, base - self.u(logsnr))

    def __str__(self) -> str:
        return f"{self.base} over its mean"


class Learner(NamedTuple):
    """A rule that makes the two parts of an objective follow the error.

    make: makes a weighting and a density from those of a recipe.
    reweights: whether the weighting that is trained is then another one.
    """

    make: Callable[[Weighting, Density], tuple[Weighting, Density]]
    reweights: bool


def _adaptive(weighting: Weighting, density: Density) -> tuple[Weighting, Density]:
    return weighting, Adaptive(density, LevelBins.over(density))


def _entropy_rate(weighting: Weighting, density: Density) -> tuple[Weighting, Density]:
    return weighting, Adaptive(density, LevelBins.over(density), "error", compensate=False)


def _uncertainty(weighting: Weighting, density: Density) -> tuple[Weighting, Density]:
    return Uncertainty(weighting, density, LevelBins.over(density)), density


LEARNERS: dict[str, Learner] = {
    "adaptive": Learner(_adaptive, reweights=False),
    "entropy-rate": Learner(_entropy_rate, reweights=True),
    "uncertainty": Learner(_uncertainty, reweights=True),
}


def measure_entropic(
    denoiser: Denoises,
    data: Tensor,
    *,
    knots: Sequence[float] | None = None,
    rescaled: bool = True,
    seed: int = 0,
    **conditioning: Any,
) -> Entropic:
    """The grid of equal information of a denoiser, from its errors on a batch of data.

    denoiser: the denoiser.
    data: (B, ...), in the units of the data.
    knots: the log-SNRs at which the error is measured, increasing, with one network call each; by
        default 49, equally spaced over the part of [-12, 12] that the denoiser covers.
    rescaled: see `Entropic`.
    seed: the seed of the noise, which is the same at all knots.
    conditioning: what else the network is told.
    """
    denoiser = as_denoiser(denoiser)
    schedule = denoiser.schedule
    ends = max(schedule.logsnr_min, -12.0), min(schedule.logsnr_max, 12.0)
    at = tuple(np.linspace(*ends, 49).tolist() if knots is None else knots)
    check_floating(data.dtype, "data")
    x = denoiser.standardise(data)
    eps = PerSample(seed, range(len(x))).normal(x.shape[1:], x.dtype, x.device)

    def error(logsnr: float) -> float:
        level = schedule.level(logsnr).floats()
        estimate = denoiser(level.mix(x, eps), level, **conditioning)
        return float(((estimate.x - x).cpu().double() ** 2).mean())

    with torch.no_grad():
        return Entropic(at, tuple(error(logsnr) for logsnr in at), rescaled)
