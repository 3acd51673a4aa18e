"""How far from the exact end of the trajectory samplers land, at equal numbers of network calls.

    error = |x - x_exact| / |x_exact|        over all samples, and its median over samples

x_exact is the end of the probability-flow ODE from the same noise. Contestants: this library's
presets, untuned, on standard grids, and the samplers of `peers.py` on theirs. Every contestant
starts on the exact trajectory at its own first level and makes at most the stated number of calls,
which are counted.

    python benchmarks/quality_per_nfe.py                   prints the tables, in about half an hour
    python benchmarks/quality_per_nfe.py --out docs        and writes quality.md and quality.png
    python benchmarks/quality_per_nfe.py --quick           ring8 only, under a minute
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from peers import FAMILIES, Contestant, Network, peers
from torch import Tensor

import twosides as ts
from twosides.outputs import Estimate, kappa
from twosides.sampling.grids import (
    Beta,
    Exponential,
    Grid,
    Karras,
    ThenData,
    Uniform,
    UniformTime,
)
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import RungeKutta
from twosides.schedules import FlowMatching, Level, ScaledLinear

BUDGETS = (5, 8, 10, 20)
OURS, DEFAULT = "ours", "kab2c"
PRESETS = (
    *("kab2", "kab2c", "kab3c", "dpmpp-2m", "dpmpp-3m", "unipc", "unipc-3"),
    *("deis", "deis-tab", "lms", "flow-heun", "midpoint", "rk4"),
)
SD = {"sigma_min": 0.0292, "sigma_max": 14.6146}
GRIDS: dict[str, Grid] = {  # beside their own, which is flow matching's uniform time for all
    "flow shift 3": Uniform(kappa(1 / 3)),
    "cosine": Uniform("angle"),
    "Karras, EDM": Karras(),
    "Karras, SD": Karras(**SD),
    "exponential, EDM": Exponential(),
    "exponential, SD": Exponential(**SD),
    "beta": Beta(),
    "linspace, SD": ThenData(UniformTime(ScaledLinear())),
    "linspace, DDPM": ThenData(UniformTime(ScaledLinear(1e-4, 0.02, power=1))),
}
FOLDER = Path("runs/quality-glyphs")


# ---------------------------------------------------------------------------- problems


class Counted:
    """A denoiser that counts its calls."""

    schedule = FlowMatching()

    def __init__(self, denoiser: Callable[[Tensor, Level], Estimate]) -> None:
        """Nothing counted."""
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, z: Tensor, level: Level) -> Estimate:
        """The estimate."""
        self.calls += 1
        return self.denoiser(z, level)


class Score(NamedTuple):
    """Two measures of a contestant's errors."""

    rms: float
    median: float


@dataclass(frozen=True)
class Problem:
    """A denoiser, noises, and the exact ends of their trajectories."""

    name: str
    denoiser: Callable[[Tensor, Level], Estimate]
    noise: Tensor
    exact: Tensor
    near: dict[float, Tensor]

    @classmethod
    def of(
        cls, name: str, denoiser: Callable[[Tensor, Level], Estimate], noise: Tensor, steps: int
    ) -> Problem:
        """With the exact ends by classical Runge-Kutta in `steps` steps."""
        return cls(name, denoiser, noise, _solved(denoiser, noise, math.inf, steps), {})

    def start(self, level: Level) -> Tensor:
        """The exact trajectory's state at a noisy level of any scaling."""
        logsnr = float(level.logsnr)
        if logsnr == -math.inf:
            return self.noise * level.sigma
        if logsnr not in self.near:
            self.near[logsnr] = _solved(self.denoiser, self.noise, logsnr, 8)
        return self.near[logsnr] * level.scale

    def score(self, contestant: Contestant, budget: int) -> Score:
        """Errors relative to the exact ends; infinite where nothing finite comes out."""
        steps = next(n for n in range(budget, 0, -1) if contestant.calls(n) <= budget)
        network = Counted(self.denoiser)
        x = contestant.draw(network, self.start, steps)
        if network.calls > budget:
            raise RuntimeError(f"{contestant.name} made {network.calls} calls of {budget}")
        gaps, sizes = ((y.flatten(1).norm(dim=1)) for y in (x - self.exact, self.exact))
        errors = (float(gaps.norm() / sizes.norm()), float((gaps / sizes).median()))
        return Score(*(error if math.isfinite(error) else math.inf for error in errors))


