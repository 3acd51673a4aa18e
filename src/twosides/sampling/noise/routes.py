"""Noise that is more than a coordinate: rules of their own, and routes that go back.

`ER`, `FullRenoise` and `LargeVariance` state an overshoot that no single number gives. `Langevin`
and `Restart` add legs to the route of another rule, `along`: they work with any solver, any grid
and any other noise, and nest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

import numpy as np

from twosides.sampling.frames import power, unit
from twosides.sampling.noise.coordinates import Eta
from twosides.sampling.noise.route import Deterministic, Leg, Step, Stochasticity, rise
from twosides.schedules import Level, Schedule


@dataclass(frozen=True)
class ER(Stochasticity):
    """Extended reverse-time SDE [Cui+ 2023]: phi is the noise scale, of s = sigma / alpha.

        rho = (phi(s) / s) / (phi(t) / t),    phi(s) = s (exp(s^power) + 10)

    power: a finite number > 0; 0.3 is the choice of the authors.
    """

    power: float = 0.3

    def __post_init__(self) -> None:
        """ValueError unless 0 < power."""
        if not 0 < self.power < math.inf:
            raise ValueError(f"the power is a finite number > 0, got {self.power}")

    def overshoot(self, step: Step) -> float:
        """`2 log (phi / s)` from here to there."""
        return 2 * (self._excess(step.here) - self._excess(step.there))

    def _excess(self, level: Level) -> float:
        """`log(exp(s^power) + 10)`."""
        log_power = -0.5 * self.power * level.logsnr
        size = math.exp(log_power) if log_power < 700 else math.inf
        return float(np.logaddexp(size, math.log(10)))


@dataclass(frozen=True)
class FullRenoise(Stochasticity):
    """All noise is fresh: x is noised to the next level (multistep consistency sampling).

    For models whose x is a sample and not a mean: the steps of an exact denoiser do not reach the
    data this way.
    """

    accuracy = 0

    def overshoot(self, step: Step) -> float:
        """Infinite."""
        return math.inf


@dataclass(frozen=True)
class LargeVariance(Stochasticity):
    """The "large" variance of DDPM, beta in place of the posterior's [Ho+ 2020, section 3.2].

    It is DDPM with the injected variance multiplied by (sigma_t / sigma_s)^2, in VP units, and
    keeps the marginals in the limit of many steps only.
    """

    accuracy = 1

    def overshoot(self, step: Step) -> float:
        """That of DDPM."""
        return step.gain

    def scale(self, step: Step) -> float:
        """`sigma_t / sigma_s`."""
        here, there = (float(unit(level.logsnr)[1]) for level in (step.here, step.there))
        return here / there if there else 1.0


@dataclass(frozen=True)
class Langevin(Stochasticity):
    """Predictor-corrector [Song+ 2021, algorithms 2 and 3]: noise is exchanged at each level.

    After each step of the grid, `times` legs rise by the overshoot that `noise` has for that step
    and fall back to where they started, with one network call each. The exchange shrinks with the
    step, as it must: a fixed one has an error that more steps do not cure.

    noise: says how much is exchanged.
    times: corrections after each step, >= 1; none at zero noise.
    along: the noise of the steps themselves.
    """

    noise: Stochasticity = field(default_factory=Eta)
    times: int = 1
    along: Stochasticity = field(default_factory=Deterministic)

    def __post_init__(self) -> None:
        """TypeError for parts of another kind; ValueError for no corrections, or no noise."""
        for part in (self.noise, self.along):
            if not isinstance(part, Stochasticity):
                raise TypeError(f"Langevin needs a Stochasticity (an instance), got {part!r}")
        _make_whole(self, "times")
        if isinstance(self.noise, Deterministic | Langevin | Restart):
            raise ValueError(f"Langevin exchanges an overshoot, which {self.noise} does not have")

    @property
    def extra(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Network calls added to each step."""
        return self.times + self.along.extra

    def route(self, schedule: Schedule, levels: Sequence[Level]) -> list[Leg]:
        """The legs of `along`, and after the last of each step its corrections."""
        legs, along = list[Leg](), self.along.route(schedule, levels)
        for leg, after in zip_longest(along, along[1:]):
            legs.append(leg)
            step = Step(schedule, levels[leg.number], levels[leg.number + 1], len(levels) - 1)
            if step.there.sigma and (after is None or after.number != leg.number):
                again = rise(step.there, step, self.noise.overshoot(step), self.noise.scale(step))
                legs += [again._replace(number=leg.number)] * self.times
        return legs


@dataclass(frozen=True)
class Restart(Stochasticity):
    """Restart sampling [Xu+ 2023, arXiv 2306.14878]: go back to more noise, and walk up again.

    From the level of the grid nearest to logsnr `high` (after `low`) noise leads back to `low`, and
    `steps` legs, equal in (sigma / alpha)^(1 / rho), lead up again; `times` times. A grid too
    coarse to have a level between `low` and the data is walked as it is. The defaults are the first
    of the paper for CIFAR-10. Several intervals are nested Restarts.

    low, high: finite log-SNRs, low < high.
    times, steps: whole numbers >= 1.
    rho: that of Karras's grid, > 0.
    along: the noise of the main walk.

    The error of a loop's few steps stays whatever the number of steps of the main walk, so that no
    order of convergence is claimed.
    """

    accuracy = 0

    low: float = 2.408
    high: float = 5.627
    times: int = 2
    steps: int = 2
    rho: float = 7.0
    along: Stochasticity = field(default_factory=Deterministic)

    def __post_init__(self) -> None:
        """ValueError for levels that do not rise, or numbers that are not whole."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"Restart goes back from logsnr high to low, low < high: {self}")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"Restart's rho is positive and finite, as Karras's: {self}")
        if not isinstance(self.along, Stochasticity):
            raise TypeError(f"Restart needs a Stochasticity (an instance), got {self.along!r}")
        _make_whole(self, "times")
        _make_whole(self, "steps")

    def route(self, schedule: Schedule, levels: Sequence[Level]) -> list[Leg]:
        """The legs to the level nearest to `high`, those that are walked again, and the rest."""
        nodes = np.array([level.logsnr for level in levels])
        if not nodes[0] <= self.low:
            raise ValueError(
                f"{self} would jump back to logsnr {self.low}, noisier than its start at "
                f"{nodes[0]:.6g}; raise low"
            )
        legs = self.along.route(schedule, levels)
        gaps = np.where(nodes > self.low, np.abs(nodes - self.high), math.inf)
        turn = len(nodes) - 1 - int(gaps[::-1].argmin())
        if gaps[turn] == math.inf:
            return legs
        root = power(self.rho)
        first, last = root.of(np.array([self.low, nodes[turn]]))
        inner = root.logsnr(np.linspace(first, last, self.steps + 1)[1:-1])
        up = [schedule.level(float(value)).floats() for value in (self.low, *inner)]
        loop = [
            Leg(schedule, here, there, there, back=here is up[0], number=turn - 1)
            for here, there in pairwise([*up, levels[turn]])
        ]
        place = 1 + max(index for index, leg in enumerate(legs) if leg.number == turn - 1)
        return [*legs[:place], *loop * self.times, *legs[place:]]


def _make_whole(noise: Stochasticity, name: str) -> None:
    """Make a field an int, which numbers that people type are not; ValueError unless >= 1."""
    value = getattr(noise, name)
    if isinstance(value, bool) or not (value >= 1 and value % 1 == 0):
        raise ValueError(f"{name} must be a whole number >= 1: {noise}")
    object.__setattr__(noise, name, int(value))
