"""Solvers: how one step uses the network's estimates.

All but the two Euler methods in the schedule's own z and t integrate the post's equation
`d(z / c) = o d(eta)` in the frame of an output (`frames`), and differ in what they take o for
within a step: a constant (`DDIM`, `Euler`), the polynomial through past calls (`Adams`), through
calls inside the step (`RungeKutta`), or the slope in the middle of two steps (`Leapfrog`). Names
from papers are values of their parameters, see `samplers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from twosides.naming import unknown
from twosides.outputs import Estimate, Output, output_named
from twosides.sampling.frames import NODES, WEIGHTS, Array, Frame, Variable, variable_named
from twosides.sampling.steps import Asks, Solver, Step
from twosides.sampling.stochasticity import (
    Deterministic,
    EDMChurn,
    Eta,
    Kick,
    Overshoot,
    Stochasticity,
)
from twosides.schedules import FlowMatching, Level


@dataclass(frozen=True)
class DDIM(Solver):
    """Hold the estimate over the step: `z_s = alpha_s x + sigma_s eps` [Song+ 2020].

    The same for every scaling and every output. With noise: DDPM, Euler ancestral, churn.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        return step.renoise(_held(estimate, step.over))


def _held(estimate: Estimate, level: Level) -> Any:
    """`alpha x + sigma eps`, finite at every level."""
    return level.alpha * estimate.x + level.sigma * estimate.eps


# ---------------------------------------------------------------------------- one step in a frame


@dataclass(frozen=True)
class Span:
    """The integral of `o d(eta)` from `start` along the ODE to `over`, in a frame.

    o is a polynomial in `variable` (None: in the number of the step), read at the pace of `path`:
    the real log-SNR runs to `end` while the ODE runs to `over`.
    """

    frame: Frame
    variable: Variable | None
    start: Level
    over: Level
    end: float
    path: Callable[[Array], Array] = field(default=lambda logsnr: logsnr)

    @property
    def carry(self) -> float:
        """What of z is left: `c_over / c_start`."""
        return self._scale(self.over) / self._scale(self.start)

    @property
    def reach(self) -> float:
        """`c_over (eta_over - eta_start)`: the weight of a constant."""
        moved = self.over.sigma * self.start.alpha - self.start.sigma * self.over.alpha
        return moved / self._scale(self.start)

    def places(self, logsnrs: Sequence[float]) -> Array:
        """Where calls lie, latest first: 0 is the start of the step, 1 its end; maybe infinite."""
        if self.variable is None:
            return np.linspace(0.0, 1.0 - len(logsnrs), len(logsnrs))
        first, end, *rest = self.variable.of(np.array([self.start.logsnr, self.end, *logsnrs]))
        if not math.isfinite(end):  # nothing but a constant has an integral to there
            return np.array([0.0] + [math.inf] * (len(rest) - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.array(rest) - first) / (end - first)

    def weights(self, places: Array, rule: str = "exact") -> Array:
        """The weights of o at these places; together they are exact for polynomials."""
        count = len(places)
        with np.errstate(over="ignore", invalid="ignore"):  # `within` refuses what is not finite
            moments = self._moments(count)
        if rule != "exact" and count == 2:
            moments[1] = 0.5 * moments[0]  # a line, read in the middle of the step
        if rule == "published" and count == 3:
            moments[2] *= 0.5
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments)
        return weights.astype(np.float64)

    def within(self, caution: float, weights: Array) -> bool:
        """Whether these weights move `caution` times the state's size at most; o's is (a, b)."""
        state = math.hypot(self.over.alpha, self.over.sigma)
        moved = float(np.abs(weights).sum()) * math.hypot(*self.frame)
        return math.isfinite(moved) and moved <= caution * state

    def _moments(self, count: int) -> Array:
        """`c_over int s^j d(eta)` = reach - j c_over int s^(j-1) (eta(s) - eta_start) ds."""
        powers = np.arange(count)
        if count == 1:
            return np.array([self.reach])
        if self.variable is None:
            return self.reach / (powers + 1)
        first, end = self.variable.of(np.array([self.start.logsnr, self.end]))
        inner = self.path(self.variable.logsnr(first + NODES * (end - first)))
        scale = self._scale(self.over)
        if scale == 0:  # the whole integral lies at the end
            return np.full(count, self.reach)
        gaps = WEIGHTS * scale * self.frame.gap(self.start, inner)
        slopes = powers * NODES[:, None] ** np.maximum(powers - 1, 0)
        return self.reach - gaps @ slopes

    def _scale(self, level: Level) -> float:
        return float(self.frame.scale(level.alpha, level.sigma))


