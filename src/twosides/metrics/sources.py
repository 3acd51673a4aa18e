"""What is measured and against what: samples from files or a model, rows of a task's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.data.glyphs import Glyphs
from twosides.data.named import task_named
from twosides.data.tasks import Task
from twosides.display.progress import bar
from twosides.generation.samples import model_samples
from twosides.metrics.extractors import Extractor, extract, extractor_named
from twosides.metrics.measures import METRICS, Measured, measure
from twosides.storage import models
from twosides.storage.reading import require_file
from twosides.storage.tensors import open_tensors

KINDS = (".npy", ".safetensors")
COUNT = 1000


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Features of data to measure samples against.

    `other` are as many rows of the same data, disjoint from the reference: what they measure is
    what a perfect model would. None where the data have not so many.
    """

    extractor: Extractor
    name: str
    shape: tuple[int, ...]
    reference: Tensor
    other: Tensor | None

    @classmethod
    def of(
        cls,
        data: str | Task,
        count: int,
        extractor: str | None = None,
        *,
        seed: int = 0,
        trust_code: bool = False,
    ) -> Yardstick:
        """From `count` rows of a task's data, drawn without replacement from the seed.

        The extractor is "reader" for letters and "pixels" for all else, unless named.
        """
        task = task_named(data) if isinstance(data, str) else data
        size = task.size or 2 * count
        if not 1 <= count <= size:
            raise ValueError(
                f"{count} rows of reference were asked of data that have {size}; measure fewer "
                "samples (--count)"
            )
        name = extractor or ("reader" if isinstance(task.data, Glyphs) else "pixels")
        chosen = extractor_named(name, trust_code=trust_code)
        pick = np.random.default_rng(seed).permutation(size)[: 2 * count]
        rows = extract(torch.stack([row["x"] for row in task.rows(pick.tolist())]), chosen)
        other = rows[count:] if len(rows) == 2 * count else None
        return cls(chosen, name, task.shape, rows[:count], other)

    def measure(
        self, x: Tensor, metrics: Sequence[str] = tuple(METRICS), *, seed: int = 0
    ) -> dict[str, Measured]:
        """Metrics of samples (N, *shape), with a bar."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"samples have shape {tuple(x.shape[1:])}, but the data {self.shape}; "
                "name the data that they should look like"
            )
        with bar("measuring", 1) as tell:
            features = extract(x, self.extractor)
            return measure(features, self.reference, metrics, seed=seed, progress=tell)

    def perfect(
        self, metrics: Sequence[str] = tuple(METRICS), *, seed: int = 0
    ) -> dict[str, Measured]:
        """Metrics of other data against the reference; none where there are no other data."""
        return {} if self.other is None else measure(self.other, self.reference, metrics, seed=seed)


def samples_of(source: Path, count: int | None, **options: Any) -> Tensor:
    """The first `count` samples of a file or a folder of files, or of a model.

    source: .npy or .safetensors, a folder of such (read in the order of their names), or a model's
        or a run's folder, from which `count` are drawn (default 1000); options are then
        `draw.model_samples`'.
    """
    if is_model(source):
        return model_samples(source, COUNT if count is None else count, **options)
    x = read_samples(source)
    if count is not None and len(x) < count:
        raise ValueError(f"{source} holds {len(x)} samples, but {count} were asked for")
    return x[:count]


def is_model(source: Path) -> bool:
    """Whether it is a model's or a run's folder."""
    try:
        models.model_folder(source)
    except FileNotFoundError:
        return False
    return True


def read_samples(source: Path) -> Tensor:
    """Samples (N, ...) of a file, or of a folder's files one after the other. Nothing is unpickled.

    A .safetensors file holds one tensor, or one called "x" among others.
    """
    if source.is_file():
        return _read_file(source)
    files = sorted(path for path in source.glob("*") if path.suffix in KINDS)
    if not files:
        raise FileNotFoundError(
            f"{source} is no model's folder and holds no samples ({', '.join(KINDS)})"
        )
    parts = [_read_file(path) for path in files]
    for path, part in zip(files, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype:
            raise ValueError(
                f"{path} holds {part.dtype} of shape {tuple(part.shape[1:])}, but {files[0].name} "
                f"{parts[0].dtype} of {tuple(parts[0].shape[1:])}; keep one kind in a folder"
            )
    return torch.cat(parts)


def _read_file(path: Path) -> Tensor:
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: samples are read from {' or '.join(KINDS)}")
    try:
        x = _read_numpy(path) if path.suffix == ".npy" else _read_safetensors(path)
    except Exception as error:  # of two parsers
        raise ValueError(f"{path} cannot be read: {error}") from error
    if x.ndim == 0 or not len(x):
        raise ValueError(f"{path} holds no samples: its shape is {tuple(x.shape)}")
    return x


def _read_numpy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(require_file(path), allow_pickle=False))


def _read_safetensors(path: Path) -> Tensor:
    with open_tensors(path) as file:
        names = list(file.keys())
        name = names[0] if len(names) == 1 else "x"
        if name not in names:
            raise ValueError(f"which of {', '.join(names)} are the samples? Call them x")
        return file.get_tensor(name)
