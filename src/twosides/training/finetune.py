"""Fine-tuning: any network that there is, in its own notation or as a flow model.

    finetune("stable-diffusion", data, "run")                     # as it was trained
    finetune("stable-diffusion", data, "run", convert=True)       # its flow velocity, exactly
    finetune("stable-diffusion", data, "run", lora=8)             # adapters only

In its own notation a network answers what it always did, and a recipe says which levels and which
weighting. Converted, the network inside of the exact wrap *is* a predictor of u in flow matching's
time, so that its first loss is the old one and nothing has to be learned again. What it does not
know are the levels that it never saw (Stable Diffusion: t > 0.936 and t < 0.028), so training has
two stages, both functions of the step:

    1. the recipe's p(logsnr) on the network's own levels, normalised       `Truncated`
    2. all of the recipe's levels, up to pure noise                         from `widen_at` on

Between them the wrap answers by what it knows at the nearest level (`convert(extend=True)`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twosides.conversion import convert
from twosides.data.named import task_named
from twosides.data.tasks import Task, dataset_of
from twosides.denoiser import Denoiser
from twosides.losses.densities import Density, FromSchedule
from twosides.losses.objective import Objective, Staged
from twosides.losses.recipes import recipe_named
from twosides.losses.truncation import Levels, Truncated
from twosides.losses.weightings import OutputMSE
from twosides.schedules import Betas, FlowMatching, ScaledLinear, Schedule, Tabulated
from twosides.storage import models
from twosides.training.checks import check_data
from twosides.training.fit import Monitor, Settings, fit, is_first
from twosides.training.run import monitor_of, settings_named

OWN = "own"
_UNKNOWABLE = ("eps", "-eps", "score", "-score")  # z and these are the same thing at pure noise


@dataclass(frozen=True)
class Tuning:
    """What is done to a network.

    recipe: "own" is the plain error of the network's own output, uniform over its own levels (of
        discrete betas, whole indices). Any other gives its weighting and its density, truncated to
        the levels that the network knows; the network goes on to predict what it did. By default
        "own", or "flow-matching" if converted.
    convert: train it as a predictor of u in flow matching's time.
    widen_at: converted, the step from which on the recipe's levels are not truncated (a number
        below 1 is a part of all steps); None never does.
    zero_terminal_snr: in its own notation, move its levels so that the last is pure noise
        [Lin+ 2023, Algorithm 1].
    lora: train adapters of this rank, of the layers `target`, instead of the weights.
    """

    recipe: str | None = None
    convert: bool = False
    widen_at: float | None = None
    zero_terminal_snr: bool = False
    lora: int | None = None
    target: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ValueError for what does not go together."""
        if self.convert and self.recipe == OWN:
            raise ValueError(
                "recipe 'own' is the error of the network's own output, but convert=True trains u; "
                "name a recipe, such as flow-matching or sd3, or leave convert out"
            )
        if self.widen_at is not None and not (self.convert and self.widen_at >= 0):
            raise ValueError(
                f"widen_at={self.widen_at} was asked{'' if self.convert else ' without convert'}: "
                "levels beyond the network's own are learned by a converted network, from a step "
                ">= 0 on. Pass convert=True, or leave widen_at out"
            )
        if self.convert and self.zero_terminal_snr and self.widen_at is None:
            raise ValueError(
                "zero terminal SNR of a converted network is flow matching's t = 1, which it "
                "learns from the step widen_at on; pass widen_at"
            )
        if self.target and self.lora is None:
            raise ValueError(f"target={self.target} names layers for LoRA; pass its rank, lora=...")

    def denoiser(self, source: Denoiser, seed: int = 0) -> Denoiser:
        """The denoiser to train; its first outputs are the source's."""
        network, schedule = source.network, source.schedule
        if self.zero_terminal_snr and not self.convert:
            schedule = _to_zero(source)
        adapted = _adapted(source)
        if adapted is not None and self.lora is not None:
            # Its adapters are trained on; diffusers holds one set of a name at a time.
            if (self.lora, self.target or adapted.target) != (adapted.rank, adapted.target):
                raise ValueError(
                    f"lora={self.lora} of layers {self.target or 'by default'} was asked of a "
                    f"model that has adapters of rank {adapted.rank} of layers {adapted.target}; "
                    "leave lora and target out, or give the same, to go on with those"
                )
        elif self.lora is not None:
            from twosides.integrations.diffusers.lora import ATTENTION, Adapted

            assert isinstance(network, nn.Module)
            network = Adapted(network, self.lora, self.target or ATTENTION, seed)
        units = {"data_mean": source.data_mean, "data_std": source.data_std}
        own = Denoiser(network, source.output, schedule, source.clock, **units)
        if not self.convert:
            return own
        flow = convert(own, "u", FlowMatching(), extend=True)
        return Denoiser(flow, "u", FlowMatching(), "t", **units)

    def objective(self, source: Denoiser, steps: int) -> Objective | Staged:
        """The objective, or two of them, for a number of steps."""
        if (self.recipe or OWN) == OWN and not self.convert:
            schedule = _to_zero(source) if self.zero_terminal_snr else source.schedule
            return _own(source, schedule)
        recipe = recipe_named(self.recipe or "flow-matching")
        zero = self.zero_terminal_snr and not self.convert
        low = -math.inf if zero else source.schedule.logsnr_min
        known = _within(recipe.density, low, source.schedule.logsnr_max)
        first = Objective(recipe.weighting, known)
        if self.widen_at is None:
            return first
        step = self.widen_at * steps if self.widen_at < 1 else self.widen_at
        return Staged(first, recipe.objective(), round(step))

    def about(self) -> dict[str, Any]:
        """As JSON, for the model's notes; two runs of different tunings are different runs."""
        recipe = self.recipe or ("flow-matching" if self.convert else OWN)
        return {**dataclasses.asdict(self), "recipe": recipe, "target": list(self.target)}