def _frame(output: str | Output, level: Level, step: Step) -> Frame | None:
    """The output's frame; None where it is singular, and only the held estimate is finite."""
    a, b = (float(value) for value in output_named(output, step.schedule).coefficients(level))
    frame = Frame(a, b)
    regular = math.isfinite(a) and math.isfinite(b) and frame.scale(level.alpha, level.sigma) != 0
    return frame if regular else None


def _variable(name: str | Output | None, frame: Frame, step: Step) -> Variable | None:
    if name == "index":
        return None
    return frame.eta if name is None else variable_named(name, step.schedule)


def _check(output: str | Output, variable: str | Output | None = None, caution: float = 0) -> None:
    """ValueError for names there are not, before a run needs them."""
    output_named(output, FlowMatching())
    if variable not in (None, "index"):
        variable_named(variable, FlowMatching())
    if not caution >= 0:
        raise ValueError(f"caution is a number >= 0, infinity for none, got {caution}")


def _combined(weights: Array, frame: Frame, estimates: Sequence[Estimate]) -> Any:
    terms = [
        float(weight) * frame.output(estimate)
        for weight, estimate in zip(weights, estimates, strict=True)
    ]
    return sum(terms[1:], terms[0])


def _moved(weights: Array, frame: Frame, estimates: Sequence[Estimate], end: Level) -> Any:
    """`carry z + sum_k weights_k o_k`, the first estimate being z's: DDIM and differences.

    The weights of a constant are DDIM's; written so, no digits are lost where c nearly vanishes.
    """
    state, first = _held(estimates[0], end), frame.output(estimates[0])
    for weight, estimate in zip(weights[1:], estimates[1:], strict=True):
        state = state + float(weight) * (frame.output(estimate) - first)
    return state


@dataclass(frozen=True)
class Euler(Solver):
    """Euler in the frame of an output, `z_s = (c_s / c_t) z + c_s (eta_s - eta_t) o`.

    For u on the flow-matching schedule this is `z + (t_s - t) u`; for eps on a VE schedule k-diff's
    and EDM's Euler. Every choice is DDIM, which the Plan shows to rounding.
    """

    output: str | Output = "u"

    order = 1
    nfe = 1

    def __post_init__(self) -> None:
        """ValueError for an output there is not."""
        _check(self.output)

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        frame = _frame(self.output, step.here, step)
        if frame is None:
            return step.renoise(_held(estimate, step.over))
        span = Span(frame, None, step.here, step.over, step.there.logsnr)
        return step.renoise(span.carry * z + span.reach * frame.output(estimate))


# ---------------------------------------------------------------------------- multistep


class Seen(NamedTuple):
    """A call and its answer."""

    logsnr: float
    estimate: Estimate


