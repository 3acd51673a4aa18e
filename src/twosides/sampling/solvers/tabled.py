"""A solver given by rows: any consistent table of coefficients, as a sampler for every schedule.

Whatever holds an estimate that does not change (`solver.hold`) is DDIM plus differences to earlier
estimates. In units of the state's size, `|(alpha, sigma)|`, their weights do not depend on the
scaling of a schedule, so that one table serves flow matching, VP and VE alike. It is what
`twosides.tuning` finds, and what papers publish that fit coefficients to a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from twosides.sampling.noise.route import Leg
from twosides.sampling.plan import Plan, Terms
from twosides.sampling.solvers.solver import Asks, Solver, hold
from twosides.schedules import Level

Row = tuple[tuple[int, float, float], ...]
ROUNDING = 1e-9  # of what a row may add to a constant


@dataclass(frozen=True)
class Tabled(Solver):
    """DDIM plus weighted differences to earlier estimates, by the number of the network call.

        z' = alpha' x_i + sigma' eps_i
             + |(alpha', sigma')| sum_lag [ wx (x_(i-lag) - x_i) + we (eps_(i-lag) - eps_i) ]

    It is exact for estimates that do not change, whatever the weights. Where a run begins in the
    middle (image to image), a difference to an estimate that is not there counts as 0.

    levels: the log-SNRs of the n calls, from noise to data, and of the result: n + 1. A level may
        come twice, as it does in the method of Heun, which asks the end of a step.
    rows: of each call, (lag, wx, we) for the lags from 1 to the number of calls before it.

    Its grid is `grids.Given(solver.nodes)`; each leg must lead from a level of the table to another
    (or to the table's next one, if nothing was asked before), else ValueError. So is a table that
    does not fit together, and a run with noise or towards the noise.

    >>> from twosides.sampling.named import plan
    >>> from twosides.schedules import FlowMatching
    >>> Tabled.of(plan("kab2", FlowMatching(), 2)).rows
    ((), ((1, -0.5, 0.5),))
    """

    levels: tuple[float, ...]
    rows: tuple[Row, ...]

    order = 1

    @classmethod
    def of(cls, plan: Plan) -> Tabled:
        """The table of a plan; ValueError for one with noise, or that changes constants."""
        if plan.stochastic:
            raise ValueError(f"{plan!r} injects noise, for which a table of weights has no place")
        sizes = [math.hypot(level.alpha, level.sigma) for level in plan.levels]
        fresh = {key: value / sizes[0] for key, value in plan.rows[0].items()}
        if set(fresh) != {("noise", 0)} or not math.isclose(fresh["noise", 0], 1.0, rel_tol=1e-12):
            raise ValueError(f"{plan!r} does not begin with noise of the size of its first level")
        rows = list[Row]()
        for row, level, size in zip(plan.rows[1:], plan.levels[1:], sizes[1:], strict=True):
            _check_constants(plan, row, level, size)
            newest = len(rows)
            row_of = list[tuple[int, float, float]]()
            for call in sorted({k for _, k in row if k < newest}, reverse=True):
                x, eps = (row.get((part, call), 0.0) / size for part in ("x", "eps"))
                row_of.append((newest - call, x, eps))
            rows.append(tuple(row_of))
        return cls(tuple(plan.logsnr.tolist()), tuple(rows))

    def __post_init__(self) -> None:
        """ValueError for what is no table; lists become tuples."""
        rows = tuple(tuple((lag, float(x), float(eps)) for lag, x, eps in row) for row in self.rows)
        levels = tuple(map(float, self.levels))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "levels", levels)
        if not rows or len(levels) != len(rows) + 1:
            raise ValueError(
                f"a table of n >= 1 rows has n + 1 levels, got {len(rows)} rows and "
                f"{len(levels)} levels"
            )
        if not all(here <= there for here, there in pairwise(levels)):
            raise ValueError(f"the levels of a table rise from noise to data, got {levels}")
        for call, row in enumerate(rows):
            for lag, *weights in row:
                if type(lag) is not int or not 1 <= lag <= call:
                    raise ValueError(f"row {call} has a lag of 1 to {call} calls, got {lag!r}")
                if not all(map(math.isfinite, weights)):
                    raise ValueError(f"the weights of row {call} are not finite: {weights}")

    @property
    def nodes(self) -> tuple[float, ...]:
        """The levels without repetitions, which its grid visits."""
        return tuple(dict.fromkeys(self.levels))

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Network calls per leg between its nodes, the most that there are."""
        ends = [self._last(node) or 0 for node in self.nodes]
        return max(there - here for here, there in pairwise(ends))

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """The calls from the level of the table where the leg starts to that where it ends."""
        first, end = self._calls(leg, bool(memory))
        for call in range(first, end):
            here = leg.here if call == first else self._level(call, leg)
            memory.insert(0, (yield z, here))
            over = leg.over if call + 1 == end else self._level(call + 1, leg)
            z = self._state(call, memory, over)
        del memory[max((lag for row in self.rows for lag, *_ in row), default=0) + 1 :]
        return z

    def _state(self, call: int, memory: Sequence[Any], over: Level) -> Any:
        newest, size = memory[0], math.hypot(over.alpha, over.sigma)
        state = hold(newest, over)
        for lag, x, eps in self.rows[call]:
            if lag < len(memory):
                then = memory[lag]
                state = state + (size * x) * (then.x - newest.x)
                state = state + (size * eps) * (then.eps - newest.eps)
        return state

    def _level(self, number: int, leg: Leg) -> Level:
        return leg.schedule.level(self.levels[number]).floats()

    def _calls(self, leg: Leg, begun: bool) -> tuple[int, int]:
        """The first call of a leg, and that after its last."""
        if leg.overshoot:
            raise ValueError("Tabled is deterministic: it cannot run with noise")
        first, end = self._last(leg.here.logsnr), self._last(leg.there.logsnr)
        if first is None and end and not begun:
            # Begun between two levels: this call is the only one, and it goes to the next level.
            inside = self.levels[end - 1] <= leg.here.logsnr <= self.levels[end]
            first = end - 1 if inside else None
        if first is None or end is None or first >= end:
            raise ValueError(
                f"a step from logsnr {leg.here.logsnr:.6g} to {leg.there.logsnr:.6g} is none of "
                f"this table's, whose {len(self.nodes) - 1} steps lead through logsnr "
                f"{', '.join(f'{node:.6g}' for node in self.nodes)}; run it on its own levels: "
                "Sampler(grids.Given(solver.nodes), solver)"
            )
        return first, end

    def _last(self, logsnr: float) -> int | None:
        """The number of the last level that is this one; callers' levels are often float32."""
        close = [k for k, level in enumerate(self.levels) if _near(level, logsnr)]
        return max(close, key=lambda k: (-_apart(self.levels[k], logsnr), k), default=None)


def _apart(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b)


def _near(a: float, b: float) -> bool:
    """Whether two log-SNRs are one level: to 1e-3, or 1e-6 in flow time."""
    return _apart(a, b) <= 1e-3 or abs(_time(a) - _time(b)) <= 1e-6


def _time(logsnr: float) -> float:
    """Flow time, sigma / (alpha + sigma)."""
    return 0.5 - 0.5 * math.tanh(0.25 * logsnr)


def _check_constants(plan: Plan, row: Terms, level: Level, size: float) -> None:
    for part, wanted in (("x", level.alpha), ("eps", level.sigma)):
        found = sum(value for (kind, _), value in row.items() if kind == part)
        if any(kind == "noise" for kind, _ in row) or abs(found - wanted) > ROUNDING * size:
            raise ValueError(
                f"{plan!r} does not keep a constant estimate: a row's weights of {part} sum to "
                f"{found:.6g}, not {wanted:.6g}, and DDIM plus differences is no form of it"
            )
