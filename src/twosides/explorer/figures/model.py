"""A model of the visitor, with any sampler, at several numbers of network calls."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import twosides as ts
from twosides.explorer.figure import Axis, Choice, Control, Figure, Mark, Number, Panel, Range, View
from twosides.explorer.names import SAMPLERS
from twosides.storage.limits import check_notes
from twosides.storage.reading import read_json

TEXT = r"""Your model, sampled with any sampler: it makes no difference whether it was trained as
diffusion or as flow matching. The panels start from the same noise and differ in the number of
steps only; the last one shows the network's estimate $\hat x$ of the data at every call of the
longest run.

At churn 0 the pictures settle as steps grow; with noise they change, and stay as good.
"""

FIGURE = Figure(
    "model",
    "Your model",
    TEXT,
    (
        Choice("sampler", "Sampler", SAMPLERS, "ddim"),
        Range(
            "c", "Churn $c$", 0.0, 0.9, 0.05, 0.0, help="replaces the sampler's noise where not 0"
        ),
        Range("steps", "Steps, at most", 1, 40, 1, 16, integer=True),
        Range("count", "Samples", 1, 12, 1, 6, integer=True),
        Range("seed", "Seed", 0, 9999, 1, 0, integer=True),
    ),
    "twosides.explorer.figures.model:compute",
)


def of(folder: Path, *, trust_code: bool = False) -> Figure:
    """The figure of a model's or a run's folder; FileNotFoundError or ValueError if it is none.

    folder: the folder.
    trust_code: whether code may be imported by the path that the model names.
    """
    shape, classes = _about(folder)
    if len(shape) == 3 and shape[0] not in (1, 3):
        raise ValueError(f"{folder}: samples of shape {shape} are no pictures or points")
    controls: tuple[Control, ...] = FIGURE.controls
    if classes:
        letters = (("", "each in turn"), *((letter, letter) for letter in classes))
        controls = (Choice("label", "Class", letters, ""), *controls)
    bound = {"model": str(folder), "trust_code": trust_code}
    return replace(FIGURE, controls=controls, bound=bound)


def _about(folder: Path) -> tuple[tuple[int, ...], str]:
    """The shape and the classes in config.json, read without torch; loading checks the rest."""
    found = [each / "config.json" for each in (folder / "model", folder)]
    path = next((each for each in found if each.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no config.json: it is no model's or run's folder")
    try:
        config = read_json(path)
        check_notes(config)
        shape = tuple(int(size) for size in config["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not state the shape of the model's samples") from error
    if len(shape) not in (1, 3):
        raise ValueError(f"{folder}: samples of shape {shape} are no pictures or points")
    return shape, str(config.get("classes", ""))


@functools.lru_cache(1)
def load(model: str, trust_code: bool) -> Any:
    """The denoiser of a folder, which is loaded once."""
    return ts.load(model, trust_code=trust_code)


def compute(
    model: str,
    trust_code: bool,
    sampler: str,
    c: float,
    steps: int,
    count: int,
    seed: int,
    label: str = "",
) -> View:
    """Samples at steps/4, steps/2 and steps from the same noise; x-hat along the longest run."""
    shape, classes = _about(Path(model))
    made = ts.samplers[sampler]
    made = ts.Sampler(made.grid, made.solver, ts.Churn(c)) if c > 0 else made
    labels = "".join(label or classes[i % len(classes)] for i in range(count)) if classes else ""
    numbers = sorted({max(1, steps // 4), max(1, steps // 2), steps})
    runs = {
        n: _run(model, trust_code, made, (count, *shape), n, seed, labels, classes) for n in numbers
    }
    longest = runs[steps]
    restore = load(model, trust_code).unstandardise
    beliefs = np.stack([restore(each.x[0]).numpy() for each in longest.predictions])
    panels = [
        _panel(
            f"{n} steps, {runs[n].plan.nfe} calls",
            runs[n].sample.numpy(),
            list(labels),
            f"runs[{n}].sample.numpy()",
        )
        for n in numbers
    ]
    panels.append(_panel(r"$\hat x$ on the way, first sample", beliefs, [], "beliefs"))
    gaps = [float((runs[n].sample - longest.sample).abs().mean()) for n in numbers[:-1]]
    return View(
        tuple(panels),
        tuple(
            Number(
                f"gap_{n}",
                f"Mean |difference|, {n} to {steps} steps",
                gap,
                ".3f",
                f"(runs[{n}].sample - runs[{steps}].sample).abs().mean()",
            )
            for n, gap in zip(numbers, gaps, strict=False)
        ),
        _python(model, trust_code, sampler, c, numbers, (count, *shape), seed, labels, classes),
        cli=_command(model, sampler, c, steps, labels, count, seed, pictures=len(shape) == 3),
    )


def _run(
    model: str,
    trust_code: bool,
    sampler: Any,
    shape: tuple[int, ...],
    steps: int,
    seed: int,
    labels: str,
    classes: str,
) -> Any:
    import torch

    numbers: dict[str, Any] = (
        {"class_labels": torch.tensor([classes.index(each) for each in labels])} if labels else {}
    )
    return ts.sample(
        load(model, trust_code),
        shape,
        sampler=sampler,
        steps=steps,
        seed=seed,
        trajectory=True,
        **numbers,
    )


def _panel(title: str, values: np.ndarray, labels: list[str], code: str) -> Panel:
    if values.ndim == 2:
        x, y = values[:, 0], values[:, -1] if values.shape[1] > 1 else 0 * values[:, 0]
        codes = {"x": f"{code}[:, 0]"}
        mark = Mark("points", "", 0, {"x": x, "y": y}, {}, codes)
        return Panel("plot", title, Axis("$x_1$"), Axis("$x_2$"), (mark,))
    shown = np.clip(0.5 * (values + 1), 0, 1)
    shown = shown[:, 0] if shown.shape[1] == 1 else shown.transpose(0, 2, 3, 1)
    view = f"np.clip(0.5 * ({code} + 1), 0, 1)"
    view += "[:, 0]" if values.shape[1] == 1 else ".transpose(0, 2, 3, 1)"
    style = {"columns": min(len(shown), 8), "labels": labels}
    return Panel(
        "images", title, marks=(Mark("images", "", None, {"v": shown}, style, {"v": view}),)
    )


def _command(
    model: str,
    sampler: str,
    c: float,
    steps: int,
    labels: str,
    count: int,
    seed: int,
    *,
    pictures: bool,
) -> str:
    noise = f" --noise 'churn({c:g})'" if c > 0 else ""
    which = f" --labels {labels}" if labels else f" --count {count}"
    which += "" if pictures else " --out samples.npy"
    return (
        f"twosides sample {model!r} --sampler {sampler} --steps {steps}{noise}{which} --seed {seed}"
    )


def _python(
    model: str,
    trust_code: bool,
    sampler: str,
    c: float,
    numbers: list[int],
    shape: tuple[int, ...],
    seed: int,
    labels: str,
    classes: str,
) -> str:
    noise = (
        f"\nsampler = ts.Sampler(sampler.grid, sampler.solver, ts.Churn({c!r}))" if c > 0 else ""
    )
    trust = ", trust_code=True" if trust_code else ""
    given = (
        f", class_labels=torch.tensor({[classes.index(each) for each in labels]})" if labels else ""
    )
    return f"""import numpy as np
import torch
import twosides as ts

denoiser = ts.load({model!r}{trust})
sampler = ts.samplers[{sampler!r}]{noise}
runs = {{
    steps: ts.sample(
        denoiser, {shape}, sampler=sampler, steps=steps, seed={seed}, trajectory=True{given}
    )
    for steps in {numbers}
}}
longest = runs[{numbers[-1]}].predictions
beliefs = np.stack([denoiser.unstandardise(each.x[0]).numpy() for each in longest])
"""