@dataclass(frozen=True)
class _Move:
    """A predicted step, kept until the next call corrects it."""

    step: Step
    span: Span
    seen: list[Seen]
    places: Array
    weights: Array


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth, with Adams-Moulton as corrector: o is the polynomial through past calls.

        z_s = (c_s / c_t) z + c_s int P(tau) d(eta),   P through the last `order` calls in tau

    output: the frame, x, eps, u, v, kappa(k). variable: what o is a polynomial in, "logsnr", "t",
    "angle", "index" (of the step), or an output's eta; by default the frame's own.
    corrector: number of calls through which each step is done again once its end has been asked
    (0 never): the new call and those before. It costs no call [Zhao+ 2023].
    rule: how a line through two calls is integrated, "exact" or read in the "midpoint" of the step
    (DPM-Solver++, UniPC bh2); "published" also halves the quadratic term, as the published
    DPM-Solver++(3M) does by mistake: its order is then 2.
    lower_order_final: no more calls than steps that remain.
    corrected_start: the first step, which is Euler's for lack of history, is corrected once the
    next call is known. Without that it limits the order of the whole run to 2, and at few steps it
    is often the largest error.
    caution: older calls are left out of a step, and corrections, where together they would weigh
    more than this, in units of the state. That happens in long steps only, such as the last one of
    a cosine grid in logsnr, where a polynomial is an extrapolation; infinity never leaves any out.

    With noise it integrates the reverse SDE (see `steps`), in x whatever the output: the noise in
    past eps has been replaced since, only x is smooth along the path. After EDM's churn, noise that
    comes before a call, nothing seen earlier is of use: first order. Where frame or variable is
    infinite, at zero SNR or zero noise, the estimate is held, first order for this one step.
    """

    order: int = 2
    output: str | Output = "u"
    variable: str | Output | None = None
    corrector: int = 0
    rule: str = "exact"
    lower_order_final: bool = False
    corrected_start: bool = True
    caution: float = 1.0

    nfe = 1

    def __post_init__(self) -> None:
        """ValueError for orders and rules there are not."""
        if type(self.order) is not int or self.order not in (1, 2, 3, 4):
            raise ValueError(f"Adams has order 1, 2, 3 or 4, got {self.order!r}")
        if type(self.corrector) is not int or self.corrector not in (0, 2, 3, 4, 5):
            raise ValueError(
                f"corrector is a number of calls, 0 (none) or 2 to 5, got {self.corrector!r}"
            )
        if self.rule not in ("exact", "midpoint", "published"):
            raise unknown("rule", self.rule, ("exact", "midpoint", "published"))
        _check(self.output, self.variable, self.caution)

    def convergence(self, noisy: bool) -> int:
        """One more than the order with a longer corrector; at most 2 with noise."""
        rough = self.rule == "published" or self.lower_order_final or self.variable == "index"
        plain = not self.corrector and not self.corrected_start
        order = min(self.order + 1, self.corrector) if self.corrector else self.order
        return min(order, 2) if noisy or rough or plain else order

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        new = Seen(step.here.logsnr, estimate)
        seen, fix = [new], None
        if step.kick.before:
            past.clear()  # what was seen before lies under other noise
        if past:
            last: _Move = past.pop()
            seen += last.seen
            fix = self._correction(step, last, new)
        frame = _frame(self.output, step.here, step)
        variable = _variable(self.variable, frame, step) if frame else None
        if frame and step.kick.after:
            frame = _frame("x", step.here, step)
        move = self._predict(frame, variable, step, seen) if frame else None
        if frame is None or move is None:
            return step.renoise(_held(estimate, step.over))
        past.append(move)
        estimates = [call.estimate for call in move.seen[: len(move.weights)]]
        state = _moved(move.weights, frame, estimates, step.over)
        return step.renoise(state if fix is None else state + move.span.carry * fix)

    def _predict(
        self, frame: Frame, variable: Variable | None, step: Step, seen: list[Seen]
    ) -> _Move | None:
        span = Span(frame, variable, step.here, step.over, step.there.logsnr, step.path)
        count = min(self.order, step.remaining) if self.lower_order_final else self.order
        places = span.places([call.logsnr for call in seen])
        if not math.isfinite(span.reach):
            return None
        usable = int(np.isfinite(places).cumprod().sum())
        places = places[: min(count, usable)] if usable else np.zeros(1)
        weights = span.weights(places, self.rule)
        while not span.within(self.caution, weights[1:]):
            places = places[:-1]
            weights = span.weights(places, self.rule)
        return _Move(step, span, seen[: max(self.order, self.corrector)], places, weights)

    def _correction(self, step: Step, move: _Move, new: Seen) -> Any:
        """The difference of the corrector's step and the predictor's, if there is one."""
        used = len(move.weights)
        starting = self.corrected_start and used == 1 < self.order and not move.step.kick.after
        count = min(self.corrector, used + 1) if self.corrector else 2 * starting
        ahead = move.span.places([new.logsnr])[:1] if move.span.variable else np.ones(1)
        if count < 2 or not np.isfinite([*ahead, *move.places]).all():
            return None
        places = np.concatenate([ahead, move.places[: count - 1]])
        change = np.zeros(used + 1)
        change[:count] = move.span.weights(places, self.rule)
        change[1:] -= move.weights
        if not move.span.within(2 * self.caution, change):
            return None
        estimates = [new.estimate, *(call.estimate for call in move.seen[:used])]
        factor = move.step.keep * step.lifted
        return _combined(factor * change, move.span.frame, estimates)


# ---------------------------------------------------------------------------- within one step


class Through(tuple[int, ...]):
    """The stages through which o is interpolated; equal weights where they share a node."""

    __slots__ = ()


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: its nodes in (0, 1] and a row of weights for each, and last.

    A row is `Through(stages)`, which serves every variable, or a Butcher tableau's numbers, which
    hold for the frame's own eta. Stage 0 is the start of the step. `inside` replaces the method on
    a step to zero noise, where a node at 1 would ask the network about the data itself; one order
    less, which one step affords.
    """

    order: int
    nodes: tuple[float, ...]
    rows: tuple[Through | tuple[float, ...], ...]
    inside: Tableau | None = None

    def __post_init__(self) -> None:
        """ValueError unless each stage and the end has a row, whose numbers sum to its node."""
        ends = (*self.nodes, 1.0)
        if len(self.rows) != len(ends) or not all(0 < node <= 1 for node in ends):
            raise ValueError(
                f"a tableau with {len(self.nodes)} nodes in (0, 1] needs {len(ends)} rows, got "
                f"{len(self.rows)} rows and nodes {self.nodes}"
            )
        for stage, (row, end) in enumerate(zip(self.rows, ends, strict=True)):
            listed = row and 0 <= min(row) and max(row) <= stage
            explicit = listed if isinstance(row, Through) else len(row) == stage + 1
            if not explicit or not (isinstance(row, Through) or math.isclose(sum(row), end)):
                raise ValueError(
                    f"row {stage} of a tableau must use the {stage + 1} stages before it and sum "
                    f"to its node {end:.4g}, got {row}"
                )


