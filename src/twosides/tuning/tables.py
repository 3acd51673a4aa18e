"""Families of tables: which numbers of a sampler are fitted, from four to all weights of two lags.

A *table* is a sampler without injected noise, as numbers: the log-SNRs at which the network is
asked, and for each call the weights of the differences between earlier estimates and this one,
which are added to the step of DDIM. They are in units of the state's size `|(alpha, sigma)|`, in
which they do not depend on the scaling of a schedule (`solvers.Tabled` has the formula). The *lag*
of an earlier estimate is by how many calls it is earlier.

A *family* makes tables of p parameters theta. For n calls the families are

    low     4          kappa, the shift, and the two exponents of a law of times
    e       3 n - 1    the levels, kappa of each step, and the gain of each correction
    full    5 n - 7    the levels, and the weights of x and eps for two lags

They are fitted one after the other, each from the best table of the one before. (For a rule without
a corrector "e" has no gains, and 2 n - 1 parameters.) kappa is that of the output `eps - kappa x`,
which an Adams rule takes for a polynomial, and the shift is that of flow matching's times.

All tables start where the range of the network's log-SNRs starts, and end at the data. Levels are
parametrised by a *warped* log-SNR, which belongs to a flow time `sigma / (alpha + sigma)` that is 1
and 0 at the ends of the range (`Range`). So no level can leave the range. For a schedule from pure
noise to data the warped log-SNR is the log-SNR.

Functions take a batch of theta, (q, p), and return a batch of q tables, since all tables of one
Jacobian run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from twosides.sampling.frames import Array, unit
from twosides.sampling.solvers import Tabled
from twosides.schedules import Schedule

FAR = 40.0  # a log-SNR at which z is the data to the rounding of floats
NOISIEST = -14.0  # the lowest warped log-SNR at which a level begins to be fitted
LAGS = 2  # the lags whose weights are free in the last family, 1 and 2


class Range(NamedTuple):
    """The log-SNRs between which a network may be asked.

    low, high: the ends, which may be infinite: -inf is pure noise, inf the data.

    >>> np.allclose(Range(-10.0, 10.0).inside(np.array([-100.0, 0.0])), [-10.0, 0.0])
    True
    """

    low: float
    high: float

    @classmethod
    def of(cls, schedule: Schedule) -> Range:
        """The range of a schedule."""
        return cls(float(schedule.logsnr_min), float(schedule.logsnr_max))

    def inside(self, warped: Array) -> Array:
        """The log-SNRs that belong to warped ones, all within the range.

        warped: any numbers that rise, (..., n).
        """
        warped = np.minimum(warped, FAR + 0.02 * np.arange(warped.shape[-1]))  # no level twice
        if self.low == -math.inf and self.high == math.inf:
            return warped
        data, noise = _time(self.high), _time(self.low)
        return _logsnr(data + (noise - data) * _time(warped))

    def warped(self, logsnr: Array) -> Array:
        """The warped log-SNRs that belong to log-SNRs: the inverse of `inside`.

        What lies at an end of the range, where it would be infinite, is moved to NOISIEST or FAR.
        """
        data, noise = _time(self.high), _time(self.low)
        part = np.clip((_time(logsnr) - data) / (noise - data), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            return np.clip(_logsnr(part), NOISIEST, FAR)


def _time(logsnr: Any) -> Any:
    """The flow time of a log-SNR, `sigma / (alpha + sigma)`."""
    alpha, sigma = unit(logsnr)
    return sigma / (alpha + sigma)


def _logsnr(time: Any) -> Any:
    """The log-SNR of a flow time, `2 log((1 - time) / time)`."""
    with np.errstate(divide="ignore"):
        return 2 * (np.log1p(-time) - np.log(time))


class Tables(NamedTuple):
    """A batch of q tables of n network calls.

    logsnr: the log-SNRs of the calls, from noise to data, and of the result, (q, n + 1). The last
        one is infinite: the data.
    x: the weights of `x_k - x_i` in the step after call i, at [table, i, k], (q, n, n); 0 for
        k >= i.
    eps: the weights of `eps_k - eps_i` in the same places, (q, n, n).

    >>> from twosides.sampling.named import plan
    >>> from twosides.schedules import FlowMatching
    >>> solver = Tabled.of(plan("kab2", FlowMatching(), 2))
    >>> Tables.of(solver).row(0) == solver
    True
    """

    logsnr: Array
    x: Array
    eps: Array

    @property
    def steps(self) -> int:
        """The number n of network calls."""
        return self.x.shape[-1]

    def row(self, number: int) -> Tabled:
        """The table of this number as a solver."""
        levels, rows = self.logsnr[number], []
        for i in range(self.steps):
            pairs = ((i - k, self.x[number, i, k], self.eps[number, i, k]) for k in range(i))
            kept = [(lag, float(x), float(eps)) for lag, x, eps in pairs if x or eps]
            rows.append(tuple(sorted(kept)))
        return Tabled(tuple(levels.tolist()), tuple(rows))

    @classmethod
    def of(cls, solver: Tabled) -> Tables:
        """The table of a solver, as a batch of one."""
        n = len(solver.rows)
        x, eps = np.zeros((1, n, n)), np.zeros((1, n, n))
        for i, row in enumerate(solver.rows):
            for lag, weight_x, weight_eps in row:
                x[0, i, i - lag], eps[0, i, i - lag] = weight_x, weight_eps
        return cls(np.array([solver.levels]), x, eps)


@dataclass(frozen=True, eq=False)
class Family:
    """Tables as a function of p parameters theta.

    name: "low", "e" or "full".
    start: the theta at which the fit begins, (p,).
    scale: the unit of each parameter, (p,): a change by it makes a clear difference. The fit takes
        its differences and limits its steps in these units.
    tables: the function from a batch of theta (q, p) to a batch of q tables.
    """

    name: str
    start: Array
    scale: Array
    tables: Callable[[Array], Tables]

    def moved(self, start: Array) -> Family:
        """The same family with another start, (p,)."""
        return Family(self.name, start, self.scale, self.tables)


class Rule(NamedTuple):
    """An Adams rule: a step integrates the polynomial through past values of `eps - kappa x`.

    order: the number of calls that the polynomial goes through.
    corrector: the number of calls through which a step is done again once its end has been asked,
        the new one included; 0 for no correction.
    lower_final: whether the last step holds the estimate, as DDIM does. No rule that is fitted
        does.
    """

    order: int
    corrector: int
    lower_final: bool = False


RULES = (Rule(2, 0), Rule(2, 3), Rule(3, 4))  # kab2, kab2c, kab3c


# ---------------------------------------------------------------------------- levels


def law(where: Range, steps: int, shift: Array, a: Array, b: Array) -> Array:
    """The log-SNRs of the calls by a law of flow times t, and that of the data, (q, n + 1).

        y = (1 - (1 - q)^(1/b))^(1/a),   t = s y / (1 + (s - 1) y),   q = 1, (n-1)/n, ... 1/n

    y is the quantile function of Kumaraswamy's law, which has the shapes of the Beta law and a
    closed form. a = b = s = 1 gives the uniform grid of flow matching.

    where: the range of the network, to which the times are mapped.
    steps: n, the number of calls.
    shift: s, the time shift of each table, > 0, (q,).
    a, b: the exponents of each table, > 0, (q,).

    >>> one = np.ones(1)
    >>> np.allclose(law(Range(-np.inf, np.inf), 2, one, one, one), [[-np.inf, 0.0, np.inf]])
    True
    """
    q = 1 - np.arange(steps)[None] / steps
    y = (1 - (1 - q) ** (1 / b[:, None])) ** (1 / a[:, None])
    t = shift[:, None] * y / (1 + (shift[:, None] - 1) * y)
    return _ended(where, where.inside(_logsnr(np.clip(t, 1e-12, 1 - 1e-6))))


def _ended(where: Range, logsnr: Array) -> Array:
    """The log-SNRs of the calls, the first replaced by the start of the range, and the data's."""
    first = np.full((len(logsnr), 1), where.low)
    data = np.full((len(logsnr), 1), np.inf)
    return np.concatenate([first, logsnr[:, 1:], data], 1)


