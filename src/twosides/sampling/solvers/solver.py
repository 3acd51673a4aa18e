"""What a solver is, how a run walks its route, and the solvers that hold the estimate.

A solver is a rule for one leg of a route (`noise.route`): a frozen dataclass with `order`, `nfe`
(network calls per leg) and one generator, which is written flat, as its paper writes it,

    def step(self, z, leg, memory):
        estimate = yield z, leg.here           # ask the network at (z, level)
        return ...                             # the state at leg.over

over objects that add and scale: on symbols it traces a plan, on tensors it runs. `memory` is a list
of the solver's own. It lives for one run, and is emptied where the route goes back.

DDIM, which is here, holds the estimate over the leg, and so do the methods of Euler (`euler`).
Those of higher order take the output of a frame (`frames`) for a polynomial, through past calls
(`multistep`) or through calls inside the leg (`runge_kutta`). Names from papers are values of their
parameters: see `presets`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

from twosides.outputs import Estimate
from twosides.sampling.frames import Frame
from twosides.sampling.noise.route import Leg, diffuse
from twosides.schedules import Level

Asks = Generator[tuple[Any, Level], Estimate, Any]


class Solver(abc.ABC):
    """A rule for one leg.

    order: the power of the number of steps with which the error of the ODE falls.
    nfe: network calls per leg.
    even: whether it needs legs that are nearly equal in its variable, as the grid of its preset has
        them; where they shrink or grow, errors of the past do not die out.
    """

    order: int
    nfe: int
    even: ClassVar[bool] = False

    def convergence(self, noisy: bool) -> int:
        """The order of a run, with noise or without."""
        return self.order

    @abc.abstractmethod
    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """Ask the network, as often as needed, and return the state at `leg.over`.

        z: the state at `leg.here`.
        leg: where the step starts and ends.
        memory: a list that this solver alone reads and writes.
        """

    def fall(self, z: Any, leg: Leg, end: Level, noise: Callable[[], Any]) -> Any:
        """The state at `end`, by forward diffusion from `leg.over`."""
        return diffuse(z, leg.over, end, noise, leg.scale)


def walk(
    solver: Solver,
    z: Any,
    route: Sequence[Leg],
    ends: tuple[Level, Level],
    noise: Callable[[], Any],
    memory: list[Any] | None = None,
    visit: Callable[[Leg], None] = lambda leg: None,
) -> Asks:
    """A run: up along each leg of the route, and down to where the next one starts.

    A leg that ends where it starts, as `Langevin` lays them, only exchanges noise: it is DDIM's,
    whatever the solver.

    z: the state at the first of `ends`, from where it falls to the first leg.
    ends: the levels at which the run begins and ends.
    noise: gives standard normal numbers of the shape of z.
    memory: what the solver remembers of a run that this one continues.
    visit: told of each leg as it begins.
    """
    memory = [] if memory is None else memory
    z = diffuse(z, ends[0], route[0].here, noise, route[0].scale)
    for number, (leg, after) in enumerate(zip_longest(route, route[1:])):
        visit(leg)
        if leg.back:
            memory.clear()
        mover = DDIM() if leg.here.logsnr == leg.there.logsnr else solver
        z = yield from mover.step(z, leg._replace(left=len(route) - number), memory)
        z = solver.fall(z, leg, after.here if after else ends[1], noise)
    return z


def hold(estimate: Estimate, level: Level) -> Any:
    """The estimate carried to a level, `alpha x + sigma eps`: finite everywhere."""
    return level.alpha * estimate.x + level.sigma * estimate.eps


def reach(leg: Leg, frame: Frame) -> float:
    """`c_over (eta_over - eta_here)`, what a constant o weighs; finite where eta_over is not."""
    here, over = leg.here, leg.over
    moved = over.sigma * here.alpha - here.sigma * over.alpha
    return moved / float(frame.scale(here.alpha, here.sigma))


@dataclass(frozen=True)
class DDIM(Solver):
    """Hold the estimate over the leg: `z_s = alpha_s x + sigma_s eps` [Song+ 2020].

    The same for every scaling and every output. With noise: DDPM, Euler ancestral, churn.
    """

    order = 1
    nfe = 1

    def step(self, z: Any, leg: Leg, memory: list[Any]) -> Asks:
        """One call, at the start."""
        estimate = yield z, leg.here
        return hold(estimate, leg.over)
