"""Samples by the thousand, in files of a thousand, by any number of processes.

    samples/run.json                   what run this is: model, sampler, steps, seed, count, ...
    samples/shard-00000.npy            samples 0 ... 999 as float32, (1000, ...)
    samples/shard-00000.npy.sha256     its checksum, as sha256sum writes and checks it

Sample i depends on (seed, i) only, and each batch of the network lies within one shard and begins
where the shard says, so that the files are the same bytes for any number of processes and after any
interruption, on machines of one kind. On the CPU a process therefore computes with one thread, as
sums of several threads are rounded otherwise; use as many processes as cores.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twosides.display.pictures import npy
from twosides.generation.notes import load_model, read_notes
from twosides.generation.request import Request
from twosides.generation.runs import run_states, teacher_of
from twosides.generation.samples import drawer, label_tensor
from twosides.sampling.named import sampler_named
from twosides.sampling.presets import samplers
from twosides.storage import models, parts
from twosides.storage.files import MANIFEST, verify_folder, write_file
from twosides.storage.owner import claim
from twosides.storage.reading import read_file, read_json, require_file, sha256

RUN = "run.json"
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """All that decides the samples in a folder of shards, and where they go.

    request: how to sample; its `count` says how many in all.
    model: the folder of the model, or of the run that trained it.
    out: the folder of the shards.
    batch: samples per network call; batches do not cross shards.
    shard: samples per file.
    trust_code: whether the network's class may be imported from outside diffusers and twosides.
    states: whether the states on the way are kept, too, as `runs` says; None, not.
    """

    request: Request
    model: Path
    out: Path
    batch: int = 256
    shard: int = 1000
    trust_code: bool = False
    states: bool | None = None

    def __post_init__(self) -> None:
        """ValueError for sizes that make no sense, and for prompts."""
        for name in ("batch", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.request.count is None:
            raise ValueError("shards need the number of samples: count=50000")
        if self.request.prompt is not None:
            raise ValueError(
                "a model is prompted for a .png or .npy file, not for a folder of shards; name one:"
                " out=FILE"
            )

    @property
    def count(self) -> int:
        """How many samples there will be."""
        return self.request.count or 0

    @property
    def shards(self) -> int:
        """How many files there will be."""
        return -(-self.count // self.shard)

    def rows(self, number: int) -> range:
        """The samples of one shard."""
        return range(number * self.shard, min((number + 1) * self.shard, self.count))

    def path(self, number: int) -> Path:
        """The file of one shard."""
        return self.out / f"shard-{number:05d}.npy"

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {name: str(values[name].absolute()) for name in ("model", "out")}
        return {**values, **paths, "request": self.request.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        paths = {name: Path(values[name]) for name in ("model", "out")}
        return cls(**{**values, **paths, "request": Request.from_json(values["request"])})

    def identity(self) -> dict[str, Any]:
        """What run.json records of the options, in the words that it has always had.

        The guidance scale is a number there, and a sampler that is a preset has the first of its
        names, however it was asked for.
        """
        wanted, request = sampler_named(self.request.sampler), self.request
        names = [name for name, preset in samplers.items() if preset == wanted]
        options = {**request.to_json(), "guidance": request.scale}
        options["sampler"] = names[0] if names else parts.describe(wanted)
        left_out = (
            "prompt",
            "negative_prompt",
            "device",
        )  # run.json has the kind of device by itself
        options = {name: value for name, value in options.items() if name not in left_out}
        told = {} if self.states is None else {"states": self.states}
        return {**options, "batch": self.batch, "shard": self.shard, **told}


@dataclass(frozen=True)
class Shards:
    """What came of it: printed, the line that `twosides sample` ends with.

    made: the shards that this call wrote. absent: those that other processes still have to write;
    statistics of all numbers of all samples are known once there is none, else they are NaN.
    """

    job: Job
    made: int
    absent: int
    seconds: float
    shape: tuple[int, ...]
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """One line."""
        job = self.job
        if self.absent:
            return f"{job.out}: this process made {self.made} shards, {self.absent} are to come"
        there = f", {job.shards - self.made} of them there before" if self.made < job.shards else ""
        speed = f", in {self.seconds:.1f} s" if self.made else ""
        return (
            f"{job.out}: {job.count} samples of {self.shape} in {job.shards} shards{there}{speed}; "
            f"mean {self.mean:.4g}, std {self.std:.4g}, from {self.low:.4g} to {self.high:.4g}"
        )


# ---------------------------------------------------------------------------- the folder


def prepare(job: Job, kind: str) -> tuple[int, ...]:
    """Check model and options, record in the folder what run it holds, and return the shape.

    kind: of device, such as "cpu" or "cuda". ValueError if the folder holds another run.
    """
    folder = models.model_folder(job.model)
    verify_folder(folder)
    notes = read_notes(folder)
    notes.refuse_captions()
    if job.request.labels is not None:
        label_tensor(job.request.labels, notes.classes)
    if job.request.scale != 1.0 and not notes.null:
        raise ValueError("guidance needs a model trained with dropped classes; this one was not")
    files = read_json(folder / MANIFEST)
    identity = {
        "format": "twosides samples",
        "version": 1,
        "model": {name: files[name]["sha256"] for name in (models.CONFIG, models.WEIGHTS)},
        **job.identity(),
        "shape": notes.shape,
        "device": kind,
    }
    claim(job.out / RUN, identity, "samples")
    return notes.shape


def missing_shards(job: Job, numbers: Sequence[int]) -> list[int]:
    """The numbers of the shards that are still to be made; a warning tells of damaged ones."""
    return [number for number in numbers if not _is_good(job.path(number))]


def _is_good(path: Path) -> bool:
    if not checksum(path).exists():  # written last
        return False
    said = read_file(checksum(path), 4096).decode(errors="replace").split(" ")[0]
    with contextlib.suppress(FileNotFoundError):
        if _whole(path) and sha256(path) == said:
            return True
    warnings.warn(f"{path} is missing or damaged and is made again", stacklevel=2)
    return False


def _whole(path: Path) -> bool:
    """Whether a file is as long as its header says; only then is it worth reading all of it."""
    try:
        claimed = np.load(require_file(path), mmap_mode="r", allow_pickle=False).nbytes
    except OSError:
        raise
    except Exception:  # a damaged header makes its parser raise nearly anything
        return False
    return path.stat().st_size - claimed < 4096


def checksum(path: Path) -> Path:
    """The file of a shard's checksum."""
    return path.with_name(path.name + ".sha256")


