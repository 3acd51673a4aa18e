"""Folders that diffusers and transformers open by themselves, checked before they do.

Both trust what they open: a pipe keeps them waiting, a config of ten million layers is built, and
of a wrong number they say something in their own words, without the name of a file.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twosides.storage.limits import bounded
from twosides.storage.reading import blame, read_json, require_folder
from twosides.storage.tensors import open_tensors

CONFIGS = ("model_index.json", "config.json", "scheduler_config.json")


def checked(source: str | Path) -> str:
    """A folder, or a name on the hub, as diffusers takes it.

    `CorruptFolder` names what is no regular file in a folder, and a config that is no JSON.
    """
    if (folder := Path(source)).is_dir():
        _configs(require_folder(folder))
    return str(source)


@contextmanager
def reading(source: Any, *, pickles: bool = False) -> Generator[None, None, None]:
    """Bound what is built inside by the weights in the folder, and name the folder in all errors.

    source: a pipeline's or a model's folder. Of anything else nothing is known beforehand.
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
        with bounded(configs, len(shapes), sum(map(math.prod, shapes))):
            yield


def _configs(folder: Path) -> list[dict[str, Any]]:
    """All configs of a pipeline's folder or of a part's."""
    paths = [path for name in CONFIGS for where in ("", "*/") for path in folder.glob(where + name)]
    return [read_json(path, finite=False) for path in paths]
