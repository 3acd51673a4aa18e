"""The fit: Levenberg-Marquardt with differences, by forward passes alone.

The residual of a noise is the vector `(x - x*) / size`, so that a few noises are many equations.
The robust loss rho is fitted by weights that are taken anew in each iteration,
1 / (1 + e^2 / delta^2) of a noise. With the parameters counted in their scales, and J the
derivatives of the residuals,

    (J' W J + lam diag) step = -J' W r

lam falls after a step that lowers the loss, and rises until one does. J is of forward differences,
whose p + 1 tables run as one batch. What counts is the loss on other noises (*validation*): the
parameters that had the least are the result.

    Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters"
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from twosides.sampling.frames import Array
from twosides.tuning.tables import Family, Tables
from twosides.tuning.trials import DELTA, Network, Noises, robust

ITERATIONS = 15
PATIENCE = 3  # iterations without a better validation
ENOUGH = 2e-3  # of the loss, by which an iteration must lower it
TRIES = 6
DIFFERENCES = {torch.float64: 1e-4, torch.float32: 2e-3}  # by the network's dtype
COARSE = 3e-2  # of any other, such as bfloat16
AGREE = 0.3  # how far slopes of a step and of a coarse one may differ


@dataclass
class Fitted:
    """What a fit found.

    tables: the best, a batch of one.
    theta: its parameters.
    train, valid: rho on the noises that were fitted, and on those that chose.
    iterations: how many there were.
    history: (train, valid) of each, the start first.
    """

    tables: Tables
    theta: Array
    train: float
    valid: float
    iterations: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)


def losses(network: Network, noises: Noises, tables: Tables) -> Array:
    """rho of each table; infinite where a run is not finite."""
    return robust(noises.errors(network, tables)).numpy()


def fit(
    family: Family,
    network: Network,
    train: Noises,
    valid: Noises,
    *,
    difference: float,
    iterations: int = ITERATIONS,
) -> Fitted:
    """Fit the parameters of a family; at worst, the start.

    difference: h, the step of the differences, in units of each parameter's scale.
    iterations: the most that there are; fewer where the network's account is used up.
    """

    def at(theta: Array) -> Tables:
        return family.tables(theta[None])

    theta = family.start
    loss = float(losses(network, train, at(theta))[0])
    best = Fitted(at(theta), theta, loss, float(losses(network, valid, at(theta))[0]))
    best.history.append((loss, best.valid))
    damping, stale = 1e-2, 0
    for _ in range(iterations):
        asked = (len(theta) + 1 + TRIES) * len(train) + len(valid)
        cost = asked * best.tables.steps
        if network.account.left < cost or not math.isfinite(loss):
            break
        normal, slope = _equations(family, network, train, theta, difference)
        if not (np.isfinite(normal).all() and np.isfinite(slope).all()):
            break
        for _ in range(TRIES):
            diagonal = normal.diagonal() + 1e-3 * normal.diagonal().mean() + 1e-30
            step = np.linalg.solve(normal + damping * np.diag(diagonal), -slope)
            moved = theta + np.clip(step, -1.0, 1.0) * family.scale
            found = float(losses(network, train, at(moved))[0])
            if found < loss:
                break
            damping *= 4
        else:
            break
        gain, theta, loss, damping = (loss - found) / loss, moved, found, max(damping / 4, 1e-7)
        chosen = float(losses(network, valid, at(theta))[0])
        best.history.append((loss, chosen))
        stale = 0 if chosen < best.valid else stale + 1
        if chosen < best.valid:
            best.tables, best.theta, best.train, best.valid = at(theta), theta, loss, chosen
        if stale == PATIENCE or gain < ENOUGH:
            break
    best.iterations = len(best.history) - 1
    return best


def _equations(
    family: Family, network: Network, train: Noises, theta: Array, difference: float
) -> tuple[Array, Array]:
    """`J' W J` and `J' W r`, in the scales of the parameters."""
    count = len(theta)
    thetas = np.concatenate([theta[None], theta + difference * np.diag(family.scale)])
    tables = family.tables(thetas)
    normal, slope = np.zeros((count, count)), np.zeros(count)
    for block in train.blocks(max(1, network.batch // (count + 1))):
        gaps = block.gaps(network, tables)
        weight = 1 / (1 + gaps[0].square().sum(1) / DELTA**2)
        columns = ((gaps[1:] - gaps[0]) / difference * weight.sqrt()[:, None]).flatten(1)
        normal += (columns @ columns.T).cpu().double().numpy() / len(train)
        rest = (gaps[0] * weight.sqrt()[:, None]).flatten()
        slope += (columns @ rest).cpu().double().numpy() / len(train)
    return normal, slope


def difference_of(dtype: torch.dtype | None) -> float:
    """The step of the differences for a network's dtype: well above what it rounds away."""
    return DIFFERENCES.get(dtype or torch.float64, COARSE)


def checked_difference(
    family: Family, network: Network, noises: Noises, difference: float
) -> float:
    """A step at which slopes can be trusted: the one given, or the first of its doubles that can.

    Where a step is below what the network rounds to, its answers stand still, and a fit would stop
    without a word. Slopes along a direction of all parameters must therefore agree, within 30 %,
    with those of a coarse step, 3e-2, at which any network moves. That is what is returned at last.
    """
    if difference >= COARSE:
        return difference
    direction = family.scale * np.resize([1.0, -0.6, 0.4], len(family.scale))
    doubled = difference * 2.0 ** np.arange(math.ceil(math.log2(COARSE / difference)))
    steps = np.array([0.0, *doubled, COARSE])
    gaps = noises.gaps(network, family.tables(family.start + steps[:, None] * direction))
    slopes = [(gap - gaps[0]) / step for gap, step in zip(gaps[1:], steps[1:], strict=True)]
    last = slopes[-1]
    for step, slope in zip(doubled.tolist(), slopes, strict=False):
        apart = (slope - last).norm(dim=1) / last.norm(dim=1).clamp(min=1e-30)
        if float(apart.median()) <= AGREE:  # of the noises: one of them may be at a fork
            return step
    return COARSE
