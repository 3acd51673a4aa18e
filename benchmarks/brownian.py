"""What Brownian noise costs per step, against drawing plain noise, in the same run.

Rounds are interleaved; medians of the time per step are compared. The clock and the generators of
a run are made once per run, and are part of the time.

    python benchmarks/brownian.py
"""

from __future__ import annotations

import statistics
import time

import torch

import twosides as ts
from twosides.randomness import PerSample
from twosides.sampling.brownian import Brownian

ROUNDS = 15
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128))


def plain(plan: ts.Plan, shape: tuple[int, ...]) -> None:
    """Fresh noise for every step."""
    source = PerSample(0, range(shape[0]))
    for _ in range(plan.nfe - 1):
        source.normal(shape[1:])


def brownian(plan: ts.Plan, shape: tuple[int, ...]) -> None:
    """One path's noise for every step."""
    source = Brownian(plan, 0, range(shape[0]), shape[1:])
    for _ in range(plan.nfe - 1):
        source()


def main() -> None:
    """Print the table."""
    print(f"time per step, median of {ROUNDS} rounds, float32, {torch.get_num_threads()} threads")
    for shape in SHAPES:
        for steps in (20, 64, 500):
            plan = ts.plan("ddpm", "cosine", steps)
            times: dict[str, list[float]] = {"plain": [], "brownian": []}
            for name in ["plain", "brownian"] * ROUNDS:
                began = time.perf_counter()
                {"plain": plain, "brownian": brownian}[name](plan, shape)
                times[name].append((time.perf_counter() - began) / steps)
            one, other = (1e6 * statistics.median(values) for values in times.values())
            print(
                f"{shape!s:18} {steps:4} steps   plain {one:8.1f} us   brownian {other:8.1f} us   "
                f"{other / one:5.2f} x"
            )


if __name__ == "__main__":
    main()
