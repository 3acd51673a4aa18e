"""The configs of diffusers' schedulers, translated to those of the scheduler here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from twosides.integrations.diffusers.notation import ORIGINS, REFUSED
from twosides.sampling.named import PUBLISHED

OWN = "Scheduler"


def translate(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The config of any scheduler in the arguments of the scheduler here.

    config: the config of a class of diffusers, which is recognised by `_class_name`, or by its
        arguments; or of the scheduler here.
    known: the arguments that the scheduler here takes, with their defaults.

    Arguments without a meaning here are kept, for the class that they came from. Arguments that
    have their default values are left out, and so is None, because another class might take it for
    a value. ValueError for classes that are not read.
    """
    config = dict(config)
    if config.get("compat") == "published" and isinstance(config.get("sampler"), str):
        # Files of the first version had an argument for this.
        config["sampler"] += PUBLISHED
    name = config.get("_class_name") or find_class(config)
    if known.keys() <= config.keys():  # its own; diffusers takes positional arguments for defaults
        config.pop("_use_default_values", None)
        return {key: v for key, v in config.items() if _differs(key, v, known)}
    if name in ORIGINS and "sampler" not in config:
        words = complete(name, config)
        kept = {key: v for key, v in words.items() if key in known or v is not None}
        return {key: v for key, v in kept.items() if v is not None or known[key] is not None} | {
            "origin": name
        }
    if name not in (None, OWN, *ORIGINS):
        raise ValueError(_refusal(str(name)))
    return config


def _differs(key: str, value: Any, known: Mapping[str, Any]) -> bool:
    """Whether a value differs from the default of the scheduler here."""
    return key not in known or type(value) is not type(known[key]) or value != known[key]


def _refusal(name: str) -> str:
    if name in REFUSED:
        return f"{name} is not a scheduler that can be read here: {REFUSED[name]}"
    return (
        f"{name} is not a scheduler of Gaussian diffusion that can be read here; these are: "
        f"{', '.join(ORIGINS)}"
    )


def complete(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class."""
    stated = {key: value for key, value in config.items() if key[0] != "_"}
    return _IMPLIED.get(name, {}) | _defaults(name) | stated


def usual_words(config: Mapping[str, Any]) -> list[str]:
    """The arguments of a config that have the default values of the class it came from.

    diffusers leaves these out where it passes a config to another class.
    """
    usual = _defaults(str(config.get("origin") or ""))
    return [key for key, value in usual.items() if key in config and config[key] == value]


def find_class(config: Mapping[str, Any]) -> str | None:
    """The class that has these arguments; configs of objects that were not loaded lack its name.

    Classes with the same arguments (DDPM and DDPMParallel) give them the same meaning.
    """
    keys = {key for key in config if key[0] != "_"}
    return next((name for name in ORIGINS if keys and keys == _defaults(name).keys()), None)


# The behaviour of classes that have no argument for it.
_IMPLIED: dict[str, dict[str, Any]] = {
    "DPMSolverSinglestepScheduler": {"timestep_spacing": "linspace"},
    "UnCLIPScheduler": {"timestep_spacing": "linspace"},
}


def _defaults(name: str) -> dict[str, Any]:
    """The arguments of a class and their defaults; none where a dependency of it is missing."""
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
