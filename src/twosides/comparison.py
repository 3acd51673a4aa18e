"""Are two samplers, or two recipes, the same? Compared by their normal forms.

Two plans are the same sampler, for every network, when their levels and their matrices are equal:
states divided by alpha + sigma, over the initial noise, the u predictions and the injected noises,
do not depend on the scaling convention. Two recipes train the same model when their weightings are
proportional; where they draw their levels only changes the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from twosides.losses.recipes import Recipe
from twosides.sampling.plan import Plan

RANGE, AXIS = 15.0, "logsnr"  # on which recipes are compared


@dataclass(frozen=True)
class Comparison:
    """A verdict ("identical", "same up to ...", "different"), how far, and where."""

    verdict: str
    difference: float
    where: str
    factor: float = 1.0  # of proportional weightings, a's over b's
    measure: str = "max |difference|"

    @property
    def same(self) -> bool:
        """Whether the two are one thing (a constant factor of a loss does not count)."""
        return self.verdict != "different"

    def __str__(self) -> str:
        """One line."""
        digits = 2 if self.same else 3
        return f"{self.verdict}: {self.measure} {self.difference:.{digits}g} ({self.where})"

    __repr__ = __str__


@overload
def compare(a: Plan, b: Plan, *, tolerance: float = ...) -> Comparison: ...
@overload
def compare(
    a: Recipe, b: Recipe, *, tolerance: float = ..., data_std: tuple[float, float] = ...
) -> Comparison: ...
def compare(
    a: Plan | Recipe,
    b: Plan | Recipe,
    *,
    tolerance: float = 1e-10,
    data_std: tuple[float, float] = (1.0, 1.0),
) -> Comparison:
    """Compare two plans or two recipes; TypeError for anything else.

    Weightings that are learned while training are compared as they start, and are the same only if
    they learn alike from the same weights and levels.

    data_std: for recipes, the standard deviations of the data a and b are made for, to compare
    them where these data are equally hard to see: at the same `logsnr + 2 log(data_std)`. EDM is
    made for images of 0.5, latent models for 1.

    >>> import twosides as ts
    >>> ts.compare(ts.plan("ddim", ts.Cosine(), 9), ts.plan("flow-euler", ts.Cosine(), 9)).same
    True
    """
    if isinstance(a, Plan) and isinstance(b, Plan):
        return _plans(a, b, tolerance)
    if isinstance(a, Recipe) and isinstance(b, Recipe):
        return _recipes(a, b, tolerance, data_std)
    raise TypeError(
        f"compare takes two plans or two recipes, got {type(a).__name__} and {type(b).__name__}; "
        "make plans with twosides.plan(sampler, schedule, steps)"
    )


def _plans(a: Plan, b: Plan, tolerance: float) -> Comparison:
    if a.nfe != b.nfe:
        return Comparison("different", math.inf, f"{a.nfe} and {b.nfe} network calls")
    with np.errstate(invalid="ignore"):
        gaps = np.where(a.logsnr == b.logsnr, 0.0, np.abs(a.logsnr - b.logsnr))
    worst = int(gaps.argmax())
    if not gaps[worst] <= tolerance * (1 + min(abs(a.logsnr[worst]), abs(b.logsnr[worst]))):
        where = f"logsnr of call {worst + 1}: {a.logsnr[worst]:.6g} and {b.logsnr[worst]:.6g}"
        return Comparison("different", float(gaps[worst]), where)
    left, right = _canonical(a), _canonical(b)
    if left.shape != right.shape:
        return _laws(left, right, a.nfe, tolerance)
    gap = np.abs(left - right)
    row, column = np.unravel_index(gap.argmax(), gap.shape)
    where = f"{_place(int(column), a.nfe)} in {_state(int(row), a.nfe)}"
    if gap.max() <= tolerance:
        return Comparison("identical", float(gap.max()), where)
    law = _laws(left, right, a.nfe, tolerance)
    return law if law.same else Comparison("different", float(gap.max()), where)


def _canonical(plan: Plan) -> np.ndarray:
    return plan.matrix("u") / (plan.alpha + plan.sigma)[:, None]


def _laws(left: np.ndarray, right: np.ndarray, calls: int, tolerance: float) -> Comparison:
    """The same predictions, and noises of the same joint distribution."""
    predictions = np.abs(left[:, 1 : 1 + calls] - right[:, 1 : 1 + calls]).max()
    (p, q) = (np.delete(side, slice(1, 1 + calls), 1) for side in (left, right))
    spread = np.abs(p @ p.T - q @ q.T).max()
    gap = float(max(predictions, spread))
    if gap <= tolerance:
        return Comparison("same in distribution", gap, "the noise is drawn in other pieces")
    part = "predictions" if predictions >= spread else "covariance of the noise"
    return Comparison("different", gap, part)


def _place(column: int, calls: int) -> str:
    if column == 0:
        return "initial noise"
    return f"prediction {column}" if column <= calls else f"noise {column - calls}"


def _state(row: int, calls: int) -> str:
    return "the result" if row == calls else f"the input of call {row + 1}"


def curves(recipe: Recipe, grid: Tensor, data_std: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log w, log p) at the log-SNR of data normalised to unit variance."""
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std is a standard deviation, finite and > 0, got {data_std}")
    logsnr = grid - 2 * math.log(data_std)
    p = recipe.density.log_prob(logsnr)
    # A level that is never drawn has no weight, whatever the weighting says.
    return torch.where(torch.isfinite(p), recipe.weighting.log(logsnr), -math.inf), p


