"""Objectives for flow maps: one rule, and who makes the two hops of which it consists.

A *flow map* is a denoiser that is told two noise levels and whose step follows the ODE at any
length (`flow_map`). In flow matching's coordinates, `z = (1 - t) x + t eps` with t = 0 at the data,
a flow map is an average velocity F:

    z_s = z_t + (s - t) F(z_t, t, s),        F(z, t, t) = u, the velocity of the ODE

Let r = t + k (s - t) lie between t and s, with k in (0, 1). A *hop* is the way from one time to
another along the ODE. The hop from t to s is then the hop from t to r and the hop from r to s,

    F(z_t, t, s) = k A + (1 - k) B,    A from z_t at t to r,    B from z_r = z_t + (r - t) A to s

which is the *split rule* here: A and B are the average velocities of the two hops. An objective
says where r lies, and who makes each hop. The student, which is the model that is trained, makes it
in one call; of the teacher, which is the model whose ODE is distilled, the velocity u is integrated
by midpoint steps. The loss is the squared difference of the two sides. If the teacher makes one
short hop, the difference is divided first (`residual`), since it would else become small with the
hop. On the diagonal, where s = t, the loss is the squared error of u. The rows "reflow" and
"trajectory" need no hops, because they read stored runs of the teacher, which make the whole way.

    Liu+ 2022, arxiv.org/abs/2209.03003      Salimans & Ho 2022, arxiv.org/abs/2202.00512
    Song+ 2023, arxiv.org/abs/2303.01469     Frans+ 2024, arxiv.org/abs/2410.12557
    Geng+ 2025, arxiv.org/abs/2505.13447     Boffi+ 2024, arxiv.org/abs/2406.07507

Papers such as MeanFlow take the derivative of the network in its times. Here it is a difference
over a hop of .02, which comes nearer to the true derivative of the map than the exact derivative of
a network: networks are told the time in sinusoids, and the exact derivative follows their ripple.
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

    first: who makes the first hop, A: "teacher" or "student"; "stored" if a stored run of the
        teacher makes the whole way; "" for a rule that trains u alone.
    second: who makes the second hop, B: "teacher" or "student"; "" if there is none.
    split: the interval of (0, 1) from which k is drawn uniformly. It is not used if `step` is set.
    step: the length of the teacher's hop in flow time, >= 0, in place of `split`; the hop is at
        most half of the way. 0, the default, leaves k to `split`.
    hops: the number of midpoint steps in each hop of the teacher, >= 1.
    through: whether the gradient flows through A, too, and not only through F. It is for rules
        whose first hop is the student's and whose second hop is the teacher's.
    states: where the noisy states z come from by default: "data" (noisy data), "pairs" (noisy
        samples of the teacher), "trajectory" (states of its stored runs) or "noise" (pure noise).
    diagonal: the part of a batch on which s = t, in [0, 1].
    power: the loss of a sample is divided by this power of its own size plus .001, which is taken
        as a constant, as MeanFlow does. 0, the default, leaves the loss as it is.
    coupled: whether the training pairs each noise with its own data, so that the eps of the student
        is no longer the score.
    papers: the papers from which the objective comes, with the names that it has there.

        >>> objectives["consistency"].first, objectives["consistency"].second
        ('teacher', 'student')
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
    """The difference of the two sides of the split rule (B, ...), whose mean square is the loss.

        F - k A - (1 - k) B                    shortcut, progressive
        (F - k A - (1 - k) B) / sqrt(k)        consistency, meanflow
        (F - k A) / (1 - k) - B                lagrangian

    The gradient flows through F, and in the last line through A, too; all else is a constant. The
    divisions make up for a short hop of the teacher, of which the difference is a small multiple.

    For the exact map the difference is 0, up to the error of the teacher's midpoint steps. Relative
    to F this error is some 1e-11 (shortcut, whose hops are the student's), 6e-4 (consistency), 1e-2
    (progressive), 1e-6 (meanflow and lagrangian).

    rule: a row that makes hops: its `first` is "teacher" or "student".
    student: the average velocity (z, t, s) -> F of the model that is trained.
    teacher: the velocity (z, t) -> u whose ODE is distilled.
    z: states (B, ...) at the flow times t.
    t: the flow times (B,) where the steps begin, float64, at most 1.
    s: the flow times (B,) where the steps end, float64, with 0 <= s < t.
    u: uniform numbers (B,) in (0, 1), by which k is drawn.
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
    # B is nearly the student's own answer F, so that the target differs from F only by what the
    # teacher's hop adds, which is of order k. Divided by sqrt(k), the squared difference is of
    # order k and not of order k^2.
    share = along(k.sqrt()) if rule.first == "teacher" and not by_teacher else 1.0
    return (student(z, t, s) - target) / share


def fractions(rule: Rule, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
    """The part k of the way that the first hop makes, (B,).

    rule: the objective.
    t, s: the flow times (B,) where the steps begin and end, t > s.
    u: uniform numbers (B,) in (0, 1); they are not used if the rule states the length of a hop.

        >>> fractions(objectives["meanflow"], torch.ones(1), torch.tensor([0.5]), torch.zeros(1))
        tensor([0.0400])
    """
    if rule.step:
        part = (rule.step / (t - s)).clamp(max=0.5)
        return 1 - part if rule.through else part
    low, high = rule.split
    return low + (high - low) * u


def hop(teacher: Teacher, z: Tensor, t: Tensor, s: Tensor, steps: int = 1) -> Tensor:
    """The average velocity of the teacher's ODE between two times, by midpoint steps (B, ...).

    teacher: the velocity (z, t) -> u of the ODE.
    z: states (B, ...) at the flow times t.
    t, s: the flow times (B,) where the hop begins and ends; they must differ.
    steps: the number of midpoint steps, >= 1, of two calls of the teacher each.

        >>> hop(lambda z, t: 2 * t[:, None], torch.ones(1, 1), torch.ones(1), torch.zeros(1))
        tensor([[1.]])
    """
    start, part = z, (s - t) / steps
    for number in range(steps):
        here = t + number * part
        half = z + along_batch(part / 2, z) * teacher(z, here)
        z = z + along_batch(part, z) * teacher(half, here + part / 2)
    return (z - start) / along_batch(s - t, z)


def lines() -> list[tuple[str, ...]]:
    """The table of all objectives, as `twosides objectives` and the documentation show it.

    Each line is a tuple of cells, and the first line is the head.
    """
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
