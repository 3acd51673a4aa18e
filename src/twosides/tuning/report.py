"""What a search found, as numbers and in words."""

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

    loss: rho, the robust loss (`tuning.trials`).
    median, rms: of e = |x - x*| / rms |x*|.
    elsewhere: the share of runs with e above 0.5, which have ended at other data.
    sliced_w2: the sliced Wasserstein distance of the ends from the teacher's, by the same size.
    """

    loss: float
    median: float
    rms: float
    elsewhere: float
    sliced_w2: float

    @classmethod
    def of(cls, network: Network, noises: Noises, tables: Tables) -> Measure:
        """Of a batch of one table."""
        x = network.ends(tables, noises.start, noises.numbers)[0].flatten(1).double().cpu()
        wanted = noises.ends.flatten(1).double().cpu()
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
    """A part of a search: its network evaluations, and the loss on the noises that chose.

    name: "teacher", "presets", "low", "e", "full" or "proof".
    evaluations: rows that the network was asked.
    parameters, iterations: of a fit.
    train, valid: rho of the best so far; None where nothing was fitted.
    """

    name: str
    evaluations: int
    parameters: int = 0
    iterations: int = 0
    train: float | None = None
    valid: float | None = None


@dataclass
class Report:
    """What was done, and what came of it.

    steps, shape, seed, budget: what was asked, shape that of a sample.
    schedule: that of the denoiser.
    preset: the best preset and grid, which is what is to be beaten.
    before, after: that preset's and the tuned sampler's errors on the third set of noises.
    accepted: whether the tuned sampler is returned; else the preset is.
    why: the reason, in a sentence.
    teacher_calls, teacher_error: the teacher's calls, and its median distance from half as many.
    stages: with their network evaluations.
    notes: what the reader must know, in sentences.
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
        """For a file."""
        return {**dataclasses.asdict(self), "evaluations": self.evaluations}

    def __str__(self) -> str:
        """In a few lines."""
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
    """The result of `tune`.

    sampler: to be used anywhere, `sample(denoiser, shape, sampler=tuned.sampler, steps=steps)`.
    plan: the same as a table on the denoiser's own schedule.
    report: what was done, and how far it is from the teacher; print it.
    shown: for eyes, samples of the same noises by the teacher, the best preset and the result.
    """

    sampler: Sampler
    plan: Plan
    report: Report
    shown: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write a .json file, whose path is then a name of the sampler everywhere."""
        save_sampler(path, self.sampler, tuned=self.report.to_json())
