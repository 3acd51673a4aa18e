"""Distilling a model: runs of the teacher, a student, an objective, and training as ever.

    distill("run/model", "few")                                 one call, from stored runs
    distill("run/model", "map", Distillation("lagrangian"), data=...)
    distill("run/model", "straight", Distillation("reflow", rounds=2))

The folder becomes a run's, as `training.fit` writes it, beside `runs/`, the teacher's.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twosides.clocks import Clock, Index, Time
from twosides.data.tasks import dataset_of
from twosides.denoiser import Denoiser
from twosides.display.pictures import png, sheet
from twosides.distillation.flow_map import FlowMap
from twosides.distillation.loss import MapObjective
from twosides.distillation.objectives import objectives
from twosides.generation.notes import Notes, load_model, read_notes
from twosides.generation.request import Request
from twosides.generation.runs import Runs, run_request, teacher_of
from twosides.generation.samples import guide
from twosides.generation.shards import Job, checksum
from twosides.generation.workers import make_shards
from twosides.naming import named
from twosides.sampling.sample import sample
from twosides.schedules import FlowMatching
from twosides.storage import models
from twosides.storage.files import MANIFEST
from twosides.storage.reading import read_json
from twosides.training.fit import Monitor, Settings, fit

_FLOW = FlowMatching()


@dataclass(frozen=True)
class Distillation:
    """What is made of a teacher, and by what.

    objective: a row of `objectives`: "trajectory" from stored runs, "lagrangian", "shortcut", ...;
        or "reflow", which makes a denoiser with straighter paths and no flow map.
    calls: the number of steps that the student is for; None trains steps between any two levels.
    states: where noisy states come from, "data", "pairs", "trajectory" or "noise"; by default as
        the objective says, and without data "pairs".
    guidance: the scale of classifier-free guidance of the teacher, which the student then has in
        it and is not to be given again.
    runs: how many runs of the teacher are stored.
    sampler, steps: of the teacher's runs; a sampler without noise.
    rounds: of reflow: the student of one is the teacher of the next. The last is in the folder
        itself, those before in `before-1/`, ... in it.
    seed: of the teacher's runs.
    """

    objective: str = "trajectory"
    calls: int | None = None
    states: str = ""
    guidance: float = 1.0
    runs: int = 20_000
    sampler: str = "kab2c"
    steps: int = 16
    rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError for what does not go together."""
        rule = named("objective", self.objective, objectives)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.rounds > 1 and not rule.coupled:
            raise ValueError(
                f"rounds={self.rounds} are for reflow; {self.objective} learns the map at once"
            )
        if rule.coupled and self.calls is not None:
            raise ValueError(
                "reflow straightens the paths for any number of calls; leave calls out, or use "
                "trajectory"
            )
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls must be at least 1, got {self.calls}")
        if self.stores and self.calls is not None and self.steps % self.calls:
            raise ValueError(
                f"the teacher's runs have {self.steps} steps, of which {self.calls} calls are no "
                f"part; steps must be a multiple of {self.calls}"
            )
        Request.of(self.sampler, steps=self.steps, count=self.runs, seed=self.seed)

    @property
    def stores(self) -> bool:
        """Whether runs of the teacher are stored."""
        return self.where in ("pairs", "trajectory")

    @property
    def where(self) -> str:
        """Where noisy states come from."""
        return self.states or objectives[self.objective].states

    def request(self) -> Request:
        """How the teacher is run."""
        return run_request(
            Request.of(
                self.sampler,
                steps=self.steps,
                count=self.runs,
                seed=self.seed,
                guidance=self.guidance if self.guidance != 1.0 else None,
            )
        )

    def about(self) -> dict[str, Any]:
        """As JSON, for the model's notes; two runs of different ones are different runs."""
        return {"distillation": dataclasses.asdict(self)}


