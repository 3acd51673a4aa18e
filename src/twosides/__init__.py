"""twosides: diffusion models and Gaussian flow matching as one thing.

Train with any recipe, sample with any sampler, on any model, and check every equivalence as a
number. t = 0 is data and t = 1 noise throughout: `z = alpha x + sigma eps`.

The public names are listed once, in `__init__.pyi` beside this file, and imported when first used:
`import twosides` and the command line's `--help` do not wait for torch.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _public_names() -> dict[str, str]:
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOME = _public_names()
__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'twosides' has no attribute {name!r}")
    submodule = f"{_HOME[name]}.{name}"
    try:
        return importlib.import_module(submodule)
    except ModuleNotFoundError as error:
        if error.name != submodule:
            raise
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
