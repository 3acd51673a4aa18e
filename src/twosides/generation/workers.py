"""Sampling at scale: `sample_shards`, by processes that are started here, by torchrun or by srun.

Those started here get their work as JSON on stdin and answer with JSON lines on stdout. They end
when stdin does, so none outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import IO, Any, cast

import torch

from twosides.display.progress import teller
from twosides.generation.request import Request
from twosides.generation.shards import (
    Job,
    Shards,
    Tell,
    checksum,
    make,
    missing_shards,
    prepare,
    result,
    samples_in,
)
from twosides.storage.devices import device_named

# An interrupt goes to all processes of a terminal; the first one stops the others.
_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from twosides.generation.workers import work; work()"
)
_EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError)


def sample_shards(
    model: str | Path,
    out: str | Path,
    count: int,
    *,
    batch: int = 256,
    shard: int = 1000,
    devices: int | None = None,
    trust_code: bool = False,
    progress: bool | Callable[[int, int], None] = False,
    **how: Any,
) -> Shards:
    """Draw samples of a model folder into the files `out/shard-00000.npy`, ...: float32, (B, ...).

    model: the folder of a model, or of the run that trained it.
    out: the folder of the shards.
    count: how many samples, at least 1.
    batch: samples per network call. Batches do not cross shards.
    shard: samples per file.
    devices: processes, one for each accelerator or on the CPU of one thread each; by default all
        accelerators, or one process. Under torchrun or srun each of their processes makes its share
        instead.
    trust_code: whether the network's class may be imported from outside diffusers and twosides.
    progress: True for one bar for all processes, or a function (samples done, samples to make).
    how: how to sample, as in `Request.of`: sampler="ddim", steps=20, schedule, noise, grid,
        guidance=1.0, labels, seed=0, device="auto".

    The same call continues after an interruption: shards are checked, what is damaged is made again
    with a warning. ValueError if the folder holds another run; ChildProcessError, after all others
    were stopped, if a process fails.
    """
    request = Request.of(count=count, **how)
    job = Job(request, Path(model), Path(out), batch, shard, trust_code)
    return make_shards(job, devices=devices, progress=progress)


def make_shards(
    job: Job,
    *,
    devices: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Shards:
    """Make the shards of a job that are not there yet; the options are `sample_shards`'."""
    place, began = launcher_place(), time.monotonic()
    if place is not None and devices is not None:
        raise ValueError(
            f"{place.world} processes were started by a launcher; leave devices={devices} out"
        )
    there = _devices(job.request.device, devices)
    shape = prepare(job, torch.device(there[0]).type)
    rank, world = (place.rank, place.world) if place else (0, 1)
    todo = missing_shards(job, range(rank, job.shards, world))
    if place is not None:
        # Slurm may let each process see one GPU only.
        with _shared_bar(job, todo, place.rank, progress) as tell:
            make(job, todo, there[place.local % len(there)], tell)
    else:
        total = samples_in(job, todo)
        with teller(progress if todo else False, total) as show:
            share(job, todo, there, _sum_up(show, total))
    return result(job, len(todo), time.monotonic() - began, shape)


# ---------------------------------------------------------------------------- launchers


@dataclass(frozen=True)
class Place:
    """One of the `world` processes of a launcher: its number, there and on its machine."""

    rank: int
    world: int
    local: int


def launcher_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun or srun gave to this process, None if it is alone.

    Of Slurm the variables of a job step are read, which srun sets for each process: the script
    of a batch job is one process, whatever SLURM_NTASKS says.
    """
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if all(name in environment for name in names):
            place = Place(*(int(environment[name]) for name in names))
            return place if place.world > 1 else None
    return None


def _devices(name: str, wanted: int | None) -> list[str]:
    """The devices by their names, one for each process that is to be started.

    name: the request's `device`.
    wanted: how many processes; by default one on the CPU, or one for each accelerator.
    """
    device = device_named(name)
    if wanted is not None and wanted < 1:
        raise ValueError(f"devices={wanted} was asked, but 1 or more processes are needed")
    if device.type == "cpu":
        return ["cpu"] * (wanted or 1)
    indices = range(torch.accelerator.device_count()) if device.index is None else [device.index]
    if (wanted or 0) > len(indices):
        raise ValueError(f"devices={wanted} was asked, but device={name} has {len(indices)} here")
    return [f"{device.type}:{index}" for index in indices[:wanted]]


def _sum_up(show: Callable[[int, int], None] | None, total: int) -> Tell:
    """Of a function (done in all, total) one that hears of every batch."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if show is not None:
            show(done, total)

    return tell


