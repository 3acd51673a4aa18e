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
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import Denoises, describes
from twosides.display.pictures import npy
from twosides.generation.samples import guided, label_tensor, startable, wordless
from twosides.sampling.plan import Plan
from twosides.sampling.presets import plan, sampler_named, samplers
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule
from twosides.storage import models, parts
from twosides.storage.files import MANIFEST, verify_folder, write_file
from twosides.storage.owner import claim
from twosides.storage.reading import read_file, read_json, require_file, sha256

RUN = "run.json"
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """All that decides the samples, and where they go. `labels` repeat; None is all in turn."""

    model: Path
    out: Path
    count: int
    sampler: Sampler
    steps: int = 20
    schedule: Schedule | None = None
    guidance: float = 1.0
    labels: str | None = None
    seed: int = 0
    batch: int = 256
    shard: int = 1000
    trust_code: bool = False

    def __post_init__(self) -> None:
        """ValueError for counts that make no sense."""
        for name in ("count", "batch", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"a seed is a non-negative integer, got {self.seed}")
        if self.labels == "":
            raise ValueError("labels are one letter or more; leave them out for all in turn")

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
        names = [name for name, preset in samplers.items() if preset == self.sampler]
        sampler = names[0] if names else parts.describe(self.sampler)
        schedule = parts.describe(self.schedule)
        return {**values, **paths, "sampler": sampler, "schedule": schedule}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """What `to_json` wrote."""
        paths = {name: Path(values[name]) for name in ("model", "out")}
        sampler = sampler_named(parts.restore(values["sampler"]))
        schedule = parts.restore(values["schedule"])
        return cls(**{**values, **paths, "sampler": sampler, "schedule": schedule})


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
    """Check model and options, and record in the folder what run it holds, or refuse another."""
    folder = models.model_folder(job.model)
    verify_folder(folder)
    config = models.read_config(folder)
    wordless(config)
    shape, classes = config.get("shape"), config.get("classes", "")
    if not shape:
        raise ValueError(f"{folder} does not say the shape of its samples; use twosides.sample")
    if job.labels is not None:
        label_tensor(job.labels, classes)
    if job.guidance != 1.0 and not config.get("null"):
        raise ValueError("guidance needs a model trained with dropped classes; this one was not")
    files = read_json(folder / MANIFEST)
    elsewhere = ("model", "out", "trust_code")
    identity = {
        "format": "twosides samples",
        "version": 1,
        "model": {name: files[name]["sha256"] for name in (models.CONFIG, models.WEIGHTS)},
        **{name: value for name, value in job.to_json().items() if name not in elsewhere},
        "shape": shape,
        "device": kind,
    }
    claim(job.out / RUN, identity, "samples")
    return tuple(shape)


def missing(job: Job, numbers: Sequence[int]) -> list[int]:
    """Those shards that are not there, checked; warns of damaged ones."""
    return [number for number in numbers if not _good(job.path(number))]


def _good(path: Path) -> bool:
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
    denoiser = models.load(job.model, trust_code=job.trust_code).to(device)
    config = models.read_config(job.model)
    where = job.schedule or startable(denoiser, job.sampler, job.steps) or describes(denoiser)
    table = plan(job.sampler, where, job.steps)
    network = guided(denoiser, job.guidance, config.get("null", {}))
    draw = partial(_draw, job, network, table, config, device)
    with _one_thread() if device == "cpu" else torch.cuda.device(device):
        for number in numbers:
            rows, parts = job.rows(number), []
            for first in range(0, len(rows), job.batch):
                parts.append(draw(rows[first : first + job.batch]))
                tell(len(parts[-1]))
            _write(job.path(number), npy(torch.cat(parts)))


def _draw(
    job: Job, network: Denoises, table: Plan, config: dict[str, Any], device: str, rows: range
) -> Tensor:
    classes = config.get("classes", "")
    conditioning = {}
    if classes:
        cycle = label_tensor(job.labels or classes, classes)
        conditioning["class_labels"] = cycle[torch.tensor(rows) % len(cycle)].to(device)
    shape = (len(rows), *config["shape"])
    x = sample(
        network, shape, sampler=table, seed=job.seed, indices=rows, device=device, **conditioning
    )
    return x.cpu()


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
