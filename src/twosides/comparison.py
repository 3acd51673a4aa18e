"""Are two samplers, or two recipes, the same? Both are compared by their normal forms.

The normal form of a sampler is its *plan*, the table of its coefficients. Two plans are the same
sampler for every network when their levels are equal and their matrices are: the states divided by
alpha + sigma, as combinations of the initial noise, the predictions of u and the injected noises.
These do not depend on the scaling convention.

The normal form of a *recipe*, which states how a model is trained, is its weighting w(logsnr). Two
recipes train the same model when their weightings are proportional; the density from which they
draw levels only changes the variance of the loss.
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

RANGE, AXIS = 15.0, "logsnr"  # recipes are compared at logsnr in [-RANGE, RANGE]


@dataclass(frozen=True)
class Comparison:
    """The verdict of a comparison. Printing it gives one line.

    verdict: "identical", "identical weighting", "same in distribution", "same weighting up to the
        factor ...", or "different".
    difference: how far apart the two are, in the unit that `measure` names.
    where: the place of the largest difference, or what else there is to know.
    factor: the ratio of proportional weightings, that of a over that of b.
    measure: the name of `difference`.
    """

    verdict: str
    difference: float
    where: str
    factor: float = 1.0
    measure: str = "max |difference|"

    @property
    def same(self) -> bool:
        """Whether the two are one thing. A constant factor of a loss does not count."""
        return self.verdict != "different"

    def __str__(self) -> str:
        """One line with the verdict, the difference and its place."""
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

    Weightings that are learned while training are compared as they are at the start. They count as
    the same only if both recipes learn by the same rule, from the same weighting and levels.

    tolerance: the largest difference that still counts as none: of coefficients for plans, relative
        for weightings.
    data_std: for recipes, the standard deviations of the data that a and b are made for, in (0,
        inf). They are then compared where these data are equally noisy, at the same `logsnr + 2
        log(data_std)`. EDM is made for images of 0.5, latent models for 1.

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
    """Compare the predictions' coefficients and the joint distribution of the noises."""
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
    """The curves (log w, log p) of a recipe, over the log-SNR of data normalised to unit variance.

    grid: the log-SNRs (N,), in float64.
    data_std: the standard deviation of the data that the recipe is made for.
    """
    if not 0 < data_std < math.inf:
        raise ValueError(f"data_std is a standard deviation, finite and > 0, got {data_std}")
    logsnr = grid - 2 * math.log(data_std)
    p = recipe.density.log_prob(logsnr)
    # A level that is never drawn is not trained, whatever weight it is given.
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
    """Whether a weighting has fallen to 1 % at both ends of the grid.

    If it has not, distances between weightings depend on where the grid ends.
    """
    return float(torch.maximum(log_weight[0], log_weight[-1]) - log_weight.max()) < math.log(1e-2)


def total_variation(a: Tensor, b: Tensor, grid: Tensor) -> float:
    """Half the L1 distance of exp(a) and exp(b), both normalised on the grid; in [0, 1]."""
    p, q = ((side - side.max()).exp() for side in (a, b))
    p, q = p / torch.trapezoid(p, grid), q / torch.trapezoid(q, grid)
    return float(0.5 * torch.trapezoid((p - q).abs(), grid))
