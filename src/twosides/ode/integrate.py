"""Embedded Runge-Kutta pairs for any ordinary differential equation `dy / d eta = field(eta, y)`.

A pair is two Runge-Kutta methods that share their network calls. Their difference estimates the
error of a step, and the step size follows that error: see `adaptive`, where the formulas stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.sampling.run import combine

State = tuple[Tensor, ...]
Field = Callable[[float, State], State]


class Pair(NamedTuple):
    """An explicit Runge-Kutta method with an error estimate; its last stage starts the next step.

    order: the order of the method whose result is kept.
    nodes: where the stages after the first lie, in fractions of the step.
    rows: for each node the weights of the stages so far; the last row is the method itself.
    error: the weights of the method less those of the embedded method, which has one order less.
    """

    order: int
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]


PAIRS: dict[str, Pair] = {
    # Dormand & Prince 1980, 5(4): six calls per step.
    "dopri5": Pair(
        5,
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
    # Bogacki & Shampine 1989, 3(2): three calls per step.
    "bosh3": Pair(
        3,
        (1 / 2, 3 / 4, 1.0),
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    ),
}


# The gains of the controller, (P, I, D). Of eight settings that were tried, (0, 1, 0) among them,
# these took the fewest calls for a given error, on a ring of Gaussians and on mixtures in 64 D.
PID = (0.4, 0.3, 0.0)
SHRINK, GROW = 0.2, 10.0  # the limits of how much a step may differ from the one before
LEAST = 1e-9  # the least error that the controller remembers: it divides by earlier errors


class Integral(NamedTuple):
    """The result of an integration.

    y: the state at the end.
    calls: how often the field was asked.
    rejected: how many steps were done again with a smaller size.
    nodes: the values of eta at which accepted steps begin and end.
    """

    y: State
    calls: int
    rejected: int
    nodes: list[float]


@dataclass(frozen=True)
class Adaptive:
    """How steps are chosen: so that the error of each, as a pair of methods tells it, is tolerated.

        error = max over tensors and samples of the rms of |y - y_lower| / (atol + rtol max |y|)

    rtol, atol: relative tolerance, >= 0, and absolute tolerance, > 0, in units of y.
    method: "dopri5" (order 5) or "bosh3" (order 3).
    max_calls: how often the field may be asked, >= 1.

    ValueError for others.

    >>> Adaptive(rtol=1e-3)
    Adaptive(rtol=0.001, atol=1e-06, method='dopri5', max_calls=10000)
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    method: str = "dopri5"
    max_calls: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in PAIRS:
            raise unknown("method", self.method, PAIRS)
        if not (0 <= self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(
                "tolerances are finite, rtol >= 0 and atol > 0, got "
                f"rtol={self.rtol} and atol={self.atol}"
            )
        if self.max_calls < 1:
            raise ValueError(f"max_calls must be at least 1, got {self.max_calls}")

    def norm(self, change: State, here: State, there: State) -> float:
        """The largest over tensors and samples of the rms of `change` in units of tolerance."""
        worst = []
        for part, a, b in zip(change, here, there, strict=True):
            part, size = part.detach(), torch.maximum(a.detach().abs(), b.detach().abs())
            scaled = part / (self.atol + self.rtol * size)
            worst.append(scaled.reshape(len(scaled), -1).square().mean(1).amax())
        return math.sqrt(float(torch.stack(worst).amax()))


def integrate(
    field: Field,
    y: State,
    start: float,
    end: float,
    adaptive: Adaptive = Adaptive(),
    *,
    record: Callable[[float, State], None] | None = None,
) -> Integral:
    """Solve `dy / d eta = field(eta, y)` from `start` to `end`, in either direction.

    field: gives one slope per tensor of the state; it is asked at `start` and `end`, too.
    y: the state at `start`, tensors whose first axis is that of the samples.
    start, end: the ends; ValueError unless they are finite and different.
    adaptive: the method, the tolerances and the limit of calls.
    record: a function that is called with (eta, y) at each accepted node, the two ends included.

    Gradients are recorded if the caller's mode says so; the sizes of the steps are constants then.
    RuntimeError where the step size vanishes, `max_calls` is reached or something is not finite.
    """
    if not 0 < abs(end - start) < math.inf:
        raise ValueError(f"an ODE is solved between two different finite ends, got {start}, {end}")
    pair = PAIRS[adaptive.method]
    tell = record or (lambda eta, y: None)
    ask = _Counted(field, adaptive.max_calls, end)
    eta, slope, rejected, nodes, errors = start, ask(start, y), 0, [start], (1.0, 1.0)
    tell(eta, y)
    step = _first_step(ask, adaptive, start, end, y, slope)
    while eta != end:
        ahead = end if abs(end - eta) <= 1.01 * abs(step) else eta + step
        there, slope_there, change = _attempt(ask, pair, eta, ahead, y, slope)
        error = adaptive.norm(change, y, there)
        _require_finite(error, eta, ahead)
        factor = _factor(pair.order, (error, *errors))
        if error <= 1:
            eta, y, slope, errors = ahead, there, slope_there, (error, errors[0])
            nodes.append(eta)
            tell(eta, y)
        else:
            rejected, factor = rejected + 1, min(factor, 0.9)
        step *= factor
        _require_progress(step, start, end, eta)
    return Integral(y, ask.calls, rejected, nodes)


class _Counted:
    """The field, with a count of its calls."""

    def __init__(self, field: Field, limit: int, end: float) -> None:
        self.field, self.limit, self.end, self.calls = field, limit, end, 0

    def __call__(self, eta: float, y: State) -> State:
        if self.calls >= self.limit:
            raise RuntimeError(
                f"max_calls={self.limit} calls brought the solution to eta = {eta:.6g} only, on "
                f"the way to {self.end:.6g}; allow more, or loosen rtol and atol (the rounding of "
                "float32 states is about 1e-7)"
            )
        self.calls += 1
        return self.field(eta, y)


def _first_step(
    ask: Field, adaptive: Adaptive, start: float, end: float, y: State, slope: State
) -> float:
    """The step that a solution of this slope and curvature affords [Hairer+ 1993, II.4]."""
    span, order = abs(end - start), PAIRS[adaptive.method].order
    speed = adaptive.norm(slope, y, y)
    _require_finite(speed, start, start)
    guess = min(0.01 * (1 + adaptive.norm(y, y, y)) / speed, 0.1 * span) if speed else 0.1 * span
    signed = math.copysign(guess, end - start)
    there = ask(start + signed, _moved(y, [slope], signed, (1.0,)))
    bend = adaptive.norm(_moved(there, [slope], 1.0, (-1.0,)), y, y) / guess
    _require_finite(bend, start, start + signed)
    rate = max(speed, bend)
    length = min(100 * guess, (0.01 / rate) ** (1 / order), span) if rate else span
    return math.copysign(length, end - start)


def _attempt(
    ask: Field, pair: Pair, eta: float, ahead: float, y: State, slope: State
) -> tuple[State, State, State]:
    """Take one step; return the state at `ahead`, its slope there, and the estimated error."""
    step, slopes, state = ahead - eta, [slope], y
    for node, row in zip(pair.nodes, pair.rows, strict=True):
        state = _moved(y, slopes, step, row)
        slopes.append(ask(ahead if node == 1 else eta + node * step, state))
    change = tuple(
        combine([(s[i], step * w) for s, w in zip(slopes, pair.error, strict=True) if w])
        for i in range(len(y))
    )
    return state, slopes[-1], change


def _moved(y: State, slopes: Sequence[State], step: float, row: tuple[float, ...]) -> State:
    """`y + step sum_j row_j slopes_j`."""
    return tuple(
        combine([(y[i], 1.0), *((s[i], step * w) for s, w in zip(slopes, row, strict=True) if w)])
        for i in range(len(y))
    )


def _factor(order: int, errors: tuple[float, ...]) -> float:
    """The factor by which the controller changes the step size.

    order: the order of the pair.
    errors: the errors of the last three steps, latest first, in units of the tolerance.
    """
    p, i, d = PID
    powers = (p + i + d, -(p + 2 * d), d)
    raised = (max(error, LEAST) ** (-b / order) for error, b in zip(errors, powers, strict=True))
    return min(max(0.9 * math.prod(raised), SHRINK), GROW)


def _require_finite(error: float, eta: float, ahead: float) -> None:
    if not math.isfinite(error):
        raise RuntimeError(
            f"the state or its slope is not finite between eta = {eta:.6g} and {ahead:.6g}: the "
            "denoiser answers NaN or infinity there, or overflows its dtype; look at its estimates "
            "at these levels, or stop before them"
        )


def _require_progress(step: float, start: float, end: float, eta: float) -> None:
    if abs(step) < 1e-15 * abs(end - start):
        raise RuntimeError(
            f"the step has shrunk to {abs(step):.2g} at eta = {eta:.6g} and its error still "
            "exceeds the tolerance: the denoiser is singular there; stop before this level, "
            "loosen rtol and atol, or use a fixed grid"
        )
