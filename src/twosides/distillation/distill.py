"""Distilling: a model that needs few steps, the student, is trained from one that needs many.

The model of many steps is called the *teacher*. Four things are put together here: runs of the
teacher's ODE, which are made once and stored (`generation.runs`); a student, which begins with the
weights of the teacher; an objective, the rule by which it learns (`objectives`); and the training
itself, which is `training.fit`.

    distill("run/model", "few")                                 a flow map, from stored runs
    distill("run/model", "map", Distillation("lagrangian"), data=...)
    distill("run/model", "straight", Distillation("reflow", rounds=2))

Most objectives make a *flow map*, a denoiser that is told two noise levels and whose step follows
the ODE at any length (`flow_map`). Reflow makes an ordinary denoiser whose ODE has straighter
paths. The folder is that of a training run, as `fit` writes it; its subfolder `runs/` holds the
stored runs of the teacher.
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
# What noisy states are made of, where they are not those of stored runs.
NEEDS = {"data": "noisy data", "noise": "noise of the shape and the conditioning of data"}


@dataclass(frozen=True)
class Distillation:
    """What a student is to learn from its teacher, and how.

    objective: the name of a row of `objectives`. "trajectory", the default, learns from stored runs
        and needs no data; "reflow" makes a denoiser and not a flow map.
    calls: the number of steps that the student is for, at least 1. By default (None) it is trained
        on steps between any two levels.
    states: where the noisy states of the training come from (`loss.STATES`): "data", noisy data;
        "pairs", noisy samples of the teacher; "trajectory", the states of its stored runs; "noise",
        pure noise. By default the objective's own choice. An objective that learns from stored runs
        ("trajectory", "reflow") takes no other.
    guidance: the scale of classifier-free guidance of the teacher; 1, the default, is none. The
        student learns the guided teacher, and must not be guided again when it is sampled.
    runs: how many runs of the teacher are stored, at least 1. The default is the number with which
        docs/fewsteps.md measures.
    sampler: the sampler of these runs. It must be one without noise, since a run has to end where
        its ODE leads.
    steps: the number of steps of these runs, at least 1. If runs are stored for a given number of
        calls, it must be a multiple of that number, so that the grid of the student is part of the
        grid of the runs.
    rounds: how often reflow is done, at least 1; each round has the student of the one before as
        its teacher. The last round is in the folder itself and the earlier ones are in its
        subfolders, the last but one in `before-1/`, the one before that in `before-2/`. Only reflow
        takes more than one round.
    seed: the seed of the teacher's runs, at least 0; run i depends on (seed, i) only.

        >>> what = Distillation("lagrangian", states="pairs", guidance=1.5)
        >>> what.where, what.stores
        ('pairs', True)
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
        """ValueError for unknown names, for numbers out of range, and for parts that contradict."""
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
        if self.where == "trajectory" and self.calls and self.steps % self.calls:
            raise ValueError(
                f"the teacher's runs have {self.steps} steps, of which {self.calls} calls are no "
                f"part; steps must be a multiple of {self.calls}"
            )
        if self.where != "noise":  # which needs the teacher
            MapObjective(rule=rule, states=self.where, calls=self.calls)  # for what it refuses
        Request.of(self.sampler, steps=self.steps, count=self.runs, seed=self.seed)

    @property
    def stores(self) -> bool:
        """Whether the training reads stored runs of the teacher."""
        return self.where in ("pairs", "trajectory")

    @property
    def where(self) -> str:
        """Where the noisy states come from: `states`, or else the choice of the objective."""
        return self.states or objectives[self.objective].states

    def request(self) -> Request:
        """How the teacher is run; ValueError for a sampler that injects noise."""
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
        """This object as JSON, for the notes of the model.

        The notes are part of what identifies a run, so that a folder takes one distillation only.
        """
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
    """Distil the model of one folder into another, and return the averaged student.

    model: the folder of the teacher: of a model, or of the run that trained it.
    folder: the folder of the student's run. The same call continues after an interruption.
    what: what is learned and how; by default a flow map for any number of steps, from stored runs.
    settings: the settings of the training; by default those of `Settings`, but with the optimizer
        "adam" and a learning rate that decays linearly.
    data: the data, in any form that `training.fit` takes. They are needed where the noisy states
        are not those of stored runs, and refused where they are; for pure noise only their shape
        and their conditioning matter.
    at: for a network of one's own, the name of the module that embeds the time (`SecondTime`).
    trust_code: whether the network's class may be imported from outside diffusers and twosides.
    devices: the number of processes that make the teacher's runs (`sample_shards`).
    progress: whether to show progress bars of the runs.

    ValueError for noisy data without data, and where the folder holds another distillation.
    """
    what, folder = what or Distillation(), Path(folder)
    if not what.stores and data is None:
        raise ValueError(
            f"{what.objective} is trained on {NEEDS[what.where]}, and no data were given; pass "
            "data, or states='pairs' to learn from samples of the teacher alone"
        )
    if what.stores and data is not None:
        raise ValueError(
            f"{what.objective} learns from {what.where} of the teacher and not from data; leave "
            "data out, or choose an objective of the map's own, such as lagrangian"
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
                **({"pipeline": notes.pipeline} if notes.pipeline else {}),
            },
            monitor=Monitor(draw=_drawer(what, notes)),
        )
        if rounds == 1:
            return student
        # The student of this round has learned the guidance, which must not be applied twice. With
        # a seed of its own the next round does not pair the noise of this round again.
        source, again = place, {"guidance": 1.0, "seed": what.seed + 1}
        what = dataclasses.replace(what, rounds=rounds - 1, **again)