def distill(
    model: str | Path,
    folder: str | Path,
    what: Distillation | None = None,
    settings: Settings | None = None,
    *,
    data: Any = None,
    at: str | None = None,
    trust_code: bool = False,
    devices: int | None = None,
    progress: bool = False,
) -> Denoiser:
    """Distil a model's folder into another, and return the averaged student.

    model: the folder of a model, or of the run that trained it.
    folder: of the student's run; the same call goes on after an interruption.
    what: objective, calls, guidance, ...
    settings: of the training.
    data: where states are "data": whatever `training.fit` takes.
    at: of a network of one's own, the module that embeds the time, see `SecondTime`.
    trust_code: whether the network's class may be imported from outside diffusers and twosides.
    devices: processes that make the teacher's runs, see `sample_shards`.
    progress: whether to show bars.
    """
    what, folder = what or Distillation(), Path(folder)
    if what.where == "data" and data is None:
        raise ValueError(
            f"{what.objective} is trained on noisy data, and none were given; pass data, or "
            "states='pairs' to learn from samples of the teacher alone"
        )
    rule, source = objectives[what.objective], Path(model)
    while True:
        rounds = what.rounds
        place = folder if rounds == 1 else folder / f"before-{rounds - 1}"
        teacher = load_model(source, trust_code=trust_code).requires_grad_(False).eval()
        notes = read_notes(source)
        runs = None
        if what.stores:
            job = Job(what.request(), source, place / "runs", trust_code=trust_code, states=True)
            _make(job, devices, progress)
            runs = Runs(job)
        guided: Any = guide(teacher_of(teacher), what.guidance, notes.null)
        objective = MapObjective(rule=rule, teacher=guided, states=what.where, calls=what.calls)
        student = straightened(teacher) if rule.coupled else mapped(teacher, at)
        student = fit(
            student.train(),
            runs if runs is not None else dataset_of(data),
            objective,
            place,
            settings or Settings(optimizer="adam", decay="linear"),
            about={
                **what.about(),
                "teacher": _weights(source),
                "shape": list(notes.shape),
                "classes": notes.classes,
            },
            monitor=Monitor(draw=_drawer(what, notes)),
        )
        if rounds == 1:
            return student
        # Guidance is in the student, and another round has other noise.
        source, again = place, {"guidance": 1.0, "seed": what.seed + 1}
        what = dataclasses.replace(what, rounds=rounds - 1, **again)


def _weights(model: Path) -> str:
    """The checksum of a model's weights, by which a run knows its teacher."""
    folder = models.model_folder(model)
    return read_json(folder / MANIFEST)[models.WEIGHTS]["sha256"]


def _make(job: Job, devices: int | None, progress: bool) -> None:
    """Make the teacher's runs that are not there.

    Of a launcher's processes each makes its share, and waits for the others'.
    """
    absent = make_shards(job, devices=devices, progress=progress).absent
    while absent:
        time.sleep(1.0)
        absent = sum(not checksum(job.path(number)).exists() for number in range(job.shards))


def mapped(teacher: Denoiser, at: str | None = None) -> FlowMap:
    """The student of a teacher: its network, told a second time, in a notation that knows noise.

    It is the teacher exactly where that has an answer from pure noise to pure data. A network of
    eps has none, and one of discrete levels is not told the ends; its weights are then the start
    of a network of u, which is no longer the teacher.
    """
    return FlowMap.from_denoiser(_head(teacher), at)


def straightened(teacher: Denoiser) -> Denoiser:
    """The student of reflow: a copy of the teacher, of u where that predicts eps."""
    student = copy.deepcopy(_head(teacher)).requires_grad_()
    student.coupling = "reflow"
    return student


def _head(teacher: Denoiser) -> Denoiser:
    """The teacher, or its network as one of u where it has no answer or no time at the ends."""
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    try:
        teacher.output.solve(_FLOW.level(ends[0]).floats())
        told = teacher.clock.read(ends, teacher.schedule)
        if bool(told.isfinite().all()):
            return teacher
    except ValueError:
        pass
    statistics = {"data_mean": teacher.data_mean, "data_std": teacher.data_std}
    clock = _flow_clock(teacher.clock)
    return type(teacher)(teacher.network, "u", _FLOW, clock, **statistics)


def _flow_clock(clock: Clock) -> Clock:
    """A clock of flow time in the units in which the network was told another."""
    if isinstance(clock, Time):
        return clock
    return Time(float(clock.count)) if isinstance(clock, Index) else Time()


def _drawer(what: Distillation, notes: Notes) -> Any:
    """A function that draws a picture of each class, in the steps that the student is for."""
    if len(notes.shape) != 3 or notes.shape[0] not in (1, 3) or notes.pipeline:
        return None
    count = min(len(notes.classes), 26) or 26
    told: dict[str, Any] = {"class_labels": torch.arange(count)} if notes.classes else {}

    def draw(denoiser: Denoiser) -> bytes:
        x = sample(denoiser, (count, *notes.shape), steps=what.calls or 4, seed=0, **told)
        return png(sheet(x))

    return draw
