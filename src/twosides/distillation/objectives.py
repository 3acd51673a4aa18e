"""Objectives for flow maps: one rule, and who makes its two hops.

In flow matching's coordinates, `z = (1 - t) x + t eps`, a map is an average velocity F,

    z_s = z_t + (s - t) F(z_t, t, s),        F(z, t, t) = u, the velocity of the ODE

and for any r = t + k (s - t) between t and s two hops make one (the *split rule*):

    F(z_t, t, s) = k A + (1 - k) B,    A from t to r,  B from z_r = z_t + (r - t) A on, to s

An objective says who makes each hop, the student, which is trained, or the teacher, whose velocity
is integrated by midpoint steps; and where r lies. Its loss is the squared difference of the two
sides, divided by the part of the way that the teacher makes where that is short, and the plain
error of u on the diagonal, s = t. Two rows need no hops, because the teacher's runs are stored.

    Liu+ 2022, arxiv.org/abs/2209.03003      Salimans & Ho 2022, arxiv.org/abs/2202.00512
    Song+ 2023, arxiv.org/abs/2303.01469     Frans+ 2024, arxiv.org/abs/2410.12557
    Geng+ 2025, arxiv.org/abs/2505.13447     Boffi+ 2024, arxiv.org/abs/2406.07507

Nothing here takes a derivative of a network in its times: with steps of .02 a difference is nearer
to the truth than the exact one, which sees the ripple of the sinusoids that the time is told in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.naming import Table
from twosides.schedules import along_batch

Student = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z, t, s) -> F
Teacher = Callable[[Tensor, Tensor], Tensor]  # (z, t) -> u


@dataclass(frozen=True)
class Rule:
    """One objective: who makes the hops of `F = k A + (1 - k) B`, and what else it needs.

    first, second: who makes A and B, "teacher" or "student"; first may be "stored", a run of the
        teacher that is kept, which makes the whole way. Of a row that trains u alone both are "".
    split: the interval from which k is drawn.
    step: a length in flow time instead: the teacher's hop is so long (at most half of the way).
    hops: midpoint steps in each hop of the teacher's.
    through: whether the gradient goes through A, too.
    states: where z comes from by default: "data" (noisy data), "pairs" (noisy samples of the
        teacher), "trajectory" (stored states of its runs) or "noise" (pure noise).
    diagonal: the part of a batch on which s = t.
    power: the loss is divided by its own size to this power, without gradient, as MeanFlow does.
    coupled: whether what is trained has noise and data coupled, so that eps is no longer the score.
    papers: where it comes from, and under which names.
    """

    first: str
    second: str = ""
    split: tuple[float, float] = (0.5, 0.5)
    step: float = 0.0
    hops: int = 1
    through: bool = False
    states: str = "data"
    diagonal: float = 0.25
    power: float = 0.0
    coupled: bool = False
    papers: str = ""


objectives: Table[Rule] = Table(
    "objective",
    {
        "flow": Rule("", diagonal=1.0, papers="flow matching, Lipman+ 2022, arXiv 2210.02747"),
        "reflow": Rule(
            "stored",
            states="pairs",
            diagonal=1.0,
            coupled=True,
            papers="rectified flow, Liu+ 2022, arXiv 2209.03003; RF++, Lee+ 2024, arXiv 2405.20320",
        ),
        "trajectory": Rule(
            "stored",
            states="trajectory",
            diagonal=0.0,
            papers="knowledge distillation, Luhman+ 2021, arXiv 2101.02388; CMT, Hu+ 2025, "
            "arXiv 2509.24526",
        ),
        "progressive": Rule(
            "teacher",
            "teacher",
            hops=2,
            papers="progressive distillation in one network, Salimans & Ho 2022, arXiv 2202.00512",
        ),
        "shortcut": Rule(
            "student",
            "student",
            (0.2, 0.8),
            papers="shortcut models, Frans+ 2024, arXiv 2410.12557; PSD, Boffi+ 2025, arXiv "
            "2505.18825; SplitMeanFlow, Guo+ 2025, arXiv 2507.16884",
        ),
        "consistency": Rule(
            "teacher",
            "student",
            (0.25, 0.25),
            papers="consistency distillation, Song+ 2023, arXiv 2303.01469; CTM, Kim+ 2023, arXiv "
            "2310.02279; PCM, Wang+ 2024, arXiv 2405.18407",
        ),
        "meanflow": Rule(
            "teacher",
            "student",
            step=0.02,
            power=1.0,
            papers="MeanFlow, Geng+ 2025, arXiv 2505.13447; sCM, Lu & Song 2024, arXiv 2410.11081; "
            "AYF, Sabour+ 2025, arXiv 2506.14603",
        ),
        "lagrangian": Rule(
            "student",
            "teacher",
            step=0.02,
            through=True,
            papers="LMD, Boffi+ 2024, arXiv 2406.07507; LSD, Boffi+ 2025, arXiv 2505.18825; TVM, "
            "Zhou+ 2025, arXiv 2511.19797",
        ),
    },
)


def residual(
    rule: Rule,
    student: Student,
    teacher: Teacher,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    u: Tensor,
) -> Tensor:
    """The difference of the two sides of the split rule, whose mean square is the loss, (B, ...).

    rule: a row that makes hops.
    student, teacher: the average and the instantaneous velocity.
    z: states (B, ...) at the flow times t (B,).
    t, s: 1 >= t > s >= 0, float64.
    u: uniform numbers (B,) of (0, 1), by which k is drawn.

    It vanishes for the exact map, up to the error of the teacher's midpoint steps: relative to F
    some 1e-11 (shortcut), 6e-4 (consistency), 1e-2 (progressive), 1e-6 (meanflow and lagrangian).
    """
    k = fractions(rule, t, s, u)
    r = t + k * (s - t)

    def along(value: Tensor) -> Tensor:
        return along_batch(value, z)

    if rule.through:
        a = student(z, t, r)
        with torch.no_grad():
            b = hop(teacher, z + along(r - t) * a, r, s, rule.hops)
        return (student(z, t, s) - along(k) * a) / along(1 - k) - b
    with torch.no_grad():
        a = hop(teacher, z, t, r, rule.hops) if rule.first == "teacher" else student(z, t, r)
        there = z + along(r - t) * a
        by_teacher = rule.second == "teacher"
        b = hop(teacher, there, r, s, rule.hops) if by_teacher else student(there, r, s)
        target = along(k) * a + along(1 - k) * b
    # The target differs from the student's own answer only by what the teacher adds, of order k.
    share = along(k.sqrt()) if rule.first == "teacher" and not by_teacher else 1.0
    return (student(z, t, s) - target) / share


def fractions(rule: Rule, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
    """k, the part of the way that the first hop makes, (B,)."""
    if rule.step:
        part = (rule.step / (t - s)).clamp(max=0.5)
        return 1 - part if rule.through else part
    low, high = rule.split
    return low + (high - low) * u


def hop(teacher: Teacher, z: Tensor, t: Tensor, s: Tensor, steps: int = 1) -> Tensor:
    """The average velocity of the teacher's ODE from t to s, by midpoint steps."""
    start, part = z, (s - t) / steps
    for number in range(steps):
        here = t + number * part
        half = z + along_batch(part / 2, z) * teacher(z, here)
        z = z + along_batch(part, z) * teacher(half, here + part / 2)
    return (z - start) / along_batch(s - t, z)


def lines() -> list[tuple[str, ...]]:
    """The table, of `twosides objectives` and the documentation; the first line is the head."""
    head = ("objective", "first hop", "second hop", "k", "z from", "s = t", "source")
    return [head, *(_line(name, rule) for name, rule in objectives.items())]


def _line(name: str, rule: Rule) -> tuple[str, ...]:
    low, high = rule.split
    k = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if rule.step:
        k = f"1 - {rule.step:g}/(t - s)" if rule.through else f"{rule.step:g}/(t - s)"
    hops = rule.first in ("teacher", "student")
    first = f"{rule.first}, with its gradient" if rule.through else rule.first
    cells = (name, first or "-", rule.second or "-", k if hops else "-", rule.states)
    return (*cells, f"{rule.diagonal:.0%}", rule.papers)
