"""`tune`: the best sampler for a denoiser and a number of network calls, found and proven.

    teacher    where trajectories end, by many calls (`teacher`)
    presets    the best of presets x grids: what is to be beaten, and what is fallen back to
    low, e, full   three families of tables, fitted one after the other (`tables`, `fit`)
    proof      on noises that nothing was fitted to or chosen by

The fits need forward passes only. That a table of coefficients and levels is fitted to the ends of
a teacher's runs is the idea of BNS [Shaul+ 2024], S4S [Frankel+ 2025] and GS [2025]; the families,
the method and the proof are this library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from twosides.denoiser import Denoises
from twosides.display.progress import Progress, teller
from twosides.sampling.grids import Given
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Tabled
from twosides.tuning.report import Report, Tuned
from twosides.tuning.search import Search
from twosides.tuning.tables import Tables


def tune(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    steps: SupportsIndex = 8,
    budget: str | int = "normal",
    seed: int = 0,
    batch: int = 256,
    cache: str | Path | None = None,
    progress: bool | Progress = False,
    difference: float | None = None,
    **conditioning: Any,
) -> Tuned:
    """Find the best sampler for a denoiser and a number of network calls, and prove it.

    denoiser: the very one that will be sampled, with its guidance.
    shape: (number of noises to fit, ...), as `sample` takes it. 16 to 64 noises are enough; fewer
        than 8 are noted in the report. Others are drawn to choose and to prove.
    steps: the network calls of a run, at least 2.
    budget: "fast" (10,000 network evaluations at most), "normal" (100,000), "thorough" (1,000,000),
        or their number. A batch of B rows counts as B; under guidance a pair is one.
    seed: of the noises, which are others than those of samples with this seed.
    batch: the most rows that the network is asked at once.
    cache: a folder in which the teacher's runs are kept, so that a search can be taken up again.
    progress: True for a bar with the time left (needs `rich`), or a function (done, total).
    difference: the step of the differences, in the scale of each parameter; by default by the
        network's dtype, 1e-4 for float64, 2e-3 for float32, 3e-2 for others.
    conditioning: what the network is told, tensors of as many rows as noises; the rows are repeated
        over the noises that choose and prove.

    Where the tuned sampler is not proven to be better than the best preset, by a 95 % bound of the
    bootstrap on the robust loss and a median error that is 5 % less, that preset is the result, and
    the report says so. ValueError for a network that answers the same question in two ways, for a
    teacher that does not converge, and for less than 2 noises or steps.

    >>> import twosides as ts
    >>> ring = ts.oracle.GaussianMixture.ring(8)
    >>> tuned = ts.tune(ring, (8, 2), steps=5, budget="fast")
    >>> tuned.report.accepted, tuned.report.after.median < 0.7 * tuned.report.before.median
    (True, True)
    >>> ts.sample(ring, (4, 2), sampler=tuned.sampler, steps=5, seed=0).shape
    torch.Size([4, 2])
    """
    with Search.of(denoiser, shape, steps, budget, seed, batch, conditioning) as search:
        with teller(progress, search.effort.evaluations, "tuning") as tell:
            search.account.tell = tell
            return search.tuned(Path(cache) if cache else None, difference)


def check(
    sampler: Sampler,
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    seed: int = 1,
    batch: int = 256,
    progress: bool | Progress = False,
    **conditioning: Any,
) -> Report:
    """Prove a tuned sampler anew: for another network, a LoRA, a guidance, a resolution.

    sampler: as `tune` found it, which lists its levels.
    The rest is as in `tune`; nothing is fitted. The report's `accepted` is whether it is still
    better than the best preset.
    """
    if not isinstance(sampler.grid, Given):
        raise ValueError(f"{sampler} lists no levels; a tuned sampler does")
    steps = len(sampler.grid.values) - 1
    with Search.of(denoiser, shape, steps, "normal", seed, batch, conditioning) as search:
        with teller(progress, search.effort.evaluations, "checking") as tell:
            search.account.tell = tell
            made = sampler.plan(search.schedule, steps)
            table = Tables.of(Tabled.of(made))
            return search.checked(table)
