"""Models of few steps, measured: what docs/fewsteps.md states.

    python benchmarks/few_steps.py ring runs/few        two dimensions; some ten minutes of one core
    python benchmarks/few_steps.py coupling runs/few    minibatch optimal transport; three minutes
    python benchmarks/few_steps.py letters runs/few --teacher runs/demo

Two dimensions: the ring of eight normal modes, where the exact ODE of a model is cheap, so that the
distance of K steps from its end is known. Letters: the demo's model at guidance 1.5; distance from
the end of its own 20 steps of kab2c, and Frechet distance in the features of a reader of letters.
What was measured is kept beside the run, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import twosides as ts
from twosides.distillation.distill import Distillation
from twosides.distillation.loss import velocity
from twosides.generation.notes import read_notes
from twosides.generation.runs import teacher_of
from twosides.generation.samples import guide
from twosides.losses.couplings import Coupled
from twosides.storage.networks import MLP
from twosides.training.fit import Settings, fit

FLOW = ts.FlowMatching()
RING = ts.oracle.GaussianMixture.ring(8)
COUNT = 4096
TEACHER = Settings(
    steps=3000, batch=192, learning_rate=2e-3, optimizer="adam", decay="linear", sigma_rel=0.05,
    checkpoint_every=10**6, picture_every=10**6, log_every=100,
)  # fmt: skip
# Some 15 CPU seconds of training on a quiet core, and a few for the teacher's runs.
STUDENT = dataclasses.replace(TEACHER, steps=1500, batch=64)
RUNS: dict[str, Any] = {"runs": 20_000, "sampler": "rk4", "steps": 12}
STUDENTS = {
    name: Distillation(name, states=rule.states if rule.first == "stored" else "pairs", **RUNS)
    for name, rule in ts.objectives.items()
    if name != "flow"
}


def distilled(teacher: Path, out: Path, what: Distillation, settings: Settings) -> float:
    """Distil, once, and say how many CPU seconds it took, the teacher's runs included."""
    record = out.with_suffix(".seconds")
    if not record.exists():
        began = time.process_time()
        ts.distill(teacher, out, what, settings)
        record.write_text(f"{time.process_time() - began:.1f}")
    return float(record.read_text())


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of the distance of two points."""
    return float((a - b).square().flatten(1).sum(1).mean().sqrt())


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein distance of order 2, in 64 directions."""
    angles = torch.arange(64) / 64 * math.pi
    lines = torch.stack([angles.cos(), angles.sin()]).float()
    return float(((a @ lines).sort(0).values - (b @ lines).sort(0).values).square().mean().sqrt())


@torch.no_grad()
def straightness(denoiser: ts.Denoiser, z: Tensor, steps: int = 64) -> tuple[float, float]:
    """`int E|u - (z_1 - z_0)|^2 dt` along the ODE, and the cost of its ends, `E|z_1 - z_0|^2`."""
    start, us = z, []
    for k in range(steps):
        t = torch.full((len(z),), 1 - k / steps, dtype=torch.float64)
        u = velocity(denoiser, z, t)
        middle = velocity(denoiser, z - u / (2 * steps), t - 1 / (2 * steps))
        us.append(u)
        z = z - middle / steps
    way = start - z
    bent = sum(float((u - way).square().sum(1).mean()) for u in us) / steps
    return bent, float(way.square().sum(1).mean())


def ring(out: Path, chosen: list[str], teachers: list[str]) -> None:
    """The figures of two dimensions."""
    z = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(123))
    fresh, other = (RING.sample(COUNT, seed=seed).float() for seed in (77, 78))
    data = RING.sample(200_000, seed=5).float()
    print(f"sliced W2 of two samples of the data: {sliced(fresh, other):.3f}")
    independent = RING.sample(200_000, seed=9).float()
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    print(f"independent coupling: cost {float((independent - noise).square().sum(1).mean()):.4f}")
    for recipe in teachers:
        folder, began = out / f"ring-{recipe}", time.process_time()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = MLP(2, 128, 3)
        about = {"shape": [2], "classes": "", "null": {}}
        teacher = fit(network, data, recipe, folder, TEACHER, about=about, time="t")
        seconds = time.process_time() - began
        flow = teacher_of(teacher)
        exact = ts.sample(flow, z.shape, sampler="rk4", steps=64, init=z)
        bent, cost = straightness(flow, z)
        print(
            f"{recipe} teacher ({seconds:.0f} CPU s): its ODE's sliced W2 "
            f"{sliced(exact, fresh):.3f}, cost {cost:.4f}, straightness {bent:.4f}"
        )
        row("Euler", flow, z, exact, fresh, 0.0)
        for name in chosen:
            what = STUDENTS[name]
            place = out / f"ring-{recipe}-{name}"
            seconds = distilled(folder, place, what, STUDENT)
            student = ts.load(place)
            row(name, student, z, exact, fresh, seconds)
            if name == "reflow":
                bent, cost = straightness(student, z)
                print(f"  after reflow: cost {cost:.4f}, straightness {bent:.5f}")


