"""A plan whose network calls are made by a pipeline: a Pass says what to show the network next.

A pass is the state of one run of a scheduler: the plan of a sampler through given levels, which is
a table of coefficients, and how far the run has come. A *call* is a question to the network, a
*leg* is a piece of the route that a run walks (`sampling.noise.route`), and several calls may
belong to a leg.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import Call
from twosides.integrations.diffusers.notation import Notation
from twosides.sampling.noise import Leg, Stochasticity
from twosides.sampling.plan import Plan, trace
from twosides.sampling.run import Execution, Program, lower
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, Asks, walk


class Layout(NamedTuple):
    """A plan, its program for raw answers of the network, and its legs.

    plan: the plan.
    program: the plan with the 2 x 2 solves of the network's output folded in (`sampling.run`).
    starts: the calls at which the legs begin.
    asked: the log-SNRs of these calls.
    numbers: for each leg, the number of its step of the grid.
    fresh: for each call, whether no later row needs anything from before it.
    """

    plan: Plan
    program: Program
    starts: tuple[int, ...]
    asked: tuple[float, ...]
    numbers: tuple[int, ...]
    fresh: tuple[bool, ...]


@lru_cache(maxsize=64)
def lay_out(
    sampler: Sampler,
    notation: Notation,
    nodes: tuple[float, ...],
    first: int = 0,
    begun: tuple[float, ...] = (),
) -> Layout:
    """The plan of the route through some nodes, from one of its legs on.

    sampler: the sampler; its grid is not used.
    notation: the network's notation.
    nodes: the log-SNRs from noise to data.
    first: the number of the leg to begin with.
    begun: the log-SNRs of calls before that leg, inside of a step that another scheduler had begun,
        or at any level. DDIM bridges them: it goes from each to the next, and to where the leg
        starts.
    """
    schedule = notation.latents
    levels = [schedule.level(value).floats() for value in nodes]
    route = sampler.stochasticity.route(schedule, levels)[first:]
    start = levels[0] if first == 0 and not begun else route[0].here if route else levels[-1]
    before = [schedule.level(value).floats() for value in begun]
    starts, calls = list[int](), len(before)

    def whole(initial: Any, noise: Callable[[], Any]) -> Asks:
        nonlocal calls
        z = initial * math.hypot(*[*before, start][0][1:])
        for here, there in pairwise([*before, start]):
            z = yield from DDIM().step(z, Leg(schedule, here, there, there), [])
        if not route:
            return z
        asks = walk(
            sampler.solver,
            z,
            route,
            (start, levels[-1]),
            noise,
            visit=lambda leg: starts.append(calls),
        )
        answer: Any = None
        while True:  # `yield from`, which also counts the calls
            try:
                wanted = asks.send(answer)
            except StopIteration as stop:
                return stop.value
            calls += 1
            answer = yield wanted

    title = f"{type(sampler.solver).__name__}, {len(nodes) - 1} steps on {schedule}"
    plan = trace(whole, levels[-1], title)
    stand_in = notation.denoiser(torch.nn.Identity())  # the pipeline itself calls the network
    program = lower(plan, stand_in, torch.float32, torch.device("cpu"))
    asked = tuple(leg.here.logsnr for leg in route)
    numbers = tuple(leg.number for leg in route)
    return Layout(plan, program, tuple(starts), asked, numbers, _fresh_calls(program))


def _fresh_calls(program: Program) -> tuple[bool, ...]:
    """Whether the rows after each call need nothing that was kept before it."""
    calls, known = len(program.calls), dict[int, int]()
    oldest = [calls] * (calls + 1)  # the earliest call that a row needs
    for number, row in enumerate(program.rows):
        for slot, _ in row.terms:
            own = slot // 2 if slot < program.noise else max(number - 1, 0)
            oldest[number] = min(oldest[number], known.setdefault(slot, own))
    for number in reversed(range(calls)):
        oldest[number] = min(oldest[number], oldest[number + 1])
    return tuple(oldest[call + 1] >= call for call in range(calls))


class Pass:
    """One pass of a sampler along its route, in the latents of the notation."""

    def __init__(
        self,
        sampler: Sampler,
        notation: Notation,
        nodes: tuple[float, ...],
        first: int = 0,
        begun: tuple[float, ...] = (),
        start: int = 0,
    ) -> None:
        """Lay out a pass; ValueError for impossible pairs, such as eps-prediction at zero SNR.

        sampler, notation, nodes, first, begun: see `lay_out`.
        start: the number that its first call has in the pass of the whole route.
        """
        self.sampler, self.notation, self.nodes = sampler, notation, nodes
        self.first, self.begun, self.start = first, begun, start
        self.layout = lay_out(sampler, notation, nodes, first, begun)
        self.plan, self.program = self.layout.plan, self.layout.program
        self.execution = Execution(self.program)

    @property
    def row(self) -> int:
        """The number of network calls that have been answered."""
        return self.execution.row

    @property
    def place(self) -> int:
        """The number, in the pass of the whole route, of the call that is to be answered next."""
        return self.start + self.execution.row

    @property
    def calls(self) -> list[Call]:
        """The network calls, with their levels and times."""
        return self.program.calls

    @property
    def steps(self) -> int:
        """The number of legs."""
        return len(self.layout.starts)

    def steps_of_calls(self) -> list[int]:
        """For each call, the number of its step of the grid."""
        starts, numbers = self.layout.starts, self.layout.numbers
        return [numbers[bisect_right(starts, call) - 1] for call in range(self.plan.nfe)]

    def twin(self) -> Pass:
        """A pass of its own, at the same place."""
        return self.resume(self.row, self.execution.kept)

    def resume(self, row: int, kept: dict[int, Tensor]) -> Pass:
        """A pass of its own after a number of calls.

        row: the number of calls that have been answered.
        kept: the tensors of earlier calls that the pass remembers, by their slots.
        """
        made = self._copy()
        made.execution.row, made.execution.kept = row, dict(kept)
        return made

    def after(self, call: int) -> Pass:
        """The pass of a state that is given at the level of a call of the whole route."""
        starts = self.layout.starts
        if call == 0:
            return self._copy()
        if call < self.plan.nfe and self.layout.fresh[call]:
            return self.resume(call, {})
        index = bisect_left(starts, call)
        start = starts[index] if index < len(starts) else self.plan.nfe
        inside = tuple(level.logsnr for level in self.plan.levels[call:start])
        return self._copy(first=index, begun=inside, start=call)

    def at(self, logsnr: float) -> Pass:
        """The pass of a state at any level, from which a DDIM step leads to where a leg starts."""
        asked, starts = self.layout.asked, [*self.layout.starts, self.plan.nfe]
        ahead = (index for index, there in enumerate(asked) if there > logsnr)
        first = next(ahead, len(asked))
        return self._copy(first=first, begun=(logsnr,), start=starts[first] - 1)

    def with_noise(self, stochasticity: Stochasticity) -> Pass:
        """The same pass with other noise; ValueError if the calls then have other levels."""
        made = self._copy(sampler=replace(self.sampler, stochasticity=stochasticity))
        if made.plan.levels != self.plan.levels:  # the network would be told wrong timesteps
            raise ValueError(
                f"with {stochasticity} this sampler asks the network at other levels than those of "
                "the timesteps that were handed out; leave eta out, and choose a sampler with noise"
            )
        return made

    def _copy(self, **changes: Any) -> Pass:
        names = ("sampler", "nodes", "first", "begun", "start")
        parts = {name: getattr(self, name) for name in names}
        return Pass(notation=self.notation, **{**parts, **changes})

    def advance(self, z: Tensor, answer: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The next state, from the state that the network was shown and its answer."""
        self.execution.answer(z, answer)
        return self.execution.state(noise, z)

    def predict_data(self, z: Tensor, answer: Tensor) -> Tensor:
        """The data x that the next call to be answered predicts."""
        x_z, x_o, _, _ = self.calls[self.row].solution
        return x_z * z + x_o * answer


