"""The fit: Levenberg-Marquardt with finite differences, which needs forward passes alone.

A family makes tables, that is samplers as numbers, of p parameters theta (`tables`). The fit looks
for the theta whose runs end nearest to where the teacher's runs end, x*, from the same initial
noises. The residual of a noise is the vector `r = (x - x*) / size`, not its norm e, so that a few
noises are many equations. The loss is rho, the robust loss of `trials`. It is lowered by weighted
least squares, in which each noise has the weight `1 / (1 + e^2 / delta^2)`, computed anew in each
iteration. With W these weights, J the derivatives of the residuals, and each parameter measured in
a unit of its own (`Family.scale`), the step solves

    (J' W J + lam diag) step = -J' W r

where diag is the diagonal of J' W J, with a small part of its mean added. lam falls after a step
that lowers the loss, and rises until a step does. J consists of forward differences, whose p + 1
tables run as one batch.

The fitted noises do not decide which theta is the result. Other noises do (the *validation*): of
all iterations, the theta with the least loss on those is returned.

    An Algorithm for Least-Squares Estimation of Nonlinear Parameters, Marquardt 1963,
    doi.org/10.1137/0111030
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
PATIENCE = 3  # a fit ends after so many iterations in a row without a better validation
ENOUGH = 2e-3  # a fit ends when an iteration lowers the loss by less than this part of it
TRIES = 6  # the most values of lam that an iteration tries
DIFFERENCES = {torch.float64: 1e-4, torch.float32: 2e-3}  # by the network's dtype
COARSE = 3e-2  # the difference for any other dtype, such as bfloat16
AGREE = 0.3  # how far the slopes of a fine and of a coarse difference may be apart, as a part


@dataclass
class Fitted:
    """The result of a fit: the table with the least loss on the noises of the validation.

    tables: this table, as a batch of one.
    theta: its parameters, (p,).
    train: its loss rho on the noises that were fitted.
    valid: its loss rho on the noises of the validation, by which it was chosen.
    iterations: how many iterations lowered the loss on the fitted noises.
    history: (train, valid) of the start and of each of these iterations.
    """

    tables: Tables
    theta: Array
    train: float
    valid: float
    iterations: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)


def losses(network: Network, noises: Noises, tables: Tables) -> Array:
    """The loss rho of each table, (q,); infinite where a run is not finite.

    network: what runs the tables.
    noises: the initial noises, and where the teacher's runs end from them.
    tables: a batch of q tables.
    """
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
    """Fit the parameters of a family of tables; at worst, the start is returned.

    family: the tables as a function of theta, and where theta starts.
    network: what runs the tables. Its account says how many evaluations are left.
    train: the noises whose residuals are fitted.
    valid: the noises that choose among the iterations, others than those of `train`.
    difference: h, the step of the differences, in units of each parameter's scale, > 0;
        `difference_of` has the step that suits a network's dtype.
    iterations: the most iterations. No iteration begins that the account cannot pay for.
    """

    def at(theta: Array) -> Tables:
        return family.tables(theta[None])

    theta = family.start
    loss = float(losses(network, train, at(theta))[0])
    best = Fitted(at(theta), theta, loss, float(losses(network, valid, at(theta))[0]))
    best.history.append((loss, best.valid))
    damping, stale = 1e-2, 0
    for _ in range(iterations):
        # The dearest iteration: the Jacobian, all values of lam, and the validation.
        asked = (len(theta) + 1 + TRIES) * len(train) + len(valid)
        cost = asked * best.tables.steps
        if network.account.left < cost or not math.isfinite(loss):
            break
        normal, slope = _equations(family, network, train, theta, difference)
        if not (np.isfinite(normal).all() and np.isfinite(slope).all() and normal.any()):
            break
        # Raise lam until a step lowers the loss. No parameter moves by more than its scale.
        for _ in range(TRIES):
            diagonal = normal.diagonal() + 1e-3 * normal.diagonal().mean()
            step = np.linalg.solve(normal + damping * np.diag(diagonal), -slope)
            moved = theta + np.clip(step, -1.0, 1.0) * family.scale
            found = float(losses(network, train, at(moved))[0])
            if found < loss:
                break
            damping *= 4
        else:
            break
        gain, theta, loss, damping = (loss - found) / loss, moved, found, max(damping / 4, 1e-7)
        # Keep the theta that is best on the validation, and end where neither loss falls any more.
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
    """`J' W J`, (p, p), and `J' W r`, (p,), as means over the noises.

    Parameters are measured in their scales. Noises are taken in blocks whose p + 1 tables make one
    batch of the network.
    """
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
    """The step of the differences for a network's dtype: well above what the dtype rounds away.

    dtype: the network's; None, for a denoiser without weights, counts as float64.

    >>> difference_of(torch.float32), difference_of(torch.bfloat16)
    (0.002, 0.03)
    """
    return DIFFERENCES.get(dtype or torch.float64, COARSE)


def checked_difference(
    family: Family, network: Network, noises: Noises, difference: float
) -> float:
    """The step of the differences at which slopes can be trusted.

    If a step is smaller than what the network rounds away, its answers do not change, and a fit
    would end at its start without a word. The slopes along one direction, in which all parameters
    change, must therefore agree within 30 % with those of a coarse step, 3e-2, at which the answers
    of any network change. The step is doubled until they do. If they never do, the coarse step is
    the result.

    family: the slopes are taken at the start of this family.
    network: what runs the tables.
    noises: the slopes are those of the ends from these noises; the median noise decides.
    difference: the step to begin with, > 0; one of 3e-2 or more is returned as it is.
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
        agrees = (slope - last).norm(dim=1) <= AGREE * last.norm(dim=1)
        # Half of the noises are enough, since the end from one may jump to another mode.
        if float(agrees.double().mean()) >= 0.5:
            return step
    return COARSE
