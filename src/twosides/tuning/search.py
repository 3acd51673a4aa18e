"""A search, stage by stage: the code that `tune` and `check` share.

A search draws three sets of initial noises: those that tables are fitted to (*train*), those that
choose between fits (*valid*), and those on which the result is proven (*held*). For each noise a
*teacher*, a run of many network calls, says where its trajectory ends. A sampler is compared with
the teacher by rho, the robust mean of its runs' errors (see `trials`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from twosides.conditioning import flat
from twosides.denoiser import Denoises, as_denoiser
from twosides.placement import device_of, dtype_of
from twosides.sampling.grids import Given
from twosides.sampling.sample import check_shape
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, Schedule
from twosides.tuning import tables as families
from twosides.tuning.candidates import Candidate, candidates, rank
from twosides.tuning.effort import Effort, effort_of
from twosides.tuning.fit import TRIES, Fitted, checked_difference, difference_of, fit, losses
from twosides.tuning.report import Measure, Report, Stage, Tuned
from twosides.tuning.tables import Family, Range, Tables
from twosides.tuning.teacher import Teacher
from twosides.tuning.trials import Account, Network, Noises, robust

VALID_FROM, HELD_FROM = 1 << 20, 1 << 21  # the first numbers of the noises of valid and held
FEW = 8  # with fewer noises than this, the report warns that the result depends on their draw
FINE = 1e-3  # below this median error nothing can be gained: it is less than 8 bits can show
RESAMPLED, SHOWN = 2000, 8  # resamples of the bootstrap; samples that are made to look at
TAUGHT = 6  # the teacher makes at least so many times the calls of the sampler that is tuned
PAID = 10  # a fit takes as many noises as the budget can pay for in so many iterations
STARTS = tuple(  # the points theta from which the first family is searched, as logarithms
    (math.log(kappa), math.log(shift), *(math.log(a),) * 2)
    for shift in (0.4, 1.0, 0.15, 2.5)
    for kappa in (0.5, 2.0)
    for a in (1.0, 0.6)
)


class Search:
    """A search under way, a context: inside it, the denoiser's modules are in evaluation mode.

    After `__enter__`, `schedule` is the schedule that is tuned on and `where` its range of
    log-SNRs. `like` is an empty tensor with the dtype and the device of the states.
    """

    def __init__(self, network: Network, effort: Effort, report: Report, count: int) -> None:
        """Keep the parts, which `Search.of` makes; `count` is the number of noises to fit."""
        self.network, self.effort, self.report, self.count = network, effort, report, count
        self.account, self.mark = network.account, 0
        self.like = _like(network.denoiser)

    @classmethod
    def of(
        cls,
        denoiser: Denoises,
        shape: Sequence[SupportsIndex],
        steps: SupportsIndex,
        budget: str | int,
        seed: int,
        batch: int,
        conditioning: dict[str, Any],
    ) -> Search:
        """The search for these arguments of `tune`, which says what they mean.

        ValueError for less than 2 noises or 2 steps, for a shape without a sample's own axes, for
        conditioning with another number of rows than noises, and for an unknown budget.
        """
        made, sizes, calls = as_denoiser(denoiser), check_shape(shape), operator.index(steps)
        if sizes[0] < 2 or len(sizes) < 2:
            raise ValueError(
                f"shape is (number of noises to fit, ...), at least 2 of them, got {tuple(shape)}"
            )
        if calls < 2:
            raise ValueError(f"a run of {calls} calls has nothing to tune; steps is at least 2")
        for name, value in flat(conditioning).items():
            if isinstance(value, Tensor) and value.ndim and len(value) != sizes[0]:
                raise ValueError(
                    f"{name} has {len(value)} rows for {sizes[0]} noises; give one for each"
                )
        effort, account = effort_of(budget), Account(0)
        account.limit = effort.evaluations
        network = Network(made, conditioning, sizes[0], batch, account)
        report = Report(calls, sizes[1:], seed, budget, str(made.schedule))
        if sizes[0] < FEW:
            report.notes.append(
                f"{sizes[0]} noises are few: another draw of them may give another sampler; 16 or "
                "more are better"
            )
        return cls(network, effort, report, sizes[0])

    def __enter__(self) -> Search:
        self.training = [module for module in _modules(self.network.denoiser) if module.training]
        for module in self.training:
            module.training = False
        try:
            self.schedule = _askable(self.network, self.report, self.like)
            self.where = Range.of(self.schedule)
            self.report.schedule = str(self.schedule)
        except BaseException:  # `__exit__` is not called then
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for module in self.training:
            module.training = True

    def tuned(self, cache: Path | None, difference: float | None) -> Tuned:
        """All stages, and the result; `tune` says what `cache` and `difference` are."""
        train, valid, held = self.taught(cache)
        ranked = self.ranked(valid.first(16) if self.effort.starts < 16 else valid)
        best = ranked[0]
        self.report.before = Measure.of(self.network, held, best.table)
        if self.report.before.median < FINE:
            self.report.why = (
                f"there is nothing to gain: {best.name} ends within "
                f"{self.report.before.median:.1g} of the data's size, less than 8 bits can show"
            )
            return self._result(best.sampler, held, {best.name: best.table})
        found = self.fitted(train, valid, difference)
        self.prove(best, found.tables, held)
        solver = found.tables.row(0)
        tuned = Sampler(Given(solver.nodes), solver, paper="twosides: tuned")
        chosen = tuned if self.report.accepted else best.sampler
        return self._result(chosen, held, {best.name: best.table, "tuned": found.tables})

    def checked(self, table: Tables) -> Report:
        """The proof of a table that was found in another search; see `check`.

        The best preset is here chosen on the noises of the proof, which is in the preset's favour.
        """
        held = self.taught(None)[2]
        best = self.ranked(held)[0]
        self.report.before = Measure.of(self.network, held, best.table)
        self.prove(best, table, held)
        return self.report

    def _result(self, sampler: Sampler, held: Noises, tables: dict[str, Tables]) -> Tuned:
        """The result with this sampler, and samples of the teacher and of each table to look at."""
        plan, some = sampler.plan(self.schedule, self.report.steps), held.first(SHOWN)
        ends = {"the teacher": some.ends}
        for name, table in tables.items():
            ends[name] = self.network.ends(table, some.start, some.numbers)[0]
        data = self.network.denoiser.unstandardise
        return Tuned(sampler, plan, self.report, {name: data(x) for name, x in ends.items()})

    def spent(self, name: str, **more: Any) -> None:
        """Add a stage to the report, with the network evaluations since the stage before."""
        used = self.account.used - self.mark
        self.mark = self.account.used
        self.report.stages.append(Stage(name, used, **more))

    def taught(self, cache: Path | None) -> tuple[Noises, Noises, Noises]:
        """The three sets of noises with the ends of the teacher's runs: train, valid and held.

        The number of the teacher's calls is doubled, and the runs made anew, twice at most, until
        runs of half as many calls end much nearer to them than the presets do. ValueError if they
        stay far from that, for a network that answers at random, and for answers that are not
        finite.
        """
        network, effort = self.network, self.effort
        teacher = Teacher(network, self.schedule, self.report.shape, self.report.seed, self.like)
        teacher.keep(cache)
        sets = (
            range(self.count),
            range(VALID_FROM, VALID_FROM + max(effort.valid, self.count // 2)),
            range(HELD_FROM, HELD_FROM + max(effort.held, self.count // 2)),
        )
        calls = first = max(effort.teacher, TAUGHT * self.report.steps)
        error, reached = math.inf, math.inf
        train = teacher.noises(sets[0], calls)
        best = candidates(self.schedule, self.report.steps, few=True)
        self.steady(best[0], train)
        # The teacher is good enough if half as many calls end near to it, beside the error of the
        # presets or beside what matters. Twice the calls may take 40 % of the budget, no more.
        for last in (False, False, True):
            train = teacher.noises(sets[0], calls) if calls > first else train
            error = teacher.error(train, calls)
            reached = min(
                float(train.first(16).errors(network, each.table)[0].median()) for each in best[:3]
            )
            more = 2 * calls * sum(map(len, sets))
            dear = more > 0.4 * self.account.limit
            if error <= 0.1 * reached or error < 0.1 * FINE or dear or last:
                break
            calls *= 2
        self.report.teacher_calls, self.report.teacher_error = calls, error
        if error > 0.25 * reached and error > FINE:
            raise ValueError(
                f"the teacher does not converge: with {calls} calls it is still {error:.2g} of the "
                f"data's size from itself with half of them, where presets of {self.report.steps} "
                f"calls are {reached:.2g} off. With a larger budget it has more calls; else "
                "the network is rough in time, or guidance too strong for a path to be followed"
            )
        if error > 0.1 * reached and error > 0.1 * FINE:
            self.report.notes.append(
                f"the teacher has not converged: with {calls} calls it is {error:.2g} from itself "
                "with half of them, and errors below that mean nothing"
            )
        others = [teacher.noises(numbers, calls) for numbers in sets[1:]]
        self.spent("teacher")
        return train, others[0], others[1]

    def ranked(self, noises: Noises) -> list[Candidate]:
        """The presets on their grids, the best on these noises first, which the report names."""
        few = self.effort.evaluations < 50_000
        among = candidates(self.schedule, self.report.steps, few)
        ranked = rank(self.network, noises, among)
        self.report.preset = ranked[0].name
        self.report.candidates = [candidate.name for candidate in ranked[:8]]
        self.spent("presets")
        return ranked

    def steady(self, best: Candidate, noises: Noises) -> None:
        """ValueError for a network that answers the same question in two ways.

        Dropout does that, and differences of such answers say nothing. A preset is run twice from
        some noises. The ends may differ by 1 % of its error, so that rounding on a GPU passes.
        """
        some = noises.first(4)
        once, again = (some.gaps(self.network, best.table) for _ in range(2))
        error = float(once.norm(dim=2).median())
        apart = float((once - again).norm(dim=2).max())
        if apart > 1e-2 * error and apart > 1e-6:
            raise ValueError(
                f"the network answers the same question in two ways: two runs from the same noise "
                f"end {apart:.2g} of the data's size apart, where the error to be reduced is "
                f"{error:.2g}. Switch dropout off (network.eval()), and use deterministic kernels"
            )

    def fitted(self, train: Noises, valid: Noises, difference: float | None) -> Fitted:
        """The three families of tables, each fitted from the best table so far.

        The result is the fit with the least loss on `valid`.
        """
        # The proof asks one table for `Measure.of`, and both tables for their errors.
        reserve = 3 * self.report.steps * self.effort.held
        self.account.limit -= reserve
        if difference is None:
            difference = difference_of(dtype_of(self.network.denoiser))
        best, rule, kappa, difference = self._low(train, valid, difference)
        if "e" in self.effort.families and self.account.left > 0:
            levels = best.tables.logsnr[0]
            found = self._fit(
                families.each(self.where, levels, kappa, rule), train, valid, difference
            )
            best = found if found.valid < best.valid else best
        if "full" in self.effort.families and self.account.left > 0:
            family = families.full(self.where, best.tables)
            found = self._fit(family, train, valid, difference)
            best = found if found.valid < best.valid else best
        self.account.limit += reserve
        return best

    def _fit(self, family: Family, train: Noises, valid: Noises, difference: float) -> Fitted:
        """Fit a family, on as many of the noises as the budget can pay for in `PAID` iterations."""
        each = (len(family.start) + 1 + TRIES) * self.report.steps * PAID
        some = train.first(max(FEW, self.account.left // each))
        found = fit(family, self.network, some, valid, difference=difference)
        self.spent(
            family.name,
            parameters=len(family.start),
            iterations=found.iterations,
            train=found.train,
            valid=found.valid,
        )
        return found

    def _low(
        self, train: Noises, valid: Noises, difference: float
    ) -> tuple[Fitted, families.Rule, float, float]:
        """The first family, of four parameters: its best fit, and the rule, kappa and difference.

        Each rule of `tables.RULES` begins at the best of many starts. Those that are then best are
        fitted, and the fit with the least loss on `valid` is the result.
        """
        starts, steps = np.array(STARTS[: self.effort.starts]), self.report.steps
        chosen = list[tuple[float, families.Rule, Family]]()
        some = train.first(16)
        for rule in families.RULES:
            family = families.low(self.where, steps, rule, starts[0])
            found = losses(self.network, some, family.tables(starts))
            least = int(np.argmin(found))
            chosen.append((float(found[least]), rule, family.moved(starts[least])))
        chosen.sort(key=lambda each: each[0])
        step = checked_difference(chosen[0][2], self.network, train.first(8), difference)
        if step != difference:
            self.report.notes.append(
                f"differences of {difference:g} drown in the network's rounding; {step:g} were used"
            )
        fitted = list[tuple[Fitted, families.Rule]]()
        for _, rule, family in chosen[: self.effort.solvers]:
            found = fit(family, self.network, some, valid, difference=step, iterations=8)
            fitted.append((found, rule))
        best, rule = min(fitted, key=lambda each: each[0].valid)
        self.spent(
            "low", parameters=4, iterations=best.iterations, train=best.train, valid=best.valid
        )
        return best, rule, float(np.exp(best.theta[0])), step

    def prove(self, best: Candidate, table: Tables, held: Noises) -> None:
        """Write into the report whether a table is proven to be better than the best preset.

        It is if the 95 % bound of the mean difference of their losses is below 0 and if its median
        error is at least 5 % less. The table, a batch of one, was not fitted to these noises.
        """
        report, before = self.report, self.report.before
        assert before is not None
        report.after = Measure.of(self.network, held, table)
        ours, theirs = (
            each.errors(self.network, tables)[0]
            for each, tables in ((held, table), (held, best.table))
        )
        bound = bootstrap_bound(ours, theirs)
        ratio = report.after.median / before.median if before.median else math.inf
        report.accepted = bound < 0 and ratio <= 0.95
        self.spent("proof")
        said = f"the median error is {ratio:.2g} times that of the best preset, {best.name}"
        report.why = (
            said
            if report.accepted
            else f"the best preset is kept, {best.name}: on {len(held)} other noises the tuned "
            f"sampler is not proven to be better ({said})"
        )
        if report.accepted and report.after.elsewhere > 0.2:
            report.notes.append(
                f"{report.after.elsewhere:.0%} of the runs end at other data than the teacher's: "
                f"{report.steps} calls are few for this network"
            )
        if report.teacher_error > report.after.median:
            report.notes.append(
                f"the teacher is {report.teacher_error:.1g} from itself with half its calls, which "
                "is more than the error that was reached; a larger budget gives it more calls"
            )


def bootstrap_bound(ours: Tensor, theirs: Tensor, seed: int = 0) -> float:
    """The one-sided 95 % bound of the mean of `rho(ours) - rho(theirs)` over noises.

    It is the 95 % quantile of that mean over bootstrap resamples of the noises. If it is negative,
    ours are better.

    ours, theirs: the errors of two samplers from the same noises, (b,).
    seed: the seed of the resamples, fixed so that a search gives the same result each time.

    >>> bootstrap_bound(torch.zeros(8), torch.ones(8)) < 0
    True
    """
    differences = (robust(ours[:, None]) - robust(theirs[:, None])).numpy()
    drawn = np.random.default_rng(seed).integers(len(ours), size=(RESAMPLED, len(ours)))
    return float(np.quantile(differences[drawn].mean(1), 0.95))


def _like(denoiser: Any) -> Tensor:
    """An empty tensor with the dtype and the device of the states.

    The states are in float64 for a network in float64 or without weights, if the device has it, and
    in float32 for any other, since a fit needs differences of ends.
    """
    exact = (dtype_of(denoiser) or torch.float64) == torch.float64
    device = device_of(denoiser)
    dtype = torch.float64 if exact and device.type != "mps" else torch.float32
    return torch.empty(0, dtype=dtype, device=device)


@torch.no_grad()
def _askable(network: Network, report: Report, like: Tensor) -> Schedule:
    """The denoiser's schedule, or cosine(-12, 12) if the denoiser cannot be asked at pure noise.

    A network that predicts eps says nothing of x there. The report then says where runs start.
    """
    schedule = network.denoiser.schedule
    z, least = like.new_zeros((1, *report.shape)), torch.tensor([schedule.logsnr_min]).double()
    first = schedule.with_scaling("vp").level(least)
    try:
        network.denoiser(z, first, **network.told(torch.zeros(1, dtype=torch.long)))
    except ValueError as error:
        if schedule.logsnr_min > -math.inf:
            raise
        report.notes.append(f"runs start at logsnr -12, not at pure noise, where {error}")
        return Cosine(-12.0, 12.0)
    return schedule


def _modules(denoiser: Any) -> list[torch.nn.Module]:
    """All modules of a denoiser; none if it is no module."""
    return list(denoiser.modules()) if isinstance(denoiser, torch.nn.Module) else []