@torch.no_grad()
def _solved(
    denoiser: Callable[[Tensor, Level], Estimate], noise: Tensor, logsnr: float, steps: int
) -> Tensor:
    """z / (alpha + sigma) at a log-SNR, from noise at zero SNR."""
    fine = Sampler(Uniform("u", end=logsnr), RungeKutta("rk4", "u"))
    return run(fine.plan(FlowMatching(), steps), Counted(denoiser), noise)


def _noise(count: int, *event: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *event, generator=generator, dtype=torch.float64)


def ring8(count: int = 256) -> Problem:
    """Eight narrow modes on a circle."""
    return Problem.of("ring8", ts.oracle.GaussianMixture.ring(8, std=0.1), _noise(count, 2), 500)


def spec64(count: int = 256) -> Problem:
    """Ten modes in 64 dimensions; spectra fall as i^-2, in axes of their own; sigma_data 0.4."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    spectrum = torch.arange(1, 65, dtype=torch.float64) ** -2
    spread = spectrum * (64 / spectrum.sum())  # of mean 1
    axes = torch.linalg.qr(draw(10, 64, 64)).Q
    means = draw(10, 64) * spread.sqrt()
    means = 0.4 * 0.7**0.5 * (means - means.mean(0))
    covariances = 0.4**2 * 0.3 * torch.einsum("kde,e,kfe->kdf", axes, spread, axes)
    mixture = ts.oracle.GaussianMixture(torch.full((10,), 0.1), means, covariances)
    return Problem.of("spec64", mixture, _noise(count, 64), 300)


def glyphs(count: int = 32) -> Problem:
    """A small convolutional network, trained here on letters with flow matching."""
    from twosides.data.named import task_named
    from twosides.training.run import train_task

    budget = {"steps": 1000, "minutes": 10, "seed": 0, "checkpoint_every": 250}
    denoiser = train_task(task_named("glyphs"), FOLDER, "flow-matching", **budget)
    labels = torch.arange(count) % 26

    def labelled(z: Tensor, level: Level) -> Estimate:
        return denoiser(z, level, class_labels=labels)

    return Problem.of("glyphs", labelled, _noise(count, 1, 16, 16), 100)


PROBLEMS: dict[str, Callable[[], Problem]] = {"ring8": ring8, "spec64": spec64, "glyphs": glyphs}

# ---------------------------------------------------------------------------- contestants


def ours() -> Iterator[Contestant]:
    """Every preset on its own grid, and on each of the standard ones."""
    for name in PRESETS:
        for title, grid in {"own": samplers[name].grid, **GRIDS}.items():
            yield _ours(name, title, replace(samplers[name], grid=grid))


def _ours(name: str, title: str, sampler: Sampler) -> Contestant:
    def draw(network: Network, start: Callable[[Level], Tensor], steps: int) -> Tensor:
        plan = sampler.plan(FlowMatching(), steps)
        first, last = plan.levels[0], plan.levels[-1]
        unit = start(first) / math.hypot(first.alpha, first.sigma)
        return run(plan, network, unit) / last.alpha

    def calls(steps: int) -> int:
        return sampler.plan(FlowMatching(), steps).nfe

    return Contestant("", OURS, name, title, calls, draw)


Scores = dict[Contestant, tuple[Score, ...]]  # one per budget


def measure(problem: Problem, contestants: list[Contestant], budgets: tuple[int, ...]) -> Scores:
    """Every contestant's scores."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {one: tuple(problem.score(one, budget) for budget in budgets) for one in contestants}


# ---------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Cell:
    """One problem at one number of calls: the best of each side, and our default."""

    problem: str
    calls: int
    errors: dict[Contestant, float]

    def best(self, family: str | None = None) -> tuple[Contestant, float]:
        """The smallest error of a family, by default of all but ours."""
        chosen = {
            one: error
            for one, error in self.errors.items()
            if (one.family == family if family else one.family != OURS)
        }
        return min(chosen.items(), key=lambda item: item[1])

    @property
    def default(self) -> float:
        """Our default's error."""
        return next(e for one, e in self.errors.items() if _is_default(one))


def _is_default(one: Contestant) -> bool:
    return (one.family, one.solver, one.schedule) == (OURS, DEFAULT, "own")


def cells(results: dict[str, Scores], budgets: tuple[int, ...], measure: str = "rms") -> list[Cell]:
    """Of all problems and budgets, by one of the measures."""
    return [
        Cell(name, budget, {one: getattr(row[index], measure) for one, row in scores.items()})
        for name, scores in results.items()
        for index, budget in enumerate(budgets)
    ]