def row(name: str, model: ts.Denoiser, z: Tensor, exact: Tensor, fresh: Tensor, s: float) -> None:
    """One line: distance from the ODE's end and sliced W2, at 1, 2, 4 and 8 steps."""
    cells = []
    for steps in (1, 2, 4, 8):
        x = ts.sample(model, z.shape, steps=steps, init=z)
        cells.append(f"{rms(x, exact):.3f}/{sliced(x, fresh):.3f}")
    print(f"  {name:12} {s:5.0f} s  {'  '.join(cells)}", flush=True)


def minibatch(out: Path) -> None:
    """Flow matching on minibatch optimal transport, and its paths."""
    z = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(123))
    fresh, data = RING.sample(COUNT, seed=77).float(), RING.sample(200_000, seed=5).float()
    for coupling in ("independent", "minibatch-ot"):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = ts.Denoiser(MLP(2, 128, 3))
        objective = Coupled.of(ts.recipes["flow-matching"].objective(), coupling)
        model.coupling = coupling
        trained = fit(model, data, objective, out / f"ring-{coupling}", TEACHER)
        bent, cost = straightness(trained, z)
        x = ts.sample(trained, z.shape, sampler="rk4", steps=32, init=z)
        euler = ts.sample(trained, z.shape, steps=1, init=z)
        print(
            f"{coupling}: cost {cost:.4f}, straightness {bent:.4f}, its ODE's sliced W2 "
            f"{sliced(x, fresh):.3f}, one Euler step {sliced(euler, fresh):.3f}"
        )


# ---------------------------------------------------------------------------- letters


def frechet(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of two sets of features."""
    means, covariances = [x.mean(0) for x in (a, b)], [torch.cov(x.T) for x in (a, b)]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    gap = (means[0] - means[1]).square().sum()
    return float(gap + covariances[0].trace() + covariances[1].trace() - 2 * root)


def letters(out: Path, folder: Path, steps: int) -> None:
    """The figures of letters, of students of the demo's model."""
    from twosides.data.glyphs import Glyphs
    from twosides.data.reader import accuracy, train_reader
    from twosides.display import pictures

    reader, notes = train_reader(16, 0), read_notes(folder)
    teacher = ts.load(folder)
    guided = guide(teacher, 1.5, notes.null)
    labels = torch.arange(260) % 26
    z = torch.randn(260, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    real = Glyphs(16)
    data = torch.stack([real[i]["x"] for i in range(0, len(real), max(1, len(real) // 5200))])
    with torch.no_grad():
        truth = torch.cat([reader.features(x) for x in data.split(520)]).double()

    def drawn(model: ts.Denoiser, sampler: str, steps: int) -> Tensor:
        return ts.sample(model, z.shape, sampler=sampler, steps=steps, init=z, class_labels=labels)

    end, sheet = drawn(guided, "kab2c", 20), []

    @torch.no_grad()
    def measure(name: str, model: ts.Denoiser, sampler: str, steps: int) -> None:
        x = drawn(model, sampler, steps)
        far = float((x - end).square().mean().sqrt())
        distance = frechet(reader.features(x).double(), truth)
        read = accuracy(reader, x, labels)
        print(f"  {name:28} {steps:3}  {read:.3f} / {distance:6.1f} / {far:.3f}", flush=True)
        if steps == 1:
            sheet.append(x[:26])

    for count in (1, 2, 4, 20):
        measure("teacher, Euler", guided, "ddim", count)
    settings = Settings(
        steps=steps, batch=48, learning_rate=1e-3, optimizer="adam", decay="linear",
        checkpoint_every=100, picture_every=10**6, warmup=100,
    )  # fmt: skip
    for objective in ("trajectory", "reflow"):
        what = Distillation(objective, guidance=1.5, runs=2080, steps=8)
        place = out / f"letters-{objective}"
        seconds = distilled(folder, place, what, settings)
        print(f"{objective}: {seconds:.0f} CPU s in all")
        for count in (1, 2, 4):
            measure(objective, ts.load(place), "ddim", count)
    sheet.append(end[:26])
    picture = pictures.png(pictures.grid(torch.cat(sheet), columns=26, zoom=2))
    (out / "letters.png").write_bytes(picture)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ring", "coupling", "letters"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, help="letters: the demo's run, runs/demo")
    parser.add_argument("--steps", type=int, default=450, help="letters: of training")
    parser.add_argument("--objectives", nargs="+", choices=STUDENTS, default=[*STUDENTS])
    parser.add_argument("--teachers", nargs="+", default=["flow-matching", "eps-cosine"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "ring":
        ring(options.out, options.objectives, options.teachers)
    elif options.what == "coupling":
        minibatch(options.out)
    elif options.teacher is None:
        parser.error("letters need --teacher, the folder of `twosides demo`")
    else:
        letters(options.out, options.teacher, options.steps)


if __name__ == "__main__":
    main()
