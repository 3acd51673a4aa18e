"""Plans and samplers as files: JSON with sparse rows, and NumPy's .npz.

    {"format": "twosides.plan", "version": 1, "name", "noises", "logsnr", "alpha", "sigma",
     "rows": [{"x": [[k, value], ...], "eps": [...], "noise": [...]}, ...]}

    {"format": "twosides.sampler", "version": 1, "sampler": {"type": "Sampler", ...}}

A plan is the table of a sampler's coefficients on a schedule in a number of steps; a sampler makes
the plan for any schedule and number of steps. Both are data: reading them runs nothing.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twosides.sampling.frames import Array
from twosides.sampling.plan import Plan, Terms
from twosides.sampling.sampler import Sampler
from twosides.schedules import Level
from twosides.storage.files import write_file
from twosides.storage.parts import describe, restore
from twosides.storage.reading import open_file, read_json

MAX_CALLS = 1 << 20  # the calls of the largest plan that is read
_LEVELS, _PARTS = ("logsnr", "alpha", "sigma"), ("x", "eps", "noise")
_BROKEN = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    MemoryError,
)  # fmt: skip


def to_json(plan: Plan) -> str:
    """A plan as JSON text: levels and sparse rows; an infinite logsnr is "inf" or "-inf"."""
    rows = [
        {part: [[k, value] for (kind, k), value in sorted(row.items()) if kind == part and value]
         for part in _PARTS}
        for row in plan.rows
    ]  # fmt: skip
    logsnr = [value if math.isfinite(value) else str(value) for value in plan.logsnr.tolist()]
    content = {
        "format": "twosides.plan",
        "version": 1,
        "name": plan.name,
        "noises": plan.noises,
        "logsnr": logsnr,
        "alpha": plan.alpha.tolist(),
        "sigma": plan.sigma.tolist(),
        "rows": rows,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def from_json(text: str) -> Plan:
    """The plan of a JSON text, exactly; ValueError for anything else."""
    try:
        return _plan_of(json.loads(text))
    except _BROKEN as error:
        raise ValueError(f"this is not a twosides plan, version 1: {error!r}") from error


def _plan_of(content: Any) -> Plan:
    if content.get("format") != "twosides.plan" or content.get("version") != 1:
        raise ValueError(f"format {content.get('format')!r} {content.get('version')!r}")
    columns = [[float(value) for value in content[key]] for key in _LEVELS]
    rows, noises = content["rows"], int(content["noises"])
    if max(len(rows), *map(len, columns)) > MAX_CALLS:
        raise ValueError(f"{len(rows)} rows; at most {MAX_CALLS} are read")
    if not 0 <= noises <= sum(len(row["noise"]) for row in rows):
        raise ValueError(f"{noises} noises")
    levels = tuple(Level(*values) for values in zip(*columns, strict=True))
    return Plan(levels, tuple(_terms(row) for row in rows), noises, str(content["name"]))


def _terms(row: Any) -> Terms:
    terms: Terms = {}
    for part in _PARTS:
        for k, value in row[part]:
            if type(k) is not int or k < 0:
                raise ValueError(f"a row names column {k!r}")
            terms[part, k] = float(value)
    return terms


def of_arrays(levels: Sequence[Array], x: Array, eps: Array, noise: Array, name: str = "") -> Plan:
    """The plan of dense tables, for n calls and m injected noises.

    levels: logsnr, alpha and sigma, each (n + 1,).
    x, eps: the coefficients of the estimates, (n + 1, n).
    noise: the coefficients of the initial and the injected noises, (n + 1, 1 + m).
    name: the name of the plan.
    """
    count, tables = len(levels[0]), {"x": x, "eps": eps, "noise": noise}
    shapes = [*(column.shape for column in levels), x.shape, eps.shape]
    wanted = [(count,)] * 3 + [(count, count - 1)] * 2
    if shapes != wanted or noise.ndim != 2 or len(noise) != count or not noise.shape[1]:
        raise ValueError(
            f"a plan of {count - 1} calls needs arrays of shapes {wanted}, and noise "
            f"({count}, 1 + m), got {shapes} and {noise.shape}"
        )
    rows = [
        {(part, int(k)): float(table[i, k]) for part, table in tables.items()
         for k in np.flatnonzero(table[i])}
        for i in range(count)
    ]  # fmt: skip
    made = tuple(Level(*map(float, level)) for level in zip(*levels, strict=True))
    return Plan(made, tuple(rows), noise.shape[1] - 1, name)


def to_npz(plan: Plan, path: str | Path) -> None:
    """Write the arrays of a plan as an .npz file at this path."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {key: getattr(plan, key) for key in (*_LEVELS, *_PARTS)}
    np.savez(buffer, name=np.array(plan.name), **arrays)
    write_file(Path(path), buffer.getvalue())


def from_npz(path: str | Path) -> Plan:
    """The plan of an .npz file, exactly; nothing is unpickled."""
    names = (*_LEVELS, *_PARTS, "name")
    try:
        with open_file(path) as opened:
            with zipfile.ZipFile(opened) as archive:  # savez does not compress
                if any(entry.compress_type for entry in archive.infolist()):
                    raise ValueError("it is compressed")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                if missing := set(names) - set(file.files):
                    raise ValueError(f"it lacks {sorted(missing)}")
                *tables, name = (file[key] for key in names)
        arrays: list[Array] = [table.astype(np.float64) for table in tables]
        return of_arrays(arrays[:3], *arrays[3:], name=str(name))
    except (*_BROKEN, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a twosides plan: {error!r}") from error


def save_sampler(path: str | Path, sampler: Sampler, **notes: Any) -> None:
    """Write a sampler to a JSON file, whose path is then a name of the sampler everywhere.

    notes: what else the file says, such as how it was tuned; readers of samplers pass over it.

    TypeError for samplers that have functions, which are code.
    """
    content = {"format": "twosides.sampler", "version": 1, "sampler": describe(sampler), **notes}
    write_file(Path(path), json.dumps(content, indent=1, allow_nan=False).encode())


def read_named(path: str | Path) -> Plan | Sampler:
    """The plan or sampler of a JSON file; ValueError, with the path, for anything else."""
    content = read_json(Path(path))
    try:
        if content.get("format") == "twosides.plan":
            return _plan_of(content)
        if content.get("format") != "twosides.sampler" or content.get("version") != 1:
            raise ValueError(f"format {content.get('format')!r} {content.get('version')!r}")
        found = restore(content.get("sampler"))
        if not isinstance(found, Sampler):
            raise ValueError(f"it describes {found!r}")
        return found
    except _BROKEN as error:
        raise ValueError(f"{path} is no file of a plan or a sampler: {error!r}") from error
