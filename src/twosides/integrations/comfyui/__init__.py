"""ComfyUI nodes: the library's samplers and grids for SamplerCustom and SamplerCustomAdvanced.

With twosides installed in ComfyUI's environment, a file ComfyUI/custom_nodes/twosides_nodes.py with
this one line adds them:

    from twosides.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

Every sampler works with models of every kind. Nothing of ComfyUI is imported before a node runs.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twosides.integrations.kdiffusion import is_flow, sampler_function
from twosides.sampling.grids import GRIDS, ComfyUI, Given, ThenData
from twosides.sampling.named import names, sampler_named
from twosides.schedules import Betas, FlowMatching, Schedule


class TwosidesSampler:
    """The node of a SAMPLER: any preset, on the sigmas and the model that it is connected with."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's notation."""
        return {
            "required": {
                "sampler": (names(),),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
            },
            "optional": {"noise": (["independent", "brownian"],)},
        }

    def sampler(self, sampler: str, seed: int, noise: str = "independent") -> tuple[Any]:
        """The sampler as (KSAMPLER,).

        sampler: the name of a preset.
        seed: the seed of the noise that stochastic samplers inject, not of the initial noise.
        noise: "brownian" for noise on one path, which is the same for any number of steps; or
            "independent".
        """
        kind = noise if noise == "brownian" else None
        function = sampler_function(sampler, seed=seed, noise=kind)
        return (importlib.import_module("comfy.samplers").KSAMPLER(function, {}, {}),)


class TwosidesScheduler:
    """The node of SIGMAS: a grid's levels on a model, ending in 0."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's notation."""
        return {
            "required": {
                "model": ("MODEL",),
                "grid": (list(GRIDS),),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sigmas(self, model: Any, grid: str, steps: int, denoise: float) -> tuple[Tensor]:
        """The sigmas as a tuple of one tensor, float32 (steps + 1,).

        model: ComfyUI's model, for its schedule.
        grid: the name of a grid.
        steps: the number of steps.
        denoise: below 1 only the last `steps` of `int(steps / denoise)` steps, for img2img; no
            steps at 0. This is as in ComfyUI's BasicScheduler.
        """
        if denoise <= 0:
            return (torch.zeros(0),)
        sampling = model.get_model_object("model_sampling")
        schedule, total, chosen = schedule_of(sampling), int(steps / denoise), GRIDS[grid]
        if isinstance(chosen, ComfyUI):
            chosen = replace(chosen, count=len(getattr(sampling, "sigmas", range(1000))))
        nodes = chosen.logsnrs(schedule, total)
        if nodes[-1] < math.inf:
            nodes = ThenData(chosen).logsnrs(schedule, total)
        return (schedule.level(nodes).sigma[-(steps + 1) :].float(),)


class TwosidesTuned:
    """SAMPLER and SIGMAS of one file, a sampler that `twosides tune` has found.

    Its levels are those it was tuned on, so that both come from one node and cannot be paired
    wrongly. The file is JSON, and reading it runs nothing.

    file: its path.
    """

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "tuned"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's notation."""
        return {"required": {"model": ("MODEL",), "file": ("STRING", {"default": "8.json"})}}

    def tuned(self, model: Any, file: str) -> tuple[Any, Tensor]:
        """(KSAMPLER, sigmas), the sigmas float32 (steps + 1,).

        ValueError for a file of anything else, or of a sampler that lists no levels of its own.
        """
        made = sampler_named(file if file.endswith(".json") else f"{file}.json")
        if not isinstance(made.grid, Given):
            raise ValueError(
                f"{file} lists no levels; use its sampler's name, and a Scheduler node"
            )
        schedule = schedule_of(model.get_model_object("model_sampling"))
        nodes = torch.tensor(made.grid.values, dtype=torch.float64)
        sampler = importlib.import_module("comfy.samplers").KSAMPLER(sampler_function(made), {}, {})
        return sampler, schedule.level(nodes).sigma.float()


def schedule_of(sampling: Any) -> Schedule:
    """The schedule of a model, from ComfyUI's object of its noise levels.

    A flow model has flow matching's schedule, shifted so that its noise level half way is the
    model's own: a shift, or the mu of FLUX. Any other has its table of sigmas, with x + sigma n.
    """
    if is_flow(sampling):
        half = float(sampling.percent_to_sigma(0.5))
        return FlowMatching().shifted(half / (1 - half))
    alpha_bar = 1 / (1 + sampling.sigmas.cpu().double().unique() ** 2)  # falling
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return Betas(tuple(betas.tolist())).with_scaling("ve")


NODE_CLASS_MAPPINGS = {
    "TwosidesSampler": TwosidesSampler,
    "TwosidesScheduler": TwosidesScheduler,
    "TwosidesTuned": TwosidesTuned,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TwosidesSampler": "Sampler (twosides)",
    "TwosidesTuned": "Tuned sampler (twosides)",
    "TwosidesScheduler": "Scheduler (twosides)",
}
