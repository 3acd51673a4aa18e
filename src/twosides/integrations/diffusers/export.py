"""A trained denoiser as a diffusers pipeline."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import diffusers

from twosides.denoiser import Denoiser, Index, Time
from twosides.integrations.diffusers.networks import PipelineNetwork
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.schedules import FlowMatching, Tabulated

_WORDS = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}


def to_pipeline(denoiser: Denoiser, sampler: str | None = None) -> Any:
    """A denoiser over diffusers' UNet2DModel as a DDPMPipeline.

    Its scheduler is diffusers' own of the same words: FlowMatchEulerDiscreteScheduler for u on
    FlowMatching told N t, DDIMScheduler for eps, x or v on discrete betas told the index; or, if
    `sampler` is named, `twosides`' Scheduler with it. ValueError for a notation that diffusers has
    no words for (other schedules and clocks, standardised data): train with time="1000t".

    A DDPMPipeline passes no class labels: of a class-conditional network it holds and saves the
    parts, which `load_denoiser` reads, but its `__call__` does not run.
    """
    network = denoiser.network
    network = network.network if isinstance(network, PipelineNetwork) else network
    if not isinstance(network, _named("UNet2DModel")):
        raise TypeError(
            f"a pipeline without text is made of diffusers' UNet2DModel, not of "
            f"{type(network).__name__}; keep this model in a twosides folder (ts.save)"
        )
    scheduler = _spoken(denoiser)
    if sampler is not None:
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        scheduler = Scheduler.from_config(config, sampler=sampler)
    return _named("DDPMPipeline")(unet=network, scheduler=scheduler)


def save_as_pipeline(denoiser: Denoiser, folder: str | Path, sampler: str | None = None) -> Path:
    """Write `to_pipeline(denoiser, sampler)` as a new folder, complete or not at all."""
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the pipeline")
    pipe = to_pipeline(denoiser, sampler)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        pipe.save_pretrained(str(temporary), safe_serialization=True)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _spoken(denoiser: Denoiser) -> Any:
    """diffusers' scheduler that says this notation."""
    if not (bool((denoiser.data_mean == 0).all()) and bool((denoiser.data_std == 1).all())):
        raise ValueError(
            "diffusers has no words for data_mean and data_std; train on data that are "
            "standardised already"
        )
    schedule, clock, output = denoiser.schedule, denoiser.clock, denoiser.output.name
    if isinstance(schedule, FlowMatching) and isinstance(clock, Time) and output == "u":
        count = int(clock.scale)
        if count == clock.scale and count >= 2 and not clock.reversed:
            return _named("FlowMatchEulerDiscreteScheduler")(num_train_timesteps=count)
    if isinstance(schedule, Tabulated) and isinstance(clock, Index) and output in _WORDS:
        if clock.count == schedule.count and not clock.nearest:
            return _discrete(schedule, _WORDS[output])
    raise ValueError(
        f"diffusers has no words for {output} on {schedule} told {clock}; it has for u on "
        "FlowMatching() told '1000t', and for eps, x or v on Betas or ScaledLinear told 'index'"
    )


def _discrete(schedule: Tabulated, prediction: str) -> Any:
    return _named("DDIMScheduler")(
        num_train_timesteps=schedule.count,
        trained_betas=schedule._betas().tolist(),
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def _named(name: str) -> Any:
    return getattr(diffusers, name)
