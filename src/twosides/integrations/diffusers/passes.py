"""A plan run from outside: a pipeline calls the network, a Pass says what to show it next."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import Call
from twosides.integrations.diffusers.notation import Notation
from twosides.sampling.plan import Plan, Program, combine, lower, trace
from twosides.sampling.samplers import Sampler
from twosides.sampling.solvers import DDIM
from twosides.sampling.steps import Asks, Solver, Step
from twosides.sampling.stochasticity import Deterministic, Interval, Stochasticity


class _Counted(Solver):
    """A solver that notes at which network call each of its steps begins."""

    def __init__(self, solver: Solver, calls: int) -> None:
        self.solver, self.calls = solver, calls
        self.starts: list[int] = []

    def step(self, z: Any, step: Step, past: list[Any]) -> Asks:
        """The solver's step."""
        self.starts.append(self.calls)
        asks, answer = self.solver.step(z, step, past), None
        while True:
            try:
                ask = next(asks) if answer is None else asks.send(answer)
            except StopIteration as stop:
                return stop.value
            self.calls += 1
            answer = yield ask


class Layout(NamedTuple):
    """A plan, the calls at which its steps begin, and its rows for raw answers of the network."""

    plan: Plan
    starts: tuple[int, ...]
    program: Program


@lru_cache(maxsize=64)
def laid_out(
    sampler: Sampler, notation: Notation, nodes: tuple[float, ...], begun: tuple[float, ...] = ()
) -> Layout:
    """The plan through these nodes (log-SNRs).

    begun: levels of calls before the first node, inside a step that was begun elsewhere. DDIM goes
    from each to the next, which is nothing at all where two are equal.
    """
    schedule = notation.latents
    levels = [schedule.level(value).floats() for value in (*begun, *nodes)]
    counted = _Counted(sampler.solver, len(begun))
    walked = replace(sampler, solver=counted, published=None)

    def whole(initial: Any, noise: Callable[[], Any]) -> Generator[Any, Any, Any]:
        z = initial * math.hypot(*levels[0][1:])
        for here, there in pairwise(levels[: len(begun) + 1]):
            step = Step(Interval(schedule, here, there, 1), Deterministic(), noise)
            z = yield from DDIM().step(z, step, [])
        return (yield from walked.steps(z, schedule, levels[len(begun) :], noise))

    title = f"{type(sampler.solver).__name__}, {len(nodes) - 1} steps on {schedule}"
    plan = trace(whole, levels[-1], title)
    elsewhere = notation.denoiser(torch.nn.Identity())  # the pipeline calls the network
    program = lower(plan, elsewhere, torch.float32, torch.device("cpu"))
    return Layout(plan, tuple(counted.starts), program)


@dataclass
class Pass:
    """One pass of a sampler through `nodes`, in the notation's latents.

    `row` is the number of network calls that have been answered, `kept` what later rows need.
    """

    sampler: Sampler
    notation: Notation
    nodes: tuple[float, ...]
    begun: tuple[float, ...] = ()
    row: int = 0
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for impossible pairs, such as eps-prediction at zero SNR."""
        layout = laid_out(self.sampler, self.notation, self.nodes, self.begun)
        self.plan, self._starts, self.program = layout

    @property
    def calls(self) -> list[Call]:
        """The network calls, with their levels and times."""
        return self.program.calls

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self._starts)

    def after(self, call: int) -> Pass:
        """The pass of a state that is given at the level of this call."""
        if call == 0:
            fresh = copy(self)
            fresh.row, fresh.kept = 0, {}
            return fresh
        begins = [(at, node) for at, node in zip(self._starts, _rising(self.nodes), strict=True)]
        first, node = next((pair for pair in begins if pair[0] >= call), (self.plan.nfe, -1))
        inside = tuple(level.logsnr for level in self.plan.levels[call:first])
        return self._again(nodes=self.nodes[node:], begun=inside)

    def at(self, logsnr: float) -> Pass:
        """The pass of a state that is given at any level: a DDIM step to the next node."""
        ahead = tuple(value for value in self.nodes if value > logsnr)
        return self._again(nodes=ahead or self.nodes[-1:], begun=(logsnr,))

    def noisy(self, stochasticity: Stochasticity) -> Pass:
        """The same with other noise."""
        return self._again(sampler=replace(self.sampler, stochasticity=stochasticity))

    def _again(self, **changes: Any) -> Pass:
        return replace(self, **changes, row=0, kept={})

    def advance(self, z: Tensor, answer: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The next state, from the state that the network was shown and what it answered."""
        kept, rows = self.kept, self.program.rows
        for slot, part in rows[self.row].keep:
            kept[slot] = answer if part else z
        self.row += 1
        terms, forget, _ = rows[self.row]
        for slot, _ in terms:
            if slot not in kept:
                kept[slot] = noise()
        state = combine([(kept[slot], value) for slot, value in terms])
        for slot in forget:
            del kept[slot]
        return state

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


def _rising(nodes: Sequence[float]) -> list[int]:
    """The nodes at which steps begin; a fall is a jump back to noise, without a call."""
    return [i for i, (here, there) in enumerate(pairwise(nodes)) if there > here]
