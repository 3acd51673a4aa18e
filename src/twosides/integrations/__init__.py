"""Adapters for other programs' models and users, each imported when it is named."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["comfyui", "diffusers", "kdiffusion"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {name}: pip install 'twosides[{name}]'", name=name
        ) from error
