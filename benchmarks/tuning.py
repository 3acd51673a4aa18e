"""What tuning gains: tuned samplers beside the best of all untuned ones, chosen in hindsight.

    median, rms    of |x - x*| / rms |x*| over test noises that no search has seen, x* the exact end
    ratio          tuned to untuned, where "untuned" is the least of each measure that any of 90
                   pairs of preset and grid has on these very test noises, which nobody could know
    below          the share of samples below the data's 5 % density quantile; 0.05 is ideal

All start from unit noise. Problems: ring8 (2-D) and spec64 (64-D), exact mixtures, a small
network that is trained here, and with --glyphs the network of `twosides demo`, guided and not.

    python benchmarks/tuning.py                       prints the tables, in minutes
    python benchmarks/tuning.py --out docs            and writes them into docs/tuning.md
    python benchmarks/tuning.py --quick               ring8 only
    python benchmarks/tuning.py --glyphs runs/demo/cosine
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import quality_per_nfe as quality
import torch
from torch import Tensor

import twosides as ts
from twosides.denoiser import BaseDenoiser, as_denoiser
from twosides.randomness import PerSample
from twosides.sampling.run import run
from twosides.schedules import Level
from twosides.tuning.candidates import candidates
from twosides.tuning.tables import Tables
from twosides.tuning.teacher import teacher_plan
from twosides.tuning.trials import Network, Noises

BUDGETS = (4, 5, 6, 8, 10)
TEST, SEED = 256, 77  # noises, and their seed
CLEAN = Level(float("inf"), 1.0, 0.0)


class Problem(NamedTuple):
    """A denoiser and test noises with the ends of their trajectories."""

    name: str
    denoiser: BaseDenoiser
    noises: Noises
    network: Network
    quantile: float | None
    shape: tuple[int, ...]
    conditioning: dict[str, Any]

    def scores(self, table: Tables) -> tuple[float, float, float]:
        """Median, root mean square, and the share below the density quantile."""
        x = self.network.ends(table, self.noises.start, self.noises.numbers)[0]
        errors = (x - self.noises.ends).flatten(1).double().norm(dim=1) / self.noises.size
        below = float("nan")
        if self.quantile is not None:
            density = self.denoiser.log_prob(x, CLEAN)  # pyright: ignore
            below = float((density < self.quantile).double().mean())
        return float(errors.median()), float(errors.square().mean().sqrt()), below


def mixture(name: str, dimensions: int) -> Problem:
    """One of quality_per_nfe's exact problems."""
    made = as_denoiser(getattr(quality, name)(2).denoiser)
    noise = PerSample(SEED, range(TEST)).normal((dimensions,), torch.float64)
    data = made.sample(20_000, seed=9)  # pyright: ignore
    quantile = float(made.log_prob(data, CLEAN).quantile(0.05))  # pyright: ignore
    return _problem(name, made, noise, {}, quantile, calls=200)


def learned() -> Problem:
    """A network of 2-D data, trained here for some seconds with the flow-matching loss."""
    from twosides.storage.networks import MLP

    torch.manual_seed(0)
    data = ts.oracle.GaussianMixture.ring(8, std=0.1).sample(20_000, seed=3).float()
    made = ts.Denoiser(MLP())
    objective, generator = ts.recipes["flow-matching"].objective(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(made.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000)
    for _ in range(4000):
        x = data[torch.randint(len(data), (256,), generator=generator)]
        loss = objective(made, x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    made.eval()
    noise = PerSample(SEED, range(TEST)).normal((2,))
    return _problem("learned (2-D)", made, noise, {}, None, calls=200)


def glyphs(folder: Path, guidance: float) -> Problem:
    """The demo's letters, all classes in turn."""
    from twosides.generation.notes import load_model, read_notes
    from twosides.generation.samples import guide

    notes = read_notes(folder)
    made = guide(load_model(folder), guidance, notes.null)
    noise = PerSample(SEED, range(48)).normal(notes.shape)
    told = {"class_labels": torch.arange(48) % 26}
    name = f"letters, guidance {guidance:g}"
    return _problem(name, as_denoiser(made), noise, told, None, calls=64)


@torch.no_grad()
def _problem(
    name: str,
    denoiser: BaseDenoiser,
    noise: Tensor,
    told: dict[str, Any],
    quantile: float | None,
    calls: int,
) -> Problem:
    exact = run(teacher_plan(denoiser.schedule, calls), denoiser, noise, conditioning=told)
    size = float(exact.flatten(1).double().norm(dim=1).square().mean().sqrt())
    noises = Noises(noise, exact, torch.arange(len(noise)), size)
    network = Network(denoiser, told, len(noise), 1024)
    return Problem(name, denoiser, noises, network, quantile, tuple(noise.shape[1:]), told)


def rows(problem: Problem, steps: int, count: int, budget: str) -> Iterator[list[str]]:
    """The line of a problem and a number of calls."""
    untuned = {
        each.name: problem.scores(each.table)
        for each in candidates(problem.denoiser.schedule, steps)
    }
    best = [min(untuned, key=lambda name, part=part: untuned[name][part]) for part in (0, 1)]
    began = time.process_time()
    told = {
        name: value[torch.arange(count) % len(value)]
        for name, value in problem.conditioning.items()
    }
    tuned = ts.tune(
        problem.denoiser, (count, *problem.shape), steps=steps, budget=budget, batch=2048, **told
    )
    spent = time.process_time() - began
    table = Tables.of(ts.solvers.Tabled.of(tuned.plan))
    median, rms, below = problem.scores(table)
    least = untuned[best[0]][0], untuned[best[1]][1]
    ideal = f"{below:.3f} ({untuned[best[0]][2]:.3f})" if problem.quantile is not None else "-"
    yield [
        problem.name,
        str(steps),
        best[0],
        f"{least[0]:.4f}",
        f"{median:.5f}",
        f"**{median / least[0]:.2f}**" if tuned.report.accepted else f"{median / least[0]:.2f}",
        f"{least[1]:.4f}",
        f"{rms:.4f}",
        f"{rms / least[1]:.2f}",
        ideal,
        "yes" if tuned.report.accepted else "no",
        f"{tuned.report.evaluations / 1000:.0f} k",
        f"{spent:.0f} s",
    ]


HEAD = (
    "problem", "calls", "best untuned (by median)", "its median", "tuned", "ratio", "least rms",
    "tuned rms", "ratio", "below 5 % (untuned)", "proven", "evaluations", "CPU",
)  # fmt: skip


def main() -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--glyphs", type=Path)
    parser.add_argument("--noises", type=int, default=16)
    parser.add_argument("--budget", default="normal")
    parser.add_argument("--steps", type=int, nargs="+", default=BUDGETS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = [mixture("ring8", 2)]
    problems += [] if options.quick else [mixture("spec64", 64), learned()]
    if options.glyphs:
        problems += [glyphs(options.glyphs, scale) for scale in (1.0, 3.0)]
    lines = [list(HEAD)]
    for problem in problems:
        for steps in options.steps:
            for line in rows(problem, steps, options.noises, options.budget):
                print(" | ".join(line), flush=True)
                lines.append(line)
    if options.out:
        from twosides.display.tables import markdown

        page = options.out / "tuning.md"
        text = page.read_text(encoding="utf-8")
        made = f"<!-- table -->\n{markdown(lines)}<!-- end -->"
        text = re.sub(r"<!-- table -->.*?<!-- end -->", lambda _: made, text, flags=re.S)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
