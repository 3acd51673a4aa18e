"""A plan run from outside: a pipeline calls the network, a Pass says what to show it next."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
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
    """A plan, its rows for raw answers of the network, and the legs that it walks.

    starts: the calls at which the legs begin. asked: the log-SNRs of these calls.
    """

    plan: Plan
    program: Program
    starts: tuple[int, ...]
    asked: tuple[float, ...]


@lru_cache(maxsize=64)
def lay_out(
    sampler: Sampler,
    notation: Notation,
    nodes: tuple[float, ...],
    first: int = 0,
    begun: tuple[float, ...] = (),
) -> Layout:
    """The plan of the route through these nodes (log-SNRs), from its leg number `first` on.

    begun: levels of calls before that leg, inside a step that another scheduler had begun, or
        anywhere. DDIM bridges them: it goes from each to the next, and to where the leg starts.
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
        while True:  # `yield from`, with the calls counted
            try:
                wanted = asks.send(answer)
            except StopIteration as stop:
                return stop.value
            calls += 1
            answer = yield wanted

    title = f"{type(sampler.solver).__name__}, {len(nodes) - 1} steps on {schedule}"
    plan = trace(whole, levels[-1], title)
    elsewhere = notation.denoiser(torch.nn.Identity())  # the pipeline calls the network
    program = lower(plan, elsewhere, torch.float32, torch.device("cpu"))
    return Layout(plan, program, tuple(starts), tuple(leg.here.logsnr for leg in route))


class Pass:
    """One pass of a sampler along its route through `nodes`, in the latents of the notation.

    first, begun: see `lay_out`.
    """

    def __init__(
        self,
        sampler: Sampler,
        notation: Notation,
        nodes: tuple[float, ...],
        first: int = 0,
        begun: tuple[float, ...] = (),
    ) -> None:
        """ValueError for impossible pairs, such as eps-prediction at zero SNR."""
        self.sampler, self.notation, self.nodes = sampler, notation, nodes
        self.first, self.begun = first, begun
        self.plan, self.program, self._starts, self._asked = lay_out(
            sampler, notation, nodes, first, begun
        )
        self.execution = Execution(self.program)

    @property
    def row(self) -> int:
        """The number of network calls that have been answered."""
        return self.execution.row

    @property
    def calls(self) -> list[Call]:
        """The network calls, with their levels and times."""
        return self.program.calls

    @property
    def steps(self) -> int:
        """The number of legs."""
        return len(self._starts)

    def twin(self) -> Pass:
        """A pass of its own, at the same place."""
        made = self._again()
        made.execution.row, made.execution.kept = self.row, dict(self.execution.kept)
        return made

    def after(self, call: int) -> Pass:
        """The pass of a state that is given at the level of this call."""
        if call == 0:
            return self._again()
        index = bisect_left(self._starts, call)
        start = self._starts[index] if index < len(self._starts) else self.plan.nfe
        inside = tuple(level.logsnr for level in self.plan.levels[call:start])
        return self._again(first=self.first + index, begun=inside)

    def at(self, logsnr: float) -> Pass:
        """The pass of a state that is given at any level: a DDIM step to where a leg starts."""
        ahead = (index for index, asked in enumerate(self._asked) if asked > logsnr)
        first = next(ahead, len(self._asked))
        return self._again(first=self.first + first, begun=(logsnr,))

    def noisy(self, stochasticity: Stochasticity) -> Pass:
        """The same with other noise."""
        return self._again(sampler=replace(self.sampler, stochasticity=stochasticity))

    def _again(self, **changes: Any) -> Pass:
        parts = {name: getattr(self, name) for name in ("sampler", "nodes", "first", "begun")}
        return Pass(notation=self.notation, **{**parts, **changes})

    def advance(self, z: Tensor, answer: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The next state, from the state that the network was shown and what it answered."""
        self.execution.answer(z, answer)
        return self.execution.state(noise, z)

    def predicted(self, z: Tensor, answer: Tensor) -> Tensor:
        """x of the call that comes next to be answered."""
        x_z, x_o, _, _ = self.calls[self.row].solution
        return x_z * z + x_o * answer


class Band:
    """A pass for compilers, whose graph must not depend on the number of the step.

    Each call's group is what it leaves behind: its input, its answer, and the noises drawn for the
    state after it. A row of `table` combines the last `depth` groups, zeros where a plan needs
    fewer; the row's number is a tensor too. The last two columns are the call's (x_z, x_o).
    """

    def __init__(self, walk: Pass, device: Any) -> None:
        """From the start of a pass."""
        calls, rows = walk.plan.nfe, walk.program.rows
        owner = {2 * k + part: (k, part) for k in range(calls) for part in (0, 1)}
        self.draws = 0
        for k, row in enumerate(rows[1:]):
            fresh = sorted(slot for slot, _ in row.terms if slot not in owner)
            owner |= {slot: (k, 2 + number) for number, slot in enumerate(fresh)}
            self.draws = max(self.draws, len(fresh))
        places = [
            [(k - owner[slot][0], owner[slot][1], value) for slot, value in row.terms]
            for k, row in enumerate(rows[1:])
        ]
        self.width = 2 + self.draws
        self.depth = 1 + max(lag for row in places for lag, _, _ in row)
        table = np.zeros((calls, self.depth * self.width + 2))
        for k, row in enumerate(places):
            for lag, part, value in row:
                table[k, lag * self.width + part] = value
            table[k, -2:] = walk.calls[k].solution[:2]
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
