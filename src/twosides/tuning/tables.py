"""Families of tables: what is varied, from four numbers to all weights of two lags.

A *table* lists the log-SNRs at which the network is asked, and of each call the weights of
differences to earlier estimates, in units of the state's size (`solvers.Tabled`). A *family* makes
tables of a few parameters theta. Three are fitted one after the other, each from the best of the
one before:

    low     4          kappa, the shift, and the two exponents of a law of times
    e       3 n - 1    the levels, kappa of each step, and the gain of each correction
    full    5 n - 1    the levels, and the weights of (x, eps) of two lags

All start where the network's range starts and end at the data. Levels are counted in the log-SNR of
a flow time that is 1 and 0 at the ends of that range (`Range`), so that none can leave it; where a
schedule reaches from pure noise to data, this is the log-SNR itself.

Functions take a batch of theta, (q, p), and return a batch of tables: those of one Jacobian run as
one batch.
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

FAR = 40.0  # a log-SNR that is data to any float
NOISIEST = -14.0  # of levels that are moved
LAGS = 2  # whose weights are free in the last family


class Range(NamedTuple):
    """The log-SNRs between which a network is asked."""

    low: float
    high: float

    @classmethod
    def of(cls, schedule: Schedule) -> Range:
        """That of a schedule."""
        return cls(float(schedule.logsnr_min), float(schedule.logsnr_max))

    def inside(self, warped: Array) -> Array:
        """The log-SNRs of warped ones, (..., n), which may be any numbers that rise."""
        warped = np.minimum(warped, FAR + 0.02 * np.arange(warped.shape[-1]))  # none come twice
        if self.low == -math.inf and self.high == math.inf:
            return warped
        data, noise = _time(self.high), _time(self.low)
        return _logsnr(data + (noise - data) * _time(warped))

    def warped(self, logsnr: Array) -> Array:
        """The inverse; ends are moved in to finite places."""
        data, noise = _time(self.high), _time(self.low)
        part = np.clip((_time(logsnr) - data) / (noise - data), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            return np.clip(_logsnr(part), NOISIEST, FAR)


def _time(logsnr: Any) -> Any:
    """Flow time, `sigma / (alpha + sigma)`."""
    alpha, sigma = unit(logsnr)
    return sigma / (alpha + sigma)


def _logsnr(time: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 2 * (np.log1p(-time) - np.log(time))


class Tables(NamedTuple):
    """A batch of q tables of n calls.

    logsnr: (q, n + 1), the last of them infinite: the data.
    x, eps: (q, n, n), the weights of `x_k - x_i` and `eps_k - eps_i` after call i; 0 for k >= i.
    """

    logsnr: Array
    x: Array
    eps: Array

    @property
    def steps(self) -> int:
        """n, the number of network calls."""
        return self.x.shape[-1]

    def row(self, number: int) -> Tabled:
        """One of them as a solver."""
        levels, rows = self.logsnr[number], []
        for i in range(self.steps):
            pairs = ((i - k, self.x[number, i, k], self.eps[number, i, k]) for k in range(i))
            kept = [(lag, float(x), float(eps)) for lag, x, eps in pairs if x or eps]
            rows.append(tuple(sorted(kept)))
        return Tabled(tuple(levels.tolist()), tuple(rows))

    @classmethod
    def of(cls, solver: Tabled) -> Tables:
        """A batch of one, of a solver."""
        n = len(solver.rows)
        x, eps = np.zeros((1, n, n)), np.zeros((1, n, n))
        for i, row in enumerate(solver.rows):
            for lag, weight_x, weight_eps in row:
                x[0, i, i - lag], eps[0, i, i - lag] = weight_x, weight_eps
        return cls(np.array([solver.levels]), x, eps)


@dataclass(frozen=True, eq=False)
class Family:
    """Tables of parameters.

    name: "low", "e" or "full".
    start: theta where the search begins, (p,).
    scale: the size of a change of each that matters, (p,).
    tables: the function from (q, p) to q tables.
    """

    name: str
    start: Array
    scale: Array
    tables: Callable[[Array], Tables]

    def moved(self, start: Array) -> Family:
        """The same from another place."""
        return Family(self.name, start, self.scale, self.tables)


class Rule(NamedTuple):
    """An Adams rule on `eps - kappa x`: its order, and the calls of its corrector (0: none)."""

    order: int
    corrector: int
    lower_final: bool = False


RULES = (Rule(2, 0), Rule(2, 3), Rule(3, 4))  # kab2, kab2c, kab3c


# ---------------------------------------------------------------------------- levels


def law(where: Range, steps: int, shift: Array, a: Array, b: Array) -> Array:
    """The levels of a law of times, (q, n + 1), for (q,) exponents and shifts.

        y = (1 - (1 - q)^(1/b))^(1/a),   t = s y / (1 + (s - 1) y),   q = 1, (n-1)/n, ... 1/n

    y is the quantile function of Kumaraswamy's law, which has the shape of the Beta law's and a
    closed form: a = b = s = 1 is the uniform grid of flow matching, s its shift.
    """
    q = 1 - np.arange(steps)[None] / steps
    y = (1 - (1 - q) ** (1 / b[:, None])) ** (1 / a[:, None])
    t = shift[:, None] * y / (1 + (shift[:, None] - 1) * y)
    return _ended(where, where.inside(_logsnr(np.clip(t, 1e-12, 1 - 1e-6))))


def _ended(where: Range, logsnr: Array) -> Array:
    """The levels of the calls, the first set to where the range starts, and the data."""
    first = np.full((len(logsnr), 1), where.low)
    data = np.full((len(logsnr), 1), np.inf)
    return np.concatenate([first, logsnr[:, 1:], data], 1)


def levels_of(where: Range, theta: Array) -> Array:
    """The levels of (q, n - 1) numbers: the second level, and logarithms of what follows."""
    gaps = np.exp(np.clip(theta[:, 1:], -5.0, 3.2))
    rest = np.cumsum(np.concatenate([theta[:, :1], gaps], 1), 1)
    return _ended(where, where.inside(np.concatenate([theta[:, :1], rest], 1)))


def theta_of(where: Range, logsnr: Array) -> Array:
    """The inverse of `levels_of` for one table's levels; those that are too close move apart."""
    warped = where.warped(logsnr[1:-1])
    return np.concatenate([warped[:1], np.log(np.maximum(np.diff(warped), 0.02))])