_EULER = Tableau(1, (), (Through((0,)),))
_HEUN3 = Tableau(3, (1 / 3, 2 / 3), (Through((0,)), Through((1,)), Through((0, 2))))
TABLEAUS: dict[str, Tableau] = {
    "euler": _EULER,
    "heun": Tableau(2, (1.0,), (Through((0,)), Through((0, 1))), inside=_EULER),
    "midpoint": Tableau(2, (0.5,), (Through((0,)), Through((1,)))),
    "collocation-2": Tableau(2, (0.5,), (Through((0,)), Through((0, 1)))),
    "ralston": Tableau(2, (2 / 3,), (Through((0,)), Through((0, 1)))),
    "heun3": _HEUN3,
    "collocation-3": Tableau(3, (1 / 3, 2 / 3), (Through((0,)), Through((0, 1)), Through((0, 2)))),
    "rk4": Tableau(
        4,
        (0.5, 0.5, 1.0),
        (Through((0,)), Through((1,)), Through((2,)), Through((0, 1, 2, 3))),
        inside=_HEUN3,
    ),
}


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta in the frame of an output, exact in what is linear (exponential).

    tableau: a key of TABLEAUS or your own. variable: where the stages lie and what o is a
    polynomial in; by default the frame's eta: the classical method for `d(z/c) = o d(eta)`.
    In logsnr it is DPM-Solver's: "midpoint" with eps is DPM-Solver-2, with x DPM-Solver++(2S).
    caution: a step in which the later stages would weigh more than this, in units of the state, is
    DDIM's, with one call; as for `Adams`.

    Noise is added after the step from `over`, the ODE's own error stays: no history is read.
    """

    tableau: str | Tableau = "heun"
    output: str | Output = "u"
    variable: str | Output | None = None
    caution: float = 2.0

    def __post_init__(self) -> None:
        """ValueError for an unknown tableau, or a Butcher tableau in a foreign variable."""
        _check(self.output, self.variable, self.caution)
        if self.variable == "index":
            raise ValueError(
                "Runge-Kutta stages lie inside a step: 'index' is no variable for them"
            )
        numbers = any(not isinstance(row, Through) for row in self._of.rows)
        if self.variable is not None and numbers:
            raise ValueError("a tableau of numbers holds in the frame's own eta: variable=None")

    @property
    def _of(self) -> Tableau:
        if isinstance(self.tableau, Tableau):
            return self.tableau
        if self.tableau not in TABLEAUS:
            raise unknown("tableau", self.tableau, TABLEAUS)
        return TABLEAUS[self.tableau]

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tableau's."""
        return self._of.order

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One call per stage."""
        return len(self._of.rows)

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call per stage."""
        estimates = [(yield z, step.here)]
        frame = _frame(self.output, step.here, step)
        ends = self._ends(frame, step) if frame else None
        if frame is None or ends is None:
            return step.renoise(_held(estimates[0], step.over))
        tableau, variable, levels = ends
        if self._too_long(tableau, Span(frame, variable, step.here, step.over, step.over.logsnr)):
            return step.renoise(_held(estimates[0], step.over))
        state = z
        nodes = np.array([0.0, *tableau.nodes])
        for row, end, level in zip(tableau.rows, (*tableau.nodes, 1.0), levels, strict=True):
            span = Span(frame, variable, step.here, level, level.logsnr)
            weights = _row_weights(row, nodes[: len(estimates)] / end, span)
            state = _moved(weights, frame, estimates, level)
            if len(estimates) < len(levels):
                estimates.append((yield state, level))
        return step.renoise(state)

    def _too_long(self, tableau: Tableau, span: Span) -> bool:
        """Whether the later stages would weigh more than `caution`."""
        weights = _row_weights(tableau.rows[-1], np.array([0.0, *tableau.nodes]), span)
        return not span.within(self.caution, weights[1:])

    def _ends(self, frame: Frame, step: Step) -> tuple[Tableau, Variable, list[Level]] | None:
        """The method for this step and where its stages end; None where it has no place."""
        tableau = self._of
        if step.over.sigma == 0 and tableau.inside is not None:
            tableau = tableau.inside
        variable = _variable(self.variable, frame, step) or frame.eta
        first, last = variable.of(np.array([step.here.logsnr, step.over.logsnr]))
        if not math.isfinite(first) or not math.isfinite(last):
            return None
        inner = variable.logsnr(first + np.array(tableau.nodes) * (last - first))
        levels = [
            step.over if node == 1 else step.schedule.level(float(logsnr)).floats()
            for node, logsnr in zip(tableau.nodes, inner, strict=True)
        ]
        if not all(step.schedule.covers(level.logsnr) for level in levels):
            return None  # beyond what the network knows, in the last step of a discrete model
        return tableau, variable, [*levels, step.over]


