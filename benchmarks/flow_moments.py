"""Whether stochastic samplers of flow models reach the data's distribution: mean and std, a table.

Data N(0.3, 0.5^2), the exact network, 200,000 samples: both are known to 0.001. Ours are presets in
the drop-in Scheduler; beside them diffusers' own flow schedulers, with noise. Prints Markdown.
"""

from __future__ import annotations

import diffusers
import torch

from twosides.integrations.diffusers import Scheduler
from twosides.oracle import GaussianMixture
from twosides.sampling.presets import samplers
from twosides.schedules import FlowMatching

DATA = GaussianMixture([1.0], [[0.3]], [[[0.25]]])
STEPS, COUNT = (10, 50, 200), 200_000
ALIASES = ("lcm", "euler-ancestral", "ipndm-v")


def moments(scheduler, steps: int, **options) -> str:
    """Mean and standard deviation of the samples, by the loop of a pipeline."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    z = torch.randn(COUNT, 1, dtype=torch.float64, generator=generator)
    for t in scheduler.timesteps:
        x, eps = DATA(z, FlowMatching().at(t.double() / 1000))
        z = scheduler.step(eps - x, t, z, generator=generator, return_dict=False, **options)[0]
    return f"{float(z.mean()):.3f} / {float(z.std()):.3f}"


def main() -> None:
    """One row per sampler."""
    diffusers.logging.set_verbosity_error()
    flow, heun = (
        diffusers.FlowMatchEulerDiscreteScheduler,
        diffusers.FlowMatchHeunDiscreteScheduler,
    )
    rows = {
        "diffusers FlowMatchEuler, stochastic_sampling": (flow(stochastic_sampling=True), {}),
        "diffusers FlowMatchEuler, s_churn=40 (ignored)": (flow(), {"s_churn": 40.0}),
        "diffusers FlowMatchLCM": (diffusers.FlowMatchLCMScheduler(), {}),
        "diffusers FlowMatchHeun, s_churn=4": (heun(), {"s_churn": 4.0}),
        "diffusers FlowMatchHeun, s_churn=40": (heun(), {"s_churn": 40.0}),
        "diffusers LTXEulerAncestralRF": (diffusers.LTXEulerAncestralRFScheduler(), {}),
    }
    for name, sampler in samplers.items():
        if sampler.stochastic and name not in (*ALIASES, "euler-maruyama"):
            rows[f"**{name}**"] = (Scheduler(name, prediction_type="flow_prediction"), {})
    print(f"| mean / std at | {' | '.join(f'{steps} steps' for steps in STEPS)} |")
    print("| --- |" + " --- |" * len(STEPS))
    for name, (scheduler, options) in rows.items():
        cells = (moments(scheduler, steps, **options) for steps in STEPS)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