def main_table(table: list[Cell]) -> list[str]:
    """Markdown: the best peer, our default, our best, and their ratios."""
    lines = [
        "| problem | calls | best peer | error | kab2c | ratio | best of ours | error | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in table:
        (peer, least), (own, mine) = cell.best(), cell.best(OURS)
        lines.append(
            f"| {cell.problem} | {cell.calls} | {peer.name} | {least:.2g} | {cell.default:.2g} | "
            f"{cell.default / least:.2f} | {own.name} | {mine:.2g} | {mine / least:.2f} |"
        )
    return lines


def counts(table: list[Cell]) -> list[str]:
    """In how many cells ours is at or below the best peer, and where it is not."""
    lines = []
    for title, error in (
        (f"{DEFAULT} on its own grid, no choice", lambda cell: cell.default),
        ("the best untuned preset and grid", lambda cell: cell.best(OURS)[1]),
    ):
        ratios = {f"{cell.problem} at {cell.calls}": error(cell) / cell.best()[1] for cell in table}
        worse = {name: ratio for name, ratio in ratios.items() if ratio > 1}
        count = (
            f"- {title}: at or below the best peer in {len(ratios) - len(worse)} of {len(ratios)}"
        )
        where = ", ".join(f"{name} ({ratio:.2f} x)" for name, ratio in worse.items())
        lines.append(f"{count}. Not in: {where}." if worse else f"{count}.")
    return lines


def fixed_choices(table: list[Cell], shown: int = 12) -> list[str]:
    """Markdown: samplers that never change, by the geometric mean of error / the cell's least."""
    least = [min(cell.errors.values()) for cell in table]
    means = {
        one: math.prod(cell.errors[one] / low for cell, low in zip(table, least, strict=True))
        ** (1 / len(table))
        for one in table[0].errors
    }
    ranked = sorted(means, key=lambda one: means[one])
    rows = [one for one in ranked if one.family != OURS][: shown // 2]
    rows += [one for one in ranked if one.family == OURS][: shown // 2]
    rows += [one for one in ranked if _is_default(one) and one not in rows]
    lines = ["| sampler and schedule, the same everywhere | mean | worst |", "| --- | --- | --- |"]
    for one in sorted(rows, key=lambda one: means[one]):
        worst = max(cell.errors[one] / low for cell, low in zip(table, least, strict=True))
        title = f"**{one.name}**" if one.family == OURS else one.name
        lines.append(f"| {title} | {means[one]:.2f} | {worst:.1f} |")
    return lines


def own_grids(table: list[Cell]) -> list[str]:
    """Markdown: every preset of ours on its own grid."""
    heads = [f"{cell.problem} {cell.calls}" for cell in table]
    lines = [f"| preset | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for name in PRESETS:
        row = [
            next(
                error
                for one, error in cell.errors.items()
                if (one.family, one.solver, one.schedule) == (OURS, name, "own")
            )
            for cell in table
        ]
        lines.append(f"| {name} | {' | '.join(f'{error:.2g}' for error in row)} |")
    return lines


# ---------------------------------------------------------------------------- the page


def parts(results: dict[str, Scores], budgets: tuple[int, ...]) -> dict[str, str]:
    """All tables, in Markdown."""
    rms, median = (cells(results, budgets, measure) for measure in Score._fields)
    tables = {
        "main": main_table(rms),
        "counts": counts(rms),
        "median": main_table(median),
        "median_counts": counts(median),
        "fixed": fixed_choices(rms),
        "own": own_grids(rms),
    }
    return {name: "\n".join(lines) for name, lines in tables.items()}


def libraries(contestants: list[Contestant]) -> str:
    """What took part, with versions."""
    tally = {name: sum(one.library == name for one in contestants) for name in _names(contestants)}
    versions = {"diffusers": f" {diffusers.__version__}", "azula": f" {_azula_version()}"}
    listed = [f"{name}{versions.get(name, '')} ({n})" for name, n in tally.items() if name]
    absent = "" if "azula" in tally else "; azula is not installed and did not take part"
    return f"{', '.join(listed)}, ours ({tally['']}){absent}"


def _names(contestants: list[Contestant]) -> list[str]:
    return list(dict.fromkeys(one.library for one in contestants))


def _azula_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("azula")
    except metadata.PackageNotFoundError:
        return ""


PAGE = """# Quality per network call

How far from the exact end of its trajectory each sampler lands, at equal numbers of network calls:
`|x - x_exact| / |x_exact|` over all samples, where `x_exact` is the end of the probability-flow ODE
from the same noise. Nothing here is tuned to the problems, and nothing is stochastic.

    python benchmarks/quality_per_nfe.py --out docs

makes this page, its numbers included; `--quick` is a part of it in under a minute.

![error against network calls](quality.png)

- *ring8*: eight Gaussians of width 0.1 on a circle of radius 1; exact denoiser.
- *spec64*: ten Gaussians in 64 dimensions with power-law spectra, standard deviation 0.4; exact.
- *glyphs*: a convolutional network trained on letters with flow matching by the benchmark itself;
  exact means many Runge-Kutta steps of the same network.

A peer is a solver on one of the schedules it is shipped with or usually given. The best peer of a
row is chosen with hindsight, out of all of them, for that row alone; so is the best of ours.
`kab2c` is one sampler on one grid in all rows, its own, which is equal steps in flow matching's
time, as for all our presets here. Calls are counted: samplers that make two or more per step take
the most steps that fit. Those that cannot start at infinite noise start on the exact trajectory at
their own first level (EDM's is 80, SD's 14.6, DDPM's 157), which spares them the way there.
"EDM", "SD" and "DDPM" in a schedule's name are the range of noise it covers. Took part, solvers
times schedules: {libraries}.

{main}

Ratios are errors over the best peer's: below 1 ours is better.

{counts}

Equal steps in flow matching's time suit data without structure far finer than their spread. Modes
as narrow as ring8's want steps that shrink towards the data: any preset walks the grid of another
with `Sampler(grid=...)`, or `--grid` on the command line.

## The typical sample

At few calls some trajectories end in another mode than the exact one, and a few such decide the
error above. The median over samples of `|x - x_exact| / |x_exact|` does not see them.

{median}

{median_counts}

## One choice for everything

What hindsight hides: nobody knows the best sampler of a row beforehand. Below, a sampler and its
schedule stay the same in all rows; *mean* is the geometric mean over the rows of the error over the
least error anyone reached there, *worst* the largest of these. The best six of the peers and of
ours (bold), and our default.

{fixed}

## Every preset on its own grid

{own}
"""


INK = ("#999999", "#56B4E9", "#CC79A7", "#009E73", "#E69F00")  # Okabe and Ito's


def picture(table: list[Cell], path: Path) -> None:
    """Error against calls: the best of each family of peers, and ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = list(dict.fromkeys(cell.problem for cell in table))
    figure = Figure(figsize=(3.6 * len(names), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        here = [cell for cell in table if cell.problem == name]
        calls = [cell.calls for cell in here]
        for family, colour, marker in zip(FAMILIES, INK, "vsDP^", strict=True):
            errors = [cell.best(family)[1] for cell in here]
            axes.plot(calls, errors, marker + "-", color=colour, lw=1.3, ms=5, label=family)
        best = [cell.best(OURS)[1] for cell in here]
        axes.plot(calls, best, "o--", color="black", lw=1.6, ms=5, mfc="white", label="ours, best")
        fixed = [cell.default for cell in here]
        axes.plot(
            calls, fixed, "o-", color="#D55E00", lw=2.4, ms=6, label=f"ours, {DEFAULT} always"
        )
        axes.set(title=name, xscale="log", yscale="log", xlabel="network calls", xticks=calls)
        axes.set_xticklabels([str(count) for count in calls])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, which="both", lw=0.5)
    panels[0].set_ylabel("relative error to the exact end")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def write(
    results: dict[str, Scores],
    budgets: tuple[int, ...],
    contestants: list[Contestant],
    out: Path | None,
) -> None:
    """The tables to the screen, or the page and the picture into a folder too."""
    tables = parts(results, budgets)
    print("\n\n".join(tables.values()))
    if out:
        text = PAGE.format(libraries=libraries(contestants), **tables)
        (out / "quality.md").write_text(text, encoding="utf-8")
        picture(cells(results, budgets), out / "quality.png")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="ring8 only, few samples, 5 and 10")
    parser.add_argument("--problem", choices=PROBLEMS, help="one problem instead of all")
    parser.add_argument("--out", type=Path, help="folder for quality.md and quality.png")
    asked: Any = parser.parse_args(arguments)
    names = [asked.problem] if asked.problem else list(PROBLEMS)
    makers = {"ring8": partial(ring8, 64)} if asked.quick else {n: PROBLEMS[n] for n in names}
    budgets = (5, 10) if asked.quick else BUDGETS
    contestants = [*peers(), *ours()]
    print(f"solvers times schedules: {libraries(contestants)}", flush=True)
    results: dict[str, Scores] = {}
    for name, make in makers.items():
        print(f"measuring {name}", flush=True)
        results[name] = measure(make(), contestants, budgets)
    write(results, budgets, contestants, asked.out)


if __name__ == "__main__":
    main()
