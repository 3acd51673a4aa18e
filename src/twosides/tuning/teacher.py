"""The teacher: runs of many network calls, whose ends a tuned sampler is to reach with few.

The trajectory of an initial noise is the solution of the probability-flow ODE from it. The teacher
follows it with the sampler that was best at 32 to 128 calls on the exact problems of the
benchmarks, kab3c on the grid Beta(0.7, 1) in u: with 64 calls it is nearer to the truth than
Runge-Kutta with 128. It asks the very denoiser that is tuned, with its guidance and conditioning.
How far it has converged is measured by runs with half as many calls.

If a folder is given, runs are kept there in blocks, and a search that was interrupted goes on from
them. The name of a block's file says what was asked: the numbers of the noises, their seed, the
number of calls, and the denoiser. The denoiser is recognised by its answers in a few short runs,
which tell it the first four rows of conditioning.

The teacher is not to be confused with that of `twosides.distillation`, which a network is trained
on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from twosides.conditioning import flat
from twosides.randomness import PerSample
from twosides.sampling.grids import Beta
from twosides.sampling.plan import Plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule
from twosides.schedules.level import _float64
from twosides.storage.reading import CorruptFolder
from twosides.storage.tensors import load_tensors, save_tensors
from twosides.tuning.trials import Network, Noises

STREAM = 16  # the use of the seed: the noises are others than those of samples with this seed
CHECKED = 16  # how many runs, at most, are done again with half as many calls


def teacher_plan(schedule: Schedule, calls: int) -> Plan:
    """The plan of the teacher's runs, from where the schedule starts to the data.

    A plan is the table of numbers that a run follows. States have unit size, whatever the scaling
    of the schedule.

    schedule: the schedule that is sampled on.
    calls: the number of network calls, >= 1.

    >>> from twosides.schedules import FlowMatching
    >>> teacher_plan(FlowMatching(), 64).nfe
    64
    """
    fine = Sampler(Beta(0.7, 1.0, variable="u"), samplers["kab3c"].solver)
    return fine.plan(schedule.with_scaling("vp"), calls)


class Teacher:
    """The ends of the trajectories of a seed's noises, which have numbers.

    network: the denoiser that is asked, with its conditioning; it counts network evaluations.
    schedule: the schedule that the runs are on.
    event: the shape of a sample.
    seed: the seed of the noises, >= 0.
    like: a tensor with the dtype and the device of the states.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        event: tuple[int, ...],
        seed: int,
        like: Tensor,
    ) -> None:
        """Keep the parts; no run is kept on disk before `keep` says where."""
        self.network, self.schedule, self.event = network, schedule, event
        self.seed, self.like = seed, like
        self.cache: Path | None = None
        self.key = ""

    def keep(self, cache: Path | None) -> None:
        """Keep finished blocks of runs in a folder, and read those that are there already.

        cache: the folder, which need not exist; None for none.
        """
        self.cache = cache
        self.key = self._fingerprint() if cache is not None else ""

    def noise(self, numbers: range) -> Tensor:
        """The noises of these numbers, of unit variance, (b, *event)."""
        own = PerSample(self.seed, numbers, STREAM)
        return own.normal(self.event, self.like.dtype, self.like.device)

    def ends(self, numbers: range, calls: int) -> Tensor:
        """Where the trajectories of the noises of these numbers end, (b, *event).

        numbers: the numbers of the noises.
        calls: the number of network calls of each run.
        """
        width = min(self.network.batch, 32)
        blocks = [numbers[at : at + width] for at in range(0, len(numbers), width)]
        return torch.cat([self._block(block, calls) for block in blocks])

    def noises(self, numbers: range, calls: int) -> Noises:
        """The noises of these numbers together with their ends.

        numbers: the numbers of the noises.
        calls: the number of network calls of each run.

        ValueError if an end is not finite.
        """
        ends = self.ends(numbers, calls)
        if not bool(ends.isfinite().all()):
            raise ValueError(
                f"the teacher's runs of {calls} calls hold NaN or infinite numbers: the network's "
                "answers are not finite somewhere between noise and data, and nothing can be fitted"
            )
        size = float(_float64(ends.flatten(1)).norm(dim=1).square().mean().sqrt())
        return Noises(self.noise(numbers), ends, torch.tensor(list(numbers)).to(ends.device), size)

    def error(self, noises: Noises, calls: int) -> float:
        """The median distance of the ends from those of runs with half as many calls, relative.

        It is a part of the data's size, rms |x*|, and taken over the first noises alone.

        noises: the noises of successive numbers, with their ends.
        calls: the number of calls with which these ends were reached.
        """
        some = noises.first(CHECKED)
        first = int(some.numbers[0])
        half = self.ends(range(first, first + len(some)), max(calls // 2, 1))
        gaps = _float64((half - some.ends).flatten(1)).norm(dim=1)
        return float(gaps.median()) / noises.size

    @torch.no_grad()
    def _block(self, numbers: range, calls: int) -> Tensor:
        """The ends of one block of runs, read from the folder if they are there."""
        named = f"{self.key}-{self.seed}-{calls}-{numbers.start}-{numbers.stop}"
        path = self.cache / f"teacher-{named}.safetensors" if self.cache is not None else None
        if path is not None and path.exists():
            try:
                return load_tensors(path)["ends"].to(self.like)
            except (CorruptFolder, KeyError):  # such as a file that was cut short: run it again
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
        """A name for the denoiser: a checksum of where short runs from one noise end.

        A run is made for each of the first four rows of conditioning, with guidance, so that
        another network or scale has another name; all of the conditioning is in the name, too.
        """
        probe = PerSample(0, range(1), STREAM).normal(self.event, self.like.dtype, self.like.device)
        about = (self.event, self.schedule, self.like.dtype, self.network.rows)
        digest = hashlib.sha256(repr(about).encode())
        for name, value in sorted(flat(self.network.conditioning).items()):
            told = value.detach().cpu() if isinstance(value, Tensor) else value
            digest.update(repr((name, getattr(told, "shape", told))).encode())
            if isinstance(told, Tensor):
                digest.update(told.float().numpy().tobytes())
        plan = teacher_plan(self.schedule, 3)
        for row in range(min(self.network.rows, 4)):
            told = self.network.told(torch.tensor([row]))
            ends = run(plan, self.network.denoiser, probe, conditioning=told)
            self.network.account.add(plan.nfe)
            digest.update(ends.cpu().double().numpy().tobytes())
        return digest.hexdigest()[:16]
