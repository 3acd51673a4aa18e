"""Training by names: a task, a recipe, a folder. `twosides train` and the demo run this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from twosides.data.named import task_named
from twosides.data.tasks import Task
from twosides.denoiser import Denoiser
from twosides.display.pictures import png
from twosides.generation.samples import decoder, draw_classes
from twosides.losses.couplings import Coupled
from twosides.losses.masks import MASK
from twosides.losses.recipes import Recipe, recipe_named
from twosides.storage import models
from twosides.storage.files import read_json
from twosides.training.fit import Monitor, Settings, fit, is_first
from twosides.training.optimizers import optimizer_named

__all__ = ["Settings", "is_first", "monitor_of", "settings_named", "train_task"]


def train_task(
    task: str | Task,
    folder: Path,
    recipe: str,
    *,
    network_file: Path | None = None,
    time: str | None = None,
    trust_code: bool = False,
    validate: bool = False,
    coupling: str = "independent",
    **settings: Any,
) -> Denoiser:
    """Train a network on a task by name, and return the averaged denoiser.

    task: the data with their notes (`data.tasks`), or the name of such a task.
    folder: the folder of the run.
    recipe: the name of a recipe.
    network_file: a JSON file of a network, in place of the task's own.
    time: how the network is told the level, in place of the task's own clock.
    trust_code: whether code may be imported by the paths that files name.
    validate: whether to measure the error by noise level on data of the task that are not trained
        on.
    coupling: how noise and data are paired, a row of `losses.couplings.COUPLINGS`.
    settings: the fields of `Settings`.
    """
    chosen = recipe_named(recipe)
    named = {"data": task} if isinstance(task, str) else {}
    task = task if isinstance(task, Task) else task_named(task)
    spec = task.network if network_file is None else read_json(network_file)
    if not spec:
        told = ", ".join(task.null.keys() - {"class_labels"})
        what = f"is told {told}" if told else f"suits samples of shape {task.shape}"
        raise ValueError(f"no small network {what}: name one, --network, or fine-tune one")
    wanted = settings_named(task, trust_code=trust_code, **settings)
    network = models.build_network(spec, trust_code=trust_code, seed=wanted.seed)
    # Time is told in the units that suit the embedding of the task's network.
    clock = time or (task.time if chosen.time == "t" else chosen.time)
    denoiser = chosen.denoiser(network, time=clock, **_units(task, chosen))
    objective = chosen.objective()
    if coupling != "independent":
        objective = Coupled.of(objective, coupling)
        denoiser.coupling = coupling
    return fit(
        denoiser,
        task.data,
        objective,
        folder,
        wanted,
        monitor=monitor_of(task, wanted, validate=validate),
        about={"recipe": recipe, **named, **task.notes},
    )


def settings_named(task: Task, *, trust_code: bool = False, **settings: Any) -> Settings:
    """The `Settings` for a task, with an optimizer by name or import path."""
    chosen = settings.get("optimizer")
    if isinstance(chosen, str):
        settings["optimizer"] = optimizer_named(chosen, trust_code=trust_code)
    return Settings(null=task.null, **settings)


def _units(task: Task, recipe: Recipe) -> dict[str, Any]:
    """The mean and std by which the data get the unit that the recipe is made for."""
    if task.moments is None:
        return {}
    mean, std = task.moments
    return {"data_mean": mean, "data_std": std / recipe.data_std}


def monitor_of(task: Task, settings: Settings, *, validate: bool) -> Monitor:
    """Pictures of the task's classes, where they are wanted and can be drawn, and its validation.

    validate: whether to measure on data that are not trained on; ValueError if the task has none.
    """
    if validate and task.validation is None:
        raise ValueError(
            "these data have no part for validation: hold one out, as 'folder:photos?holdout=0.1', "
            "or leave validate_every out"
        )
    unseen = task.validation() if validate and task.validation else None
    return Monitor(unseen, _drawer(task) if settings.picture_every else None)


def _drawer(task: Task) -> Callable[[Denoiser], bytes] | None:
    """A function that draws a denoiser's samples as a PNG; None where they are no pictures."""
    # Pictures are drawn of classes, with no other conditioning.
    others = {*task.null, *task.rows([0])[0]} - {"x", "class_labels", MASK}
    if len(task.shape) != 3 or others or (task.shape[0] not in (1, 3) and not task.pipeline):
        return None
    try:
        decode = decoder(task.pipeline) if task.pipeline else None
    except ValueError:  # the pipeline is gone: there are no pictures
        return None

    def decode_finite(x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ValueError("the samples have NaN or infinite values")
        return decode(x) if decode else x

    return lambda denoiser: png(
        draw_classes(denoiser, task.shape, task.classes, seed=0, decode=decode_finite)
    )
