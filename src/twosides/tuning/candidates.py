"""What a tuned sampler has to beat: the presets on standard grids, with as many network calls."""

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

SD = {"sigma_min": 0.0292, "sigma_max": 14.6146}
GRIDS: dict[str, Grid] = {  # beside their own
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
FEW = (  # of a search that must be short
    ("kab2c, low order at the end", "kab2, plain start", "kab2c"),
    ("own grid", "beta 0.7 1 in u", "beta", "cosine"),
)
FINALISTS = 8  # of them, that are compared on all noises


class Candidate(NamedTuple):
    """A preset on a grid: its name, the sampler, and its table."""

    name: str
    sampler: Sampler
    table: Tables


def candidates(schedule: Schedule, steps: int, few: bool = False) -> list[Candidate]:
    """All pairs that go with a schedule, or those that are best most often.

    A grid that asks the network outside the schedule's range is left out, and so is a plan that is
    not finite there.
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
    """The candidates, the least loss first; all on a few noises, the best of these on all."""
    first = _losses(network, noises.first(8), among)
    order = [among[i] for i in np.argsort(first, kind="stable")]
    best = order[:FINALISTS]
    second = _losses(network, noises, best)
    return [*(best[i] for i in np.argsort(second, kind="stable")), *order[FINALISTS:]]


def stacked(tables: Sequence[Tables]) -> Tables:
    """Tables as one batch."""
    return Tables(*(np.concatenate(parts) for parts in zip(*tables, strict=True)))


def _losses(network: Network, noises: Noises, among: Sequence[Candidate]) -> Array:
    return losses(network, noises, stacked([candidate.table for candidate in among]))
