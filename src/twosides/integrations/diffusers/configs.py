"""Configs of diffusers' schedulers, read as those of the scheduler here."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from twosides.integrations.diffusers.notation import ORIGINS
from twosides.sampling.presets import PUBLISHED

OWN = "Scheduler"


def translate(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The config of any scheduler, in words of the scheduler here.

    config: of a class of diffusers', which is told by `_class_name`, or by its very words; or of
        the scheduler here.
    known: the arguments that the scheduler here takes.

    ValueError for classes that are not read.
    """
    config = dict(config)
    if config.get("compat") == "published" and isinstance(config.get("sampler"), str):
        # In files of the first version this was a word of its own.
        config["sampler"] += PUBLISHED
    name = config.get("_class_name") or find_class(config)
    if set(known) <= config.keys():  # its own; diffusers takes positional arguments for defaults
        return {key: value for key, value in config.items() if key != "_use_default_values"}
    if name in ORIGINS and "sampler" not in config:
        words = complete(name, config)
        return {key: value for key, value in words.items() if key in known} | {"origin": name}
    if name not in (None, OWN, *ORIGINS):
        raise ValueError(
            f"{name} is not a scheduler of Gaussian diffusion that can be read here; these are: "
            f"{', '.join(ORIGINS)}"
        )
    return config


def complete(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class."""
    words = _defaults(name) | {key: value for key, value in config.items() if key[0] != "_"}
    if name.startswith("CogVideoX"):
        words["clip_sample"] = False  # an argument of theirs that nothing looks at
    return words


def find_class(config: Mapping[str, Any]) -> str | None:
    """The class whose arguments these are: configs of objects that were not loaded lack its name.

    Classes with the same arguments (DDPM and DDPMParallel) mean the same by them.
    """
    keys = {key for key in config if key[0] != "_"}
    return next((name for name in ORIGINS if keys == _defaults(name).keys()), None)


def _defaults(name: str) -> dict[str, Any]:
    kind = getattr(import_module(_MODULES.get(name, "diffusers")), name)
    made = inspect.signature(kind.__init__).parameters
    return {key: p.default for key, p in made.items() if p.default is not p.empty}


# diffusers hides this one where scipy is missing.
_MODULES = {"LMSDiscreteScheduler": "diffusers.schedulers.scheduling_lms_discrete"}


def as_count(steps: Any) -> int:
    """A number of steps as an int, from any number that is whole; ValueError for others."""
    try:
        whole = not isinstance(steps, bool) and steps >= 1 and steps == int(steps)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"num_inference_steps must be a whole number >= 1, got {steps!r}")
    return int(steps)
