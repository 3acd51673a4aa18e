"""The runs of a scheduler: how far each has come, and to which of several a step belongs.

A pipeline gets a tensor of timesteps and returns one of its elements at a time. The element is
recognised by its place in memory, without reading its value, for which the program would have to
wait for a GPU. A step may therefore be repeated (tiles), earlier steps may be taken again (time
travel, as RePaint does), and some may be left out: the memory of a run is always that of the step
that is taken.
"""

from __future__ import annotations

import copy
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from twosides.integrations.diffusers.passes import Band, Pass
from twosides.randomness import PerSample
from twosides.sampling.brownian import Brownian
from twosides.sampling.noise import DDIMEta


class Taken(NamedTuple):
    """The step that was taken last.

    walk: its pass.
    call: its call.
    kept: the memory of the pass before it.
    """

    walk: Pass
    call: int
    kept: dict[int, Tensor]


@dataclass(eq=False)
class Run:
    """A pass over `timesteps`, and how far it has come.

    whole: the pass from the first timestep on.
    places: for each timestep, the call of the whole that it stands for (`passes.spread`).
    timesteps: the timesteps that the network is told; the tensor that pipelines iterate over.
    sigmas: the levels of the timesteps and of the result, flow times or sigma / alpha, on the CPU.
    steps, order: the number of steps as pipelines count them, and of the timesteps in each.
    eager: the reasons why a step cannot be compiled; "" if it can.
    begin: the timestep with which the run is to begin, if a pipeline has set it.
    index: the number of the next timestep, None before the first step.
    eta: DDIM's eta, which takes the place of the sampler's noise unless it is 0.
    own: the source of the noise, if the scheduler has a seed.
    walk: the pass that is under way, the whole or what is left of it; None before the first step.
    idle: whether the answer to this timestep changes nothing.
    band: the pass in the form that compiled steps read.
    """

    whole: Pass
    places: Sequence[int]
    timesteps: Tensor
    sigmas: Tensor
    steps: int
    order: int
    eager: str = ""
    begin: int | None = None
    index: int | None = None
    eta: float = 0.0
    own: PerSample | None = None
    walk: Pass | None = field(init=False, default=None)
    idle: bool = field(init=False, default=False)
    band: Band = field(init=False)
    _past: Taken | None = field(init=False, default=None)
    _path: Brownian | None = field(init=False, default=None)
    _drawn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Note the place of the timesteps in memory."""
        self.hand_out(self.timesteps)
        self._next = 0
        # Idle timesteps stand for the same call as the one after them.
        self._idle = [
            here == there for here, there in pairwise([*self.places, self.whole.plan.nfe])
        ]
        self.set_band(self.begin or 0)

    def hand_out(self, timesteps: Tensor) -> None:
        """Replace the tensor that pipelines iterate over."""
        first = timesteps.data_ptr()
        self.timesteps = timesteps
        self._stored = range(first, first + timesteps.nbytes, timesteps.itemsize)

    def set_band(self, begin: int) -> None:
        """Prepare the table for compiled steps, from a timestep on."""
        call = self.places[begin]
        walk = self.whole.after(call) if call < self.whole.plan.nfe else self.whole
        self.band = Band(walk, self.places[begin:], self.timesteps.device)

    @property
    def fresh(self) -> bool:
        """Whether the next step begins the run, or begins it again."""
        return self.index is None or self.index == len(self.places)

    @property
    def solution(self) -> tuple[float, float]:
        """The coefficients of the state and of the network's answer in x, at this timestep."""
        if not self.idle:
            assert self.walk is not None
            return self.walk.calls[self.walk.row].solution[:2]
        call = self.places[self._next - 1]
        if call < self.whole.plan.nfe:
            return self.whole.calls[call].solution[:2]
        network = self.whole.notation.denoiser(torch.nn.Identity())
        return network.prepare([self.whole.plan.levels[-1]], torch.empty(0))[0].solution[:2]

    def begin_at(self, index: int) -> None:
        """Begin with the timestep of this number; ValueError if the run cannot begin there."""
        count = len(self.places)
        if not 0 <= index < count:
            raise ValueError(
                f"begin_index={index} leaves nothing of this run, which has {count} timesteps in "
                f"{self.steps} steps. If it came from a strength, that is less than one step: "
                f"raise the strength to at least 1 / {self.steps}, or take more steps"
            )
        step, inside = divmod(index, self.order)
        reached, call = self.whole.steps_of_calls(), self.places[index]
        if self.order > 1 and not inside and call < len(reached) and reached[call] != step:
            raise ValueError(
                f"timestep {index} was to begin step {step} of {self.steps}, but this sampler goes "
                f"back to more noise before that, and is in step {reached[call]} there; begin "
                "earlier, or choose a sampler that does not go back"
            )
        self.begin = index
        if index:
            self.set_band(index)

    def position(self, timestep: Any) -> int | None:
        """The number of a timestep, if it is an element of the tensor that was handed out.

        Pipelines iterate over that tensor, so that no value has to be read from a device.
        """
        if not isinstance(timestep, Tensor):
            return None
        place = timestep.data_ptr()
        return self._stored.index(place) if place in self._stored else None

    def arrive(self, timestep: Any, index: int | None, eta: float) -> None:
        """Go to the step of a timestep, with the memory that belongs there.

        The step that was taken last may be taken again, from the same memory. One that is neither
        this nor the next begins without memory, as image to image does. A timestep whose value is
        not at hand, such as a copy in another dtype on a GPU, is taken for the next.

        timestep: an element of the run's timesteps, or a number.
        index: its `position`.
        eta: DDIM's eta, which stays the same within a run.
        """
        index = self._number(timestep) if index is None else index
        again = self._past
        if again is None or index is None or again.call != self.places[index]:
            again = None
        if self.fresh and again is None:
            self.eta, self.own, self.walk, self._past = eta, None, None, None
        elif eta != self.eta:
            raise ValueError(f"eta changed from {self.eta} to {eta} within a run; keep it")
        if index is None:
            self.walk = self._with_eta().at(self._logsnr(timestep))
            self.idle = False
            self._next = bisect_left(self.places, self.walk.start + 1)
            return
        self.index, self.idle, self._next = index, self._idle[index], index + 1
        call = self.places[index]
        if not self.idle and (self.walk is None or self.walk.place != call):
            if again is not None:
                self.walk = again.walk.resume(call - again.walk.start, again.kept)
            else:
                self.walk = self._with_eta().after(call)

    def advance(self, z: Tensor, answer: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The state after this timestep, which is z itself if the timestep is idle."""
        self.index = self._next
        if self.index == len(self.places):
            self.begin = None
        if self.idle:
            return z
        assert self.walk is not None
        self._past = Taken(self.walk, self.walk.place, dict(self.walk.execution.kept))
        return self.walk.advance(z, answer, noise)

    def draw(self, config: Mapping[str, Any], like: Tensor, generator: Any) -> Tensor:
        """The noise for this step: from the scheduler's seed, or from the caller's generator."""
        seed = config["seed"]
        if config["noise"] == "brownian":
            return self.brownian(seed, like)
        if generator is not None or seed is None:
            return randn_tensor(tuple(like.shape), generator, like.device, like.dtype)
        self.own = self.own or PerSample(seed, range(len(like)))
        return self.own.normal(like.shape[1:], like.dtype, like.device)

    def brownian(self, seed: int, like: Tensor) -> Tensor:
        """The noise of this step on the Brownian path of a seed.

        It is the noise of the whole run at this place, wherever the run began.
        """
        assert self.walk is not None
        whole = self._with_eta()
        first = whole.program.noise
        drawn = {slot for row in whole.program.rows[: self.walk.place] for slot, _ in row.terms}
        wanted = sum(slot > first for slot in drawn)
        if self._path is None or self._drawn > wanted:
            kind = {"dtype": like.dtype, "device": like.device}
            self._path = Brownian(whole.plan, seed, range(len(like)), like.shape[1:], **kind)
            self._drawn = 0
        while self._drawn < wanted:
            self._path()
            self._drawn += 1
        self._drawn += 1
        return self._path()

    def twin(self) -> Run:
        """A run of its own, at the same place."""
        made = copy.copy(self)
        made.timesteps = self.timesteps.clone()
        made.__post_init__()
        made._path = None
        made.own, made._next = copy.deepcopy(self.own), self._next
        made.walk = self.walk and self.walk.twin()
        return made

    def _number(self, timestep: Any) -> int | None:
        """The number of a timestep by its value; None if it begins the run between two."""
        due = self.begin if self.fresh else self.index
        if not _is_at_hand(timestep) and due is not None:
            return due
        value = torch.as_tensor(timestep).flatten()[0].cpu()
        if due is not None and self._values[due] == value.item():
            return due
        # A timestep in half precision stands for the elements that are rounded to it.
        known = self._values.to(value.dtype) if value.dtype.itemsize < 4 else self._values
        same = (known == value).nonzero().flatten().tolist()
        starts = self.whole.layout.starts
        begins = [n for n in same if self.places[n] in starts and not self._idle[n]]
        # Of two calls at one level, the second begins a step.
        return begins[0] if begins else same[:2][-1] if same else due

    @cached_property
    def _values(self) -> Tensor:
        return self.timesteps.cpu().double()

    def _logsnr(self, timestep: Any) -> float:
        notation = self.whole.notation
        value = torch.as_tensor(timestep).cpu().double().flatten()[0]
        return float(notation.clock.logsnr(value, notation.schedule))

    def _with_eta(self) -> Pass:
        return self.whole.with_noise(DDIMEta(self.eta)) if self.eta else self.whole


def _is_at_hand(timestep: Any) -> bool:
    """Whether a timestep's value can be read without waiting, and is exact."""
    if isinstance(timestep, Tensor):
        return timestep.device.type == "cpu" and timestep.dtype.itemsize >= 4
    return True


class Runs:
    """The runs of a scheduler, of which several may be under way: interleaved, or in threads.

    `last` is the run that was laid out last.
    """

    MOST = 8  # unfinished runs that are remembered beside each thread's last: each keeps latents

    def __init__(self) -> None:
        """Begin without runs."""
        self.last: Run | None = None
        self._live: list[Run] = []
        self._latest: dict[int, Run] = {}  # by thread

    def enter(self, run: Run) -> None:
        """Add a run, which is this thread's from now on."""
        self.last = run
        # The list is changed in place, because other threads may be doing the same.
        self._live.append(run)
        del self._live[: -self.MOST]
        self._latest[threading.get_ident()] = run
        alive = {thread.ident for thread in threading.enumerate()}
        for key in [key for key in list(self._latest) if key not in alive]:
            self._latest.pop(key, None)

    def leave(self, run: Run) -> None:
        """Forget a run that is done, unless it is the last of a thread."""
        if run in self._live:
            self._live.remove(run)

    @property
    def current(self) -> Run | None:
        """The run that this thread laid out last, or else the last of all."""
        latest = self._latest.get(threading.get_ident())
        return latest or self.last

    def of(self, timestep: Any) -> tuple[Run, int | None]:
        """The run that a timestep belongs to, and its position: runs may be interleaved."""
        run = self.current
        if run is None:
            raise ValueError("call set_timesteps before step")
        index = run.position(timestep)
        if index is None:
            owners = ((other, other.position(timestep)) for other in self._live[:])
            return next((pair for pair in owners if pair[1] is not None), (run, None))
        return run, index
