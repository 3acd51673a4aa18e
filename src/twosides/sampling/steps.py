"""One step of a run, and what a solver is.

A solver is a frozen dataclass with `order`, `nfe` (network calls per step) and one generator,

    def step(self, z, step, past):
        estimate = yield z, step.here          # ask the network at (z, level)
        return step.renoise(...)               # the state at step.there

written over objects that add and scale. With symbols it traces the sampler's Plan, with tensors it
runs. A sampler has two moves only: towards the data along the ODE, to `step.over`, and towards the
noise by forward diffusion, `step.renoise`. `past` is a list of the solver's own that lives for one
run (multistep history).

What a solver remembers was seen at real levels, while the ODE of a noisy step runs further, to
`over`. `step.path` tells how far: while the real log-SNR goes from `here` to l, the ODE goes to
`path(l) = l + overshoot(here, l)`. Reading the history at that pace makes the multistep solvers the
exponential integrators of the reverse SDE, for any kind of noise [Lu+ 2022, Gonzalez+ 2023].
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from twosides.outputs import Estimate
from twosides.sampling.frames import Array, unit
from twosides.sampling.stochasticity import Interval, Kick, Stochasticity
from twosides.schedules import Level, Schedule

Asks = Generator[tuple[Any, Level], Estimate, Any]


@dataclass(frozen=True)
class Step:
    """One step of a run: from `here` to `there`, by way of `over` where noise is injected."""

    interval: Interval
    stochasticity: Stochasticity
    noise: Callable[[], Any]
    remaining: int = 1

    @cached_property
    def kick(self) -> Kick:
        """The noise of this step."""
        return self.stochasticity.kick(self.interval)

    @property
    def schedule(self) -> Schedule:
        """The schedule of the run."""
        return self.interval.schedule

    def rate(self) -> float:
        """eta^2 at the start of the step."""
        return self.stochasticity.rate(self.interval)

    def path(self, logsnr: Array) -> Array:
        """Where the ODE is when the real log-SNR is this."""
        if not self.kick.after:
            return logsnr
        ends = [_unit_level(value) for value in logsnr.tolist()]
        return logsnr + np.array(self.stochasticity.overshoots(self.interval, ends))

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

    @property
    def keep(self) -> float:
        """What renoising leaves of the state at `over`."""
        return _kept(self.over, self.there, self.kick.after)

    @property
    def lifted(self) -> float:
        """What lifting leaves of the state at the step's start."""
        return _kept(self.interval.here, self.here, self.kick.before)

    def lift(self, z: Any) -> Any:
        """z brought from the step's start up to `here` by forward diffusion."""
        return self._diffuse(z, self.interval.here, self.here, self.kick.before)

    def renoise(self, z: Any) -> Any:
        """z brought from `over` back to `there` by forward diffusion."""
        return self._diffuse(z, self.over, self.there, self.kick.after)

    def _diffuse(self, z: Any, start: Level, end: Level, lost: float) -> Any:
        return diffuse(z, start, end, lost, self.noise, self.kick.scale)

    def _level(self, logsnr: float) -> Level:
        return self.schedule.level(logsnr).floats()


def diffuse(
    z: Any, start: Level, end: Level, lost: float, noise: Callable[[], Any], scale: float = 1.0
) -> Any:
    """Forward diffusion, `z alpha'/alpha + scale sigma' sqrt(1 - exp(-lost)) n`.

    The log-SNR falls by `lost`, in [0, inf], from `start` to `end`.
    """
    if not lost or end.sigma == 0:
        return z
    fresh = scale * end.sigma * math.sqrt(-math.expm1(-lost))
    return _kept(start, end, lost) * z + fresh * noise()


def _kept(start: Level, end: Level, lost: float) -> float:
    if not lost or end.sigma == 0:
        return 1.0
    # Without data (alpha = 0) the ratio is that of what remains of the noise.
    return end.alpha / start.alpha if start.alpha else math.exp(-0.5 * lost)


def _unit_level(logsnr: float) -> Level:
    alpha, sigma = unit(logsnr)
    return Level(logsnr, float(alpha), float(sigma))


class Solver(abc.ABC):
    """A rule for one step.

    `even`: it needs steps that are nearly equal in its variable, as its preset's grid has them;
    where they shrink or grow, errors of the past do not die out.
    """

    order: int
    nfe: int
    even: ClassVar[bool] = False

    def convergence(self, noisy: bool) -> int:
        """The power of the number of steps with which the error falls, with noise or without."""
        return self.order

    @property
    def stochastic(self) -> bool:
        """Whether the solver injects noise of its own."""
        return False

    @abc.abstractmethod
    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """Ask the network, return the state at `step.there`."""
