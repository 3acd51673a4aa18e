"""Noise schedules: a time warp t <-> logsnr and a scaling convention, and their names.

`level` has a noise level and the scalings, `schedule` what all schedules have, `closed`,
`exploding`, `discrete` and `numerical` the schedules themselves. A new one is a class there and a
row of `SCHEDULES`.
"""

from __future__ import annotations

from twosides.naming import named
from twosides.schedules.closed import Cosine, FlowMatching, VPLinear
from twosides.schedules.discrete import Betas, ScaledLinear, Tabulated, logsnr_of_betas
from twosides.schedules.exploding import EDM, EDMInput, Geometric
from twosides.schedules.level import (
    SCALINGS,
    Level,
    Scalar,
    Scaling,
    along_batch,
    derivative,
)
from twosides.schedules.numerical import FromFunctions
from twosides.schedules.schedule import Rescaled, Schedule, ShiftedSchedule, with_limits

__all__ = [
    "EDM", "SCALINGS", "SCHEDULES", "Betas", "Cosine", "EDMInput", "FlowMatching", "FromFunctions",
    "Geometric", "Level", "Rescaled", "Scalar", "ScaledLinear", "Scaling", "Schedule",
    "ShiftedSchedule", "Tabulated", "VPLinear", "along_batch", "derivative", "logsnr_of_betas",
    "schedule_named", "with_limits",
]  # fmt: skip


SCHEDULES: dict[str, Schedule] = {
    "flow-matching": FlowMatching(),
    "cosine": Cosine(),
    "vp-linear": VPLinear(),
    "edm": EDM(),
    "geometric": Geometric(),
    "scaled-linear": ScaledLinear(),
}


def schedule_named(name: str | Schedule) -> Schedule:
    """A schedule by name, with its numbers if wanted.

    >>> schedule_named("cosine(-15, 15)").logsnr_max
    15.0
    """
    return name if isinstance(name, Schedule) else named("schedule", name, SCHEDULES)
