"""Measure samples against data, as a table and as JSON: `twosides evaluate` runs this."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from twosides.data.stored import Stored
from twosides.data.tasks import Task
from twosides.display import tables
from twosides.display.pictures import chart
from twosides.generation.notes import load_model, read_notes
from twosides.generation.request import Request
from twosides.generation.samples import guide, sample_batches
from twosides.losses.masks import MASK
from twosides.metrics.measures import METRICS, Measured, check_counts, check_names
from twosides.metrics.sources import (
    COUNT,
    Yardstick,
    check_shape,
    data_named,
    is_model,
    read_batches,
)
from twosides.posteriors.uncertainty import draw, uncertainty
from twosides.posteriors.uncertainty import text as levels_text
from twosides.storage.devices import device_named
from twosides.storage.files import write_file

HEADS = ("metric", "value", "data against data", "best")


def evaluate(
    source: Path,
    data: str,
    request: Request,
    *,
    metrics: Sequence[str] = (),
    extractor: str | None = None,
    json_file: Path | None = None,
    trust_code: bool = False,
) -> str:
    """Measure samples of a source against data, and return the table for a terminal.

    source: a model's or a run's folder, or samples in a file or a folder of files.
    data: a task's name, or also samples in a file or a folder.
    request: how to sample a model. `count` is the number of samples and of rows of data, by default
        1000 of a model, fewer of smaller data, and all samples of files; `seed` is also that of the
        rows and of the groups that give the errors.
    metrics: names of METRICS, by default all.
    extractor: the features in which distances are measured, as in `Yardstick.of`.
    json_file: a file to write the numbers to.
    trust_code: whether a network's class or an extractor may be imported.
    """
    chosen = tuple(metrics) or tuple(METRICS)
    check_names(chosen)
    task, seed = data_named(data), request.seed
    stored = None if is_model(source) else Stored(source)
    count = _count(source, stored, task, request.count)
    check_shape(read_notes(source).shape if stored is None else stored.shape, task.shape)
    yardstick = Yardstick.of(task, count, extractor, seed=seed, trust_code=trust_code)
    if stored is None:
        features = model_features(source, request, yardstick, trust_code=trust_code)
    else:
        features = yardstick.features(read_batches(stored, count), count)
    values = yardstick.measure(features, chosen, seed=seed)
    perfect = yardstick.perfect(chosen, seed=seed)
    if json_file is not None:
        numbers = {
            "source": str(source),
            "data": data,
            "extractor": yardstick.name,
            "metrics": {name: asdict(one) for name, one in values.items()},
            "data_against_data": {name: asdict(one) for name, one in perfect.items()},
        }
        write_file(json_file, json.dumps(numbers, indent=1).encode())
    head = f"{count} samples of {source}, {len(yardstick.reference)} rows of {data}"
    return f"{head}, features: {yardstick.name}\n{text(values, perfect)}"


def evaluate_uncertainty(
    folder: Path, data: str, request: Request, out: Path, *, trust_code: bool = False
) -> str:
    """Measure how well a model knows its uncertainty, draw it, and return the table.

    folder: the model's or the run's folder.
    data: a task's name; where it holds data out of training, these are not told from the others.
    request: its guidance, its `count`, the number of rows, by default 256, its seed and its device.
    out: the .png file of the picture.
    trust_code: whether the network's class may be imported.
    """
    if out.suffix != ".png":
        raise ValueError(f"{out}: a picture is written as .png, not {out.suffix!r}")
    if not is_model(folder):
        raise ValueError(f"{folder} holds samples; uncertainty is that of a model")
    task, notes = data_named(data), read_notes(folder)
    check_shape(notes.shape, task.shape)
    device = device_named(request.device)
    denoiser = load_model(folder, trust_code=trust_code).to(device).eval()
    model: Any = guide(denoiser, request.scale, notes.null, request.rule)
    count = min(request.count or 256, task.size or 256)
    batch = {name: v.to(device) for name, v in default_collate(task.rows(range(count))).items()}
    if batch.pop(MASK, None) is not None:
        raise ValueError("these data have padding, whose uncertainty is none; pass data without")
    rows = uncertainty(model, batch.pop("x"), seed=request.seed, **batch)
    write_file(out, chart(draw(rows), dpi=130))
    return f"{count} rows of {data}, {folder}\n{levels_text(rows)}"


def _count(source: Path, stored: Stored | None, task: Task, wanted: int | None) -> int:
    """The number of samples to measure; ValueError for too few, or more than there are."""
    if stored is None:
        count = min(COUNT, task.size or COUNT) if wanted is None else wanted
    else:
        count = len(stored) if wanted is None else wanted
        if count > len(stored):
            raise ValueError(f"{source} holds {len(stored)} samples, fewer than {count}")
    check_counts(count, count)
    check_counts(task.size or count, count)
    return count


def model_features(
    folder: Path, request: Request, yardstick: Yardstick, *, trust_code: bool = False
) -> Tensor:
    """Features of samples of a model, as many and of the same classes as the rows of data."""
    request = yardstick.ask_alike(request, read_notes(folder))
    batches = sample_batches(folder, request, trust_code=trust_code)
    return yardstick.features(batches, len(yardstick.reference))


def text(values: Mapping[str, Measured], perfect: Mapping[str, Measured]) -> str:
    """The table for a terminal."""
    lines = [
        (name, str(one), str(perfect.get(name, "")), METRICS[name].best)
        for name, one in values.items()
    ]
    return tables.text([HEADS, *lines])
