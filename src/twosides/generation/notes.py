"""What a model's folder says of its samples, read with suspicion.

A model may come from a stranger. What its config.json says of shape, classes, null values and the
pipeline that encoded its data is checked here, once, for all that sample models; and what goes
wrong inside a network or its construction becomes one sentence that names the folder.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twosides.denoiser import Denoiser
from twosides.sampling.grids import Grid
from twosides.storage import models, parts

MOST = 1 << 28  # numbers in one sample: 1 GiB as float32


@dataclass(frozen=True)
class Notes:
    """What a model's config.json says of its samples.

    folder: where the model is.
    shape: of one sample.
    classes: the names of the classes 0, 1, ...: a letter each, or a tuple of words; empty if none.
    null: the conditioning that stands for no class, by name; empty if guidance was not trained.
    pipeline: what is known of the diffusers pipeline that encoded the data; empty if none did.
    """

    folder: Path
    shape: tuple[int, ...]
    classes: str | tuple[str, ...]
    null: dict[str, Any]
    pipeline: dict[str, Any]

    @property
    def captioned(self) -> bool:
        """Whether the model was trained on captions, and so draws what a prompt says."""
        return bool(self.pipeline.get("texts"))

    def refuse_captions(self) -> None:
        """ValueError for a model that needs a prompt, where none can be given."""
        if self.captioned:
            raise ValueError(
                "this model was trained on captions: it is sampled into a .png or .npy file, with "
                "a prompt: prompt='a red hat'"
            )


def read_notes(folder: Path) -> Notes:
    """The notes of a model's or a run's folder; ValueError for what they cannot be."""
    config = models.read_config(folder)
    if not config.get("shape"):
        raise ValueError(
            f"{folder} does not say the shape of its samples; save it again with "
            "ts.save(ts.load(folder), other_folder, shape=[...])"
        )
    return Notes(
        folder,
        _shape(folder, config["shape"]),
        _classes(folder, config.get("classes", "")),
        _dictionary(folder, "null", config.get("null", {})),
        _dictionary(folder, "pipeline", config.get("pipeline", {})),
    )


def _shape(folder: Path, found: Any) -> tuple[int, ...]:
    sizes: list[Any] = found if isinstance(found, list) else [None]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise _wrong(folder, "shape", found, "positive whole numbers")
    if math.prod(sizes) > MOST:
        raise _wrong(folder, "shape", found, f"of at most {MOST} numbers")
    return tuple(sizes)


def _classes(folder: Path, found: Any) -> str | tuple[str, ...]:
    if isinstance(found, str):
        return found
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _wrong(folder, "classes", found, "a text or a list of names")
    return tuple(found)


def _dictionary(folder: Path, name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise _wrong(folder, name, found, "a dictionary")
    return dict(found)


def _wrong(folder: Path, name: str, found: Any, wanted: str) -> ValueError:
    said = f"{found!r}"
    said = said if len(said) < 100 else f"{said[:100]}..."
    return ValueError(f'"{name}" in config.json of {folder} must be {wanted}, and is {said}')


def measured_grid(folder: Path) -> Grid:
    """The grid that a model's training has measured, "entropic" in its notes."""
    notes = models.read_notes(folder)
    if "entropic" not in notes:
        raise ValueError(
            f"{folder} holds no measured grid, because its training kept no errors by level; train "
            "with a recipe that learns, such as sd3+adaptive, or measure one on data with "
            "twosides.grids.Entropic.measure"
        )
    grid = parts.restore(notes["entropic"])
    if not isinstance(grid, Grid):
        raise ValueError(f'"entropic" in the notes of {folder} is no grid: {grid!r}')
    return grid


def load_model(folder: Path, *, trust_code: bool = False) -> Denoiser:
    """The denoiser of a model's or a run's folder; ValueError for whatever its config breaks."""
    with one_sentence(f"{folder} holds no model that can be built from its config.json"):
        return models.load(folder, trust_code=trust_code)


@contextlib.contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn the errors of strangers' configurations and networks into one ValueError.

    Errors that carry words for the user already pass as they are: ValueError, OSError, ImportError.

    what: the sentence's beginning, such as "models/a cannot be sampled".
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error