def levels_of(where: Range, theta: Array) -> Array:
    """The log-SNRs of tables from n - 1 parameters each, (q, n + 1).

    where: the range of the network.
    theta: (q, n - 1), the warped log-SNR of the second call, and the logarithms of the distances
        from there to the third, and so on, so that levels rise whatever theta is.
    """
    gaps = np.exp(np.clip(theta[:, 1:], -5.0, 3.2))
    rest = np.cumsum(np.concatenate([theta[:, :1], gaps], 1), 1)
    return _ended(where, where.inside(np.concatenate([theta[:, :1], rest], 1)))


def theta_of(where: Range, logsnr: Array) -> Array:
    """The inverse of `levels_of` for one table, (n - 1,); levels that are too close move apart.

    where: the range of the network.
    logsnr: the log-SNRs of the calls and of the data, (n + 1,).
    """
    warped = where.warped(logsnr[1:-1])
    return np.concatenate([warped[:1], np.log(np.maximum(np.diff(warped), 0.02))])


# ---------------------------------------------------------------------------- Adams, in a batch


def adams(logsnr: Array, kappa: Array, rule: Rule, gain: Array | None = None) -> Tables:
    """The tables of an Adams rule, with a kappa of its own in each step.

    A step takes `o = eps - kappa x` for the polynomial through the last calls in
    `eta = sigma / (alpha + kappa sigma)`, in which the ODE is `d(z / c) = o d(eta)` with
    `c = alpha + kappa sigma` (`sampling.frames`). With equal kappas this is the sampler of
    `presets.kappa_adams`, without its limit on how far past estimates are trusted.

    logsnr: the log-SNRs of the calls and of the result, (q, n + 1).
    kappa: the kappa of each step, >= 0, (q, n).
    rule: the order, and the number of calls of the corrector.
    gain: (q, n), the factor by which the correction of each step is multiplied, which the call at
        the end of the step makes; by default 1. That of the last step has no effect.
    """
    alpha, sigma = unit(logsnr)
    count, steps = kappa.shape
    x, eps = np.zeros((count, steps, steps)), np.zeros((count, steps, steps))

    # In (alpha, sigma) of unit size weights are in units of the state's size.
    def c(k: Array, level: int) -> Array:
        return alpha[:, level] + k * sigma[:, level]

    def integral(k: Array, calls: list[int], step: int) -> Array:
        """The weights of m calls in `c int o d(eta)` over a step, o the polynomial through them."""
        eta = [sigma[:, level] / c(k, level) for level in (step, step + 1, *calls)]
        length = eta[1] - eta[0]
        places = (np.stack(eta[2:], 1) - eta[0][:, None]) / length[:, None]
        return (c(k, step + 1) * length)[:, None] * _lagrange(places)

    def add(i: int, calls: list[int], k: Array, weights: Array) -> None:
        """Add these weights of `o = eps - k x` of the calls to the step after call i."""
        for call, weight in zip(calls, weights.T, strict=True):
            if call != i:  # the newest call's weight follows: a constant estimate gives DDIM
                x[:, i, call] -= k * weight
                eps[:, i, call] += weight

    def step(i: int) -> None:
        # Prediction: the integral of the polynomial through the last calls.
        k = kappa[:, i]
        last = rule.lower_final and i == steps - 1
        calls = [i - lag for lag in range(1 if last else min(rule.order, i + 1))]
        add(i, calls, k, integral(k, calls, i))
        used = min(rule.order, i)
        through = min(rule.corrector, used + 1) if rule.corrector else 2 * (used == 1 < rule.order)
        if i == 0 or through < 2:
            return
        # Correction of the step before, now that its end has been asked: the integral through the
        # new call as well, less the prediction, carried to the end of this step.
        k, before = kappa[:, i - 1], [i - 1 - lag for lag in range(used)]
        corrected = [i, *before[: through - 1]]
        kept = c(kappa[:, i], i + 1) / c(kappa[:, i], i)
        kept = kept * (1.0 if gain is None else gain[:, i - 1])
        add(i, corrected, k, integral(k, corrected, i - 1) * kept[:, None])
        add(i, before, k, -integral(k, before, i - 1) * kept[:, None])

    with np.errstate(all="ignore"):  # a table that is not finite has an infinite loss
        for number in range(steps):
            step(number)
    return Tables(logsnr, x, eps)


