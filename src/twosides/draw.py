"""Samples of trained models by names, and pictures of them: what `twosides sample` runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides import checkpoint, pictures
from twosides.denoiser import Denoiser, Denoises
from twosides.guidance import classifier_free
from twosides.naming import named, unknown
from twosides.progress import bar
from twosides.sampling.grids import GRIDS, Grid
from twosides.sampling.sample import sample
from twosides.sampling.samplers import Sampler, sampler_named
from twosides.sampling.stochasticity import STOCHASTICITIES
from twosides.schedules import Schedule, schedule_named
from twosides.storage import write_file

BATCH = 250  # samples that are drawn at once


def chosen_sampler(
    sampler: str,
    noise: str | None = None,
    grid: str | None = None,
    compat: str | None = None,
    model: Path | None = None,
) -> Sampler:
    """A preset, with other noise or another grid if named: "churn(0.3)", "karras(7)".

    The grid "entropic" is the one that the training of `model`, its folder, has measured.
    """
    chosen = sampler_named(sampler, compat)
    if noise is not None:
        chosen = replace(chosen, stochasticity=named("noise", noise, STOCHASTICITIES))
    if grid is not None:
        measured = measured_grid(model) if model is not None and grid == "entropic" else None
        chosen = replace(chosen, grid=measured or named("grid", grid, GRIDS))
    return chosen


def measured_grid(folder: Path) -> Grid:
    """The grid that a model's training has measured, "entropic" in its notes."""
    notes = checkpoint.read_notes(folder)
    if "entropic" not in notes:
        raise ValueError(
            f"{folder} holds no measured grid, because its training kept no errors by level; train "
            "with a recipe that learns, such as sd3+adaptive, or measure one on data with "
            "twosides.grids.Entropic.measure"
        )
    grid = checkpoint.restore(notes["entropic"])
    if not isinstance(grid, Grid):
        raise ValueError(f'"entropic" in the notes of {folder} is no grid: {grid!r}')
    return grid


def label_tensor(labels: str | Sequence[str], classes: Sequence[str]) -> Tensor:
    """Class numbers of letters, or of words with commas; ValueError for one that is not known."""
    if isinstance(labels, str) and not isinstance(classes, str):
        labels = labels.split(",")
    wrong = [name for name in labels if name not in classes]
    if wrong:
        raise (
            unknown("class", wrong[0], classes)
            if classes
            else ValueError("the model has no classes")
        )
    return torch.tensor([classes.index(name) for name in labels])


def sample_model(
    folder: Path,
    *,
    sampler: str,
    steps: int,
    schedule: str | None,
    noise: str | None,
    grid: str | None,
    compat: str | None,
    count: int,
    labels: str | None,
    guidance: float,
    seed: int,
    trust_code: bool,
    out: Path,
) -> Tensor:
    """Sample a model folder and write the samples to a .png or .npy file."""
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"{out}: samples are written as .png or .npy, not {out.suffix!r}")
    chosen = chosen_sampler(sampler, noise, grid, compat, folder)
    where = schedule_named(schedule) if schedule else None
    shape = sample_shape(folder)
    if out.suffix == ".png" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(f"samples of shape {shape} are no pictures; write them as .npy")
    x = model_samples(
        folder,
        count,
        sampler=chosen,
        steps=steps,
        schedule=where,
        labels=labels,
        guidance=guidance,
        seed=seed,
        trust_code=trust_code,
    )
    write_file(out, _encoded(x, out))
    return x


def sample_shape(folder: Path) -> tuple[int, ...]:
    """Shape of one sample of a model folder; ValueError if it does not say."""
    shape = checkpoint.read_config(folder).get("shape")
    if not shape:
        raise ValueError(f"{folder} does not say the shape of its samples; use twosides.sample")
    return tuple(shape)


def model_samples(
    folder: Path,
    count: int,
    *,
    sampler: str | Sampler = "ddim",
    steps: int = 20,
    schedule: Schedule | None = None,
    labels: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    trust_code: bool = False,
    batch: int = BATCH,
) -> Tensor:
    """Samples of a model folder, of all classes in turn unless labels are given; shows a bar."""
    denoiser = checkpoint.load(folder, trust_code=trust_code)
    config, shape = checkpoint.read_config(folder), sample_shape(folder)
    classes = config.get("classes", "")
    drawn: str | list[str] | None = labels
    if drawn is None and classes:
        drawn = [classes[i % len(classes)] for i in range(count)]
    conditioning: dict[str, Any] = {}
    if drawn is not None:
        conditioning["class_labels"] = label_tensor(drawn, classes)
        count = len(conditioning["class_labels"])
    steered = guided(denoiser, guidance, config.get("null", {}))
    parts: list[Tensor] = []
    # Sample i depends on (seed, i) only, so batches change nothing but the memory they need.
    with bar("sampling", count) as tell:
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            x = sample(
                steered,
                (len(rows), *shape),
                sampler=sampler,
                steps=steps,
                schedule=schedule,
                seed=seed,
                indices=rows,
                progress=_part_of(tell, rows, count),
                **{name: value[start : rows.stop] for name, value in conditioning.items()},
            )
            parts.append(x)
    return torch.cat(parts)


def _part_of(
    tell: Callable[[int, int], None], rows: range, count: int
) -> Callable[[int, int], None]:
    return lambda done, total: tell(rows.start + len(rows) * done // total, count)


def guided(denoiser: Denoiser, scale: float, null: dict[str, Any]) -> Denoises:
    """The denoiser under classifier-free guidance; itself at scale 1."""
    if scale == 1.0:
        return denoiser
    if not null:
        raise ValueError("guidance needs a model trained with dropped classes; this one was not")
    return classifier_free(denoiser, scale, null=null)


def draw_classes(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    classes: Sequence[str],
    *,
    seed: int,
    count: int = 26,
) -> Any:
    """A picture of one sample of each of the first 52 classes, or of `count`, 20 DDIM steps."""
    count = min(len(classes), 52) or count
    labels: dict[str, Any] = {"class_labels": torch.arange(count)} if classes else {}
    x = sample(denoiser, (count, *shape), steps=20, seed=seed, **labels)
    return pictures.grid(x, columns=13)


def _encoded(x: Tensor, out: Path) -> bytes:
    if out.suffix == ".png":
        return pictures.png(pictures.grid(x, columns=13))
    return npy(x)


def npy(x: Tensor) -> bytes:
    """The numbers as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, x.cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()
