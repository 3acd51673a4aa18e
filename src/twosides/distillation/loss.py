"""The loss of a flow map: a rule, a teacher, noisy states, and the steps that are trained.

A *flow map* is a denoiser that is told two noise levels and whose step follows the ODE at any
length (`flow_map`). The model that is trained is called the student, and the model whose ODE it
learns the teacher. A rule, which is a row of `objectives`, says how. `MapObjective` makes a loss of
the rule. It draws the two ends of a step for each sample, t >= s in flow time, 1 at noise and 0 at
the data; on a part of the batch, the *diagonal*, s = t.

`training.fit` takes a `MapObjective` in the place of an `Objective`. Everything random depends on
the generator that it is given, so that a run can be interrupted and divided among processes like
any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twosides.denoiser import BaseDenoiser, as_denoiser
from twosides.distillation.flow_map import FlowMap
from twosides.distillation.objectives import Rule, Student, Teacher, residual
from twosides.losses.couplings import COUPLINGS
from twosides.losses.densities import Density, FromSchedule, UShape
from twosides.losses.masks import mean_square
from twosides.losses.objective import Losses, Objective, Randomness, _randomness, exact
from twosides.losses.weightings import OutputMSE, Weighting
from twosides.naming import unknown
from twosides.outputs import OUTPUTS
from twosides.schedules import FlowMatching, along_batch

STATES = ("data", "pairs", "trajectory", "noise")
_FLOW = FlowMatching()
_UNIFORM = FromSchedule(_FLOW)
# The parts of a batch whose steps begin at pure noise, and whose steps end at the data.
_PURE, _CLEAN = 0.25, 0.25
_SHORTEST = 1e-3  # the length in flow time that a step off the diagonal has at least
_ROUND = 1e-3  # c of MeanFlow's weight 1 / (error + c)^power, which bounds it


def velocity(
    denoiser: BaseDenoiser, z: Tensor, t: Tensor, s: Tensor | None = None, **conditioning: Any
) -> Tensor:
    """The velocity u of a denoiser, or the average velocity F of a flow map, at states z.

    denoiser: a denoiser, or with s a flow map, in any notation.
    z: states (B, ...) in flow matching's scaling, `(1 - t) x + t eps`.
    t: the flow times of z, (B,), float64, in [0, 1].
    s: the flow times where the steps end, for a flow map; None for the velocity at t.
    conditioning: what else the network is told.

        >>> import twosides as ts
        >>> t = torch.tensor([0.5], dtype=torch.float64)
        >>> velocity(ts.Denoiser(lambda z, time: 2 * z), torch.ones(1, 2), t)
        tensor([[2., 2.]])
    """
    level = _FLOW.at(t)
    there: dict[str, Any] = {} if s is None else {"to": _FLOW.at(s)}
    if denoiser.output == OUTPUTS["u"] and denoiser.schedule == _FLOW:
        # The network's own answer is u; by way of (x, eps) it would only be rounded.
        return denoiser.answer(z, level, **there, **conditioning)
    estimate = denoiser(z, level, **there, **conditioning)
    return estimate.eps - estimate.x


@dataclass(frozen=True, kw_only=True)
class MapObjective(Objective):
    """The loss that trains a flow map, or a denoiser with straighter paths (reflow).

    It takes the place of an `Objective` in `training.fit`. It draws its own levels and has no
    weighting: the fields `weighting`, `density` and `stratified`, which it inherits from
    `Objective`, cannot be given.

    rule: a row of `objectives`.
    teacher: the denoiser whose ODE is distilled, in any notation that reaches from pure noise to
        pure data, with the data_mean and data_std of the student. By default (None) the student is
        its own teacher, and learns the velocity on the diagonal from the data.
    states: where the noisy states z come from, one of `STATES`, by default the choice of the rule.
        "data" are noisy data; "pairs" are the ends of stored runs of the teacher, to which fresh
        noise is added; "trajectory" are the states of such runs themselves; "noise" is pure noise.
        With "pairs" reflow adds to the end of a run the noise from which the run began. The rules
        that read stored runs take no states but their own, and all others no "trajectory".
    calls: a number of steps, at least 1: only steps that end on the grid of so many equal steps of
        flow time are trained. By default (None) steps may end at any level.
    coupling: how noise and data are paired in a batch, a row of `couplings.COUPLINGS`. A student
        that learns from data paired in another way than "independent" has to say so in its own
        `coupling`.

    ValueError for unknown names, for calls below 1, for states that the rule does not read, and for
    pure noise without a teacher.

        >>> import twosides as ts
        >>> from twosides.storage.networks import MLP
        >>> objective = MapObjective(rule=ts.objectives["shortcut"])
        >>> student, draw = FlowMap.from_denoiser(ts.Denoiser(MLP())), torch.Generator()
        >>> objective.evaluate(student, torch.zeros(8, 2), generator=draw).loss.shape
        torch.Size([8])
    """

    weighting: Weighting = field(default=OutputMSE("u", _FLOW, _UNIFORM), init=False)
    density: Density = field(default=_UNIFORM, init=False)
    stratified: bool = field(default=False, init=False)
    rule: Rule
    teacher: BaseDenoiser | None = None
    states: str = ""
    calls: int | None = None
    coupling: str = "independent"

    reads = ("states",)  # columns of the data that are for the objective and not for the network

    def __post_init__(self) -> None:
        """ValueError for unknown names, calls below 1, and parts that contradict one another."""
        super().__post_init__()
        if not self.states:
            object.__setattr__(self, "states", self.rule.states)
        if self.states not in STATES:
            raise unknown("kind of states", self.states, STATES)
        if self.coupling not in COUPLINGS:
            raise unknown("coupling", self.coupling, COUPLINGS)
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"calls is a number of steps, at least 1, got {self.calls}")
        if self.rule.first == "stored" and self.states != self.rule.states:
            raise ValueError(
                f"this objective learns from {self.rule.states} of a teacher's stored runs, not "
                f"from {self.states}; use shortcut or lagrangian, or leave states out"
            )
        if self.rule.first != "stored" and self.states == "trajectory":
            raise ValueError(
                "this objective makes its own hops and reads no stored trajectory; "
                "states='pairs' are the ends of stored runs"
            )
        if self.states == "noise" and not self.teacher:
            raise ValueError("pure noise alone says nothing of the data: pass a teacher")

    def evaluate(
        self,
        denoiser: Any,
        x: Tensor,
        *,
        generator: Randomness = None,
        loss_mask: Tensor | None = None,
        states: Tensor | None = None,
        **conditioning: Any,
    ) -> Losses:
        """The losses of a batch, with the levels of the states z.

        The order of the samples may be another than in the batch, the same in all fields. `error`
        and `eps_error` are both the mean square of the residual of the rule, which is an error of
        the velocity; an error of eps is not measured.

        denoiser: the student. It is a FlowMap, unless the rule trains steps of no length only.
        x: the data (B, ...), in their own units. Where z comes from stored runs or is pure noise,
            only their shape is read.
        generator, loss_mask: as in `Objective`.
        states: stored runs of the teacher (B, K + 1, ...), at the flow times 1, 1 - 1/K, ..., 0, in
            flow matching's scaling and in the units of the network. ValueError if the objective
            needs them and they are missing.
        conditioning: what else the networks of the student and the teacher are told.
        """
        student, x = as_denoiser(denoiser), exact(x)
        draw = _randomness(generator, x)
        if self.states != "data" and states is None and self.states != "noise":
            raise ValueError(
                f'{self.states} are of stored runs, but the rows of the data have no "states"; '
                "`distill` makes them"
            )
        teacher = self.teacher if self.teacher is None else _beside(self.teacher, x)
        batch = _Batch(self, student, teacher, conditioning, draw)
        with _no_dropout(denoiser) if self.rule.second else contextlib.nullcontext():
            t, left, rows = batch.residuals(student.standardise(x), states)
        mask = loss_mask if loss_mask is None else loss_mask[rows.to(loss_mask.device)]
        error = mean_square(left, mask)
        weight = (error.detach() + _ROUND) ** -self.rule.power if self.rule.power else 1.0
        return Losses(error * weight, _FLOW.logsnr(t), error, error.detach())


@dataclass(frozen=True, eq=False)
class _Batch:
    """What the parts of one evaluation share.

    objective: the objective.
    student: the model that is trained.
    teacher: the model whose ODE is distilled; None if that is the student itself.
    conditioning: the conditioning of all rows of the batch.
    draw: the source of random numbers, which answers with one number or one noise for each row.
    """

    objective: MapObjective
    student: BaseDenoiser
    teacher: BaseDenoiser | None
    conditioning: dict[str, Any]
    draw: Any

    def residuals(self, x: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The flow times (B,) of z, the residuals (B, ...) whose mean square is the loss, the rows.

        All are in one order, which need not be that of the batch: rows on the diagonal come first.
        The last says which row of the batch each is (B,).

        x: the standardised data (B, ...).
        states: stored runs, as in `MapObjective.evaluate`.
        """
        rule, where = self.objective.rule, self.objective.states
        # A rule that learns from stored runs is done here. For all others the end of a run stands
        # in the place of the data.
        if states is not None and where != "data":
            x = states[:, -1].to(x)
            if rule.first == "stored":
                runs = self._along_runs if where == "trajectory" else self._on_pairs
                return *runs(states.to(x)), torch.arange(len(x))
        eps = self.draw.normal(x.shape[1:], x.dtype, x.device)
        eps = COUPLINGS[self.objective.coupling](x, eps)
        t, s, diagonal = self._times(len(x))
        z, everything = _FLOW.at(t).mix(x, eps), torch.arange(len(x))
        on, off = everything[diagonal], everything[~diagonal]
        parts = []
        # On the diagonal the target is the velocity itself, and the network is asked once.
        if len(on):
            with torch.no_grad():
                u = (eps - x)[on] if self.teacher is None else self._u(on)(z[on], t[on])
            parts.append(self._f(on)(z[on], t[on], t[on]) - u)
        # Off the diagonal the rule compares one step with two hops (`objectives.residual`).
        if len(off):
            split, f, u = self.draw.uniform()[off], self._f(off), self._u(off)
            parts.append(residual(rule, f, u, z[off], t[off], s[off], split))
        return torch.cat([t[on], t[off]]), torch.cat(parts), torch.cat([on, off])

    def _on_pairs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The error of u = eps - x between the two ends of each run, which is the loss of reflow.

        Times are drawn from the U-shaped density of Lee+ 2024, which favours both ends.

        states: stored runs (B, K + 1, ...), of which only the first and the last state are read.
        """
        eps, x = states[:, 0], states[:, -1]
        t = torch.sigmoid(-0.5 * UShape(4.0).logsnr(self.draw.uniform()))
        z, rows = _FLOW.at(t).mix(x, eps), torch.arange(len(x))
        return t, self._f(rows)(z, t, t) - (eps - x)

    def _along_runs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The error of the average velocity between two states of each stored run.

        states: stored runs (B, K + 1, ...), at equal steps of flow time. ValueError if the grid of
            `calls` steps is not part of these K steps.
        """
        nodes = states.shape[1] - 1
        calls = self.objective.calls
        if calls is not None and nodes % calls:
            raise ValueError(
                f"the stored runs have {nodes} steps, between which lie no {calls} equal ones; "
                f"make them with a multiple of {calls} steps"
            )
        first, last, pure, clean = (self.draw.uniform() for _ in range(4))
        a = torch.where(pure < _PURE, 0, (first * nodes).long())
        if calls is None:
            b = a + 1 + (last * (nodes - a)).long()
            b = torch.where(clean < _CLEAN, nodes, b)
        else:
            # Each step ends at the next edge of the grid. Half of the steps begin at an edge, too,
            # and are the steps that a sampler will make.
            every = nodes // calls
            a = torch.where(clean < 0.5, a // every * every, a)
            b = (a // every + 1) * every
        t, s = 1 - a.double() / nodes, 1 - b.double() / nodes
        rows = torch.arange(len(states), device=states.device)
        z, there = (states[rows, k.to(states.device)] for k in (a, b))
        wanted = (z - there) / along_batch(t - s, z)
        return t, self._f(torch.arange(len(states)))(z, t, s) - wanted

    def _times(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The flow times t >= s (B,) between which steps lead, and whether the two are equal.

        Off the diagonal t and s are the larger and the smaller of two draws, except that a part of
        the steps begins at pure noise and a part ends at the data. Otherwise the step from noise to
        data, which a sampler of one step makes, would hardly be trained at all.

        count: B, the number of rows.
        """
        diagonal = _split(count, self.objective.rule.diagonal, self.draw)
        a, b = _time(self.draw), _time(self.draw)
        pure, clean = self.draw.uniform(), self.draw.uniform()
        t = torch.where((pure < _PURE) & ~diagonal, 1.0, torch.maximum(a, b))
        t = torch.where(diagonal, a, t)
        if self.objective.states == "noise":
            t = torch.ones_like(t)
        s = torch.where(clean < _CLEAN, 0.0, torch.minimum(a, b))
        if self.objective.calls is not None:  # each step ends at the next edge of the grid
            s = ((t * self.objective.calls).ceil() - 1).clamp(min=0) / self.objective.calls
        else:
            s = torch.minimum(s, t - _SHORTEST).clamp(min=0)
        # A state nearer to the end of its step than the shortest step would have no room for one.
        t = torch.maximum(t, s + _SHORTEST)
        return t, torch.where(diagonal, t, s), diagonal

    def _f(self, rows: Tensor) -> Student:
        """The average velocity (z, t, s) -> F of the student, told the conditioning of some rows.

        For a student that is no flow map it is the velocity at t, whatever s is.
        """
        given, student = _rows(self.conditioning, rows), self.student
        if isinstance(student, FlowMap):
            return lambda z, t, s: velocity(student, z, t, s, **given)
        return lambda z, t, s: velocity(student, z, t, **given)

    def _u(self, rows: Tensor) -> Teacher:
        """The velocity (z, t) -> u whose ODE is distilled, told the conditioning of some rows."""
        given, source = _rows(self.conditioning, rows), self.teacher or self.student
        return lambda z, t: velocity(source, z, t, **given)


def _time(draw: Any) -> Tensor:
    """Flow times (B,), float64: half of them from a logit-normal(0, 1) density, half uniform."""
    which, u = draw.uniform(), draw.uniform()
    normal = torch.sigmoid(torch.special.ndtri(u))
    return torch.where(which < 0.5, normal, u)


def _split(count: int, part: float, draw: Any) -> Tensor:
    """Which rows of a batch are on the diagonal, (B,).

    The rows are chosen by their place in the whole batch and not by chance, so that the part is the
    same in every step, and each process can tell for its own rows.

    count: B, the number of rows here.
    part: the part of the rows that is on the diagonal, in [0, 1].
    draw: the source of random numbers, which may know the places of the rows, `indices`.
    """
    places = torch.tensor(getattr(draw, "indices", range(count)))
    return ((places + 1) * part).floor() > (places * part).floor()


def _rows(conditioning: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The conditioning of some rows of a batch.

    Tensors are taken to have a row for each sample; scalars and values of other types are for all.
    """

    def chosen(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: chosen(inner) for name, inner in value.items()}
        if isinstance(value, Tensor) and value.ndim:
            return value[rows.to(value.device)]
        return value

    return {name: chosen(value) for name, value in conditioning.items()}


def _beside(teacher: BaseDenoiser, x: Tensor) -> BaseDenoiser:
    """The teacher, which is moved to the device of the data if it is elsewhere."""
    if isinstance(teacher, nn.Module):
        first = next(teacher.parameters(), None)
        if first is not None and first.device != x.device:
            teacher.to(x.device)
    return teacher


@contextlib.contextmanager
def _no_dropout(denoiser: Any) -> Iterator[None]:
    """A context in which the layers of dropout do nothing.

    The student's answer and its target may be calls of one network. With a dropout of its own in
    each call the two would differ even for the exact flow map.
    """
    active = [] if not isinstance(denoiser, nn.Module) else _dropouts(denoiser)
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


def _dropouts(denoiser: nn.Module) -> list[nn.Module]:
    """The layers of dropout that are active."""
    return [m for m in denoiser.modules() if isinstance(m, nn.Dropout) and m.p and m.training]
