"""Solvers that run backwards exactly: two-step rules, whose inverse is of the same kind.

    z_(i+1) = F(z_(i-1), z_i, o_i)    <=>    z_(i-1) = F^-1(z_(i+1), z_i, o_i)

`ode.inversion` encodes and decodes with them; encoding loses nothing but rounding.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

from twosides.outputs import Estimate, Output
from twosides.sampling.frames import Frame, check
from twosides.sampling.noise.route import Leg
from twosides.sampling.solvers.solver import Asks, Solver, hold, reach
from twosides.schedules import Level


class TwoStep(Solver):
    """A two-step rule; `memory` holds the level and the state before. The first leg is DDIM's."""

    nfe = 1
    even = True

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, leg.here
        if leg.overshoot:
            raise ValueError(f"{type(self).__name__} is deterministic: it cannot run with noise")
        before = memory[:]
        memory[:] = [(leg.here, z)]
        return self.two_step(z, leg, estimate, *before[0]) if before else hold(estimate, leg.over)

    @abc.abstractmethod
    def two_step(self, z: Any, leg: Leg, estimate: Estimate, level: Level, state: Any) -> Any:
        """The state at `leg.over`, from z at `leg.here` and `state` at `level` before it."""


@dataclass(frozen=True)
class Leapfrog(TwoStep):
    """Two-step midpoint rule in the frame of an output.

        z~_{i+1} = (d'/d)^2 z~_{i-1} + (1 - (d'/d)^2) z~_i + d' (1 + d'/d) o_i,    z~ = z / c

    d and d' are the last and the next step in eta [O-BELM for eps, Wang+ 2024]. Where the frame is
    singular the estimate is held.

    output: the frame; u is the stable one.
    """

    output: str | Output = "u"

    order = 2

    def __post_init__(self) -> None:
        """ValueError for an output there is not."""
        check(self.output)

    def two_step(self, z: Any, leg: Leg, estimate: Estimate, level: Level, state: Any) -> Any:
        """The midpoint rule."""
        frame = Frame.regular(self.output, leg.here, leg.schedule)
        if frame is None:
            return hold(estimate, leg.over)
        ahead, back = (float(frame.gap(leg.here, each.logsnr)) for each in (leg.over, level))
        if not math.isfinite(ahead) or not math.isfinite(back):
            return hold(estimate, leg.over)
        here, over, before = (frame.scale(*each[1:]) for each in (leg.here, leg.over, level))
        ratio, o = -ahead / back, frame.output(estimate)
        kept = (ratio**2 * over / before) * state + ((1 - ratio**2) * over / here) * z
        return kept + (reach(leg, frame) * (1 + ratio)) * o


@dataclass(frozen=True)
class BDIA(TwoStep):
    """Bi-directional integration approximation [Zhang+ 2023]: exactly invertible at gamma = 1.

        z_s = F(z_t -> s) + gamma (z_p - B(z_t -> p)),    in units of sqrt(alpha^2 + sigma^2)

    F and B are DDIM steps forwards to s and backwards to p, the point before. The units are those
    of variance-preserving schedules, so that the scaling does not matter.

    gamma: in [0, 1]. Below 1 the inverse multiplies rounding by gamma^-N, so 1 is the default.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for a gamma outside [0, 1]."""
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"BDIA's gamma is in [0, 1], got {self.gamma}")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 for gamma = 1, else 1."""
        return 2 if self.gamma == 1 else 1

    def two_step(self, z: Any, leg: Leg, estimate: Estimate, level: Level, state: Any) -> Any:
        """The forward step, and gamma times what the backward step misses."""
        factor = self.gamma * math.hypot(*leg.over[1:]) / math.hypot(*level[1:])
        return hold(estimate, leg.over) + factor * (state - hold(estimate, level))
