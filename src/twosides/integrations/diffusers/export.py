"""A trained denoiser as a diffusers pipeline."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers

from twosides.clocks import Index, Time
from twosides.conversion import Converted
from twosides.denoiser import Denoiser
from twosides.integrations.diffusers.lora import model_of
from twosides.integrations.diffusers.networks import PipelineNetwork, network_name, parts_of
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.schedules import FlowMatching, Tabulated

_WORDS = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}


def to_pipeline(denoiser: Denoiser, sampler: str | None = None, *, steps: int | None = None) -> Any:
    """A denoiser over diffusers' UNet2DModel as a DDPMPipeline.

    denoiser: the denoiser, in a notation that a scheduler of diffusers has: u on FlowMatching told
        N t, for which it gets a FlowMatchEulerDiscreteScheduler, or eps, x or v on discrete betas
        told the index, for which it gets a DDIMScheduler. ValueError for any other, and for data
        that were standardised: train with time="1000t".
    sampler: the name of a sampler, with which the pipeline gets the scheduler of `twosides`
        instead.
    steps: the only number of steps that the network is for, as that of a baked flow map is, whose
        scheduler has as many training timesteps; by default (None) it takes any number.

    A DDPMPipeline passes no class labels. With a class-conditional network it has and saves the
    parts, which `load_denoiser` reads, but its `__call__` does not run.
    """
    network = denoiser.network
    network = network.network if isinstance(network, PipelineNetwork) else network
    if isinstance(network, Converted):
        raise TypeError(
            f"this model is a converted network, which wraps a network of another notation "
            f"({network.denoiser.schedule}), and no scheduler of diffusers has that. The network "
            "inside belongs to its old pipeline: `twosides finetune` writes that as RUN/pipeline"
        )
    if not isinstance(network, _of_diffusers("UNet2DModel")):
        raise TypeError(
            f"a pipeline without text is made of diffusers' UNet2DModel, not of "
            f"{type(network).__name__}; keep this model in a twosides folder (ts.save)"
        )
    scheduler = _own_scheduler(denoiser, steps)
    if sampler is not None:
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        scheduler = Scheduler.from_config(config, sampler=sampler)
    return _of_diffusers("DDPMPipeline")(unet=network, scheduler=scheduler)


def save_as_pipeline(
    denoiser: Denoiser,
    folder: str | Path,
    sampler: str | None = None,
    *,
    steps: int | None = None,
    readme: str = "",
) -> Path:
    """Write `to_pipeline(denoiser, sampler)` as a new folder, complete or not at all.

    denoiser, sampler, steps: as in `to_pipeline`.
    folder: the folder, which must not exist.
    readme: the text of its README.md, for what the files themselves cannot say.
    """
    pipe = to_pipeline(denoiser, sampler, steps=steps)

    def write(target: Path) -> None:
        pipe.save_pretrained(str(target), safe_serialization=True)
        if readme:
            (target / "README.md").write_text(readme, encoding="utf-8")

    return _write_new(folder, write)


def save_tuned(
    source: str | Path, network: Any, folder: str | Path, *, zero_terminal_snr: bool = False
) -> Path:
    """Copy a pipeline's folder, with a network that was trained from its own in place of that.

    source: the pipeline's folder. Tokenizers, text encoders, VAE and scheduler are copied as they
        are.
    network: the trained network.
    folder: the folder to write. A pipeline that was written there before is replaced, and anything
        else there is an error.
    zero_terminal_snr: whether the scheduler becomes a DDIMScheduler that rescales its betas.
    """
    model, part = model_of(network), network_name(parts_of(source))
    folder = Path(folder).absolute()
    if (folder / "model_index.json").is_file():
        shutil.rmtree(folder)

    def write(target: Path) -> None:
        skipped = shutil.ignore_patterns(part, ".cache", ".git")
        shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)
        model.save_pretrained(str(target / part), safe_serialization=True)
        if zero_terminal_snr:
            _rescale(target)

    return _write_new(folder, write)


def _rescale(folder: Path) -> None:
    kind = _of_diffusers("DDIMScheduler")
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    config = {**kind.load_config(str(folder / "scheduler")), **options}
    kind.from_config(config).save_pretrained(str(folder / "scheduler"))
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    path.write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_new(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a new folder, complete or not at all."""
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the pipeline")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _own_scheduler(denoiser: Denoiser, steps: int | None) -> Any:
    """The scheduler of diffusers that has the notation of a denoiser."""
    if not (bool((denoiser.data_mean == 0).all()) and bool((denoiser.data_std == 1).all())):
        raise ValueError(
            "a scheduler of diffusers has no data_mean and data_std; train on data that are "
            "standardised already"
        )
    schedule, clock, output = denoiser.schedule, denoiser.clock, denoiser.output.name
    if isinstance(schedule, FlowMatching) and isinstance(clock, Time) and output == "u":
        count = int(clock.scale)
        # The class begins its last step at 1 / count, with few timesteps far from the data.
        many = count == steps or count >= 1000
        if count == clock.scale and many and not clock.reversed:
            return _of_diffusers("FlowMatchEulerDiscreteScheduler")(num_train_timesteps=count)
    if isinstance(schedule, Tabulated) and isinstance(clock, Index) and output in _WORDS:
        if clock.count == schedule.count and not clock.nearest:
            return _discrete(schedule, _WORDS[output])
    raise ValueError(
        f"no scheduler of diffusers has {output} on {schedule} told {clock}; there is one for u "
        "on FlowMatching() told '1000t', and for eps, x or v on Betas or ScaledLinear told 'index'"
    )


def _discrete(schedule: Tabulated, prediction: str) -> Any:
    return _of_diffusers("DDIMScheduler")(
        num_train_timesteps=schedule.count,
        trained_betas=schedule._betas().tolist(),
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def _of_diffusers(name: str) -> Any:
    return getattr(diffusers, name)
