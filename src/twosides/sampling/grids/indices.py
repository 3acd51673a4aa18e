"""The grids of discrete models: whole indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twosides import schedules
from twosides.sampling.frames import Array
from twosides.sampling.grids.grid import Grid, append_data
from twosides.schedules import Schedule, Tabulated


@dataclass(frozen=True)
class Indices(Grid):
    """A discrete model's indices k of 0 ... N - 1, as diffusers' `timestep_spacing` picks them.

        "leading"    k = i (N // n) + offset                i = n - 1 ... 0, DDPM, Stable Diffusion
        "trailing"   k = round(N (n - i) / n) - 1           i = 0 ... n - 1  [Lin+ 2023]
        "linspace"   k = round((N - 1) (n - 1 - i) / (n - 1))

    The last level is the data (DDIMScheduler with set_alpha_to_one, EulerDiscreteScheduler) or,
    with final="first", index 0 (set_alpha_to_one=False, as Stable Diffusion has it, with its
    steps_offset=1). diffusers' Euler does not round "linspace"; that is ThenData(UniformTime()),
    up to its interpolation of sigma between indices.

        >>> sd = schedules.ScaledLinear()
        >>> 999 * sd.time(Indices("leading", offset=1, final="first").logsnrs(sd, 4))
        tensor([751., 501., 251.,   1.,   0.], dtype=torch.float64)
    """

    spacing: str = "leading"
    offset: int = 0
    final: str = "data"

    def __post_init__(self) -> None:
        """ValueError for unknown words, and for ends that would be visited twice."""
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"spacing is 'leading', 'trailing' or 'linspace': {self}")
        if self.final not in ("data", "first"):
            raise ValueError(f"final is 'data' or 'first' (index 0): {self}")
        if not (self.offset >= 0 and self.offset % 1 == 0):
            raise ValueError(f"offset must be a whole number >= 0: {self}")
        object.__setattr__(self, "offset", int(self.offset))
        if self.offset and self.spacing != "leading":
            raise ValueError(f"only spacing='leading' has an offset: {self}")

    def indices(self, count: int, steps: int) -> Array:
        """The `steps` indices of a model with `count` of them, falling."""
        if not 1 <= steps <= count:
            raise ValueError(f"{count} indices give 1 ... {count} steps, but {steps} were asked")
        if self.spacing == "leading":
            picked = np.arange(steps - 1, -1, -1) * (count // steps) + self.offset
        elif self.spacing == "trailing":
            # Stepping by arange rounds ties as diffusers does; it may add a spurious -1.
            picked = np.round(np.arange(count, 0, -count / steps))[:steps] - 1
        else:
            picked = np.round(np.linspace(0, count - 1, steps))[::-1]
        if picked[0] >= count or (self.final == "first" and picked[-1] == 0):
            raise ValueError(
                f"{self} in {steps} steps visits index {picked[0]:.0f} ... {picked[-1]:.0f} of "
                f"0 ... {count - 1}, then {self.final}; lower the offset or take final='data'"
            )
        return picked.astype(np.float64)

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The levels of the indices, and the final one."""
        discrete = discrete_base(schedule)
        if discrete is None:
            raise ValueError(
                f"{schedule} has no indices; use UniformTime(), or sample on a discrete schedule "
                "such as ScaledLinear()"
            )
        picked = self.indices(discrete.count, steps)
        t = torch.tensor([*picked, 0.0], dtype=torch.float64) / (discrete.count - 1)
        nodes = schedule.logsnr(t)
        return append_data(nodes[:-1]) if self.final == "data" else nodes


def discrete_base(schedule: Schedule) -> Tabulated | None:
    """The discrete model whose schedule this is, shifted or rescaled as it may be."""
    while isinstance(schedule, schedules.ShiftedSchedule | schedules.Rescaled):
        schedule = schedule.base
    return schedule if isinstance(schedule, Tabulated) else None
