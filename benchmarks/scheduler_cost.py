"""What `step` of our Scheduler costs in a pipeline, against diffusers' schedulers.

Every contestant makes the loop that pipelines make, with a network that hands back a tensor made
beforehand; `set_timesteps`, once per run, is timed apart. Rounds are interleaved, each contestant's
time is divided by its rival's of the same round, and the median of these ratios is shown.

    python benchmarks/scheduler_cost.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from twosides.integrations.diffusers import Scheduler

STEPS, ROUNDS = 50, 15
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128))
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
EULER, UNIPC, DPM = "FlowMatchEulerDiscrete", "UniPCMultistep", "DPMSolverMultistep"
NATIVE = {
    EULER: FlowMatchEulerDiscreteScheduler(shift=3.0),
    UNIPC: UniPCMultistepScheduler(**FLOW),
    DPM: DPMSolverMultistepScheduler(**FLOW),
}
ONE_STEP = ("ddim", "flow-euler", "edm-euler")
MULTISTEP = ("dpmpp-2m", "unipc", "kab2c")
PAIRS = [
    *((name, EULER) for name in ONE_STEP),
    *((name, rival) for rival in (UNIPC, DPM) for name in MULTISTEP),
]


def contestants() -> dict[str, Any]:
    """diffusers' schedulers, and ours in the place of FLUX's or SD3's."""
    place = SimpleNamespace(scheduler=NATIVE[EULER])
    names = (*ONE_STEP, *MULTISTEP)
    return {**NATIVE, **{name: Scheduler.from_pipeline(place, name) for name in names}}


def seconds(scheduler: Any, x: Tensor, m: Tensor) -> tuple[float, float]:
    """Of a step, as pipelines call it, and of `set_timesteps`."""
    laying = time.perf_counter()
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(0)
    began = time.perf_counter()
    for t in scheduler.timesteps:
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return (time.perf_counter() - began) / STEPS, began - laying


Times = dict[str, list[tuple[float, float]]]


def measured(shape: tuple[int, ...]) -> Times:
    """Of every contestant in every round, after one that does not count."""
    x, m = torch.randn(shape), torch.randn(shape)
    made = contestants()
    times: Times = {name: [] for name in made}
    for name in [*made, *list(made) * ROUNDS]:
        times[name].append(seconds(made[name], x, m))
    return {name: values[1:] for name, values in times.items()}


def ratio(times: Times, name: str, rival: str) -> float:
    """Of a step's times, the median over rounds."""
    rounds = zip(times[name], times[rival], strict=True)
    return statistics.median(mine / theirs for (mine, _), (theirs, _) in rounds)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(
        f"one `step`, {ROUNDS} interleaved rounds of {STEPS} steps, flow matching, float32, "
        f"{torch.get_num_threads()} threads"
    )
    for shape in SHAPES:
        with torch.no_grad():
            times = measured(shape)
        print(f"\n{shape}, median time of a step, and of set_timesteps")
        for name, values in times.items():
            owner = "diffusers" if name in NATIVE else "twosides"
            step, laid = (1e6 * statistics.median(column) for column in zip(*values, strict=True))
            print(f"  {owner} {name:24} {step:9.1f} us {laid:9.1f} us")
        print("  median ratio")
        for name, rival in PAIRS:
            value = ratio(times, name, rival)
            print(f"  {name:10} / {rival:24} {value:6.2f}   (1 / {1 / value:.1f})")


if __name__ == "__main__":
    main()
