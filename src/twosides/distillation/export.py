"""A flow map as a pipeline of diffusers, which `twosides export RUN OUT --steps K` writes.

A flow map is a denoiser that is told two noise levels. A pipeline tells its network one, so the K
steps of the map are baked first: they are put into the weights of the network (`baking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from twosides.denoiser import Denoiser
from twosides.distillation.baking import baked, grid_of
from twosides.distillation.flow_map import FlowMap

README = """# {steps} {calls} of a flow map

This pipeline was made by twosides from a flow map, whose {steps} steps are folded into the weights
of the network. Run it in exactly {steps} steps, without guidance{inside}:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH")
pipe(num_inference_steps={steps})
```

The network knows these {steps} times only. Other numbers of steps, other schedulers, training and
noise between the steps need the model that this was made from.
"""


def exported(
    denoiser: Denoiser, notes: Mapping[str, Any], steps: int | None, sampler: str | None
) -> tuple[Denoiser, str]:
    """The denoiser to write as a pipeline, and the text of the pipeline's README.

    denoiser: the model, which must be a FlowMap.
    notes: the notes of the model's folder. The shape of a sample and the classes are read from
        them, and for how many calls and with which guidance the model was distilled.
    steps: the number of steps of the pipeline, at least 1. A model that was distilled for a number
        of calls is written for that number only.
    sampler: the sampler that the user named. It must be None, because the steps of a flow map are
        its own.

    ValueError for a model that is no flow map, for steps that are missing or differ from those of
    the distillation, for a sampler, and where diffusers has no scheduler (`grid_of`).
    """
    if not isinstance(denoiser, FlowMap):
        raise ValueError(
            f"steps={steps} was asked of a model that is no flow map; any sampler takes it in any "
            "number of steps, so leave steps out, or distil it first"
        )
    if steps is None:
        raise ValueError("a flow map is written for a fixed number of steps: pass steps=2")
    if sampler is not None:
        raise ValueError("a flow map's steps are its own; leave sampler out")
    told: Mapping[str, Any] = notes.get("distillation") or {}
    if told.get("calls") not in (None, steps):
        raise ValueError(
            f"this model was distilled for {told['calls']} calls, and steps={steps} was asked; "
            f"pass steps={told['calls']}"
        )
    labels = {"class_labels": torch.zeros(1, dtype=torch.long)} if notes.get("classes") else {}
    grid, clock = grid_of(denoiser, steps)
    made = baked(denoiser, grid, notes["shape"], clock=clock, **labels)
    inside = ", which is inside" if told.get("guidance", 1.0) != 1.0 else ""
    calls = "call" if steps == 1 else "calls"
    return made, README.format(steps=steps, calls=calls, inside=inside)
