"""Grids made of other grids: moved in logsnr, or led on to the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from twosides.sampling.grids.grid import Grid, append_data, check_covered
from twosides.schedules import Schedule


@dataclass(frozen=True)
class ShiftedGrid(Grid):
    """Another grid with `logsnr - 2 log(factor)`: more steps at high noise for factor > 1.

        t' = s t / (1 + (s - 1) t)       on flow matching's clock

    SD3's static shift (factor 3) [Esser+ 2024], FLUX's dynamic one (`flux_shift`). Infinite ends
    stay; on schedules with finite ones the nodes may not leave them, and Uniform("kappa(1/s)")
    is the grid of the same kind that fits between. A model whose schedule is shifted already,
    FlowMatching().shifted(3), is not to be shifted again.

        >>> from twosides.sampling.grids import Given
        >>> from twosides.schedules import FlowMatching
        >>> flow = FlowMatching()
        >>> flow.time(ShiftedGrid(Given.times(flow, [1, 0.5, 0]), 3).logsnrs(flow, 2))
        tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """

    grid: Grid
    factor: float

    def __post_init__(self) -> None:
        """ValueError for factors that are not positive."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"a grid is shifted by a positive, finite factor: {self}")

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The grid's nodes, moved; ValueError where a network call leaves the schedule's range."""
        nodes = self.grid.logsnrs(schedule, steps)
        return check_covered(nodes - 2 * math.log(self.factor), schedule)


def resolution_shift(tokens: float, base_tokens: float) -> float:
    """SD3's factor for `tokens` pixels or tokens, `sqrt(tokens / base_tokens)` [Esser+ 2024].

    >>> resolution_shift(4096, 1024)
    2.0
    """
    if not (0 < tokens < math.inf and 0 < base_tokens < math.inf):
        raise ValueError(f"numbers of tokens are positive, got {tokens} and {base_tokens}")
    return math.sqrt(tokens / base_tokens)


def flux_shift(
    tokens: float,
    base: tuple[float, float] = (256, 0.5),
    top: tuple[float, float] = (4096, 1.15),
) -> float:
    """FLUX's factor exp(mu), mu linear in the number of tokens between two (tokens, mu).

    >>> round(math.log(flux_shift(4096)), 12)
    1.15
    """
    if not (0 < tokens < math.inf and base[0] != top[0]):
        raise ValueError(f"flux_shift needs tokens > 0 and two points, got {tokens}, {base}, {top}")
    part = (tokens - base[0]) / (top[0] - base[0])
    return math.exp(base[1] + part * (top[1] - base[1]))


@dataclass(frozen=True)
class ThenData(Grid):
    """`steps` levels of another grid, then the data: the zero that diffusers appends.

    >>> from twosides.sampling.grids import Given
    >>> from twosides.schedules import FlowMatching
    >>> ThenData(Given((-6.0, 0.0, 6.0))).logsnrs(FlowMatching(), 3)
    tensor([-6.,  0.,  6., inf], dtype=torch.float64)
    """

    grid: Grid

    def logsnrs(self, schedule: Schedule, steps: int) -> Tensor:
        """The grid's nodes, and +inf."""
        nodes = self.grid.logsnrs(schedule, max(steps - 1, 1))
        nodes = nodes[:1] if steps == 1 else nodes
        if nodes[-1] == math.inf:
            raise ValueError(f"{self.grid} ends at the data already on {schedule}; use it alone")
        return append_data(nodes)
