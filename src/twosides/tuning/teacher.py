"""The teacher: where the trajectories of some noises end, by many calls, checked and kept on disk.

It is the rule that was best at 32 to 128 calls on the exact problems of the benchmarks, kab3c on
Beta(0.7, 1) in u: with 64 calls it is nearer to the truth than Runge-Kutta's with 128. It runs on
the very denoiser that is tuned, guidance and conditioning included. How far it has converged is
measured, by a run with half as many calls.

With a folder, finished blocks of runs are files there, named by what was asked: the noises, the
number of calls, and the denoiser, by its answers to a few questions. A search that was interrupted
goes on from them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from twosides.randomness import PerSample
from twosides.sampling.grids import Beta
from twosides.sampling.plan import Plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule
from twosides.storage.reading import CorruptFolder
from twosides.storage.tensors import load_tensors, save_tensors
from twosides.tuning.trials import Network, Noises

STREAM = 16  # of the seed: other noises than those of samples with it
CHECKED = 16  # runs that are done again with half the calls


def teacher_plan(schedule: Schedule, calls: int) -> Plan:
    """The teacher's, from where the schedule starts to the data."""
    fine = Sampler(Beta(0.7, 1.0, variable="u"), samplers["kab3c"].solver)
    return fine.plan(schedule.with_scaling("vp"), calls)


class Teacher:
    """Ends of trajectories, from noises of a seed.

    network: what runs, and counts.
    schedule: where the runs start and end.
    event: the shape of a sample.
    seed: of the noises.
    like: has the dtype and the device of the states.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        event: tuple[int, ...],
        seed: int,
        like: Tensor,
    ) -> None:
        """Nothing is kept on disk before `keep` says where."""
        self.network, self.schedule, self.event = network, schedule, event
        self.seed, self.like = seed, like
        self.cache: Path | None = None
        self.key = ""

    def keep(self, cache: Path | None) -> None:
        """Keep finished blocks of runs in a folder, and take those that are there."""
        self.cache = cache
        self.key = self._fingerprint() if cache is not None else ""

    def noise(self, numbers: range) -> Tensor:
        """The noises of these numbers."""
        own = PerSample(self.seed, numbers, STREAM)
        return own.normal(self.event, self.like.dtype, self.like.device)

    def ends(self, numbers: range, calls: int) -> Tensor:
        """Where they lead, (b, *event)."""
        width = min(self.network.batch, 32)
        blocks = [numbers[at : at + width] for at in range(0, len(numbers), width)]
        return torch.cat([self._block(block, calls) for block in blocks])

    def noises(self, numbers: range, calls: int) -> Noises:
        """Noises and ends; ValueError where the network's answers are not finite."""
        ends = self.ends(numbers, calls)
        if not bool(ends.isfinite().all()):
            raise ValueError(
                f"the teacher's runs of {calls} calls hold NaN or infinite numbers: the network's "
                "answers are not finite somewhere between noise and data, and nothing can be fitted"
            )
        size = float(ends.flatten(1).double().norm(dim=1).square().mean().sqrt())
        return Noises(
            self.noise(numbers), ends, torch.tensor(list(numbers), device=ends.device), size
        )

    def error(self, noises: Noises, calls: int) -> float:
        """How far it is from itself with half the calls: the median over some noises, relative."""
        some = noises.first(CHECKED)
        first = int(some.numbers[0])
        half = self.ends(range(first, first + len(some)), max(calls // 2, 1))
        gaps = (half - some.ends).flatten(1).double().norm(dim=1)
        return float(gaps.median()) / noises.size

    @torch.no_grad()
    def _block(self, numbers: range, calls: int) -> Tensor:
        named = f"{self.key}-{self.seed}-{calls}-{numbers.start}-{numbers.stop}"
        path = self.cache / f"teacher-{named}.safetensors" if self.cache is not None else None
        if path is not None and path.exists():
            try:
                return load_tensors(path)["ends"].to(self.like)
            except (CorruptFolder, KeyError):
                path.unlink()
        plan = teacher_plan(self.schedule, calls)
        told = self.network.told(torch.tensor(list(numbers)))
        ends = run(plan, self.network.denoiser, self.noise(numbers), conditioning=told)
        self.network.account.add(len(numbers) * plan.nfe)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {"ends": ends.cpu()})
        return ends

    @torch.no_grad()
    def _fingerprint(self) -> str:
        """A name for what the denoiser answers, guidance and conditioning included."""
        probe = PerSample(0, range(1), STREAM).normal(self.event, self.like.dtype, self.like.device)
        digest = hashlib.sha256(repr((self.event, self.schedule, self.like.dtype)).encode())
        plan = teacher_plan(self.schedule, 3)
        for row in range(min(self.network.rows, 4)):
            told = self.network.told(torch.tensor([row]))
            ends = run(plan, self.network.denoiser, probe, conditioning=told)
            self.network.account.add(plan.nfe)
            digest.update(ends.double().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
