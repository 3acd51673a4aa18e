"""Solvers: how one step uses the network's estimates.

A solver is a frozen dataclass with `order`, `nfe` (network calls per step) and one generator,

    def step(self, z, step, past):
        estimate = yield z, step.here          # ask the network at (z, level)
        return step.renoise(...)               # the state at step.there

written over objects that add and scale. With symbols it traces the sampler's Plan, with tensors it
runs. A sampler has two moves only: towards the data along the ODE, to `step.over`, and towards the
noise by forward diffusion, `step.renoise`. `past` is a list of the solver's own that lives for one
run (multistep history).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twosides.outputs import Estimate, Output, output_named
from twosides.sampling.stochasticity import Interval, Kick
from twosides.schedules import Level

Asks = Generator[tuple[Any, Level], Estimate, Any]


@dataclass(frozen=True)
class Step:
    """One step of a run: from `here` to `there`, by way of `over` where noise is injected."""

    interval: Interval
    kick: Kick
    rate: Callable[[Interval], float]
    noise: Callable[[], Any]

    @cached_property
    def here(self) -> Level:
        """Where the network is asked: the step's start, raised by the kick's `before`."""
        start = self.interval.here
        return self._level(start.logsnr - self.kick.before) if self.kick.before else start

    @property
    def there(self) -> Level:
        """The step's end."""
        return self.interval.there

    @cached_property
    def over(self) -> Level:
        """Where the ODE goes before renoising: the step's end plus the overshoot."""
        after = self.kick.after
        return self._level(self.there.logsnr + after) if after else self.there

    def lift(self, z: Any) -> Any:
        """z brought from the step's start up to `here` by forward diffusion."""
        return self._diffuse(z, self.interval.here, self.here, self.kick.before)

    def renoise(self, z: Any) -> Any:
        """z brought from `over` back to `there` by forward diffusion."""
        return self._diffuse(z, self.over, self.there, self.kick.after)

    def _diffuse(self, z: Any, start: Level, end: Level, lost: float) -> Any:
        """`z alpha'/alpha + sigma' sqrt(1 - exp(-lost)) n`: logsnr falls by `lost`."""
        if not lost or end.sigma == 0:
            return z
        # Without data (alpha = 0) the ratio is that of what remains of the noise.
        keep = end.alpha / start.alpha if start.alpha else math.exp(-0.5 * lost)
        return (
            keep * z + (self.kick.scale * end.sigma * math.sqrt(-math.expm1(-lost))) * self.noise()
        )

    def _level(self, logsnr: float) -> Level:
        return self.interval.schedule.level(logsnr).floats()


class Solver(abc.ABC):
    """A rule for one step."""

    order: int
    nfe: int

    @abc.abstractmethod
    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """Ask the network, return the state at `step.there`."""


@dataclass(frozen=True)
class DDIM(Solver):
    """Hold the estimate over the step: `z_s = alpha_s x + sigma_s eps` [Song+ 2020].

    The same for every scaling and every output. With noise: DDPM, Euler ancestral, churn.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        x, eps = yield z, step.here
        return step.renoise(step.over.alpha * x + step.over.sigma * eps)


@dataclass(frozen=True)
class Euler(Solver):
    """Euler in the frame of an output o = a x + b eps (flow matching's is u).

        z~ = z / c,   dz~ = o d eta,   c = b alpha - a sigma,   eta = sigma / c   (times b)
        z_s = (c_s z + (sigma_s alpha - alpha_s sigma) o) / c

    For u on the flow-matching schedule this is `z + (t_s - t) u`; for eps on a VE schedule k-diff's
    and EDM's Euler. Every choice is DDIM, which the Plan shows to rounding. (a, b) are held over
    the step, so v moves by rotation.
    """

    output: str | Output = "u"

    order = 1
    nfe = 1

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, step.here
        here, over = step.here, step.over
        output = output_named(self.output, step.interval.schedule)
        output.solve(here)  # refuses an output that does not determine the estimate here
        a, b = output.coefficients(here)
        frame, next_frame = b * here.alpha - a * here.sigma, b * over.alpha - a * over.sigma
        moved = over.sigma * here.alpha - over.alpha * here.sigma
        o = a * estimate.x + b * estimate.eps
        return step.renoise((next_frame / frame) * z + (moved / frame) * o)


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
        strength = step.rate(step.interval)
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


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": Euler(),
    "pf-euler": ProbabilityFlowEuler(),
    "euler-maruyama": EulerMaruyama(),
}
