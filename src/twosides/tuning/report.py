"""The result of a search: the tuned sampler, and a report of it in numbers and in words.

A search (`tune`) looks for the sampler whose runs end nearest to those of a *teacher*, which are
runs of many network calls from the same initial noises.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.metrics.distances import sliced_wasserstein
from twosides.sampling.plan import Plan
from twosides.sampling.sampler import Sampler
from twosides.storage.plans import save_sampler
from twosides.tuning.tables import Tables
from twosides.tuning.trials import ELSEWHERE, Network, Noises, robust


@dataclass(frozen=True)
class Measure:
    """How far a sampler's runs end from the teacher's, over noises that nothing was fitted to.

    The error of a run is `e = |x - x*| / rms |x*|`: x is where the run ends, x* is where the
    teacher's run ends from the same noise, and the norm is taken over the numbers of a sample.

    loss: rho, the robust loss of `tuning.trials`, which counts large errors little.
    median: the median of e.
    rms: the root mean square of e.
    elsewhere: the share of runs with e above 0.5, which have ended at other data, in [0, 1].
    sliced_w2: the sliced Wasserstein distance of the ends from the teacher's, times the square root
        of the number of dimensions, in units of rms |x*|. It compares the two distributions, where
        e compares the runs one by one.
    """

    loss: float
    median: float
    rms: float
    elsewhere: float
    sliced_w2: float

    @classmethod
    def of(cls, network: Network, noises: Noises, tables: Tables) -> Measure:
        """Run a table from noises, and measure where the runs end.

        network: what runs the table.
        noises: the noises, and where the teacher's runs end from them.
        tables: a batch of one table.
        """
        x = network.ends(tables, noises.start, noises.numbers)[0].flatten(1).cpu().double()
        wanted = noises.ends.flatten(1).cpu().double()
        x = torch.nan_to_num(x, nan=1e9, posinf=1e9, neginf=-1e9)
        errors = (x - wanted).norm(dim=1) / noises.size
        return cls(
            float(robust(errors)),
            float(errors.median()),
            float(errors.square().mean().sqrt()),
            float((errors > ELSEWHERE).double().mean()),
            sliced_wasserstein(x, wanted) / noises.size * x.shape[1] ** 0.5,
        )


@dataclass(frozen=True)
class Stage:
    """A stage of a search: what it cost, and for a fit what it reached.

    name: "teacher", "presets", "low", "e", "full" (the three families that are fitted) or "proof".
    evaluations: how many rows the network was asked.
    parameters: the number of parameters of a fit; 0 for other stages.
    iterations: the number of iterations of a fit; 0 for other stages.
    train: the loss rho of the fit's result on the noises that were fitted; None if none were.
    valid: the loss rho of the fit's result on the noises that chose it; None if none did.
    """

    name: str
    evaluations: int
    parameters: int = 0
    iterations: int = 0
    train: float | None = None
    valid: float | None = None


@dataclass
class Report:
    """What a search did, and what came of it. Its text, `print(report)`, is a summary.

    steps: the number of network calls of the sampler that was looked for.
    shape: the shape of one sample.
    seed: the seed of the noises.
    budget: the budget as it was given, a name or a number of network evaluations.
    schedule: the schedule that was tuned on, as text.
    preset: the name of the best preset and its grid, which the tuned sampler had to beat.
    before: the errors of this preset on the third set of noises, to which nothing was fitted.
    after: the errors of the tuned sampler on the same noises; None if nothing was fitted.
    accepted: whether the tuned sampler is proven to be better. If not, the preset is the result.
    why: the reason for this, in a sentence.
    teacher_calls: the number of network calls in a run of the teacher.
    teacher_error: the median distance between the ends of these runs and of runs with half as many
        calls, as a part of the data's size.
    stages: the stages in order, each with its network evaluations.
    notes: what the reader must know of the result, in sentences.
    candidates: the names of the best presets, the best first.
    """

    steps: int
    shape: tuple[int, ...]
    seed: int
    budget: str | int
    schedule: str
    preset: str = ""
    before: Measure | None = None
    after: Measure | None = None
    accepted: bool = False
    why: str = ""
    teacher_calls: int = 0
    teacher_error: float = 0.0
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        """All network evaluations: rows of batches, those of the teacher included."""
        return sum(stage.evaluations for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values, which `json` writes, with the sum of the evaluations."""
        return {**dataclasses.asdict(self), "evaluations": self.evaluations}

    def __str__(self) -> str:
        """The result, both errors, the cost and the notes in a few lines."""
        lines = [f"{self.steps} calls: {self.why}"]
        for name, measure in ((self.preset, self.before), ("tuned", self.after)):
            if measure is not None:
                lines.append(
                    f"  {name}: median error {measure.median:.2g}, root mean square "
                    f"{measure.rms:.2g}, {measure.elsewhere:.0%} end elsewhere"
                )
        parts = ", ".join(f"{stage.name} {stage.evaluations}" for stage in self.stages)
        lines.append(f"  {self.evaluations} network evaluations ({parts})")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Tuned:
    """The result of `tune`: the tuned sampler, or the best preset if it is not proven to be better.

    sampler: the sampler, for any use: `sample(denoiser, shape, sampler=tuned.sampler, steps=n)`. A
        tuned one runs with the number of steps that it was tuned for, and no other.
    plan: the sampler on the schedule that it was tuned on, as a table of numbers. This is the
        denoiser's own schedule, or cosine(-12, 12) if the denoiser cannot be asked at pure noise.
    report: what was done, and how far the runs end from the teacher's; print it.
    shown: samples to look at, from the same noises, by "the teacher", the best preset and "tuned",
        in the units of the data, (at most 8, ...).
    """

    sampler: Sampler
    plan: Plan
    report: Report
    shown: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the sampler and its report to a JSON file, whose path then names the sampler.

        path: the file, whose name ends in .json: `sample(..., sampler="8.json")` finds it by that.
        """
        save_sampler(path, self.sampler, tuned=self.report.to_json())
