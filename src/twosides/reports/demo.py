"""The demo: train a network on letters, sample it as flow matching and as diffusion, report.

A single network is trained with flow matching. The same noise is then sampled by flow matching's
Euler, by DDIM on a variance-preserving cosine schedule through the same log-SNRs, with churn, by
DDPM, and in few steps. The report shows the letters, how far apart they are, and how many a
classifier trained on real letters can read.
"""

from __future__ import annotations

import html
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides import __version__
from twosides.data.named import task_named
from twosides.data.reader import accuracy, train_reader
from twosides.denoiser import Denoises
from twosides.display import html as pages
from twosides.display import pictures
from twosides.generation.samples import guide
from twosides.sampling.grids import UniformTime
from twosides.sampling.noise import Churn, Eta
from twosides.sampling.presets import samplers
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, FlowMatching, Schedule
from twosides.storage import models
from twosides.storage.files import write_file
from twosides.storage.reading import read_json
from twosides.training.fit import loss_curve
from twosides.training.run import train_task

GUIDANCE = 1.5
COPIES = 10  # the letters that are drawn of each class
TASK = "glyphs"
HEADS = ("sampler", "steps", "legible", "max |difference| to the first", "time")


@dataclass(frozen=True)
class Setup:
    """One way of sampling the trained network."""

    title: str
    sampler: Sampler
    steps: int
    schedule: Schedule


