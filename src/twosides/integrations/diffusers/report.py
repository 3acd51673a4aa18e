"""A report on a pipeline: its network's output, the levels at which it is asked, and its traps.

    print(explain("path/to/pipeline", steps=20))

A trap is a setting that does not do what it seems to do. Each is found in the settings themselves,
or in a run of the pipeline's own scheduler.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from twosides.integrations.diffusers import levels
from twosides.integrations.diffusers import notation as notations
from twosides.integrations.diffusers.facts import Facts, Trap, collect_facts
from twosides.integrations.diffusers.networks import (
    tells_per_mille,
)
from twosides.integrations.diffusers.notation import Notation


@dataclass(frozen=True)
class Report:
    """The result of `explain`; `print` it.

    network, scheduler: the names of their classes.
    notation: what the network predicts, and how it is told the level.
    steps: the number of steps.
    mu: the logarithm of the shift, or None.
    timesteps: the timesteps that the network is told, call by call.
    sigmas: the levels of the states that it is shown with them, flow times or sigma / alpha.
    traps: the settings that do not do what they seem to do.
    """

    network: str
    scheduler: str
    notation: Notation
    steps: int
    mu: float | None
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    traps: tuple[Trap, ...]

    def __str__(self) -> str:
        """The report as text."""
        own, flow = self.notation, self.notation.path == "flow"
        low, high = own.schedule.logsnr_min, own.schedule.logsnr_max
        path = getattr(own.schedule, "base", own.schedule)
        shift = "" if self.mu is None else f", mu = {self.mu:g}"
        lines = [
            f"{self.network} predicts {own.output} on {path}, told {own.clock}",
            f"log-SNR from {low:.4g} (noise) to {high:.4g} (data)",
            f"{self.scheduler}, {self.steps} steps{shift}:",
            _row("timesteps", self.timesteps),
            _row("sigma" if flow else "sigma / alpha", self.sigmas),
            f"traps: {len(self.traps) or 'none found'}",
            *map(str, self.traps),
        ]
        return "\n".join(lines)


def _row(name: str, values: tuple[float, ...]) -> str:
    text = " ".join(f"{value:.4g}" for value in values)
    return textwrap.fill(f"{name:>14}  {text}", 96, subsequent_indent=" " * 16)


def explain(source: Any, steps: int = 20, *, mu: float | None = None) -> Report:
    """A report on a pipeline that takes `steps` steps.

    source: a pipeline, its folder or its name on the hub (then only configs are read), or a
        scheduler alone.
    steps: the number of steps, >= 1.
    mu: the logarithm of the shift, where it depends on the resolution; by default the config's
        max_shift, that of large pictures.

    ValueError for schedulers that are not of Gaussian diffusion, and for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    facts = collect_facts(source, steps, mu)
    found = (trap(facts) for trap in TRAPS)
    return Report(
        facts.network or "the network",
        type(facts.scheduler).__name__,
        facts.notation,
        steps,
        facts.mu,
        tuple(facts.timesteps.tolist()),
        tuple(facts.sigmas.tolist()),
        tuple(trap for trap in found if trap is not None),
    )


_OURS = "Scheduler.from_pipeline(pipe)"


def _double_shift(facts: Facts) -> Trap | None:
    if facts.ours or facts.notation.path != "flow" or facts.config.get("use_dynamic_shifting"):
        return None
    shift = levels.shift_of(facts.config, None)
    if shift == 1.0 or not str(type(facts.scheduler).__name__).startswith("FlowMatch"):
        return None
    once = levels.native_nodes(facts.config, facts.notation, facts.steps)[-2]
    wanted, last = float(torch.sigmoid(-0.5 * once)), float(facts.sigmas[-1])
    if abs(last - wanted) <= 1e-3 * wanted:
        return None
    return Trap(
        f"the shift of {shift:g} is applied twice: the last sigma is {last:.4g}, not {wanted:.4g}",
        "set_timesteps(n) alone spaces sigmas between ends that are shifted already, and shifts "
        "them again; the step to the data then starts from more noise",
        f"pass sigmas=np.linspace(1, 1 / n, n), which is shifted once, or use {_OURS}",
    )


def _clips_latents(facts: Facts) -> Trap | None:
    clipped = facts.config.get("clip_sample") and not notations.origin(facts.config).startswith(
        "CogVideoX"
    )
    if not (facts.latent and clipped):
        return None
    return Trap(
        "clip_sample=True clips predicted latents to [-1, 1]",
        "it is the default of DDPM's and DDIM's schedulers and meant for pixels; latents of a VAE "
        "have unit variance and reach +-4, so the pictures lose contrast and detail",
        "set clip_sample=False in the scheduler's config",
    )


def _f_is_not_eps(facts: Facts) -> Trap | None:
    if facts.notation.path != "edm":
        return None
    told = facts.scheduler.config.get("prediction_type")
    return Trap(
        f"prediction_type={told!r} here means EDM's network output {facts.notation.output}",
        "the EDM schedulers give 'epsilon' a meaning of their own, so another scheduler that is "
        "made from this config runs silently and takes F for eps",
        f"change samplers with {_OURS}, or only among the EDM schedulers",
    )


