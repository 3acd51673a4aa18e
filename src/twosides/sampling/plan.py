"""Plans: the normal form of samplers, a table of coefficients with one row per network call.

Every sampler on a fixed grid is linear in the answers of the network. A run of its solver on
symbols in place of tensors gives a *plan*: n network calls at given levels, and n + 1 states (the
inputs of the calls, then the result), each a combination of the estimates so far and of noises,

    state_i = sum_k x[i, k] x_k + eps[i, k] eps_k  +  sum_j noise[i, j] n_j

where (x_k, eps_k) is the estimate of call k, n_0 the initial noise and n_1 ... those injected. The
pair carries the state too, z_k = alpha_k x_k + sigma_k eps_k, so that the rows are recurrences: a
caller may edit z between calls (inpainting), and only the history that is still needed is kept.
Since the numbers are plain, a plan runs anywhere: here (`run`), in another framework, or in a few
lines of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twosides.outputs import Estimate, Output, output_named
from twosides.sampling.frames import Array
from twosides.schedules import FlowMatching, Level

Key = tuple[str, int]  # ("x" | "eps" | "noise", number)
Terms = dict[Key, float]


class Symbol:
    """A linear combination of estimates and noises, with which a solver computes when traced."""

    __slots__ = ("terms",)

    def __init__(self, terms: Terms) -> None:
        """From coefficients of ("x" | "eps" | "noise", number)."""
        self.terms = terms

    def __add__(self, other: Symbol) -> Symbol:
        total = dict(self.terms)
        for key, value in other.terms.items():
            total[key] = total.get(key, 0.0) + value
        return Symbol(total)

    def __mul__(self, factor: float) -> Symbol:
        return Symbol({key: factor * value for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Symbol:
        return self * -1.0

    def __sub__(self, other: Symbol) -> Symbol:
        return self + other * -1.0

    def __truediv__(self, divisor: float) -> Symbol:
        return self * (1.0 / divisor)


class Weights(NamedTuple):
    """The final sample as `initial n_0 + sum_k predictions_k o_k + sum_j noises_j n_j`."""

    initial: float
    predictions: Array
    noises: Array


@dataclass(frozen=True)
class Plan:
    """A sampler on a grid, as numbers; the formula is that of the module.

    levels: those of the n + 1 states, the last being that of the result.
    rows: the coefficients of each state by ("x" | "eps" | "noise", number); what is absent is 0.
    noises: m, the number of injected noises.
    name: where the plan comes from.

    `logsnr`, `alpha`, `sigma` (n + 1,), `x`, `eps` (n + 1, n) and `noise` (n + 1, 1 + m) are the
    same as float64 arrays. The last three hold all zeros, for which long plans have no memory.
    """

    levels: tuple[Level, ...]
    rows: tuple[Terms, ...]
    noises: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        """ValueError unless levels and rows fit together and each row uses only earlier calls."""
        if self.nfe < 1 or len(self.rows) != len(self.levels):
            raise ValueError(
                f"a plan of n >= 1 calls has n + 1 levels and rows, got {len(self.levels)} levels "
                f"and {len(self.rows)} rows"
            )
        for number, row in enumerate(self.rows):
            if any(k > self.noises if kind == "noise" else k >= number for kind, k in row):
                raise ValueError("a plan's row uses a network call or noise that comes after it")
        alpha, sigma = np.abs(self.alpha), np.abs(self.sigma)
        with np.errstate(divide="ignore"):
            logsnr = 2 * (np.log(alpha) - np.log(sigma))
        # Where floats of t near 1 are too coarse to tell levels apart, only roughly.
        matches = np.isclose(logsnr, self.logsnr, rtol=1e-6, atol=1e-6)
        matches |= np.minimum(np.abs(logsnr), np.abs(self.logsnr)) > 50
        if np.isnan(self.logsnr).any() or not (matches | ~np.isfinite(alpha + sigma)).all():
            raise ValueError("a plan's logsnr is not that of its alpha and sigma")
        finite = all(math.isfinite(value) for row in self.rows for value in row.values())
        if not finite or not np.isfinite(alpha + sigma).all():
            raise ValueError(
                f"the plan {self.name} has infinite or undefined coefficients; its grid reaches a "
                "level where alpha or sigma is infinite: use with_scaling('vp') or a shorter grid"
            )

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return len(self.levels) - 1

    @property
    def stochastic(self) -> bool:
        """Whether noise is injected after the initial one."""
        return self.noises > 0

    @cached_property
    def logsnr(self) -> Array:
        """The log-SNRs of the states, (n + 1,)."""
        return np.array([level.logsnr for level in self.levels], dtype=np.float64)

    @cached_property
    def alpha(self) -> Array:
        """The weights of the data, (n + 1,)."""
        return np.array([level.alpha for level in self.levels], dtype=np.float64)

    @cached_property
    def sigma(self) -> Array:
        """The weights of the noise, (n + 1,)."""
        return np.array([level.sigma for level in self.levels], dtype=np.float64)

    @cached_property
    def x(self) -> Array:
        """The coefficients of the estimates x_k, (n + 1, n)."""
        return self._table("x", self.nfe)

    @cached_property
    def eps(self) -> Array:
        """The coefficients of the estimates eps_k, (n + 1, n)."""
        return self._table("eps", self.nfe)

    @cached_property
    def noise(self) -> Array:
        """The coefficients of the noises, (n + 1, 1 + m), the initial one first."""
        return self._table("noise", 1 + self.noises)

    def _table(self, part: str, width: int) -> Array:
        table = np.zeros((len(self.rows), width))
        for i, row in enumerate(self.rows):
            for (kind, k), value in row.items():
                if kind == part:
                    table[i, k] = value
        return table

    def __repr__(self) -> str:
        """Short form."""
        ends = f"logsnr {self.logsnr[0]:.4g} to {self.logsnr[-1]:.4g}"
        return f"Plan({self.name}: {self.nfe} calls, {self.noises} injected noises, {ends})"

    def matrix(self, output: str | Output = "u") -> Array:
        """All states over (initial noise, n outputs, m injected noises): (n + 1, 1 + n + m).

        Lower triangular in the outputs. ValueError where the output does not determine the estimate
        (eps at zero SNR). A "velocity" output means that of flow matching.
        """
        output = output_named(output, FlowMatching())
        calls, noises = self.nfe, self.noises
        states = np.zeros((calls + 1, 1 + calls + noises))
        solved = [output.solve(level) for level in self.levels[:-1]]
        for i, row in enumerate(self.rows):
            for (kind, k), value in row.items():
                if kind == "noise":
                    states[i, calls + k if k else 0] += value
                    continue
                x_z, x_o, eps_z, eps_o = solved[k]
                of_state, of_output = (x_z, x_o) if kind == "x" else (eps_z, eps_o)
                states[i] += value * float(of_state) * states[k]
                states[i, 1 + k] += value * float(of_output)
        return states

    def weights(self, output: str | Output = "u") -> Weights:
        """What each prediction and noise weighs in the final sample (the post's churn figure).

        Signs are those of the formula: the weights of v and u, which point towards the noise, are
        negative.

            >>> import twosides as ts
            >>> weights = ts.plan("ddim", ts.Cosine(-15, 15), 100).weights("v")
            >>> print((-weights.predictions).min().round(6), (-weights.predictions).max().round(6))
            0.015506 0.015696
        """
        last, calls = self.matrix(output)[-1], self.nfe
        return Weights(float(last[0]), last[1 : 1 + calls], last[1 + calls :])

    # What lies on disk is for the room of files, which is above this one.

    def to_json(self) -> str:
        """The plan as JSON text."""
        from twosides.storage import plans

        return plans.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan back, exactly; ValueError for anything else."""
        from twosides.storage import plans

        return plans.from_json(text)

    def to_npz(self, path: str | Path) -> None:
        """The arrays of the plan as an .npz file of that very name."""
        from twosides.storage import plans

        plans.to_npz(self, path)

    @classmethod
    def from_npz(cls, path: str | Path) -> Plan:
        """The plan back, exactly; nothing is unpickled."""
        from twosides.storage import plans

        return plans.from_npz(path)


def trace(
    sampler: Callable[[Any, Callable[[], Any]], Generator[Any, Estimate, Any]],
    final: Level,
    name: str = "",
) -> Plan:
    """Run a sampler on symbols: the plan.

    sampler: a function of the initial noise and of a source of more, which yields (z, level) where
        it wants the network, is sent an estimate and returns the result.
    final: the level of the result.
    """
    noises = 0

    def noise() -> Symbol:
        nonlocal noises
        noises += 1
        return Symbol({("noise", noises): 1.0})

    asks = sampler(Symbol({("noise", 0): 1.0}), noise)
    rows: list[Terms] = []
    levels: list[Level] = []
    estimate: Estimate | None = None
    while True:
        try:
            z, level = next(asks) if estimate is None else asks.send(estimate)
        except StopIteration as stop:
            rows.append(stop.value.terms)
            return Plan((*levels, final), tuple(rows), noises, name)
        call = len(rows)
        rows.append(z.terms)
        levels.append(level)
        # The symbol z is replaced by alpha x + sigma eps of this call, so that what the solver goes
        # on to compute with it refers to the current state only: the rows are recurrences.
        z.terms = {("x", call): level.alpha, ("eps", call): level.sigma}
        estimate = Estimate(Symbol({("x", call): 1.0}), Symbol({("eps", call): 1.0}))
