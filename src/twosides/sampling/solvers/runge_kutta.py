"""Runge-Kutta solvers: the output of a frame is the polynomial through calls inside the leg."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from twosides.naming import unknown
from twosides.outputs import Output
from twosides.sampling.frames import Array, Frame, Variable, check, variable_of
from twosides.sampling.noise.route import Leg
from twosides.sampling.solvers.multistep import Integral, integrate
from twosides.sampling.solvers.solver import Asks, Solver, hold
from twosides.schedules import Level


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: its nodes in (0, 1], and a row for each and for the end.

    order: of the method.
    nodes: where the later calls lie, parts of the leg. The first call, stage 0, is at its start.
    rows: how the state at each node, and at the end, is made. A row of whole numbers names the
        stages through which o is interpolated, which serves every variable: (0, 2) is the line
        through the first and the third. A row of floats has the weights of a Butcher tableau, one
        for each stage so far, which hold for the frame's own eta.
    inside: the method on a leg to zero noise, where a node at 1 would ask the network about the
        data themselves; it may have one order less, which one leg affords.
    """

    order: int
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    inside: Tableau | None = None

    def __post_init__(self) -> None:
        """ValueError unless each stage and the end has a row, whose weights sum to its node."""
        ends = (*self.nodes, 1.0)
        fits = len(self.rows) == len(ends) and all(0 < node <= 1 for node in ends)
        for stage, (row, end) in enumerate(zip(self.rows, ends, strict=False)):
            if _names_stages(row):
                fits &= bool(row) and 0 <= min(row) and max(row) <= stage
            else:
                fits &= len(row) == stage + 1 and math.isclose(sum(row), end)
        if not fits:
            raise ValueError(
                "a tableau needs nodes in (0, 1], and for each and for the end a row of stages "
                f"before it, or of weights that sum to its node: {self}"
            )


def _names_stages(row: tuple[float, ...]) -> bool:
    return all(type(entry) is int for entry in row)


_EULER = Tableau(1, (), ((0,),))
_HEUN3 = Tableau(3, (1 / 3, 2 / 3), ((0,), (1,), (0, 2)))
TABLEAUS: dict[str, Tableau] = {
    "euler": _EULER,
    "heun": Tableau(2, (1.0,), ((0,), (0, 1)), inside=_EULER),
    "midpoint": Tableau(2, (0.5,), ((0,), (1,))),
    "collocation-2": Tableau(2, (0.5,), ((0,), (0, 1))),
    "ralston": Tableau(2, (2 / 3,), ((0,), (0, 1))),
    "heun3": _HEUN3,
    "collocation-3": Tableau(3, (1 / 3, 2 / 3), ((0,), (0, 1), (0, 2))),
    "rk4": Tableau(4, (0.5, 0.5, 1.0), ((0,), (1,), (2,), (0, 1, 2, 3)), inside=_HEUN3),
}


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta in the frame of an output, exact in what is linear (exponential).

    tableau: a key of TABLEAUS, or one of your own. "midpoint" holds the call in the middle over the
        leg, "collocation-2" takes the line through both.
    output: the frame: x, eps, u, v, kappa(k).
    variable: where the calls lie, and what o is a polynomial in. By default it is the frame's eta,
        which gives the classical method for `d(z/c) = o d(eta)`. In logsnr it is DPM-Solver's:
        "midpoint" with eps is DPM-Solver-2, with x DPM-Solver++(2S).
    limit: if the later calls would move the state by more than `limit` times its size, the leg is
        DDIM's, with one call; see `Adams`.

    Noise comes after the leg and no earlier call is used, so that the order of the ODE stays.
    """

    tableau: str | Tableau = "heun"
    output: str | Output = "u"
    variable: str | Output | None = None
    limit: float = 2.0

    def __post_init__(self) -> None:
        """ValueError for an unknown tableau, or a Butcher tableau in a foreign variable."""
        check(self.output, self.variable, self.limit)
        if self.variable == "index":
            raise ValueError("stages lie inside a leg: 'index' is no variable for Runge-Kutta")
        rows = self.method.rows
        if self.variable is not None and not all(map(_names_stages, rows)):
            raise ValueError("a tableau of weights holds in the frame's own eta: variable=None")

    @property
    def method(self) -> Tableau:
        """The tableau itself."""
        if isinstance(self.tableau, Tableau):
            return self.tableau
        if self.tableau not in TABLEAUS:
            raise unknown("tableau", self.tableau, TABLEAUS)
        return TABLEAUS[self.tableau]

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the tableau."""
        return self.method.order

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One call per row."""
        return len(self.method.rows)

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call per row; the first alone where the others have no place."""
        estimates = [(yield z, leg.here)]
        frame = Frame.regular(self.output, leg.here, leg.schedule)
        stages = self._stages(frame, leg) if frame else None
        if frame is None or stages is None:
            return hold(estimates[0], leg.over)
        method, variable, levels = stages
        nodes = np.array([0.0, *method.nodes])
        for row, end, level in zip(method.rows, (*method.nodes, 1.0), levels, strict=True):
            part = Integral(frame, variable, Leg(leg.schedule, leg.here, level, level))
            weights = _weights(row, nodes[: len(estimates)] / end, part)
            state = integrate(part, weights, estimates, level)
            if len(estimates) == len(levels):
                return state
            estimates.append((yield state, level))

    def _stages(self, frame: Frame, leg: Leg) -> tuple[Tableau, Variable, list[Level]] | None:
        """The method for this leg and the levels where its rows end; None where it has no place."""
        method = self.method
        if leg.over.sigma == 0 and method.inside is not None:
            method = method.inside
        variable = variable_of(self.variable, frame, leg.schedule) or frame.eta
        first, last = variable.of(np.array([leg.here.logsnr, leg.over.logsnr]))
        if not math.isfinite(first) or not math.isfinite(last):
            return None
        inner = variable.logsnr(first + np.array(method.nodes) * (last - first))
        levels = [
            leg.over if node == 1 else leg.schedule.level(float(logsnr)).floats()
            for node, logsnr in zip(method.nodes, inner, strict=True)
        ]
        if not all(leg.schedule.covers(level.logsnr) for level in levels):
            return None  # beyond what the network knows, in the last leg of a discrete model
        whole = Integral(frame, variable, leg._replace(there=leg.over, overshoot=0.0))
        later = _weights(method.rows[-1], np.array([0.0, *method.nodes]), whole)[1:]
        return (method, variable, [*levels, leg.over]) if whole.within(self.limit, later) else None


def _weights(row: tuple[float, ...], places: Array, integral: Integral) -> Array:
    """The weights of a row on all stages so far; places are relative to where the row ends."""
    if not _names_stages(row):
        return integral.reach / sum(row) * np.array(row)
    stages = np.array(row, dtype=int)
    # Stages that share a node share its weight.
    distinct, which, counts = np.unique(places[stages], return_inverse=True, return_counts=True)
    weights = np.zeros(len(places))
    weights[stages] = (integral.weights(distinct) / counts)[which]
    return weights
