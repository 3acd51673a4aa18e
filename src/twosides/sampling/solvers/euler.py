"""The methods of Euler: in the frame of an output, and in the schedule's own z and t."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twosides.outputs import Output
from twosides.sampling.frames import Frame, check
from twosides.sampling.noise.route import Leg
from twosides.sampling.solvers.solver import Asks, Solver, hold, reach
from twosides.schedules import Level


@dataclass(frozen=True)
class Euler(Solver):
    """Euler in the frame of an output, `z_s = (c_s / c_t) z + c_s (eta_s - eta_t) o`.

    For u on the flow-matching schedule this is `z + (t_s - t) u`; for eps on a VE schedule it is
    k-diffusion's and EDM's Euler. Every choice is DDIM, which the plan shows to rounding.

    output: the output o.
    """

    output: str | Output = "u"

    order = 1
    nfe = 1

    def __post_init__(self) -> None:
        """ValueError for an output there is not."""
        check(self.output)

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, leg.here
        frame = Frame.regular(self.output, leg.here, leg.schedule)
        if frame is None:
            return hold(estimate, leg.over)
        here, over = (frame.scale(level.alpha, level.sigma) for level in (leg.here, leg.over))
        return (over / here) * z + reach(leg, frame) * frame.output(estimate)


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The method of Euler in the schedule's own z and t: of the ODE, and with noise of the SDE.

        z_s = z - dt velocity - (q / 2) sigma eps + sqrt(q) sigma n,   q = eta^2 |dlogsnr/dt| dt

    The step of SiT and hackable_diffusion. Not to be confused with DDIM: it depends on the scaling.
    Without noise the two agree on the flow-matching schedule only, with noise in the limit of many
    steps, and it is the worse at few. The last step, to the data, adds no noise.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call, at the start: the drift."""
        x, eps = yield z, leg.here
        (dalpha, dsigma), dt, q = self._rates(leg)
        return z - (dt * dalpha) * x - (dt * dsigma + 0.5 * q * leg.here.sigma) * eps

    def fall(self, z: Any, leg: Leg, end: Level, noise: Callable[[], Any]) -> Any:
        """The diffusion, `sqrt(q) sigma n`."""
        q = self._rates(leg)[2]
        return z + (math.sqrt(q) * leg.here.sigma) * noise() if q else z

    def _rates(self, leg: Leg) -> tuple[tuple[float, float], float, float]:
        """(dalpha/dt, dsigma/dt), the length of the step in t, and q."""
        schedule, t = leg.schedule, leg.schedule.time(leg.here.logsnr)
        dt = float(t - schedule.time(leg.there.logsnr))
        slopes = float(schedule.dalpha(t)), float(schedule.dsigma(t))
        q = (leg.pace - 1) * -float(schedule.dlogsnr(t)) * dt if leg.overshoot else 0.0
        if not all(map(math.isfinite, (*slopes, q))):
            what, instead = (
                ("the reverse SDE", "DDIM with the same noise, which is exact")
                if leg.overshoot
                else ("the velocity", "DDIM, which needs no derivative")
            )
            raise ValueError(
                f"{what} is infinite at logsnr {leg.here.logsnr:.4g} on {schedule}; start inside, "
                f"UniformTime(start=0.999), or use {instead}"
            )
        return slopes, dt, q