def _rounds_timesteps(facts: Facts) -> Trap | None:
    off = float((facts.timesteps - facts.true_timesteps).abs().max())
    if facts.ours or facts.notation.path not in ("flow", "vp") or off < 0.01:
        return None
    return Trap(
        f"timesteps are whole numbers, up to {off:.3g} off the levels of the states",
        "the network is told another noise level than that of the latents it is shown, which "
        "limits the accuracy of solvers of higher order",
        f"use {_OURS}, which tells the network fractions",
    )


def _rounds_to_bf16(facts: Facts) -> Trap | None:
    if facts.dtype != torch.bfloat16 or not tells_per_mille(facts.network):
        return None
    off = float((facts.timesteps - facts.timesteps.bfloat16().double()).abs().max())
    if off < 0.01:
        return None
    return Trap(
        f"the pipeline rounds timesteps to bfloat16, by up to {off:.3g} of 1000",
        "bfloat16 has 8 significant bits, and the solver keeps the sigma that was not rounded; "
        "with many steps two of them are told the same timestep",
        "keep latents in float32, or sample load_denoiser(pipe), which tells the time in float32",
    )


def _eps_at_zero_snr(facts: Facts) -> Trap | None:
    zero = facts.notation.schedule.logsnr_min == -math.inf
    if not zero or facts.notation.output != "eps":
        return None
    return Trap(
        "the network predicts epsilon at zero SNR (rescale_betas_zero_snr=True)",
        "its answer there is the noise itself and depends on no data: diffusers divides by zero or "
        "by 2^-12 and makes black or burnt pictures",
        "use rescale_betas_zero_snr=False, or a network trained on v_prediction",
    )


def _starts_late(facts: Facts) -> Trap | None:
    if facts.notation.path != "vp":
        return None
    first, last = float(facts.timesteps[0]), float(facts.config["num_train_timesteps"]) - 1
    if first >= last - 0.5:
        return None
    logsnr = -2 * math.log(float(facts.sigmas[0]))
    spacing, offset = facts.config["timestep_spacing"], facts.config["steps_offset"]
    return Trap(
        f"sampling starts at timestep {first:g}, not at {last:g} "
        f"(timestep_spacing={spacing!r}, steps_offset={offset})",
        f"the pipeline starts from pure noise, but tells the network that logsnr is {logsnr:.3g}, "
        f"where the data are {math.exp(0.5 * logsnr):.2g} times as large as the noise: mean "
        "brightness stays near grey [Lin+ 2023]",
        "set timestep_spacing='trailing'",
    )


def _collapses(facts: Facts) -> Trap | None:
    name = type(facts.scheduler).__name__
    renoises = facts.scheduler.config.get("stochastic_sampling") or name.startswith("FlowMatchLCM")
    if facts.ours or facts.notation.path != "flow" or not renoises:
        return None
    return Trap(
        f"{name} draws all of the noise anew at every step",
        "this is meant for distilled few-step models; on others the samples lose variance however "
        "many steps there are (a standard deviation of 0.5 becomes 0.35)",
        "set stochastic_sampling=False, or use a sampler with noise, "
        "Scheduler.from_pipeline(pipe, sampler='ddpm')",
    )


# Networks that are trained on one of the paths only.
_ONLY = {
    "flow": ("SD3", "Flux", "Wan", "LTXVideo", "QwenImage", "Sana", "Lumina2"),
    "vp": ("DiT", "PixArt", "CogVideoX"),
}


def _of_another_path(facts: Facts) -> Trap | None:
    path = facts.notation.path
    known = (p for p, kinds in _ONLY.items() if facts.network.startswith(kinds))
    wanted = next(known, path)
    if wanted == path:
        return None
    name = {"flow": "flow matching", "vp": "variance-preserving diffusion", "edm": "EDM"}
    return Trap(
        f"{facts.network} is a network of {name[wanted]}, but the scheduler's config says "
        f"{name.get(path, path)}, prediction {facts.notation.output}",
        "a scheduler of the other kind runs without an error and makes noise, because it takes one "
        "prediction for another",
        "restore the scheduler the model was published with; for another sampler use "
        f"{_OURS} on that",
    )


def _missteps(facts: Facts) -> Trap | None:
    if type(facts.scheduler).__name__ not in ("DDIMScheduler", "DDIMParallelScheduler"):
        return None
    stride = facts.config["num_train_timesteps"] // facts.steps
    reached = facts.timesteps[:-1] - stride
    off = float((reached - facts.timesteps[1:]).abs().max()) if facts.steps > 1 else 0.0
    if off == 0:
        return None
    return Trap(
        f"steps end up to {off:g} timesteps away from where the next one begins",
        f"DDIMScheduler always steps by {stride}, whatever timestep_spacing="
        f"{facts.config['timestep_spacing']!r} says, so the noise level drifts from what the "
        "network is told",
        f"take a number of steps that divides {facts.config['num_train_timesteps']} with "
        f"'trailing', or use {_OURS}",
    )


TRAPS: tuple[Callable[[Facts], Trap | None], ...] = (
    _of_another_path,
    _double_shift,
    _clips_latents,
    _f_is_not_eps,
    _eps_at_zero_snr,
    _starts_late,
    _collapses,
    _rounds_timesteps,
    _rounds_to_bf16,
    _missteps,
)