def _write(path: Path, data: bytes) -> None:
    checksum(path).unlink(missing_ok=True)
    write_file(path, data)
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"
    write_file(checksum(path), line.encode())


# ---------------------------------------------------------------------------- one process


def make(job: Job, numbers: Sequence[int], device: str, tell: Tell) -> None:
    """Write these shards; `tell` hears of each batch how many samples it had."""
    if not numbers:
        return
    denoiser = load_model(job.model, trust_code=job.trust_code).to(device)
    kept = None
    if job.states:
        denoiser = teacher_of(denoiser)
        kept = functools.partial(run_states, steps=job.request.steps)
    draw = drawer(denoiser, read_notes(job.model), job.request, kept=kept)
    with _one_thread() if device == "cpu" else _current(device):
        for number in numbers:
            rows, parts = job.rows(number), []
            for first in range(0, len(rows), job.batch):
                parts.append(draw(rows[first : first + job.batch]).cpu())
                tell(len(parts[-1]))
            _write(job.path(number), npy(torch.cat(parts)))


def _current(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make an accelerator the current one, for what names none."""
    return torch.accelerator.device_index(torch.device(device).index)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------------------- the result


def samples_in(job: Job, numbers: Sequence[int]) -> int:
    """How many samples these shards have."""
    return sum(len(job.rows(number)) for number in numbers)


def result(job: Job, made: int, seconds: float, shape: tuple[int, ...]) -> Shards:
    """What there is now; once all is, what killed processes left is removed."""
    numbers = range(job.shards)
    absent = sum(not checksum(job.path(number)).exists() for number in numbers)
    if absent:
        return Shards(job, made, absent, seconds, shape)
    for left in job.out.glob(".tmp-*"):
        left.unlink(missing_ok=True)
    return Shards(job, made, 0, seconds, shape, *_statistics([job.path(n) for n in numbers]))


def _statistics(paths: Sequence[Path]) -> tuple[float, float, float, float]:
    """(mean, standard deviation, least, largest) in float64, a shard at a time."""
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for path in paths:
        x = np.load(require_file(path), mmap_mode="r", allow_pickle=False).astype(np.float64)
        if not np.isfinite(x).all():
            warnings.warn(f"{path} has samples that are not finite", stacklevel=2)
        away, both = float(x.mean()) - mean, count + x.size
        squares += float(x.var()) * x.size + away**2 * count * x.size / both
        mean, count = mean + away * x.size / both, both
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    return mean, math.sqrt(squares / count), low, high
