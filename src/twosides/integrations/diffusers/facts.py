"""The facts of a pipeline from which its report and the warnings in it are made."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.integrations.diffusers import notation as notations
from twosides.integrations.diffusers.networks import (
    is_present,
    network_name,
    network_of,
    read_index,
    row_of,
)
from twosides.integrations.diffusers.notation import Notation
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.storage.tensors import open_tensors

# Networks whose pipelines pass the sigmas 1 ... 1 / n; others pass the number of steps.
_PASS_SIGMAS = ("Flux", "LTXVideo", "QwenImage", "Lumina2")


@dataclass(frozen=True)
class Trap:
    """A setting that does not do what it seems to do.

    what: what happens.
    why: the reason.
    remedy: what to do.
    """

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        """Three short paragraphs."""
        parts = (f"- {self.what}", f"  Why: {self.why}", f"  Do: {self.remedy}")
        return "\n".join(textwrap.fill(part, 96, subsequent_indent="  ") for part in parts)


@dataclass(frozen=True)
class Facts:
    """The classes of a pipeline's parts, and a run of its scheduler.

    scheduler: the pipeline's scheduler.
    steps: the number of steps of the run.
    mu: the logarithm of the shift, where it depends on the resolution, else None.
    network: the class of the network.
    dtype: the dtype of its weights.
    latent: whether the data are latents of a VAE.
    """

    scheduler: Any
    steps: int
    mu: float | None
    network: str
    dtype: torch.dtype | None
    latent: bool

    @property
    def ours(self) -> bool:
        """Whether the scheduler is already that of this library."""
        return isinstance(self.scheduler, Scheduler)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The scheduler's config in the arguments of this library's scheduler."""
        return self._reader.config

    @cached_property
    def notation(self) -> Notation:
        """The notation of the network."""
        return self._reader.notation

    @cached_property
    def _reader(self) -> Scheduler:
        return Scheduler.from_config(_full_config(self.scheduler))

    @cached_property
    def run(self) -> Any:
        """The pipeline's own scheduler, with a run laid out as the pipeline does it."""
        laid = type(self.scheduler).from_config(self.scheduler.config)
        takes = inspect.signature(laid.set_timesteps).parameters
        given: dict[str, Any] = {"mu": self.mu} if "mu" in takes and self.mu is not None else {}
        generic = self.config.get("use_flow_sigmas")
        if "sigmas" in takes and self.network.startswith(_PASS_SIGMAS) and not generic:
            given["sigmas"] = np.linspace(1, 1 / self.steps, self.steps)
        else:
            given["num_inference_steps"] = self.steps
        laid.set_timesteps(**given)
        return laid

    @cached_property
    def timesteps(self) -> Tensor:
        """The timesteps that the network is told, in float64."""
        return self.run.timesteps.double()

    @cached_property
    def sigmas(self) -> Tensor:
        """The levels of the states, in float64: flow times, or sigma / alpha."""
        if hasattr(self.run, "sigmas"):
            return self.run.sigmas.double()[: len(self.timesteps)]
        own = self.notation
        logsnr = own.clock.logsnr(self.timesteps, own.schedule)
        return (-0.5 * logsnr).exp()

    @cached_property
    def true_timesteps(self) -> Tensor:
        """The timesteps that belong to the states' true levels."""
        own, sigma = self.notation, self.sigmas
        ratio = sigma / (1 - sigma) if own.path == "flow" else sigma
        if own.path == "vp":  # some schedulers write 2^12 for infinity
            ratio = torch.where(ratio > 4000, math.inf, ratio)
        logsnr = (-2 * ratio.log()).clamp(own.schedule.logsnr_min, own.schedule.logsnr_max)
        return own.clock.read(logsnr, own.schedule)


def collect_facts(source: Any, steps: int, mu: float | None) -> Facts:
    """The facts of a pipeline, of its folder, or of a scheduler alone."""
    if isinstance(source, str | Path):
        network, scheduler, dtype, latent = _read_folder(source)
    elif hasattr(source, "set_timesteps"):
        network, scheduler, dtype, latent = "", source, None, False
    else:
        part = network_of(source)
        network, scheduler, dtype = (
            row_of(part) or type(part).__name__,
            source.scheduler,
            part.dtype,
        )
        latent = getattr(source, "vae", None) is not None
    config = scheduler.config
    if mu is None and config.get("use_dynamic_shifting"):
        mu = float(config.get("max_shift") or 1.15)
    return Facts(scheduler, steps, mu, network, dtype, latent)


def _read_folder(source: str | Path) -> tuple[str, Any, torch.dtype | None, bool]:
    index = read_index(source)
    name = network_name({key: value for key, value in index.items() if is_present(value)})
    config: Any = Scheduler.load_config(str(source), subfolder="scheduler")
    kind = str(config.get("_class_name"))
    if kind == Scheduler.__name__:
        scheduler = Scheduler.from_config(config)
    elif kind in notations.ORIGINS:
        scheduler = getattr(import_module("diffusers"), kind).from_config(config)
    else:
        raise ValueError(f"{kind} is not a scheduler of Gaussian diffusion that can be read here")
    return (
        index[name][1],
        scheduler,
        stored_dtype(Path(source) / name),
        is_present(index.get("vae")),
    )


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of the first weight in a model's folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            for name in file.keys():
                return file.get_tensor(name).dtype
    return None


def _full_config(scheduler: Any) -> dict[str, Any]:
    """The config of a scheduler, with the name of its class."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}
