"""The loss of a flow map: a row of `objectives`, a teacher, states, and which steps are trained.

`MapObjective` stands wherever an `Objective` does: `training.fit` draws batches and calls it. All
that is random depends on the generator it is given, so that runs go on and are shared as others.
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
from twosides.losses.objective import Losses, Objective, Randomness, _randomness, exact
from twosides.losses.weightings import OutputMSE, Weighting
from twosides.naming import unknown
from twosides.outputs import OUTPUTS
from twosides.schedules import FlowMatching, along_batch

STATES = ("data", "pairs", "trajectory", "noise")
_FLOW = FlowMatching()
_UNIFORM = FromSchedule(_FLOW)
_PURE, _CLEAN = 0.25, 0.25  # parts of the steps that begin at noise, and that end at the data
_SHORTEST = 1e-3  # of the steps that are trained, in flow time


def velocity(
    denoiser: BaseDenoiser, z: Tensor, t: Tensor, s: Tensor | None = None, **conditioning: Any
) -> Tensor:
    """u, or of a flow map with s the average velocity F, of z in flow matching's scaling.

    t, s: flow times (B,), float64.
    """
    level = _FLOW.at(t)
    there: dict[str, Any] = {} if s is None else {"to": _FLOW.at(s)}
    if denoiser.output == OUTPUTS["u"] and denoiser.schedule == _FLOW:
        return denoiser.answer(z, level, **there, **conditioning)
    estimate = denoiser(z, level, **there, **conditioning)
    return estimate.eps - estimate.x


@dataclass(frozen=True, kw_only=True)
class MapObjective(Objective):
    """What trains a flow map, or after reflow a denoiser, wherever an `Objective` trains one.

    rule: a row of `objectives`.
    teacher: whose ODE is distilled, in flow matching's notation and the student's units; without,
        the student is its own teacher, and learns u from the data.
    states: where z comes from, by default as the row says: "data", noisy data; "pairs", noisy
        samples of the teacher; "trajectory", stored states of its runs; "noise", pure noise.
    calls: 1, 2, 4, ...: only steps that end on the grid of so many steps are trained; None trains
        steps between any two levels.
    coupling: how noise and data are paired in a batch, a row of `couplings.COUPLINGS`.
    """

    weighting: Weighting = field(default_factory=lambda: OutputMSE("u", _FLOW, _UNIFORM))
    density: Density = field(default_factory=lambda: _UNIFORM)
    rule: Rule
    teacher: BaseDenoiser | None = None
    states: str = ""
    calls: int | None = None
    coupling: str = "independent"

    reads = ("states",)  # columns of the data that are for the objective and not for the network

    def __post_init__(self) -> None:
        """ValueError for what does not go together."""
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
        if self.states == "noise" and not self.teacher:
            raise ValueError("pure noise alone says nothing of the data: pass a teacher")

    def evaluate(
        self,
        denoiser: Any,
        x: Tensor,
        *,
        generator: Randomness = None,
        states: Tensor | None = None,
        **conditioning: Any,
    ) -> Losses:
        """The losses with the levels z was at.

        denoiser: what is trained, a FlowMap where steps have a length.
        x: data (B, ...), in their own units.
        generator: as in `Objective`.
        states: stored runs (B, K + 1, ...) at flow times 1, 1 - 1/K, ... 0, in the student's units.
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
            t, left = batch.residuals(student.standardise(x), states)
        error = left.square().flatten(1).mean(1)
        weight = (error.detach() + 1e-3) ** -self.rule.power if self.rule.power else 1.0
        return Losses(error * weight, _FLOW.logsnr(t), error, error.detach())


