"""The sampler "auto" of a model: its tuned file for this number of steps, or the rule."""

from __future__ import annotations

from pathlib import Path

from twosides.display.terminal import say
from twosides.generation.request import Request
from twosides.sampling.sampler import Sampler


def tuned_folder(folder: Path) -> Path:
    """Where `twosides tune` writes: beside a model's folder, whose files are sealed.

    >>> tuned_folder(Path("runs/letters")).name
    'letters-tuned'
    """
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}-tuned")


def sampler_for(folder: Path, request: Request) -> str | Sampler:
    """The sampler of a request; for "auto", the model's tuned one if there is one. It is said."""
    if request.sampler != "auto":
        return request.sampler
    own = tuned_folder(folder) / f"{request.steps}.json"
    say(f"auto: {own if own.is_file() else 'kappa-shift Adams by the number of steps'}")
    return str(own) if own.is_file() else "auto"
