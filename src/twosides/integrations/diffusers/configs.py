"""Configs of diffusers' schedulers, read as those of the scheduler here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from twosides.integrations.diffusers.notation import ORIGINS, REFUSED
from twosides.sampling.named import PUBLISHED

OWN = "Scheduler"


def translate(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The config of any scheduler, in words of the scheduler here.

    config: of a class of diffusers', which is told by `_class_name`, or by its very words; or of
        the scheduler here.
    known: the arguments that the scheduler here takes, with their defaults.

    Words that mean nothing here are kept, for the class that they came from. Words that say only
    what is so by default are left out, and so is None: another class might take it for an answer.
    ValueError for classes that are not read.
    """
    config = dict(config)
    if config.get("compat") == "published" and isinstance(config.get("sampler"), str):
        # In files of the first version this was a word of its own.
        config["sampler"] += PUBLISHED
    name = config.get("_class_name") or find_class(config)
    if known.keys() <= config.keys():  # its own; diffusers takes positional arguments for defaults
        config.pop("_use_default_values", None)
        return {key: value for key, value in config.items() if _says(key, value, known)}
    if name in ORIGINS and "sampler" not in config:
        words = complete(name, config)
        said = {key: v for key, v in words.items() if key in known or v is not None}
        return {key: v for key, v in said.items() if v is not None or known[key] is not None} | {
            "origin": name
        }
    if name not in (None, OWN, *ORIGINS):
        raise ValueError(_why_not(str(name)))
    return config


def _says(key: str, value: Any, known: Mapping[str, Any]) -> bool:
    return key not in known or type(value) is not type(known[key]) or value != known[key]


def _why_not(name: str) -> str:
    if name in REFUSED:
        return f"{name} is not a scheduler that can be read here: {REFUSED[name]}"
    return (
        f"{name} is not a scheduler of Gaussian diffusion that can be read here; these are: "
        f"{', '.join(ORIGINS)}"
    )


def complete(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class."""
    said = {key: value for key, value in config.items() if key[0] != "_"}
    return _IMPLIED.get(name, {}) | _defaults(name) | said


def usual_words(config: Mapping[str, Any]) -> list[str]:
    """The words that say what is so by default in the class that a config came from.

    diffusers leaves them out where it hands a config to another class.
    """
    usual = _defaults(str(config.get("origin") or ""))
    return [key for key, value in usual.items() if key in config and config[key] == value]


def find_class(config: Mapping[str, Any]) -> str | None:
    """The class whose arguments these are: configs of objects that were not loaded lack its name.

    Classes with the same arguments (DDPM and DDPMParallel) mean the same by them.
    """
    keys = {key for key in config if key[0] != "_"}
    return next((name for name in ORIGINS if keys and keys == _defaults(name).keys()), None)


# What classes do that have no word for it.
_IMPLIED: dict[str, dict[str, Any]] = {
    "DPMSolverSinglestepScheduler": {"timestep_spacing": "linspace"},
    "UnCLIPScheduler": {"timestep_spacing": "linspace"},
}


def _defaults(name: str) -> dict[str, Any]:
    """The arguments of a class and their defaults; none where what it needs is not installed."""
    try:
        kind = getattr(import_module(MODULES.get(name, "diffusers")), name)
    except (ImportError, AttributeError):
        return {}
    made = inspect.signature(kind.__init__).parameters
    return {key: p.default for key, p in made.items() if p.default is not p.empty}


# diffusers hides these where scipy or torchsde is missing.
_FOLDER = "diffusers.schedulers.scheduling_"
MODULES = {
    "CosineDPMSolverMultistepScheduler": f"{_FOLDER}cosine_dpmsolver_multistep",
    "DPMSolverSDEScheduler": f"{_FOLDER}dpmsolver_sde",
    "LMSDiscreteScheduler": f"{_FOLDER}lms_discrete",
}


def as_count(steps: Any) -> int:
    """A number of steps as an int, from any number that is whole; ValueError for others."""
    try:
        whole = not isinstance(steps, bool) and steps >= 1 and steps == int(steps)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"num_inference_steps must be a whole number >= 1, got {steps!r}")
    return int(steps)
