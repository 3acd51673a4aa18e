"""Checks of the folders that diffusers and transformers open by themselves.

Both libraries trust what they open: a pipe makes them wait for ever, a config of ten million layers
is built, and their message on a wrong number lacks the name of the file.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twosides.storage.limits import limit_network
from twosides.storage.reading import blame, read_json, require_folder
from twosides.storage.tensors import open_tensors

CONFIGS = ("model_index.json", "config.json", "scheduler_config.json")


def check_source(source: str | Path) -> str:
    """The source as diffusers takes it, after a check.

    source: a folder, whose configs are checked, or a name on the hub.

    `CorruptFolder` names a file in the folder that is no regular file, or a config that is no JSON.
    """
    if (folder := Path(source)).is_dir():
        _configs(require_folder(folder))
    return str(source)


@contextmanager
def guard_reading(source: Any, *, pickles: bool = False) -> Generator[None, None, None]:
    """Bound what is built inside by the weights in the folder, and name the folder in all errors.

    source: a pipeline's or a model's folder. Nothing is known beforehand of other sources, which
        are not bounded.
    pickles: whether weights may be pickles, whose tensors cannot be counted without running them.
    """
    if not (isinstance(source, str | Path) and Path(source).is_dir()):
        yield
        return
    folder = require_folder(source)
    with blame(folder):
        configs, shapes = _configs(folder), list[list[int]]()
        for path in sorted(folder.rglob("*.safetensors")):
            with open_tensors(path) as file:
                shapes += [file.get_slice(name).get_shape() for name in file.keys()]
        if pickles:
            yield
            return
        with limit_network(configs, len(shapes), sum(map(math.prod, shapes))):
            yield


def _configs(folder: Path) -> list[dict[str, Any]]:
    """All configs of a pipeline's folder or of a part's folder."""
    paths = [path for name in CONFIGS for where in ("", "*/") for path in folder.glob(where + name)]
    return [read_json(path, finite=False) for path in paths]
