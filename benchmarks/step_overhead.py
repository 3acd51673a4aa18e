"""What one sampling step costs without its network, against diffusers and the bare operation.

Every contestant runs the same number of steps on the same tensors with a network that hands back a
tensor made beforehand; rounds are interleaved, and medians of the time per step are compared as
ratios to the bare `x + a * m`, the least that any sampler does.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import twosides as ts
from twosides.sampling.run import lower, run

STEPS, ROUNDS = 50, 15
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128), (8, 16, 128, 128))


def bare(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """`x + a * m`, nothing else."""
    for _ in range(STEPS):
        x = x + -0.02 * m
    return x


def ours(
    output: str, schedule: ts.Schedule, sampler: str = "ddim"
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A plan, lowering included."""
    plan = ts.plan(sampler, schedule, STEPS)

    def loop(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return run(plan, ts.Denoiser(lambda z, t: m, output, schedule), x)

    return loop


def loop_alone(
    output: str, schedule: ts.Schedule, sampler: str = "ddim"
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loop of a plan that has been lowered."""
    plan, programs = ts.plan(sampler, schedule, STEPS), {}

    def loop(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        if id(m) not in programs:
            denoiser = ts.Denoiser(lambda z, t: m, output, schedule)
            programs[id(m)] = lower(plan, denoiser, x.dtype, x.device), denoiser
        return run(*programs[id(m)], x)

    return loop


def theirs(scheduler: object) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A diffusers scheduler, `set_timesteps` included."""

    def loop(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(m, t, x, return_dict=False)[0]
        return x

    return loop


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    contestants = {
        "bare x + a * m": bare,
        "twosides, flow matching u": ours("u", ts.FlowMatching()),
        "twosides, the loop alone": loop_alone("u", ts.FlowMatching()),
        "twosides, VP cosine v": ours("v", ts.Cosine()),
        "twosides, kab2 u (2 calls kept)": ours("u", ts.FlowMatching(), "kab2"),
        "twosides, kab2c u (3)": ours("u", ts.FlowMatching(), "kab2c"),
        "twosides, dpmpp-2m eps VP (2)": ours("eps", ts.ScaledLinear(), "dpmpp-2m"),
        "twosides, unipc eps VP (3)": ours("eps", ts.ScaledLinear(), "unipc"),
        "diffusers FlowMatchEuler": theirs(FlowMatchEulerDiscreteScheduler()),
        "diffusers DDIM": theirs(DDIMScheduler(clip_sample=False)),
        "diffusers DPM-Solver++ 2M": theirs(DPMSolverMultistepScheduler()),
        "diffusers UniPC 2": theirs(UniPCMultistepScheduler()),
    }
    print(
        f"time per step, median of {ROUNDS} rounds of {STEPS} steps, float32, "
        f"{torch.get_num_threads()} threads"
    )
    for shape in SHAPES:
        x, m = torch.randn(shape), torch.randn(shape)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        with torch.no_grad():
            for name in [*contestants, *list(contestants) * ROUNDS]:
                began = time.perf_counter()
                contestants[name](x, m)
                times[name].append((time.perf_counter() - began) / STEPS)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        least = medians["bare x + a * m"]
        print(f"\n{shape}")
        for name, value in medians.items():
            print(f"  {name:32} {1e6 * value:9.1f} us   {value / least:6.2f} x bare")


if __name__ == "__main__":
    main()
