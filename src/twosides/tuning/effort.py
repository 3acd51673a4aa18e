"""How much a search may cost: budgets in network evaluations, and how they are divided.

A network evaluation is one row of a batch that the network is asked. Under guidance the two rows of
a pair count as one.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from twosides.naming import unknown


class Effort(NamedTuple):
    """How much is spent on which part of a search.

    evaluations: the number of network evaluations beyond which no fit begins another iteration. The
        teacher, the presets and the proof are not cut short: with many noises or steps and a small
        budget they alone may need more.
    teacher: the least number of calls in a run of the teacher, whose runs are taken for the truth.
    valid: the number of noises on which tables are chosen, at least.
    held: the number of noises on which the result is proven, at least.
    families: the names of the families of tables that are fitted, in this order (see `tables`).
    starts: at how many points the search for the first family's parameters begins.
    solvers: how many of the first family's rules are refined from their best start.
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
    """The effort that a budget stands for.

    budget: a name in `BUDGETS`, or a number of network evaluations, >= 5000. A number is divided
        as the named budget of about its size is.

    ValueError for a name that does not exist, and for a number below 5000; TypeError for a number
    that is not whole.

    >>> effort_of("fast").families
    ('low',)
    >>> effort_of(20_000).evaluations
    20000
    """
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise unknown("budget", budget, BUDGETS)
        return BUDGETS[budget]
    if isinstance(budget, bool) or operator.index(budget) < 5_000:
        raise ValueError(f"budget is a number of network evaluations >= 5000, got {budget!r}")
    name = "fast" if budget < 30_000 else "normal" if budget < 500_000 else "thorough"
    return BUDGETS[name]._replace(evaluations=budget)
