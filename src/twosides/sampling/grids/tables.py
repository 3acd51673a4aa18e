"""Grids of equal steps in a variable that a table gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twosides.sampling.frames import Variable
from twosides.sampling.grids.grid import Even, Grid, append_data, check_covered, check_steps
from twosides.schedules import Schedule


@dataclass(frozen=True)
class Quantiles(Even):
    """Equal shares of a density of logsnr, tabulated at `knots` (increasing).

    The distribution function is the trapezoid rule's, linear between knots. The ends of the range
    that is walked may lie outside the table.

        >>> from twosides.schedules import FlowMatching
        >>> Quantiles((-2, 0, 2), (1, 1, 1), start=-2, end=2).logsnrs(FlowMatching(), 4)
        tensor([-2., -1.,  0.,  1.,  2.], dtype=torch.float64)
    """

    knots: tuple[float, ...]
    density: tuple[float, ...]
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for tables that are no density, or an empty range; lists become tuples."""
        super().__post_init__()
        _hold_table(self, knots=self.knots, density=self.density)

    def axis(self, schedule: Schedule) -> Variable:
        """The distribution function, from the noise end."""
        density = np.array(self.density)
        shares = np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(self.knots))
        mass = np.concatenate([[0.0], shares / shares[-1]])
        first, last = np.interp(self.ends(schedule), self.knots, mass)
        if not first < last:
            raise ValueError(
                f"the table covers logsnr [{self.knots[0]:.6g}, {self.knots[-1]:.6g}] and has no "
                f"mass in {self.ends(schedule)}, which is to be walked; extend the table"
            )
        return Variable(
            lambda logsnr: np.interp(logsnr, self.knots, mass),
            lambda part: np.interp(part, mass, self.knots),
        )


@dataclass(frozen=True)
class Entropic(Even):
    """Equal information per step [Stancevic+ 2025, arXiv 2504.13612], from denoising errors.

        dphi = mse dr / r^2   (rescaled),      dphi = mse dr / r^3   (the entropy H[x|z] itself)

    with mse = E|x - x_hat|^2 per dimension at the log-SNRs `knots`, such as a validation loss
    (between knots log mse is linear). For data N(0, c^2) the rescaled one is Arctan(c). The paper
    finds it good for DDIM in few steps and harmful to solvers of second order.
    """

    knots: tuple[float, ...]
    errors: tuple[float, ...]
    rescaled: bool = True
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """ValueError for tables that hold no errors, or an empty range; lists become tuples."""
        super().__post_init__()
        _hold_table(self, knots=self.knots, errors=self.errors)
        if not all(self.errors):
            raise ValueError(f"an error of 0 ends all information; leave such knots out: {self}")

    def axis(self, schedule: Schedule) -> Variable:
        """The distribution of dphi/dlogsnr."""
        fine = np.linspace(self.knots[0], self.knots[-1], 4097)
        errors = np.interp(fine, self.knots, np.log(self.errors))
        density = np.exp(errors + fine * (0.5 if self.rescaled else 1.0))
        return Quantiles(tuple(fine), tuple(density), self.start, self.end).axis(schedule)


def _hold_table(grid: Grid, **columns: Sequence[float]) -> None:
    """Make the two columns of a table tuples, in place; ValueError unless they are one."""
    (_, knots), (_, values) = columns.items()
    at, value = np.array(knots, dtype=np.float64), np.array(values, dtype=np.float64)
    if not (at.ndim == 1 and at.shape == value.shape and len(at) >= 2):
        raise ValueError(
            f"{type(grid).__name__} needs a value for each of two or more log-SNRs, got "
            f"{value.shape} values for {at.shape} knots"
        )
    if not (np.isfinite(at).all() and (np.diff(at) > 0).all()):
        raise ValueError(f"knots are finite log-SNRs, increasing (noise to data), got {knots}")
    if not (np.isfinite(value).all() and (value >= 0).all() and value.any()):
        raise ValueError(
            f"the values of {type(grid).__name__} must be finite, >= 0 and not all 0, got {values}"
        )
    for name, column in zip(columns, (at, value), strict=True):
        object.__setattr__(grid, name, tuple(column.tolist()))


_AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class AYS(Grid):
    """Align Your Steps' tables of r for "sd15", "sdxl" and "svd" [Sabour+ 2024, 2404.14507].

    Ten steps are the authors'; other numbers of steps interpolate log r linearly in the index, as
    the authors do. The last level is the data. The tables start at the models' sigma_max, rounded:
    a schedule that starts there keeps its own.
    """

    model: str = "sd15"

    def __post_init__(self) -> None:
        """ValueError for a model without a table."""
        if self.model not in _AYS:
            raise ValueError(f"there is no AYS table for {self.model!r}, only for {list(_AYS)}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The table, interpolated; ValueError on schedules that do not reach its noise."""
        check_steps(steps)
        logsnr = -2 * np.log(_AYS[self.model])
        if abs(logsnr[0] - schedule.logsnr_min) < 1e-3:
            logsnr[0] = schedule.logsnr_min
        positions = (len(logsnr) - 1) * (1 - (1 - np.arange(steps) / steps))
        nodes = torch.from_numpy(np.interp(positions, np.arange(len(logsnr)), logsnr))
        return check_covered(append_data(nodes), schedule)