def _recipes(a: Recipe, b: Recipe, tolerance: float, data_std: tuple[float, float]) -> Comparison:
    grid = torch.linspace(-RANGE, RANGE, 3001, dtype=torch.float64)
    (v, p), (w, q) = (curves(*each) for each in ((a, grid, data_std[0]), (b, grid, data_std[1])))
    both = torch.isfinite(v) & torch.isfinite(w)
    apart = total_variation(p, q, grid)
    levels = (
        "levels drawn alike" if apart < 1e-9 else f"levels drawn {apart:.3f} apart in variation"
    )
    axis = AXIS if data_std == (1.0, 1.0) else f"{AXIS} of unit-variance data"
    learned = {recipe.learns for recipe in (a, b) if recipe.reweights}
    alike = not learned or (a.learns == b.learns and apart < 1e-9)
    if alike and not bool((torch.isfinite(v) ^ torch.isfinite(w)).any()) and bool(both.any()):
        ratio = (v - w)[both]
        centre = float(ratio.median())
        spread = float(torch.expm1((ratio - centre).abs()).max())
        if spread <= tolerance:
            factor, reach = math.exp(centre), grid[both]
            equal = abs(math.expm1(centre)) <= tolerance
            proportional = f"same weighting up to the factor {factor:.6g}"
            verdict = "identical weighting" if equal else proportional
            where = f"{axis} in [{float(reach[0]):.3g}, {float(reach[-1]):.3g}]; {levels}"
            return Comparison(verdict, spread, where, factor)
    ends = "" if falls_off(v) and falls_off(w) else ", which it depends on"
    if learned:
        ends += f"; before learning ({', '.join(sorted(learned))})"
    where = f"{axis} in [{-RANGE:g}, {RANGE:g}]{ends}; {levels}"
    return Comparison(
        "different", total_variation(v, w, grid), where, measure="total variation of w"
    )


def falls_off(log_weight: Tensor) -> bool:
    """Whether a weighting has fallen at both ends; distances hang on the range otherwise."""
    return float(torch.maximum(log_weight[0], log_weight[-1]) - log_weight.max()) < math.log(1e-2)


def total_variation(a: Tensor, b: Tensor, grid: Tensor) -> float:
    """Half the L1 distance of exp(a) and exp(b), both normalised on the grid."""
    p, q = ((side - side.max()).exp() for side in (a, b))
    p, q = p / torch.trapezoid(p, grid), q / torch.trapezoid(q, grid)
    return float(0.5 * torch.trapezoid((p - q).abs(), grid))