def _weights(model: Path) -> str:
    """The checksum of a model's weights, by which the student's run records its teacher."""
    folder = models.model_folder(model)
    return read_json(folder / MANIFEST)[models.WEIGHTS]["sha256"]


def _make(job: Job, devices: int | None, progress: bool) -> None:
    """Make those runs of the teacher that are not stored yet, and return when all are.

    If a launcher (torchrun, srun) has started several processes, each makes its share and waits for
    the others to make theirs.
    """
    absent = make_shards(job, devices=devices, progress=progress).absent
    while absent:
        time.sleep(1.0)
        absent = sum(not checksum(job.path(number)).exists() for number in range(job.shards))


def mapped(teacher: Denoiser, at: str | None = None) -> FlowMap:
    """A flow map that begins with the weights of the teacher: the student of most objectives.

    A flow map must answer at pure noise, where its first step begins. If the teacher answers there,
    the student is exactly the teacher until it is trained. A network that predicts eps says nothing
    of the data at pure noise. A clock, the rule by which a network is told the level, may be unable
    to state pure noise and pure data, as those of discrete levels and of the log-SNR are. In both
    cases the student has the same weights but predicts u on flow matching's schedule, and its
    answers are no longer those of the teacher.

    teacher: the denoiser to begin with; it is left as it is.
    at: for a network of one's own, the name of the module that embeds the time (`SecondTime`).

        >>> import twosides as ts
        >>> from twosides.storage.networks import MLP
        >>> mapped(ts.Denoiser(MLP(), "eps", ts.Cosine())).output.name
        'u'
    """
    return FlowMap.from_denoiser(_head(teacher), at)


def straightened(teacher: Denoiser) -> Denoiser:
    """A copy of the teacher, to be trained: the student of reflow.

    Like `mapped` it predicts u where the teacher does not answer from pure noise to pure data. Its
    `coupling` is "reflow", so that whatever needs the score refuses it: the training pairs each
    noise with the sample that the teacher makes of it.
    """
    student = copy.deepcopy(_head(teacher)).requires_grad_()
    student.coupling = "reflow"
    return student


def _head(teacher: Denoiser) -> Denoiser:
    """The teacher; or its network as one that predicts u, if the teacher does not reach the ends.

    It does not if its output says nothing of the data at pure noise, or if its clock has no finite
    time for pure noise or for pure data.
    """
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    try:
        teacher.output.solve(_FLOW.level(ends[0]).floats())
        told = teacher.clock.read(ends, teacher.schedule)
        if bool(told.isfinite().all()):
            return teacher
    except ValueError:
        pass  # the output or the clock refuses a level at an end
    statistics = {"data_mean": teacher.data_mean, "data_std": teacher.data_std}
    clock = _flow_clock(teacher.clock)
    return type(teacher)(teacher.network, "u", _FLOW, clock, **statistics)


def _flow_clock(clock: Clock) -> Clock:
    """A clock that tells flow time, in the range of the times that the network was told before.

    Clocks of the log-SNR have no such range; flow time is then told as it is, from 0 to 1.
    """
    if isinstance(clock, Time):
        return clock
    return Time(float(clock.count)) if isinstance(clock, Index) else Time()


def _drawer(what: Distillation, notes: Notes) -> Any:
    """A function that draws a sample of each class, in the steps that the student is for.

    If it is for any number of steps, 4 are taken; a model without classes draws 26 samples. None
    for samples that are no pictures, and for latents.
    """
    if len(notes.shape) != 3 or notes.shape[0] not in (1, 3) or notes.pipeline:
        return None
    count = min(len(notes.classes), 26) or 26
    told: dict[str, Any] = {"class_labels": torch.arange(count)} if notes.classes else {}

    def draw(denoiser: Denoiser) -> bytes:
        x = sample(denoiser, (count, *notes.shape), steps=what.calls or 4, seed=0, **told)
        return png(sheet(x))

    return draw