def _row_weights(row: Through | tuple[float, ...], places: Array, span: Span) -> Array:
    """A row's weights on all stages so far; places are relative to where the row ends."""
    if not isinstance(row, Through):
        return span.reach / sum(row) * np.array(row)
    weights, own = np.zeros(len(places)), places[list(row)]
    distinct, shares = np.unique(own, return_counts=True)
    by_place = dict(zip(distinct, span.weights(distinct) / shares, strict=True))
    weights[list(row)] = [by_place[place] for place in own]
    return weights


# ---------------------------------------------------------------------------- exactly invertible


@dataclass(frozen=True)
class Leapfrog(Solver):
    """Two-step midpoint rule in the frame of an output: it runs backwards exactly.

        z~_{i+1} = (d'/d)^2 z~_{i-1} + (1 - (d'/d)^2) z~_i + d' (1 + d'/d) o_i,    z~ = z / c

    d, d' are the last and the next step in eta [O-BELM for eps, Wang+ 2024; u is the stable frame].
    The first step is Euler's. Encoding with it, see `encode`, loses nothing but rounding.
    """

    output: str | Output = "u"

    order = 2
    nfe = 1
    even = True

    def __post_init__(self) -> None:
        """ValueError for an output there is not."""
        _check(self.output)

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        _refuse_noise(self, step)
        frame = _frame(self.output, step.here, step)
        last = past[:]
        past[:] = [(step.here, z)]
        if frame is None or not last:
            return _held(estimate, step.there)
        before, held = last[0]
        ahead, back = (frame.gap(step.here, level.logsnr) for level in (step.there, before))
        if not math.isfinite(ahead) or not math.isfinite(back):
            return _held(estimate, step.there)
        span = Span(frame, None, step.here, step.there, step.there.logsnr)
        ratio = float(-ahead / back)
        scale = frame.scale(*step.there[1:]) / frame.scale(*before[1:])
        return (
            (ratio**2 * scale) * held
            + ((1 - ratio**2) * span.carry) * z
            + (span.reach * (1 + ratio)) * frame.output(estimate)
        )