def _lagrange(places: Array) -> Array:
    """The integrals over [0, 1] of the Lagrange polynomials of m places, (q, m) of both."""
    weights = np.empty_like(places)
    for k in range(places.shape[1]):
        powers = np.ones((len(places), 1))  # coefficients of 1, s, s^2, ...
        for j in range(places.shape[1]):
            if j != k:
                up, down = (np.pad(powers, ((0, 0), side)) for side in ((1, 0), (0, 1)))
                powers = (up - places[:, j : j + 1] * down) / (places[:, k] - places[:, j])[:, None]
        weights[:, k] = (powers / np.arange(1, powers.shape[1] + 1)).sum(1)
    return weights


# ---------------------------------------------------------------------------- the three families


def low(where: Range, steps: int, rule: Rule, start: Array) -> Family:
    """The first family: kappa, the shift and the two exponents of `law`, all as logarithms.

    where: the range of the network.
    steps: the number of calls.
    rule: the Adams rule.
    start: theta at which the fit begins, (4,).
    """

    def tables(theta: Array) -> Tables:
        kappa, shift, a, b = np.exp(np.clip(theta, -7.0, 7.0)).T
        levels = law(where, steps, shift, a, b)
        return adams(levels, np.repeat(kappa[:, None], steps, 1), rule)

    return Family("low", start, np.array([1.0, 0.7, 0.3, 0.3]), tables)