@dataclass(frozen=True, eq=False)
class _Batch:
    """One evaluation: all that its parts share."""

    objective: MapObjective
    student: BaseDenoiser
    teacher: BaseDenoiser | None
    conditioning: dict[str, Any]
    draw: Any

    def residuals(self, x: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Flow times (B,) and residuals (B, ...), of the rows of the batch in any order."""
        rule, where = self.objective.rule, self.objective.states
        if states is not None and where != "data":
            x = states[:, -1].to(x)
            if rule.first == "stored":
                runs = self._along_runs if where == "trajectory" else self._on_pairs
                return runs(states.to(x))
        eps = self.draw.normal(x.shape[1:], x.dtype, x.device)
        eps = COUPLINGS[self.objective.coupling](x, eps)
        t, s, diagonal = self._times(len(x))
        z, everything = _FLOW.at(t).mix(x, eps), torch.arange(len(x))
        on, off = everything[diagonal], everything[~diagonal]
        parts = []
        if len(on):
            with torch.no_grad():
                u = (eps - x)[on] if self.teacher is None else self._u(on)(z[on], t[on])
            parts.append(self._f(on)(z[on], t[on], t[on]) - u)
        if len(off):
            split, f, u = self.draw.uniform()[off], self._f(off), self._u(off)
            parts.append(residual(rule, f, u, z[off], t[off], s[off], split))
        return torch.cat([t[on], t[off]]), torch.cat(parts)

    def _on_pairs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The plain error of u = eps - x, between the ends of runs: reflow."""
        eps, x = states[:, 0], states[:, -1]
        t = torch.sigmoid(-0.5 * UShape(4.0).logsnr(self.draw.uniform()))
        z, rows = _FLOW.at(t).mix(x, eps), torch.arange(len(x))
        return t, self._f(rows)(z, t, t) - (eps - x)

    def _along_runs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The difference from the average velocity between two stored states."""
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
        else:  # half of the steps are those of the grid
            every = nodes // calls
            a = torch.where(clean < 0.5, a // every * every, a)
            b = (a // every + 1) * every
        t, s = 1 - a.double() / nodes, 1 - b.double() / nodes
        rows = torch.arange(len(states), device=states.device)
        z, there = (states[rows, k.to(states.device)] for k in (a, b))
        wanted = (z - there) / along_batch(t - s, z)
        return t, self._f(torch.arange(len(states)))(z, t, s) - wanted

    def _times(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Flow times t >= s (B,), and whether they are equal.

        Elsewhere they are the larger and the smaller of two draws, and more of them at the ends:
        without those, steps from pure noise to the data are hardly trained at all.
        """
        diagonal = _split(count, self.objective.rule.diagonal, self.draw)
        a, b = _time(self.draw), _time(self.draw)
        pure, clean = self.draw.uniform(), self.draw.uniform()
        t = torch.where((pure < _PURE) & ~diagonal, 1.0, torch.maximum(a, b))
        t = torch.where(diagonal, a, t)
        if self.objective.states == "noise":
            t = torch.ones_like(t)
        s = torch.where(clean < _CLEAN, 0.0, torch.minimum(a, b))
        if self.objective.calls is not None:  # down to the next edge of the grid
            s = ((t * self.objective.calls).ceil() - 1).clamp(min=0) / self.objective.calls
        s = torch.minimum(s, t - _SHORTEST).clamp(min=0)
        # Between the last edge and this close to it there is nothing to learn.
        t = torch.maximum(t, s + _SHORTEST)
        return t, torch.where(diagonal, t, s), diagonal

    def _f(self, rows: Tensor) -> Student:
        """The student's average velocity for some rows of the batch."""
        given, student = _rows(self.conditioning, rows), self.student
        if isinstance(student, FlowMap):
            return lambda z, t, s: velocity(student, z, t, s, **given)
        return lambda z, t, s: velocity(student, z, t, **given)

    def _u(self, rows: Tensor) -> Teacher:
        """The velocity whose ODE is distilled, for some rows of the batch."""
        given, source = _rows(self.conditioning, rows), self.teacher or self.student
        return lambda z, t: velocity(source, z, t, **given)


def _time(draw: Any) -> Tensor:
    """Flow times: half of them logit-normal(0, 1), half uniform."""
    which, u = draw.uniform(), draw.uniform()
    normal = torch.sigmoid(torch.special.ndtri(u))
    return torch.where(which < 0.5, normal, u)


def _split(count: int, part: float, draw: Any) -> Tensor:
    """Which rows are on the diagonal (B,): this part of them, by their place in the batch."""
    places = torch.tensor(getattr(draw, "indices", range(count)))
    return ((places + 1) * part).floor() > (places * part).floor()


def _rows(conditioning: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The conditioning of some samples."""

    def chosen(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: chosen(inner) for name, inner in value.items()}
        if isinstance(value, Tensor) and value.ndim:
            return value[rows.to(value.device)]
        return value

    return {name: chosen(value) for name, value in conditioning.items()}


def _beside(teacher: BaseDenoiser, x: Tensor) -> BaseDenoiser:
    """The teacher on the device of the data, which it reaches once."""
    if isinstance(teacher, nn.Module):
        first = next(teacher.parameters(), None)
        if first is not None and first.device != x.device:
            teacher.to(x.device)
    return teacher


@contextlib.contextmanager
def _no_dropout(denoiser: Any) -> Iterator[None]:
    """Targets and answers without dropout, which would be one more noise between the two."""
    active = [] if not isinstance(denoiser, nn.Module) else _dropouts(denoiser)
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


def _dropouts(denoiser: nn.Module) -> list[nn.Module]:
    return [m for m in denoiser.modules() if isinstance(m, nn.Dropout) and m.p and m.training]
