"""Routes: the legs that a run consists of, and the rules that make them.

A sampler has two moves. Along the ODE it goes towards the data and its log-SNR rises; by forward
diffusion, which adds noise, it goes towards the noise and its log-SNR falls. Without noise a run
rises from level to level of its grid. With noise a step rises further than it has to, by the
*overshoot* q, and falls back:

    here  --- ODE --->  over = there + q  --- noise --->  there

Such a rise and fall is a *leg*, and a run is a list of legs, its *route*. If the estimate (x, eps)
is held on the way up, as DDIM does, a leg is the step of every published sampler of first order:

    z_there = alpha x + sigma (rho eps + sqrt(1 - rho^2) n),     rho = exp(-q / 2)

A rule for the noise (`Stochasticity`) makes a route of the levels of a grid. Rules that state q of
each step are in `coordinates`; those that lay out legs of their own, such as Restart, which returns
to an earlier level and walks up again, are in `routes`. A solver needs to know no more of noise
than `Leg.overshoot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from twosides.schedules import Level, Schedule


class Step(NamedTuple):
    """A step of a grid.

    schedule: the schedule that is sampled on.
    here, there: its two levels, noise to data.
    steps: the number of steps of the run, by which EDM states its churn.
    """

    schedule: Schedule
    here: Level
    there: Level
    steps: int = 1

    @classmethod
    def between(cls, schedule: Schedule, start: float, end: float, steps: int = 1) -> Step:
        """The step from time `start` down to time `end`."""
        return cls(schedule, schedule.at(start).floats(), schedule.at(end).floats(), steps)

    @property
    def gain(self) -> float:
        """Delta, the log-SNR gained."""
        return self.there.logsnr - self.here.logsnr

    @property
    def time(self) -> float:
        """The time of the schedule at the start."""
        return float(self.schedule.time(self.here.logsnr))


class Leg(NamedTuple):
    """One leg of a route: the network is asked `here`, the ODE goes to `over`, noise to `there`.

    schedule: the schedule that is sampled on.
    here, over, there: the three levels. From `over` the state falls to where the next leg starts,
        which is `there` unless the route goes back.
    overshoot: q, the log-SNR from `there` to `over`, in [0, inf].
    scale: multiplies the noise; 1 keeps the marginals.
    back: whether the leg starts no nearer to the data than the one before it. A solver then forgets
        what it remembers of earlier calls.
    number: which step of the grid the leg belongs to, from 0.
    left: the legs that remain of the route, this one included (`solvers.walk` counts them).
    """

    schedule: Schedule
    here: Level
    over: Level
    there: Level
    overshoot: float = 0.0
    scale: float = 1.0
    back: bool = False
    number: int = 0
    left: int = 1

    @property
    def pace(self) -> float:
        """How fast the ODE runs against the log-SNR that is gained, `1 + q / Delta`."""
        gain = self.there.logsnr - self.here.logsnr
        return 1 + self.overshoot / gain if self.overshoot and gain < math.inf else 1.0


def diffuse(z: Any, start: Level, end: Level, noise: Callable[[], Any], scale: float = 1.0) -> Any:
    """Forward diffusion from one level down to another: `z alpha'/alpha + sigma' sqrt(1 - e^-q) n`.

    q is the log-SNR that is lost. The state stays as it is where none is, and at zero noise.

    noise: gives n, standard normal numbers.
    scale: multiplies n; 1 keeps the marginals.
    """
    if start.logsnr == end.logsnr or end.sigma == 0:
        return z
    fresh = scale * end.sigma * math.sqrt(-math.expm1(end.logsnr - start.logsnr))
    # Without data (alpha = 0 at both ends) the ratio is that of what remains of the noise.
    kept = end.alpha / start.alpha if start.alpha else math.exp(0.5 * (end.logsnr - start.logsnr))
    return kept * z + fresh * noise()


class Stochasticity:
    """A rule that makes a route of the levels of a grid.

    Most rules state the overshoot of a step, and `route` does the rest.

    accuracy: limits the order with which the distribution of the data is reached.
    extra: network calls that the rule adds to each step.
    """

    accuracy: ClassVar[float] = math.inf
    extra: int = 0

    def overshoot(self, step: Step) -> float:
        """q, the log-SNR by which a step rises too far; 0 unless a rule says otherwise."""
        return 0.0

    def scale(self, step: Step) -> float:
        """The factor of the noise of a step; 1, which keeps the marginals."""
        return 1.0

    def route(self, schedule: Schedule, levels: Sequence[Level]) -> list[Leg]:
        """The legs of a run through these levels, noise to data."""
        steps = [Step(schedule, *ends, len(levels) - 1) for ends in pairwise(levels)]
        return [
            rise(step.here, step, self.overshoot(step), self.scale(step))._replace(number=number)
            for number, step in enumerate(steps)
        ]


def rise(here: Level, step: Step, overshoot: float, scale: float = 1.0) -> Leg:
    """The leg from `here` to the end of a step, and beyond it by the overshoot."""
    schedule, there = step.schedule, step.there
    over = schedule.level(there.logsnr + overshoot).floats() if overshoot else there
    return Leg(schedule, here, over, there, overshoot, scale)


@dataclass(frozen=True)
class Deterministic(Stochasticity):
    """No noise: the probability-flow ODE."""