def each(where: Range, levels: Array, kappa: float, rule: Rule) -> Family:
    """The second family: the levels, the logarithm of each step's kappa, and each gain.

    where: the range of the network.
    levels: the log-SNRs at which the fit begins, (n + 1,).
    kappa: the kappa of all steps at which the fit begins, > 0.
    rule: the Adams rule; without a corrector there are no gains.
    """
    steps = len(levels) - 1
    moved, gains = len(theta_of(where, levels)), steps if rule.corrector else 0
    start = [theta_of(where, levels), np.full(steps, math.log(kappa)), np.ones(gains)]
    scale = [np.ones(moved), np.full(steps, 2.0), np.ones(gains)]

    def tables(theta: Array) -> Tables:
        kappas = np.exp(np.clip(theta[:, moved : moved + steps], -8.0, 8.0))
        gain = theta[:, moved + steps :] if gains else None
        return adams(levels_of(where, theta[:, :moved]), kappas, rule, gain)

    return Family("e", np.concatenate(start), np.concatenate(scale), tables)


def full(where: Range, table: Tables) -> Family:
    """The third family: the levels, and the weights of x and eps for `LAGS` lags.

    where: the range of the network.
    table: the table at which the fit begins, a batch of one. Its weights of older calls are kept.
    """
    steps, moved = table.steps, len(theta_of(where, table.logsnr[0]))
    rows, calls = np.tril_indices(steps, -1)
    near = rows - calls <= LAGS
    rows, calls = rows[near], calls[near]
    parts = [theta_of(where, table.logsnr[0]), table.x[0][rows, calls], table.eps[0][rows, calls]]
    scale = [np.ones(moved), np.full(2 * len(rows), 0.2)]

    def tables(theta: Array) -> Tables:
        x, eps = (np.repeat(part, len(theta), 0) for part in (table.x, table.eps))
        x[:, rows, calls] = theta[:, moved : moved + len(rows)]
        eps[:, rows, calls] = theta[:, moved + len(rows) :]
        return Tables(levels_of(where, theta[:, :moved]), x, eps)

    return Family("full", np.concatenate(parts), np.concatenate(scale), tables)
