"""How denoisers with a condition are asked near pure noise, where sigma^2 / alpha is infinite.

The formulas of `posterior` and `exact` multiply by sigma^2 / alpha what vanishes at the same rate.
Below the log-SNR `FLOOR` the product is therefore not computed but continued from there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from twosides.schedules import SCALINGS, Level, along_batch

FLOOR = -14.0  # e^FLOOR is about 1e-6: what `near_noise` leaves out below it


def lowest(level: Level) -> float:
    """The lowest log-SNR of a level (logsnr, alpha, sigma), which may differ from row to row."""
    return float(torch.as_tensor(level.logsnr).min())


def near_noise(
    ask: Callable[[Tensor, Level], tuple[Tensor, ...]], z: Tensor, level: Level
) -> tuple[Tensor, ...]:
    """Estimates of x below the log-SNR `FLOOR`, pure noise included, from two estimates at `FLOOR`.

    At the same z / sigma an estimate is `a + b (alpha / sigma) + O(alpha^2 / sigma^2)`, where a is
    even in z and b is odd. The estimates of z and of -z at `FLOOR` therefore give a and b. What is
    left out is of the size e^-14. Rows whose level is not below `FLOOR` get their own estimate.

    ask: a function of (z, level) to estimates of x, which depend on z through `alpha z` and on
        `alpha^2` alone, as posterior means do.
    z: the state, (B, ...), in the scaling of `level`.
    level: the level of z, of floats or of tensors (B,).
    """
    logsnr = torch.as_tensor(level.logsnr, dtype=torch.float64)
    asked, vp = logsnr.clamp(min=FLOOR), SCALINGS["vp"]
    here, there = Level(logsnr, *vp.levels(logsnr)), Level(asked, *vp.levels(asked))
    grown = torch.where(logsnr < FLOOR, there.sigma / here.sigma, 1.0)
    scaled = along_batch(grown * here.scale / level.scale, z) * z
    # alpha / sigma, as a part of that at the level which is asked.
    part = along_batch(((logsnr - asked) / 2).exp(), z)
    there = there if logsnr.ndim else there.floats()
    ends = zip(ask(scaled, there), ask(-scaled, there), strict=True)
    return tuple((plus + minus) / 2 + part * (plus - minus) / 2 for plus, minus in ends)
