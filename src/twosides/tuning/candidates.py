"""The candidates: the presets on standard grids, which a tuned sampler has to beat.

A *preset* is a sampler that has a name (`sampling.presets`). Its solver is combined here with its
own grid and with those of `GRIDS`; each of these pairs makes as many network calls as the tuned
sampler. The pair with the least loss (rho, see `trials`) is what the tuned sampler is compared
with, and what `tune` returns where the tuned sampler is not proven to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from twosides.outputs import kappa
from twosides.sampling.frames import Array
from twosides.sampling.grids import Beta, Exponential, Grid, Karras, Uniform
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams, Solver, Tabled
from twosides.schedules import Schedule
from twosides.tuning.fit import losses
from twosides.tuning.tables import Tables
from twosides.tuning.trials import Network, Noises

# sigma / alpha at the two ends of Stable Diffusion's schedule, where its grids are usually laid.
SD = {"sigma_min": 0.0292, "sigma_max": 14.6146}
GRIDS: dict[str, Grid] = {  # tried beside the grid that a preset has itself
    "beta 0.7 1 in u": Beta(0.7, 1.0, variable="u"),
    "beta 0.6 1 in u": Beta(0.6, 1.0, variable="u"),
    "beta": Beta(),
    "shift 3": Uniform(kappa(1 / 3)),
    "shift 1/2": Uniform(kappa(2.0)),
    "cosine": Uniform("angle"),
    "karras, SD": Karras(**SD),
    "exponential, SD": Exponential(**SD),
}
SOLVERS: dict[str, Solver] = {
    "kab2c, low order at the end": Adams(2, kappa(1.0), corrector=3, lower_order_final=True),
    "kab2, plain start": Adams(2, kappa(1.0), corrected_start=False),
    **{
        name: samplers[name].solver
        for name in ("kab2", "kab2c", "kab3c", "dpmpp-2m", "unipc", "unipc-3", "deis", "ddim")
    },
}
FEW = (  # solvers and grids of a search with a small budget: those that are best most often
    ("kab2c, low order at the end", "kab2, plain start", "kab2c"),
    ("own grid", "beta 0.7 1 in u", "beta", "cosine"),
)
FINALISTS = 8  # how many candidates are compared on all noises, after a round on a few of them


class Candidate(NamedTuple):
    """A preset's solver on a grid.

    name: "solver / grid", for people.
    sampler: the two together, without injected noise.
    table: its levels and weights on the schedule that is sampled on, a batch of one table.
    """

    name: str
    sampler: Sampler
    table: Tables


def candidates(schedule: Schedule, steps: int, few: bool = False) -> list[Candidate]:
    """All pairs of a solver and a grid that suit a schedule, solver by solver.

    A pair is left out if its grid asks the network outside of the schedule's range, or if its plan,
    the table of numbers that its run follows, would not be finite.

    schedule: the schedule that is sampled on.
    steps: the number of network calls, >= 1.
    few: whether to take only the pairs of `FEW`, for a search with a small budget.

    >>> from twosides.schedules import FlowMatching
    >>> candidates(FlowMatching(), 8, few=True)[0].name
    'kab2c, low order at the end / own grid'
    """
    found = list[Candidate]()
    for solver_name, solver in SOLVERS.items():
        grids = {"own grid": samplers.get(solver_name, Sampler()).grid, **GRIDS}
        for grid_name, grid in grids.items():
            if few and not (solver_name in FEW[0] and grid_name in FEW[1]):
                continue
            sampler = Sampler(grid, solver)
            try:
                made = sampler.plan(schedule, steps)
                first, last = float(made.logsnr[0]), float(made.logsnr[-2])
                if schedule.logsnr_min <= first and last <= schedule.logsnr_max:
                    table = Tables.of(Tabled.of(made))
                    found.append(Candidate(f"{solver_name} / {grid_name}", sampler, table))
            except ValueError:
                continue
    return found


def rank(network: Network, noises: Noises, among: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in the order of their loss, the least first.

    All of them are measured on the first 8 noises. The best `FINALISTS` are then measured on all
    noises, and ordered by that; the others follow in the order of the first round.

    network: what runs the tables, and counts network evaluations.
    noises: the initial noises, and where the teacher's runs end from them.
    among: the candidates to compare, all with the same number of calls.
    """
    first = _losses(network, noises.first(8), among)
    order = [among[i] for i in np.argsort(first, kind="stable")]
    best = order[:FINALISTS]
    second = _losses(network, noises, best)
    return [*(best[i] for i in np.argsort(second, kind="stable")), *order[FINALISTS:]]


def stacked(tables: Sequence[Tables]) -> Tables:
    """One batch of the tables in several batches, which all have the same number of calls."""
    return Tables(*(np.concatenate(parts) for parts in zip(*tables, strict=True)))


def _losses(network: Network, noises: Noises, among: Sequence[Candidate]) -> Array:
    """The loss rho of each candidate; all of them run as one batch."""
    return losses(network, noises, stacked([candidate.table for candidate in among]))
