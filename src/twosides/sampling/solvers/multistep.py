"""Multistep solvers: the output of a frame is the polynomial through past network calls.

In the frame of an output o the ODE is `d(z / c) = o d(eta)` (`frames`), so that a leg from t to s
is

    z_s = (c_s / c_t) z + c_s int o d(eta)

If o is the polynomial P through the last calls, in a variable of one's choice, the integral is a
sum of weights times calls. The weights come from Gauss-Legendre quadrature in float64; no formula
of a paper is typed in.

With noise the ODE of a leg runs on to `over`, while the calls that a solver remembers were made at
real levels. P is therefore read at the pace of the leg: while the variable goes through the real
levels from `here` to `there`, the ODE goes from `here` to `over`. This makes the method the
exponential integrator of the reverse SDE [Lu+ 2022, Gonzalez+ 2023].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from twosides.naming import unknown
from twosides.outputs import Estimate, Output
from twosides.sampling.frames import NODES, WEIGHTS, Array, Frame, Variable, check, variable_of
from twosides.sampling.noise.route import Leg
from twosides.sampling.solvers.solver import Asks, Solver, hold, reach
from twosides.schedules import Level

RULES = ("exact", "midpoint", *(_HALVED := ("halved", "published")))


@dataclass(frozen=True)
class Integral:
    """`c_over int o d(eta)` along a leg, from `here` to `over`, for polynomials o.

    frame: the frame of o.
    variable: what o is a polynomial in; None for the number of the step. Places are measured in it:
        0 is the start of the leg and 1 its end, `there`.
    leg: the leg. While the places go from 0 to 1, the ODE goes from `here` to `over`.
    """

    frame: Frame
    variable: Variable | None
    leg: Leg

    @property
    def reach(self) -> float:
        """The integral of 1, the weight of a constant."""
        return reach(self.leg, self.frame)

    @property
    def carry(self) -> float:
        """What is left of z at the end, `c_over / c_here`."""
        here, over = self.leg.here, self.leg.over
        return self.frame.scale(over.alpha, over.sigma) / self.frame.scale(here.alpha, here.sigma)

    def places(self, logsnrs: Sequence[float]) -> Array:
        """Where calls at these log-SNRs lie, latest first; infinite where the variable is."""
        if self.variable is None:
            return -np.arange(len(logsnrs), dtype=np.float64)
        ends = self.leg.here.logsnr, self.leg.there.logsnr
        first, end, *rest = self.variable.of(np.array([*ends, *logsnrs]))
        if not math.isfinite(end):  # nothing but a constant has an integral to there
            return np.array([0.0] + [math.inf] * (len(rest) - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.array(rest, dtype=np.float64) - first) / (end - first)

    def weights(self, places: Array, rule: str = "exact") -> Array:
        """The weights of values of o at these places, exact for polynomials through them."""
        count = len(places)
        with np.errstate(over="ignore", invalid="ignore"):  # `within` refuses what is not finite
            moments = self._moments(count)
        if rule in ("midpoint", "published") and count == 2:
            moments[1] = 0.5 * moments[0]  # a line, read in the middle of the leg
        if rule in _HALVED and count == 3:
            moments[2] *= 0.5
        return np.linalg.solve(np.vander(places, increasing=True).T, moments).astype(np.float64)

    def within(self, limit: float, weights: Array) -> bool:
        """Whether these weights move the state by `limit` times its size at most.

        The size of the state is that for unit x and eps, and the size of o is that of (a, b).
        """
        state = math.hypot(self.leg.over.alpha, self.leg.over.sigma)
        moved = float(np.abs(weights).sum()) * math.hypot(*self.frame)
        return math.isfinite(moved) and moved <= limit * state

    def _moments(self, count: int) -> Array:
        """The integrals of 1, s, s^2, ..., s the place.

        By parts, `c int s^j d(eta) = reach - j c int s^(j-1) (eta(s) - eta_here) ds`.
        """
        powers, leg = np.arange(count, dtype=np.float64), self.leg
        if count == 1 or self.variable is None:
            return self.reach / (powers + 1)
        scale = float(self.frame.scale(leg.over.alpha, leg.over.sigma))
        if scale == 0:  # the whole integral lies at the end
            return np.full(count, self.reach)
        first, end = self.variable.of(np.array([leg.here.logsnr, leg.there.logsnr]))
        real = self.variable.logsnr(first + NODES * (end - first))
        start, pace = leg.here.logsnr, leg.pace
        along = start + pace * (real - start) if pace > 1 else real
        gaps = WEIGHTS * scale * self.frame.gap(leg.here, along)
        slopes = powers * NODES[:, None] ** np.maximum(powers - 1, 0)
        return self.reach - gaps @ slopes


def integrate(integral: Integral, weights: Array, estimates: Sequence[Estimate], end: Level) -> Any:
    """`carry z + sum_k weights_k o_k`, where the first estimate is that of z.

    Written as DDIM and differences, for the weights of a constant are DDIM's: no digits are lost
    where c nearly vanishes.
    """
    frame = integral.frame
    state, first = hold(estimates[0], end), frame.output(estimates[0])
    for weight, estimate in zip(weights[1:], estimates[1:], strict=True):
        state = state + float(weight) * (frame.output(estimate) - first)
    return state


class Asked(NamedTuple):
    """A network call: its log-SNR and the estimate."""

    logsnr: float
    estimate: Estimate


@dataclass(frozen=True)
class _Prediction:
    """A leg as it was predicted, kept until the next call corrects it.

    calls: that of the leg and those before, latest first; the polynomial went through the first
        of them, at these places and with these weights.
    """

    integral: Integral
    calls: list[Asked]
    places: Array
    weights: Array


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth, with Adams-Moulton as corrector: o is the polynomial through past calls.

        z_s = (c_s / c_t) z + c_s int P(tau) d(eta),   P through the last `order` calls in tau

    order: the number of calls that P goes through, 1 to 4.
    output: the frame: x, eps, u, v, kappa(k).
    variable: what P is a polynomial in: "logsnr", "t", "angle", "index" (the number of the step),
        or the eta of an output; by default that of the frame itself.
    corrector: the number of calls through which each leg is done again once its end has been asked:
        the new call and those before it; 0 for never. This costs no call [Zhao+ 2023].
    rule: how a line through two calls is integrated, "exact" or read in the "midpoint" of the leg
        (DPM-Solver++, UniPC bh2). "halved" is exact but for half of the quadratic term, a mistake
        of k-diffusion's 3M SDE, and "published", of DPM-Solver++(3M), both: of order 2.
    lower_order_final: use no more calls than legs remain.
    corrected_start: correct the first leg, which is Euler's for want of earlier calls, once the
        next call is known. Without that it limits the whole run to order 2, and at few steps it is
        often the largest error.
    limit: how far past estimates are trusted. If the terms of the older calls together would move
        the state by more than `limit` times its size, the oldest are dropped until they do not; a
        correction that large is not made. This happens in frames that are singular at an end (x,
        eps in logsnr), in the first and last steps of most grids, and on grids whose steps grow
        abruptly. `math.inf` trusts all, as the published codes do.

    With noise the polynomial is one in x whatever the output: the noise in past eps has been
    replaced since, and only x is smooth along the path. Where frame or variable is infinite, at
    zero SNR or zero noise, the estimate is held, which is first order for this one leg.
    """

    order: int = 2
    output: str | Output = "u"
    variable: str | Output | None = None
    corrector: int = 0
    rule: str = "exact"
    lower_order_final: bool = False
    corrected_start: bool = True
    limit: float = 1.0

    nfe = 1

    def __post_init__(self) -> None:
        """ValueError for orders and rules there are not."""
        if type(self.order) is not int or self.order not in (1, 2, 3, 4):
            raise ValueError(f"Adams has order 1, 2, 3 or 4, got {self.order!r}")
        if type(self.corrector) is not int or self.corrector not in (0, 2, 3, 4, 5):
            raise ValueError(
                f"corrector is a number of calls, 0 (none) or 2 to 5, got {self.corrector!r}"
            )
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        check(self.output, self.variable, self.limit)

    def convergence(self, noisy: bool) -> int:
        """One more than the order with a longer corrector, but at most 3, and 2 with noise.

        The second call is made at a state that Euler's step has reached, with an error of second
        order; its answer is never asked again, so that no run is of a higher order than 3.
        """
        rough = self.rule in _HALVED or self.lower_order_final or self.variable == "index"
        plain = not self.corrector and not self.corrected_start
        order = min(self.order + 1, self.corrector) if self.corrector else self.order
        return min(order, 2 if noisy or rough or plain else 3)

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, leg.here
        new = Asked(leg.here.logsnr, estimate)
        last: _Prediction | None = memory.pop() if memory else None
        # What the call says of the leg before: a correction of the state that it was asked at.
        correction = self._correction(last, new) if last else None
        # The polynomial through this call and those before, over the new leg.
        made = self._prediction(leg, [new, *(last.calls if last else [])])
        if made is None:
            return hold(estimate, leg.over)
        memory.append(made)
        estimates = [call.estimate for call in made.calls[: len(made.weights)]]
        state = integrate(made.integral, made.weights, estimates, leg.over)
        return state if correction is None else state + made.integral.carry * correction

    def _prediction(self, leg: Leg, calls: list[Asked]) -> _Prediction | None:
        """The weights of a leg, through as many calls as are trusted; None: hold the estimate."""
        frame = Frame.regular(self.output, leg.here, leg.schedule)
        variable = variable_of(self.variable, frame, leg.schedule) if frame else None
        if frame and leg.overshoot:
            frame = Frame.regular("x", leg.here, leg.schedule)
        integral = Integral(frame, variable, leg) if frame else None
        if integral is None or not math.isfinite(integral.reach):
            return None
        count = min(self.order, leg.left) if self.lower_order_final else self.order
        places = integral.places([call.logsnr for call in calls])
        usable = int(np.isfinite(places).cumprod().sum())
        places = places[: min(count, usable)] if usable else np.zeros(1)
        weights = integral.weights(places, self.rule)
        while not integral.within(self.limit, weights[1:]):
            places = places[:-1]
            weights = integral.weights(places, self.rule)
        return _Prediction(integral, calls[: max(self.order, self.corrector)], places, weights)

    def _correction(self, last: _Prediction, new: Asked) -> Any:
        """What the last leg lacks, now that its end has been asked; None: it stays as it is."""
        used, integral, leg = len(last.weights), last.integral, last.integral.leg
        starting = self.corrected_start and used == 1 < self.order and not leg.overshoot
        count = min(self.corrector, used + 1) if self.corrector else 2 * starting
        ahead = integral.places([new.logsnr])[:1] if integral.variable else np.ones(1)
        if count < 2 or not np.isfinite([*ahead, *last.places]).all():
            return None
        # The weights of the corrector less those of the prediction, over the new call and the old.
        change = np.zeros(used + 1)
        places = np.array([*ahead, *last.places[: count - 1]])
        change[:count] = integral.weights(places, self.rule)
        change[1:] -= last.weights
        if not integral.within(2 * self.limit, change):
            return None
        kept = leg.there.alpha / leg.over.alpha if leg.overshoot and leg.there.sigma else 1.0
        estimates = [new.estimate, *(call.estimate for call in last.calls[:used])]
        outputs = [integral.frame.output(estimate) for estimate in estimates]
        terms = [float(kept * w) * o for w, o in zip(change, outputs, strict=True)]
        return sum(terms[1:], terms[0])