# ---------------------------------------------------------------------------- Adams, in a batch


def adams(logsnr: Array, kappa: Array, rule: Rule, gain: Array | None = None) -> Tables:
    """The tables of Adams on `eps - kappa x` in its own eta, which `kappa_adams` has as a sampler.

    logsnr: (q, n + 1).
    kappa: (q, n), of each step.
    gain: (q, n), by which the correction that a call makes of the step before it is multiplied.
    """
    alpha, sigma = unit(logsnr)
    count, steps = kappa.shape
    x, eps = np.zeros((count, steps, steps)), np.zeros((count, steps, steps))

    def c(k: Array, level: int) -> Array:
        return alpha[:, level] + k * sigma[:, level]

    def integral(k: Array, calls: list[int], step: int) -> Array:
        """`c int o d(eta)` over a step, of o through these calls: their weights, (q, m)."""
        eta = [sigma[:, level] / c(k, level) for level in (step, step + 1, *calls)]
        length = eta[1] - eta[0]
        places = (np.stack(eta[2:], 1) - eta[0][:, None]) / length[:, None]
        return (c(k, step + 1) * length)[:, None] * _lagrange(places)

    def add(i: int, calls: list[int], k: Array, weights: Array) -> None:
        for call, weight in zip(calls, weights.T, strict=True):
            if call != i:  # that of the newest follows, for constants are kept
                x[:, i, call] -= k * weight
                eps[:, i, call] += weight

    def step(i: int) -> None:
        k = kappa[:, i]
        last = rule.lower_final and i == steps - 1
        calls = [i - lag for lag in range(1 if last else min(rule.order, i + 1))]
        add(i, calls, k, integral(k, calls, i))
        used = min(rule.order, i)
        through = min(rule.corrector, used + 1) if rule.corrector else 2 * (used == 1 < rule.order)
        if i == 0 or through < 2:
            return
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
    """The integrals over [0, 1] of Lagrange's polynomials through places, (q, m)."""
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
    """kappa, the shift and two exponents, all as logarithms."""

    def tables(theta: Array) -> Tables:
        kappa, shift, a, b = np.exp(np.clip(theta, -7.0, 7.0)).T
        levels = law(where, steps, shift, a, b)
        return adams(levels, np.repeat(kappa[:, None], steps, 1), rule)

    return Family("low", start, np.array([1.0, 0.7, 0.3, 0.3]), tables)


def each(where: Range, levels: Array, kappa: float, rule: Rule) -> Family:
    """The levels, kappa of each step as a logarithm, and the gain of each correction."""
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
    """The levels, and the weights of `LAGS` lags; what a table has of older calls is kept."""
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
