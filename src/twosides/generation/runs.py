"""Runs of a teacher as a store: where its ODE goes from which noise, made once and learned from.

    runs/run.json                which runs: model, sampler, steps, guidance, seed, ...
    runs/shard-00000.npy         (runs, K + 1, ...) float32: states at flow times 1, 1 - 1/K, ... 0

The states are those of flow matching's scaling, `z / (alpha + sigma)`, in the units of the network:
first the noise, last the data. They are made by the sharded sampler, so that they are the same for
any number of processes and after any interruption; what is read is checked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.generation.notes import read_notes
from twosides.generation.request import Request
from twosides.generation.samples import label_tensor
from twosides.randomness import PerSample
from twosides.sampling.grids import UniformTime
from twosides.sampling.named import sampler_named
from twosides.schedules import FlowMatching, Schedule
from twosides.storage.reading import require_file

if TYPE_CHECKING:
    from twosides.generation.shards import Job
    from twosides.sampling.sample import Trajectory

# What a network of eps says of the data has an error that grows as exp(-logsnr / 2) towards pure
# noise, and the ODE loses nothing if v is held from here on.
TRUSTED = -5.0
CLEAN = 12.0  # the same at the other end, for networks of x
_FLOW = FlowMatching()


def teacher_of(denoiser: Denoiser) -> Denoiser:
    """The denoiser in flow matching's notation, from pure noise to pure data.

    Beyond the levels that it knows, and beyond logsnr -5 where it predicts eps, its v is held.
    """
    if denoiser.output.name == "u" and denoiser.schedule == _FLOW:
        return denoiser
    low = TRUSTED if _is_silent(denoiser, -torch.inf) else -torch.inf
    high = CLEAN if _is_silent(denoiser, torch.inf) else torch.inf
    flow = convert(denoiser, "u", _FLOW, "t", extend=(low, high))
    statistics = {"data_mean": denoiser.data_mean, "data_std": denoiser.data_std}
    return Denoiser(flow, "u", _FLOW, "t", **statistics).train(denoiser.training)


def _is_silent(denoiser: Denoiser, logsnr: float) -> bool:
    """Whether the output says nothing at the end of all levels, as eps does at pure noise."""
    level = _FLOW.level(torch.tensor(logsnr, dtype=torch.float64)).floats()
    try:
        denoiser.output.solve(level)
    except ValueError:
        return True
    return False


def run_request(request: Request) -> Request:
    """The request on flow matching's schedule, with nodes at equal steps of its time.

    ValueError for samplers that inject noise, whose end the start does not decide, and for another
    schedule.
    """
    sampler = sampler_named(request.sampler, grid=UniformTime())
    if sampler.stochastic:
        raise ValueError(
            f"{request.sampler} injects noise, so that the start of a run does not decide its end, "
            "and there is no map to learn; use a sampler without noise, such as kab2c or rk4"
        )
    if not isinstance(request.schedule, Schedule | None) or request.schedule not in (None, _FLOW):
        raise ValueError("runs of a teacher are on flow matching's schedule; leave schedule out")
    return replace(request, sampler=sampler, schedule=_FLOW)


def run_states(run: Trajectory, steps: int) -> Tensor:
    """The states of a run at the nodes of its grid, (B, K + 1, ...), in flow matching's scaling.

    run: a run of `run_request`'s. steps: K.

    Solvers of several calls per step also ask between the nodes, and at a node with a first guess;
    the last state at a node is the one from which the next step goes.
    """
    places = [steps * level.sigma / level.scale for level in run.levels]
    nodes = {round(place): n for n, place in enumerate(places) if abs(place - round(place)) < 1e-6}
    return torch.stack([run.states[n] / run.levels[n].scale for n in nodes.values()], 1)


class Runs(Dataset[dict[str, Any]]):
    """Stored runs as data: rows of "states" (K + 1, ...), of "x", their ends, and of the labels."""

    def __init__(self, job: Job, *, check: bool = True) -> None:
        """Open the shards of a finished job; ValueError for runs that cannot be learned from.

        check: read them all once, and see that they are finite, and begin with the noise of their
            seeds.
        """
        notes = read_notes(job.model)
        shape = (job.request.steps + 1, *notes.shape)
        self.shards, self.size = list[Any](), job.count
        self.rows = job.shard
        labels = notes.classes if job.request.labels is None else job.request.labels
        self.cycle = label_tensor(labels, notes.classes)
        for number in range(job.shards):
            path = require_file(job.path(number))
            shard = np.load(path, mmap_mode="r", allow_pickle=False)
            rows = job.rows(number)
            if shard.shape != (len(rows), *shape):
                raise ValueError(
                    f"{path} holds {shard.shape}, and not {len(rows)} runs of {shape[0]} states of "
                    f"{notes.shape}; remove it to have it made again"
                )
            if check:
                _check(path, shard, PerSample(job.request.seed, [rows[0]]))
            self.shards.append(shard)

    def __len__(self) -> int:
        """Number of runs."""
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One run."""
        shard, row = divmod(index, self.rows)
        states = torch.from_numpy(np.array(self.shards[shard][row]))
        given = {"x": states[-1], "states": states}
        if len(self.cycle):
            given["class_labels"] = self.cycle[index % len(self.cycle)]
        return given


def _check(path: Path, shard: Any, first: PerSample) -> None:
    """Refuse a shard with numbers that are none, or whose runs begin at the wrong end."""
    if not np.isfinite(shard).all():
        bad = int((~np.isfinite(shard)).reshape(len(shard), -1).any(1).sum())
        raise ValueError(
            f"{bad} of {len(shard)} runs in {path} hold NaN or infinite numbers: the teacher's "
            "sampler fails. Use more steps, or another sampler"
        )
    noise = first.normal(shard.shape[2:])[0].numpy()
    if not np.allclose(shard[0, 0], noise, atol=1e-4):
        end = "its last state does: the runs are the wrong way round" * bool(
            np.allclose(shard[0, -1], noise, atol=1e-4)
        )
        raise ValueError(f"{path} does not begin with the noise of its seed; {end or 'remove it'}")