@contextlib.contextmanager
def _shared_bar(
    job: Job, todo: Sequence[int], rank: int, progress: bool | Callable[[int, int], None]
) -> Iterator[Tell]:
    """The first of several processes shows what all do: of others it sees the finished shards."""

    def absent() -> list[int]:
        there = {path.name for path in job.out.glob("*.sha256")}
        others = set(range(job.shards)) - set(todo)
        return [number for number in others if checksum(job.path(number)).name not in there]

    of_others = samples_in(job, absent())
    total, done = samples_in(job, todo) + of_others, 0
    with teller(progress if rank == 0 and total else False, total) as show:

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if show is not None:
                show(done + of_others - samples_in(job, absent()), total)

        yield tell


# ---------------------------------------------------------------------------- workers


def share(job: Job, numbers: Sequence[int], devices: Sequence[str], tell: Tell) -> None:
    """Make these shards with a process on each of the devices, this one alone if that is one."""
    processes = len(devices)
    portions = [part for k in range(processes) if (part := numbers[k::processes])]
    if processes == 1 or not portions:
        make(job, numbers, devices[0], tell)
        return
    workers: list[_Worker] = []
    answers: Queue[tuple[int, dict[str, Any] | None]] = Queue()
    try:
        for rank, part in enumerate(portions):
            order = {"job": job.to_json(), "numbers": list(part), "device": devices[rank]}
            workers.append(_Worker(rank, _start(order), answers))
        _listen(workers, answers, tell)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


@dataclass
class _Worker:
    """A process, and a thread that passes on its answers, and None after the last."""

    rank: int
    process: subprocess.Popen[bytes]
    answers: Queue[tuple[int, dict[str, Any] | None]]
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in cast(IO[bytes], self.process.stdout):
            self.answers.put((self.rank, json.loads(line)))
        self.answers.put((self.rank, None))

    def end(self) -> None:
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            cast(IO[bytes], pipe).close()


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    # -P keeps the current folder, which may be a stranger's, off the child's path; where this
    # process has it, the child has it too, but last, so that nothing in it hides a module.
    here = os.getcwd()
    paths = os.pathsep.join(sorted((path or here for path in sys.path), key=here.__eq__))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    pipe = cast(IO[bytes], process.stdin)
    try:
        pipe.write(json.dumps(order).encode() + b"\n")
        pipe.flush()
    except BrokenPipeError:  # it has ended already; its status tells
        pass
    return process


def _listen(
    workers: Sequence[_Worker],
    answers: Queue[tuple[int, dict[str, Any] | None]],
    tell: Tell,
) -> None:
    """Until all have ended well; ChildProcessError once one has not."""
    running, reasons = len(workers), {}
    while running:
        rank, answer = answers.get()
        if answer is None:
            running -= 1
            status = workers[rank].process.wait()
            if status:
                reason = reasons.get(rank) or _reason_of(status)
                raise ChildProcessError(
                    f"process {rank} of {len(workers)} failed: {reason}. The others were stopped; "
                    "finished shards are kept, and the same command continues"
                )
        elif "error" in answer:
            reasons[rank] = answer["error"]
        else:
            tell(answer["done"])


def _reason_of(status: int) -> str:
    if status > 0:
        return f"it ended with status {status}; what it said stands above"
    hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
    return f"it was ended by {signal.Signals(-status).name}{hint}"


def work() -> None:
    """A started process: make the shards that stdin names, and answer on stdout."""
    source = sys.stdin.buffer
    order = json.loads(source.readline())
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what others print must not be taken for answers
    try:
        job = Job.from_json(order["job"])
        make(
            job,
            order["numbers"],
            order["device"],
            lambda n: print(f'{{"done": {n}}}', file=answers),
        )
    except BrokenPipeError:  # nobody listens any more
        os._exit(1)
    except _EXPECTED as error:
        print(json.dumps({"error": str(error)}), file=answers)
        sys.exit(1)


def _end_with(source: IO[bytes]) -> None:
    while os.read(
        source.fileno(), 1 << 16
    ):  # not source.read(), whose lock an ending process takes
        pass
    os._exit(1)
