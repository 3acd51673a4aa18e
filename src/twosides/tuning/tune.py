"""`tune`: the best sampler for a denoiser and a number of network calls, found and proven.

The sampler is found as a *table*: the log-SNRs at which the network is asked, and the weights that
each step gives to the estimates so far. A search has these stages:

    teacher         runs of many calls, which say where trajectories end (`teacher`)
    presets         the best of all presets x grids: it is to be beaten, and is the fallback
    low, e, full    three families of tables, fitted one after the other (`tables`, `fit`)
    proof           a comparison on noises to which nothing was fitted, and which chose nothing

The fits need forward passes only. To fit a table of levels and coefficients to the ends of a
teacher's runs is the idea of BNS [Shaul+ 2024], S4S [Frankel+ 2025] and GS [Oganov+ 2025]. The
families, the method and the proof are this library's.

    Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, Shaul+ 2024,
    arxiv.org/abs/2403.01329
    S4S: Solving for a Diffusion Model Solver, Frankel+ 2025, arxiv.org/abs/2502.17423
    GAS: Improving Discretization of Diffusion ODEs via Generalized Adversarial Solver, Oganov+
    2025, arxiv.org/abs/2510.17699
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
    """Find the best sampler for a denoiser and a number of network calls, and prove that it is.

    The best sampler is the one whose runs end nearest to those of a teacher, which makes many
    network calls from the same initial noises. It is proven to be better than the best preset if
    the 95 % bound of the bootstrap of the robust loss (see `trials`) is on its side, and its median
    error at least 5 % less. Otherwise that preset is the result, and the report says so.

    denoiser: the very denoiser that will be sampled, with its guidance.
    shape: (number of noises to fit, ...), as `sample` takes it. 16 to 64 noises are enough; fewer
        than 8 are noted in the report. Other noises are drawn to choose and to prove.
    steps: the number of network calls of the sampler, >= 2.
    budget: "fast" (10,000 network evaluations), "normal" (100,000), "thorough" (1,000,000), or a
        number of them, >= 5000. A batch of B rows counts as B; under guidance a pair is one. The
        fits end with the budget; teacher, presets and proof do not, so that many noises or steps
        can take more than a small one.
    seed: the seed of the noises, which are others than those of samples with this seed.
    batch: the most rows that the network is asked at once.
    cache: a folder in which the teacher's runs are kept, so that a search can be taken up again;
        by default none. It is for one denoiser and one conditioning (see `teacher`).
    progress: True for a bar with the time left (needs `rich`), or a function (done, total).
    difference: the step of the fits' differences, in units of each parameter's scale; by default
        that which suits the network's dtype, 1e-4 for float64, 2e-3 for float32, 3e-2 for others.
    conditioning: what the network is told, tensors with one row for each noise that is fitted; the
        rows are repeated over the noises that choose and prove.

    ValueError for a network that answers the same question in two ways (dropout), for answers that
    are not finite, for a teacher that does not converge, for less than 2 noises or steps, and for
    conditioning with another number of rows.

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

    Nothing is fitted. In the report, `accepted` says whether the sampler is still proven to be
    better than the best preset, and `after` has its errors.

    sampler: the sampler that `tune` found, or its file's; its grid lists its levels.
    denoiser: the denoiser that the sampler will be used with.
    shape: (number of noises, ...), as in `tune`; the proof has at least 48 noises and half as many
        as these.
    seed: the seed of the noises; by default another one than that of `tune`.
    batch: the most rows that the network is asked at once.
    progress: True for a bar with the time left (needs `rich`), or a function (done, total).
    conditioning: what the network is told, tensors with as many rows as `shape` says.

    ValueError for a sampler without levels of its own, and as in `tune`.
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
