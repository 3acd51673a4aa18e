"""How much a search may cost: budgets in network evaluations, and what is spent on what."""

from __future__ import annotations

import operator
from typing import NamedTuple

from twosides.naming import unknown


class Effort(NamedTuple):
    """How much is spent.

    evaluations: the most network evaluations, all together.
    teacher: its calls.
    valid, held: noises that choose, and that prove.
    families: which are fitted.
    starts, solvers: of the first family: how many, and how many rules are refined.
    """

    evaluations: int
    teacher: int
    valid: int
    held: int
    families: tuple[str, ...]
    starts: int
    solvers: int


BUDGETS = {
    "fast": Effort(10_000, 24, 16, 32, ("low",), 6, 1),
    "normal": Effort(100_000, 48, 32, 48, ("low", "e", "full"), 16, 2),
    "thorough": Effort(1_000_000, 96, 64, 128, ("low", "e", "full"), 16, 3),
}


def effort_of(budget: str | int) -> Effort:
    """What a budget means; ValueError for a name there is not, or a number that is too small."""
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        return BUDGETS[budget]
    if isinstance(budget, bool) or operator.index(budget) < 5_000:
        raise ValueError(f"budget is a number of network evaluations >= 5000, got {budget!r}")
    name = "fast" if budget < 30_000 else "normal" if budget < 500_000 else "thorough"
    return BUDGETS[name]._replace(evaluations=budget)