def _own(source: Denoiser, schedule: Schedule) -> Objective:
    """The plain error of the network's own output, uniform over its own levels."""
    discrete = isinstance(schedule, Tabulated)
    density = Levels(schedule) if discrete else FromSchedule(schedule)
    return Objective(OutputMSE(source.output, schedule, density), density)


def _within(density: Density, low: float, high: float) -> Density:
    """The density on [low, high] only; both infinite leave it as it is."""
    if math.isinf(low) and math.isinf(high):
        return density
    return Truncated(density, low, high)


def _to_zero(source: Denoiser) -> Schedule:
    """The schedule with its last level at pure noise; ValueError where that cannot be trained."""
    if source.output.name in _UNKNOWABLE:
        raise ValueError(
            f"zero terminal SNR was asked of a network that predicts {source.output.name}: at pure "
            f"noise z and {source.output.name} are the same thing, so it says nothing about the "
            "data there, x = (z - sigma eps) / 0. Pass convert=True and widen_at, which train u up "
            "to pure noise, or use a network that predicts v, x or u"
        )
    if not isinstance(source.schedule, Betas | ScaledLinear):
        raise ValueError(
            f"zero terminal SNR moves the levels of discrete betas, but this network is on "
            f"{source.schedule}, which ends at logsnr {source.schedule.logsnr_min:.4g}"
        )
    return dataclasses.replace(source.schedule, zero_terminal_snr=True)


# ---------------------------------------------------------------------------- running it


