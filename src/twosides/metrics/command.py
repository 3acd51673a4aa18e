"""What `twosides evaluate` runs: samples against data, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twosides.data.named import task_named
from twosides.display import tables
from twosides.metrics.measures import METRICS, Measured, enough
from twosides.metrics.sources import COUNT, Yardstick, is_model, samples_of
from twosides.schedules import schedule_named
from twosides.storage.files import write_file

HEADS = ("metric", "value", "data against data", "best")


def evaluate(
    source: Path,
    data: str,
    *,
    count: int | None = None,
    metrics: Sequence[str] = (),
    extractor: str | None = None,
    json_file: Path | None = None,
    schedule: str | None = None,
    seed: int = 0,
    trust_code: bool = False,
    **options: Any,
) -> str:
    """Measure samples of a source against data; options are `draw.model_samples`'."""
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    chosen = tuple(metrics) or tuple(METRICS)
    where = schedule_named(schedule) if schedule else None
    options = {**options, "schedule": where, "seed": seed, "trust_code": trust_code}
    task = task_named(data)
    if is_model(source):
        count = min(COUNT, task.size or COUNT) if count is None else count
        enough(count, count)
        enough(task.size or count, count)
    x = samples_of(source, count, **options)
    yardstick = Yardstick.of(task, len(x), extractor, seed=seed, trust_code=trust_code)
    found = yardstick.measure(x, chosen, seed=seed)
    perfect = yardstick.perfect(chosen, seed=seed)
    if json_file is not None:
        numbers = {
            "source": str(source),
            "data": data,
            "extractor": yardstick.name,
            "metrics": {name: asdict(one) for name, one in found.items()},
            "data_against_data": {name: asdict(one) for name, one in perfect.items()},
        }
        write_file(json_file, json.dumps(numbers, indent=1).encode())
    head = f"{len(x)} samples of {source}, {len(yardstick.reference)} rows of {data}"
    return f"{head}, features: {yardstick.name}\n{text(found, perfect)}"


def text(found: Mapping[str, Measured], perfect: Mapping[str, Measured]) -> str:
    """The table for a terminal."""
    lines = [
        (name, str(one), str(perfect.get(name, "")), METRICS[name].best)
        for name, one in found.items()
    ]
    return tables.text([HEADS, *lines])
