"""The one loop that executes a plan on tensors.

`lower` folds a denoiser into the coefficients of a plan: the rows of the *program* act on what the
network is shown and what it answers. `Execution` is a program under way: it makes each state from
what it keeps, and keeps what later states need. Whoever runs a plan drives one: `run`, which calls
the network itself, `transitions`, which tells the noise from the rest, and the diffusers scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twosides.denoiser import BaseDenoiser, Call, as_denoiser
from twosides.dynamics import require_score
from twosides.outputs import Estimate
from twosides.sampling.given import replaced
from twosides.sampling.plan import Plan
from twosides.schedules import Level


class Row(NamedTuple):
    """A state as a combination of kept tensors.

    terms: (slot, coefficient), in the order of the slots. Call k keeps its input in slot 2k and its
        answer in 2k + 1, noise j lies in slot 2n + j.
    fresh: slots of the noises that are drawn for this row.
    forget: slots that no later row needs.
    keep: of the call that follows, (slot, part of its pair, whether a row after the next needs it).
    """

    terms: list[tuple[int, float]]
    fresh: list[int]
    forget: list[int]
    keep: list[tuple[int, int, bool]]


class Program(NamedTuple):
    """A plan lowered to a denoiser.

    noise: 2n, the slot of the initial noise, after which those of the injected ones come.
    """

    rows: list[Row]
    calls: list[Call]
    noise: int


def lower(plan: Plan, denoiser: BaseDenoiser, dtype: torch.dtype, device: torch.device) -> Program:
    """Fold the 2 x 2 solves of a denoiser into the coefficients of a plan, in float64.

    The rows for a network act on (z_k, raw network output), one fused update per call; those for
    anything else that denoises act on its estimates (x_k, eps_k).
    """
    if plan.stochastic:
        require_score(denoiser, "a sampler that injects noise")
    calls = denoiser.calls(plan, torch.empty(0, dtype=dtype, device=device))
    noise, rows, last_use = 2 * plan.nfe, list[Row](), dict[int, int]()
    for number, row in enumerate(plan.rows):
        table = dict[int, float]()
        for (kind, k), value in row.items():
            if kind == "noise":
                table[noise + k] = value
                continue
            x_z, x_o, eps_z, eps_o = calls[k].solution
            of_input, of_answer = (x_z, x_o) if kind == "x" else (eps_z, eps_o)
            table[2 * k] = table.get(2 * k, 0.0) + value * of_input
            table[2 * k + 1] = table.get(2 * k + 1, 0.0) + value * of_answer
        terms = sorted(item for item in table.items() if item[1])
        fresh = [slot for slot, _ in terms if slot > noise and slot not in last_use]
        for slot, _ in terms:
            last_use[slot] = number
        rows.append(Row(terms, fresh, [], []))
    for slot, number in last_use.items():
        rows[number].forget.append(slot)
        if slot < noise:
            rows[slot // 2].keep.append((slot, slot % 2, number > slot // 2 + 1))
    return Program(rows, calls, noise)


# torch.compile takes the result as it is: `torch.compiler.assume_constant_result`, which would
# import the compiler, seconds, for everybody.
lower.__dict__["_dynamo_marked_constant"] = True


class Execution:
    """A program under way.

    row: the number of network calls that have been answered, which is that of the next state.
    kept: the tensors by slot that this and later rows need.
    """

    __slots__ = ("kept", "program", "row")

    def __init__(self, program: Program, initial: Tensor | None = None) -> None:
        """At the start; `initial` is the initial noise, where the first state is made from it."""
        self.program, self.row = program, 0
        self.kept: dict[int, Tensor] = {} if initial is None else {program.noise: initial}

    def state(self, noise: Callable[[], Tensor] | None, like: Tensor) -> Tensor:
        """The next state.

        noise: gives standard normal numbers; a ValueError says where it is wanting.
        like: a tensor of the shape of a state, for a row without terms, which is 0.
        """
        terms, fresh, forget, _ = self.program.rows[self.row]
        kept = self.kept
        for slot in fresh:
            if noise is None:
                raise ValueError(
                    "this plan injects noise; pass noise=, a source of standard normals"
                )
            kept[slot] = noise()
        state = combine([(kept[slot], value) for slot, value in terms], like)
        for slot in forget:
            del kept[slot]
        return state

    def mean(self, like: Tensor) -> Tensor:
        """The next state without the noises that are injected in it; the caller adds them."""
        terms, _, forget, _ = self.program.rows[self.row]
        told = [(slot, value) for slot, value in terms if slot < self.program.noise]
        mean = combine([(self.kept[slot], value) for slot, value in told], like)
        for slot in forget:
            self.kept.pop(slot, None)
        return mean

    def answer(self, z: Tensor, answer: Tensor) -> None:
        """Take in a network call: its input and answer, or the two parts of the estimate.

        What more than the next state needs is copied, for others may write into these tensors
        before it is read: networks that reuse their output, pipelines that edit their latents.
        """
        for slot, part, lasting in self.program.rows[self.row].keep:
            tensor = answer if part else z
            self.kept[slot] = tensor.clone() if lasting else tensor
        self.row += 1


def combine(terms: Sequence[tuple[Tensor, float]], like: Tensor | None = None) -> Tensor:
    """`sum_k c_k v_k` without temporaries; zeros like `like` of no terms."""
    if not terms:
        assert like is not None, "an empty sum has no shape"
        return torch.zeros_like(like)
    first, a = terms[0]
    if len(terms) == 1:
        return first * a
    second, b = terms[1]
    # A coefficient that is 1 but for rounding, such as flow matching's, saves a pass over memory.
    one = -1e-15 < a - 1.0 < 1e-15
    total = torch.add(first, second, alpha=b) if one else (first * a).add_(second, alpha=b)
    for tensor, coefficient in terms[2:]:
        total.add_(tensor, alpha=coefficient)
    return total


class Visit(NamedTuple):
    """A network call of a run: its number, input and level, and a function for the estimate."""

    number: int
    z: Tensor
    level: Level
    estimate: Callable[[], Estimate]


def run(
    plan: Plan | Program,
    denoiser: Any,
    initial: Tensor,
    noise: Callable[[], Tensor] | None = None,
    *,
    edit: Callable[[int, Tensor, Level], Tensor | None] | None = None,
    watch: Callable[[Visit], None] | None = None,
    conditioning: dict[str, Any] | None = None,
) -> Tensor:
    """Run a plan on tensors and return its final state, in the scaling of the plan. Differentiable.

    plan: a plan, or the program of one that has been lowered to this denoiser.
    initial: noise of unit variance, of the shape of a state.
    noise: gives more of it, where the plan injects some.
    edit: `edit(k, z, level)` may return a replacement for the input of call k.
    watch: sees each call.
    conditioning: what the network is told beside z and the level.
    """
    program, told = plan, conditioning or {}
    if not isinstance(program, Program):
        denoiser = as_denoiser(denoiser)
        program = lower(program, denoiser, initial.dtype, initial.device)
    execution = Execution(program, initial)
    for number, call in enumerate(program.calls):
        z = execution.state(noise, initial)
        if edit is not None:
            z = replaced(z, edit(number, z, call.level))
        pair = denoiser.ask(z, call, told)
        execution.answer(*pair)
        if watch is not None:
            watch(Visit(number, z, call.level, partial(call.solution.apply, *pair)))
        del pair  # or the next call would find it in memory
    return execution.state(noise, initial)