def finetune(
    source: str | Path | Denoiser,
    data: Any,
    folder: str | Path,
    tuning: Tuning | None = None,
    settings: Settings | None = None,
    *,
    monitor: Monitor | None = None,
    about: dict[str, Any] | None = None,
    trust_code: bool = False,
) -> Denoiser:
    """Fine-tune a network and return the averaged denoiser, which is also in the folder.

    source: a diffusers pipeline's folder, a folder of this library's models, or a Denoiser.
    data: dictionaries of "x", in the network's own units (latents, for most pipelines), and of the
        conditioning that it takes, under its own keywords. What is missing is a ValueError before
        the first step.
    monitor: validation data, pictures on the way, more loggers.
    about: notes for config.json.
    trust_code: import the network's class from outside diffusers and twosides.

    The folder holds what `fit` writes; of a pipeline also `pipeline/`, the same with the trained
    network in place of its own, or with LoRA `lora/`, for `pipe.load_lora_weights`. The same call
    continues after an interruption.
    """
    tuning, settings = tuning or Tuning(), settings or Settings(learning_rate=1e-5)
    original = load(source, trust_code=trust_code)
    denoiser = tuning.denoiser(original, settings.seed)
    objective = tuning.objective(original, settings.steps)
    data = dataset_of(data)
    check_data(denoiser, data)
    notes = {**tuning.about(), "source": _name(source), **(about or {})}
    if tuning.lora is not None or _adapted(denoiser):  # its checkpoints hold the adapters only
        notes["frozen"] = _digest(denoiser)
    result = fit(
        denoiser.train(),
        data,
        objective,
        folder,
        settings,
        monitor=monitor,
        about=notes,
    )
    if is_first():
        _hand_over(source, result, Path(folder), tuning)
    return result


def finetune_task(
    source: Path,
    task: str | Task,
    folder: Path,
    tuning: Tuning,
    *,
    trust_code: bool = False,
    validate: bool = False,
    picture_every: int | None = None,
    **settings: Any,
) -> Denoiser:
    """`finetune` on a task by name; `settings` are `Settings`' fields.

    validate: measure the error by noise level, too, on data of the task that are not trained on.
    picture_every: draw the task's classes every so many steps, where it has pictures of classes.
    """
    named = {"data": task} if isinstance(task, str) else {}
    task = task if isinstance(task, Task) else task_named(task)
    settings["picture_every"] = picture_every
    wanted = settings_named(task, trust_code=trust_code, **settings)
    return finetune(
        source,
        task.data,
        folder,
        tuning,
        wanted,
        monitor=monitor_of(task, wanted, validate=validate),
        about={**named, **task.notes},
        trust_code=trust_code,
    )


def load(source: str | Path | Denoiser, *, trust_code: bool = False) -> Denoiser:
    """The denoiser of a pipeline's folder or a model's folder; a Denoiser is returned as it is."""
    if isinstance(source, Denoiser):
        return source
    if models.is_pipeline(source):
        from twosides.integrations.diffusers import load_denoiser

        found = load_denoiser(source)
        assert isinstance(found, Denoiser)
        return found
    return models.load(source, trust_code=trust_code)


def _adapted(denoiser: Denoiser) -> Any:
    """The network with adapters inside of a denoiser, or None."""
    adapted = (part for part in denoiser.modules() if type(part).__name__ == "Adapted")
    return next(adapted, None)


def _digest(denoiser: Denoiser) -> str:
    """The SHA-256 of the parameters that are not trained."""
    found = hashlib.sha256()
    for parameter in denoiser.parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _name(source: str | Path | Denoiser) -> str:
    return "a Denoiser" if isinstance(source, Denoiser) else Path(source).name


def _hand_over(
    source: str | Path | Denoiser, result: Denoiser, folder: Path, tuning: Tuning
) -> None:
    """Write the files that diffusers reads: the adapters, if there are any, or the pipeline."""
    if tuning.lora is not None or _adapted(result):
        from twosides.integrations.diffusers.lora import save_lora

        save_lora(result.network, folder / "lora")
    elif models.is_pipeline(source):
        from twosides.integrations.diffusers.export import save_tuned

        zero = tuning.zero_terminal_snr and not tuning.convert
        save_tuned(source, result.network, folder / "pipeline", zero_terminal_snr=zero)
