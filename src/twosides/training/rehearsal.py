"""A rehearsal of the end of a run, before its first step.

A network that cannot be built again, a model that cannot be written or a picture that cannot be
drawn would otherwise be found after the last step, when all the work is done.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from twosides.denoiser import Denoiser
from twosides.storage import models
from twosides.storage.files import remove_folder
from twosides.training.callbacks import Averaging
from twosides.training.ema import free_gathered

SCRATCH = ".rehearsal"


class Rehearsal(lightning.Callback):
    """The callback that builds, saves, loads and draws once, before step 1.

    It runs where the weights are on their devices and sharded. All processes take part in what
    gathers weights; the first one writes, and all fail together.
    """

    def __init__(
        self,
        folder: Path,
        average: Averaging,
        notes: Mapping[str, Any],
        checks: list[Callable[[Any], None]],
        draw: Callable[[Denoiser], bytes] | None,
    ) -> None:
        """Prepare to rehearse.

        folder: the folder of the run.
        average: the average whose weights become the model.
        notes: the notes for the model's config.json.
        checks: functions of the module that all processes call.
        draw: makes the bytes of a PNG of a denoiser; None for no pictures.
        """
        self.folder, self.average, self.notes = folder, average, notes
        self.checks, self.draw = checks, draw

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Rehearse; ValueError that says what would have failed, and what to do."""
        denoiser: Denoiser = pl_module.denoiser
        training = denoiser.training
        denoiser.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for check in self.checks:
                check(pl_module)
        free_gathered(denoiser)
        denoiser.train(training)
        problem: Exception | None = None
        try:
            copy = self.average.copy_average(first=trainer.is_global_zero)
            if copy is not None:
                self._save(copy)
                if self.draw is not None and not trainer.global_step:
                    _draw_once(self.draw, copy.to(pl_module.device))
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, OSError) as error:
            problem = error
        message = trainer.strategy.broadcast(problem and f"{type(problem).__name__}: {problem}")
        if problem is not None or message:
            raise (
                problem
                if isinstance(problem, ValueError | OSError)
                else ValueError(f"the model of this run could not be written: {message}")
            ) from problem

    def _save(self, copy: Denoiser) -> None:
        scratch = self.folder / SCRATCH
        try:
            models.save(copy, scratch, **self.notes)
            models.load(scratch, like=copy)
        finally:
            if scratch.exists():
                remove_folder(scratch)


def _draw_once(draw: Callable[[Denoiser], bytes], denoiser: Denoiser) -> None:
    """Draw a picture and drop it; ValueError with the reason if that fails."""
    try:
        draw(denoiser)
    except Exception as error:
        raise ValueError(
            f"no picture of this network can be drawn, {type(error).__name__}: {error}. Mend "
            "`draw`, or train without pictures: picture_every=None"
        ) from error


def warn_of_classes(description: Mapping[str, Any]) -> None:
    """Warn of classes that a reader of the model cannot import by the path that it names."""
    lost = [path for path in _paths(description) if not _can_import(path)]
    if lost:
        warnings.warn(
            f"the model names its network's class {', '.join(lost)}, which nobody can import: it "
            "is defined in a function or in the script that is run. The model is saved, and "
            "`twosides.load(folder, like=network)` reads it with the class at hand; move the class "
            "to the top of a module to load it anywhere",
            stacklevel=3,
        )


def _paths(description: Any) -> Iterator[str]:
    """The import paths of classes in a description."""
    if isinstance(description, Mapping):
        name = description.get("class")
        if isinstance(name, str) and ":" in name:
            yield name
        for value in description.values():
            yield from _paths(value)


def _can_import(path: str) -> bool:
    module, _, name = path.partition(":")
    return module != "__main__" and hasattr(sys.modules.get(module), name)