SAME_GRID = UniformTime(schedule=FlowMatching())
SETUPS = (
    Setup("flow matching: Euler in u", samplers["flow-euler"], 20, FlowMatching()),
    Setup("diffusion: DDIM, VP cosine", Sampler(SAME_GRID), 20, Cosine()),
    Setup(
        "diffusion: churn 0.3, VP cosine",
        Sampler(SAME_GRID, stochasticity=Churn(0.3)),
        20,
        Cosine(),
    ),
    Setup("diffusion: DDPM, VP cosine", Sampler(SAME_GRID, stochasticity=Eta(1.0)), 40, Cosine()),
    Setup("flow matching: few steps", samplers["flow-euler"], 8, FlowMatching()),
    Setup("flow matching: fewer", samplers["flow-euler"], 4, FlowMatching()),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a setup.

    setup: the setup.
    x: the samples.
    difference: the largest difference to the samples of the first setup.
    pixels: how many pixels differ from the first setup's.
    legible: the share of letters that the classifier reads.
    seconds: the time that sampling took.
    """

    setup: Setup
    x: Tensor
    difference: float
    pixels: int
    legible: float
    seconds: float


def demo(folder: Path, *, steps: int, minutes: float, seed: int) -> str:
    """Train (or continue), sample every setup, and write report.html; returns the main numbers.

    The same demo in the same folder returns the numbers of the first time.

    folder: the folder of the run and of the report.
    steps: the number of training steps.
    minutes: the time limit of the training.
    seed: the seed of everything.
    """
    asked = {"steps": steps, "minutes": minutes, "seed": seed, "version": __version__}
    record = folder / "demo.json"
    if record.exists() and (made := read_json(record)).get("asked") == asked:
        return f"{made['headline']}\n(made before; remove {folder} to begin again)"
    task = task_named(TASK)
    print(f"training {task.network['class']} on {len(task.classes)} letters", flush=True)
    budget = {"steps": steps, "minutes": minutes, "seed": seed, "checkpoint_every": 150}
    denoiser = train_task(task, folder, "flow-matching", **budget)
    print("training a classifier on real letters", flush=True)
    reader = train_reader(task.shape[-1], seed)
    outcomes: list[Outcome] = []
    for setup in SETUPS:
        print(f"sampling: {setup.title}, {setup.steps} steps", flush=True)
        guided = guide(denoiser, GUIDANCE, dict(task.null))
        outcomes.append(_outcome(setup, guided, reader, outcomes))
    both = torch.cat([outcome.x[:26] for outcome in outcomes[:2]])
    write_file(folder / "letters.png", pictures.png(pictures.grid(both, columns=13, zoom=4)))
    write_file(folder / "report.html", _report(folder, outcomes).encode())
    headline = _headline(folder, outcomes)
    write_file(record, json.dumps({"asked": asked, "headline": headline}).encode())
    return headline


def _outcome(setup: Setup, denoiser: Denoises, reader: Any, before: list[Outcome]) -> Outcome:
    labels = torch.arange(26).repeat(COPIES)
    began = time.perf_counter()
    # The state is float64 so that both sides show the float32 network the very same inputs.
    x = sample(
        denoiser,
        (len(labels), 1, 16, 16),
        sampler=setup.sampler,
        steps=setup.steps,
        schedule=setup.schedule,
        seed=0,
        dtype=torch.float64,
        progress=True,
        class_labels=labels,
    )
    seconds = time.perf_counter() - began
    first = before[0].x if before else x
    pixels = int((_bytes(x) != _bytes(first)).sum())
    legible = accuracy(reader, x.float(), labels)
    return Outcome(setup, x, float((x - first).abs().max()), pixels, legible, seconds)


def _bytes(x: Tensor) -> Tensor:
    return x.clamp(-1, 1).add(1).mul(127.5).round()


def _headline(folder: Path, outcomes: list[Outcome]) -> str:
    flow, diffusion = outcomes[0], outcomes[1]
    gap, pixels, total = diffusion.difference, diffusion.pixels, flow.x.numel()
    lines = [
        f"{flow.setup.title} and {diffusion.setup.title}, same noise, {flow.setup.steps} steps:",
        f"  max |difference| {gap:.1e}, {pixels} of {total} pixels differ",
        f"of {len(flow.x)} letters a classifier reads correctly",
    ]
    for outcome in outcomes:
        setup = outcome.setup
        lines.append(f"  {outcome.legible:6.1%}  {setup.title}, {setup.steps} steps")
    return "\n".join([*lines, f"report: {folder / 'report.html'}"])


# ---------------------------------------------------------------------------- the report


def _report(folder: Path, outcomes: list[Outcome]) -> str:
    flow, diffusion = outcomes[0], outcomes[1]
    trained = int(models.read_notes(folder)["training"]["steps"])
    parts = {
        "difference": f"{diffusion.difference:.1e}",
        "pixels": f"{diffusion.pixels} of {flow.x.numel():,}",
        "legible": f"{flow.legible:.1%}",
        "steps": f"{trained:,}",
        "flow": _picture(flow.x[:52]),
        "diffusion": _picture(diffusion.x[:52]),
        "gap": _picture(_difference(flow.x, diffusion.x)[:52]),
        "table": pages.table([HEADS, *map(_row, outcomes)]),
        "gallery": "\n".join(map(_figure, outcomes[2:])),
        "loss": _loss_chart(*loss_curve(folder)),
    }
    return pages.page("twosides: one network, sampled both ways", "reports/demo.html", parts)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """The picture of |a - b| times 1e6, black where they agree."""
    return ((a - b).abs() * 1e6 - 1).clamp(max=1)


def _row(outcome: Outcome) -> tuple[str, ...]:
    setup = outcome.setup
    difference = "-" if outcome.difference == 0 else f"{outcome.difference:.1e}"
    legible, seconds = f"{outcome.legible:.1%}", f"{outcome.seconds:.1f} s"
    return setup.title, str(setup.steps), legible, difference, seconds


def _figure(outcome: Outcome) -> str:
    setup = outcome.setup
    caption = html.escape(f"{setup.title}, {setup.steps} steps: {outcome.legible:.1%} legible")
    return f"<figure>{_picture(outcome.x[:26])}<figcaption>{caption}</figcaption></figure>"


def _picture(x: Tensor) -> str:
    return pages.image(pictures.png(pictures.grid(x, columns=13)), "letters drawn by the network")


def _loss_chart(steps: list[int], losses: list[float]) -> str:
    figure, axes = pages.axes(xlabel="step", ylabel="loss", yscale="log")
    axes.plot(steps, losses, color="#3366cc", linewidth=1.2)
    return pages.chart(figure, "training loss against step")
