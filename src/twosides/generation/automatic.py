"""The sampler "auto" of a model's folder: its tuned file for this number of steps, or the rule."""

from __future__ import annotations

from pathlib import Path

from twosides.display.terminal import say
from twosides.generation.request import Request
from twosides.sampling.sampler import Sampler

TUNED = "tuned"  # the folder within a model's, in which `twosides tune` writes


def sampler_for(folder: Path, request: Request) -> str | Sampler:
    """The sampler of a request; for "auto", that of the folder if it has one, which is said."""
    if request.sampler != "auto":
        return request.sampler
    own = folder / TUNED / f"{request.steps}.json"
    say(f"auto: {own if own.is_file() else 'kappa-shift Adams by the number of steps'}")
    return str(own) if own.is_file() else "auto"