def spread(calls: Sequence[int], per_step: int, steps: int) -> list[int]:
    """The calls that timesteps stand for, so that those of step i begin at `i * per_step`.

    Pipelines that begin in the middle of a run look for its steps there. Where a step has fewer
    calls, such as the first from pure noise, the call after it is given several timesteps. All but
    the last of these are *idle*: the pipeline asks its network, and the answer changes nothing.

    calls: for each call, the number of its step.
    per_step: the timesteps of each step; the last may have fewer.
    steps: the number of steps. Those at the end without a call are idle.

        >>> spread([0, 1, 1, 2, 2, 3], 2, 4)
        [0, 1, 1, 2, 3, 4, 5]
    """
    places, of = list[int](), dict[int, list[int]]()
    for call, number in enumerate(calls):
        of.setdefault(number, []).append(call)
    for step in range(steps):
        own = of.get(step, [])
        after = 1 + own[-1] if own else len(calls)
        idle = per_step - len(own) if step < steps - 1 else 1 - len(own)
        places += [*own, *[after] * max(idle, 0)]
    return places


class Band:
    """A pass for compilers, whose graph must not depend on the number of the step.

    Each call has a group of tensors: its input, its answer, and the noises drawn for the state
    after it. A row of `table` combines the last `depth` groups, with zeros where a plan needs
    fewer; the row's number is a tensor, too. The last two columns are the call's (x_z, x_o).
    """

    def __init__(self, walk: Pass, places: Sequence[int], device: Any) -> None:
        """Prepare the table.

        walk: the pass, which may be under way.
        places: the calls that timesteps stand for, from the timestep on with which the pass begins
            (`spread`).
        device: the device of the table.
        """
        calls = [place - walk.start for place in places]
        idle = [here == there for here, there in pairwise([*calls, walk.plan.nfe])]
        owner, rows = dict[int, tuple[int, int]](), list[list[tuple[int, int, float]]]()
        self.draws = 0
        for place, call in enumerate(calls):
            if idle[place]:
                rows.append([(0, 0, 1.0)])
                continue
            terms = walk.program.rows[call + 1].terms
            owner |= {2 * call: (place, 0), 2 * call + 1: (place, 1)}
            fresh = sorted(slot for slot, _ in terms if slot not in owner)
            owner |= {slot: (place, 2 + number) for number, slot in enumerate(fresh)}
            self.draws = max(self.draws, len(fresh))
            rows.append([(place - owner[s][0], owner[s][1], value) for s, value in terms])
        self.width = 2 + self.draws
        self.depth = 1 + max(lag for row in rows for lag, _, _ in row)
        table = np.zeros((len(calls), self.depth * self.width + 2))
        for place, (call, row) in enumerate(zip(calls, rows, strict=True)):
            for lag, part, value in row:
                table[place, lag * self.width + part] = value
            table[place, -2:] = walk.calls[min(call, walk.plan.nfe - 1)].solution[:2]
        self.table = torch.from_numpy(table).to(device, torch.float32)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.past: tuple[Tensor, ...] = ()

    def row(self) -> Tensor:
        """The coefficients of the next state, and of x."""
        return self.table.index_select(0, self.place)[0]

    def advance(self, row: Tensor, z: Tensor, answer: Tensor, noises: list[Tensor]) -> Tensor:
        """The next state."""
        size = (self.depth - 1) * self.width
        past = self.past or tuple(torch.zeros_like(z) for _ in range(size))
        parts = (z, answer, *noises, *past)
        self.past = parts[:size]
        self.place = self.place + 1
        return sum((row[i] * part for i, part in enumerate(parts)), torch.zeros_like(z))
