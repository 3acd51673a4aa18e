"""Configs of diffusers' schedulers, completed by the defaults of their classes."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from twosides.integrations.diffusers import notation as notations


def _completed(name: str, config: Any) -> dict[str, Any]:
    """A config with the defaults of its class."""
    told = _defaults(name) | {key: value for key, value in config.items() if key[0] != "_"}
    if name.startswith("CogVideoX"):
        told["clip_sample"] = False  # an argument of theirs that nothing looks at
    return told


def _defaults(name: str) -> dict[str, Any]:
    kind = getattr(import_module(_MODULES.get(name, "diffusers")), name)
    made = inspect.signature(kind.__init__).parameters
    return {key: p.default for key, p in made.items() if p.default is not p.empty}


# diffusers hides this one where scipy is missing.
_MODULES = {"LMSDiscreteScheduler": "diffusers.schedulers.scheduling_lms_discrete"}


def _class_with(config: Any) -> str | None:
    """The class whose arguments these are: configs of objects that were not loaded lack its name.

    Classes with the same arguments (DDPM and DDPMParallel) mean the same by them.
    """
    keys = {key for key in config if key[0] != "_"}
    return next((name for name in notations.ORIGINS if keys == _defaults(name).keys()), None)


def _whole(steps: Any) -> int:
    if type(steps) is not int or steps < 1:
        raise ValueError(f"num_inference_steps must be a whole number >= 1, got {steps!r}")
    return steps