@dataclass(frozen=True)
class BDIA(Solver):
    """Bi-directional integration approximation [Zhang+ 2023]: exactly invertible at gamma = 1.

        z_s = F(z_t -> s) + gamma (z_p - B(z_t -> p)),    in units of sqrt(alpha^2 + sigma^2)

    F and B are DDIM steps forwards to s and backwards to p, the point before. The units are those
    of variance-preserving schedules, so that the scaling does not matter. For gamma below 1 the
    inverse multiplies rounding by gamma^-N, so 1 is the default.
    """

    gamma: float = 1.0

    nfe = 1
    even = True

    def __post_init__(self) -> None:
        """ValueError for a gamma outside [0, 1]."""
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"BDIA's gamma is in [0, 1], got {self.gamma}")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 for gamma = 1, else 1."""
        return 2 if self.gamma == 1 else 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        _refuse_noise(self, step)
        last = past[:]
        past[:] = [(step.here, z)]
        forward = _held(estimate, step.there)
        if not last:
            return forward
        before, held = last[0]
        factor = self.gamma * math.hypot(*step.there[1:]) / math.hypot(*before[1:])
        return forward + factor * (held - _held(estimate, before))


def _refuse_noise(solver: Solver, step: Step) -> None:
    if step.kick != Kick():
        raise ValueError(f"{type(solver).__name__} is deterministic: it cannot run with noise")


# ---------------------------------------------------------------------------- with noise of its own


@dataclass(frozen=True)
class Langevin(Solver):
    """Predictor-corrector [Song+ 2021, algorithms 2 and 3]: noise exchanged at a fixed level.

    After each step of `predictor`, `times` calls at the level reached: DDIM to the overshoot that
    `noise` has for this step, and back by forward diffusion. The exchange shrinks with the step,
    as it must: a fixed one has an error that more steps do not cure.
    """

    predictor: Solver = field(default_factory=DDIM)
    noise: Stochasticity = field(default_factory=Eta)
    times: int = 1

    def __post_init__(self) -> None:
        """TypeError for parts of another kind; ValueError for no corrections, or no noise."""
        for part, kind in ((self.predictor, Solver), (self.noise, Stochasticity)):
            if not isinstance(part, kind):
                raise TypeError(f"Langevin needs a {kind.__name__} (an instance), got {part!r}")
        if type(self.times) is not int or self.times < 1:
            raise ValueError(f"Langevin corrects a whole number of times >= 1, got {self.times}")
        if isinstance(self.noise, Deterministic | EDMChurn):
            raise ValueError(f"Langevin exchanges noise after a step, which {self.noise} has not")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The predictor's."""
        return self.predictor.order

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The predictor's calls and one per correction."""
        return self.predictor.nfe + self.times

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """The predictor's calls, then one per correction, none at zero noise."""
        z = yield from self.predictor.step(z, step, past)
        there = step.there
        exchanged = self.noise.kick(step.interval).after
        for _ in range(self.times if there.sigma else 0):
            interval = step.interval._replace(here=there, there=there)
            correction = Step(interval, Overshoot(exchanged), step.noise)
            estimate = yield z, there
            z = correction.renoise(_held(estimate, correction.over))
        return z


# ---------------------------------------------------------------------------- in z and t


@dataclass(frozen=True)
class ProbabilityFlowEuler(Solver):
    """Euler on the probability-flow ODE in the schedule's own z and t.

    z_s = z + (t_s - t) ((dalpha/dt) x + (dsigma/dt) eps)

    Unlike DDIM it depends on the scaling; on the flow-matching schedule the two agree.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        x, eps = yield z, step.here
        schedule, t = step.interval.schedule, step.interval.schedule.time(step.here.logsnr)
        change = float(schedule.time(step.over.logsnr) - t)
        slopes = float(schedule.dalpha(t)), float(schedule.dsigma(t))
        _finite(slopes, "the velocity", step, "DDIM, which needs no derivative")
        return step.renoise(z + (change * slopes[0]) * x + (change * slopes[1]) * eps)


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE, noise included: SiT's and hackable_diffusion's SDE step.

        z_s = z - dt velocity - (q / 2) sigma eps + sqrt(q) sigma n,   q = eta^2 |dlogsnr/dt| dt

    A different discretisation from DDIM's with the same limit; worse at few steps.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        x, eps = yield z, step.here
        schedule, t = step.interval.schedule, step.interval.schedule.time(step.here.logsnr)
        dt = float(t - schedule.time(step.there.logsnr))
        slopes = float(schedule.dalpha(t)), float(schedule.dsigma(t))
        strength = step.rate()
        q = strength * -float(schedule.dlogsnr(t)) * dt if strength else 0.0
        _finite((*slopes, q), "the reverse SDE", step, "DDIM with the same noise, which is exact")
        sigma = step.here.sigma
        z = z - (dt * slopes[0]) * x - (dt * slopes[1] + 0.5 * q * sigma) * eps
        return z + (math.sqrt(q) * sigma) * step.noise() if q else z


def _finite(values: tuple[float, ...], what: str, step: Step, instead: str) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"{what} is infinite at logsnr {step.here.logsnr:.4g} on {step.interval.schedule}; "
            f"start inside, UniformTime(start=0.999), or use {instead}"
        )


SOLVERS: dict[str, type[Solver]] = {
    "ddim": DDIM,
    "euler": Euler,
    "adams": Adams,
    "runge-kutta": RungeKutta,
    "leapfrog": Leapfrog,
    "bdia": BDIA,
    "langevin": Langevin,
    "pf-euler": ProbabilityFlowEuler,
    "euler-maruyama": EulerMaruyama,
}
