"""What is asked near pure noise, where a formula has sigma^2 / alpha in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from twosides.schedules import SCALINGS, Level, along_batch

FLOOR = -14.0  # the log-SNR below which `near_noise` asks elsewhere


def lowest(level: Level) -> float:
    """The lowest log-SNR of a level."""
    return float(torch.as_tensor(level.logsnr).min())


def near_noise(
    ask: Callable[[Tensor, Level], tuple[Tensor, ...]], z: Tensor, level: Level
) -> tuple[Tensor, ...]:
    """Estimates of x below the log-SNR `FLOOR`, pure noise included, from those at `FLOOR`.

    ask: what gives the estimates at a level; as a function of z they depend on `alpha z` and on
        `alpha^2`, as all posterior means and covariances do.

    At the same z / sigma, an estimate is `a + b (alpha / sigma) + O(alpha^2 / sigma^2)`, where a
    is even in z and b odd. Those of z and of -z at `FLOOR` therefore give both; what is left out is
    of the size e^-14.
    """
    logsnr = torch.as_tensor(level.logsnr, dtype=torch.float64)
    asked, vp = logsnr.clamp(min=FLOOR), SCALINGS["vp"]
    here, there = Level(logsnr, *vp.levels(logsnr)), Level(asked, *vp.levels(asked))
    grown = torch.where(logsnr < FLOOR, there.sigma / here.sigma, 1.0)
    scaled = along_batch(grown * here.scale / level.scale, z) * z
    part = along_batch(((logsnr - asked) / 2).exp(), z)
    there = there if logsnr.ndim else there.floats()
    ends = zip(ask(scaled, there), ask(-scaled, there), strict=True)
    return tuple((plus + minus) / 2 + part * (plus - minus) / 2 for plus, minus in ends)
