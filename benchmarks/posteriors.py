"""How right conditioned samples are: each method and particles against exact posteriors.

    python benchmarks/posteriors.py --write            # the tables of docs/posteriors.md
    PYTHONPATH=where/azula/is python benchmarks/posteriors.py --write

The problems are those of tests/helpers/priors.py: mixtures with a linear measurement, whose
posteriors are mixtures. SW2 is the sliced Wasserstein distance to exact samples in posterior
standard deviations; mean and cov are the errors of the moments, relative; masses is half the L1
distance of the components' masses from the true ones, in [0, 1]. The floor is one set of exact
samples against another. azula's classes take part where azula can be imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import twosides as ts
from twosides.display.progress import bar
from twosides.metrics.distances import sliced_wasserstein
from twosides.posteriors.posterior import published_strength

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from priors import masses, problem  # noqa: E402

COUNT, PARTICLES, STEPS = 500, 1000, 50
PROBLEMS = (("mix8", 0.3), ("mix8", 0.05), ("mix64", 0.3), ("ring", 0.3), ("lattice25", 0.1))
FLOAT64 = torch.float64
EXACT = {"trust": -math.inf, "tolerance": 1e-6}


def rows(name: str, noise: float) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
    """(method, sampler, a function that draws) of a problem."""
    prior, seen, truth, _ = problem(name, noise)
    shape, full = (COUNT, len(prior.mean)), prior.covariance
    variance = float(full.trace()) / len(prior.mean)

    def draw(denoiser: Any, sampler: str, steps: int = STEPS) -> Callable[[], Tensor]:
        return lambda: ts.sample(
            denoiser, shape, sampler=sampler, steps=steps, seed=3, dtype=FLOAT64
        )

    def swarm(proposal: Any) -> Callable[[], Tensor]:
        def particles() -> Tensor:
            drawn = ts.steer(
                prior, (1, *shape[1:]), seen, particles=PARTICLES, proposal=proposal, seed=3,
                sampler="ddpm", steps=STEPS,
            )  # fmt: skip
            generator = torch.Generator().manual_seed(0)
            pick = torch.multinomial(drawn.weights[0], COUNT, True, generator=generator)
            return drawn.particles[0][pick]

        return particles

    def given(method: str, **told: Any) -> Any:
        return ts.posterior(prior, seen, method, **{"covariance": variance, **EXACT, **told})

    zeta = published_strength(ts.plan("ddpm", prior.schedule, STEPS), 0.3)
    yield "floor", "", lambda: truth.sample(COUNT, seed=2)
    for sampler in ("kab2c", "ddpm"):
        yield "exact", sampler, draw(truth, sampler)
        yield "mmps", sampler, draw(given("mmps"), sampler)
        yield "pigdm", sampler, draw(given("pigdm"), sampler)
        yield "gaussian", sampler, draw(given("gaussian", covariance=full), sampler)
        yield "diffpir", sampler, draw(given("diffpir"), sampler)
    yield "dps, zeta 0.3", "ddpm", draw(given("dps", strength=zeta), "ddpm")
    yield f"{PARTICLES} particles", "ddpm", swarm(None)
    yield f"{PARTICLES} particles, mmps", "ddpm", swarm(given("mmps"))
    if importlib.util.find_spec("azula") is not None:
        yield from azula_rows(prior, seen, shape)


def azula_rows(
    prior: Any, seen: Any, shape: tuple[int, ...]
) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
    """azula's own classes around the same prior, by its own samplers and schedule."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import RectifiedSchedule
    from azula.sample import DDIMSampler, DDPMSampler

    from twosides.schedules import Level

    class Exact(Denoiser):
        schedule = RectifiedSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = (value.double().flatten()[0] for value in self.schedule(t))
            level = Level(2 * (alpha / sigma).log(), alpha, sigma).floats()
            return DiracPosterior(mean=prior(x_t, level).x)

    exact = Exact()
    covariance = IsotropicCovariance(float(seen.noise) ** 2)
    cg = {"solver": "cg", "iterations": seen.value.shape[1] + 1}
    ways = {
        "azula MMPS": lambda: MMPSDenoiser(exact, seen.value, seen.operator, covariance),
        "azula MMPS, CG": lambda: MMPSDenoiser(exact, seen.value, seen.operator, covariance, **cg),
        "azula DiffPIR, CG": lambda: DiffPIRDenoiser(
            exact, seen.value, seen.operator, float(seen.noise) ** 2, 1.0, **cg
        ),
    }
    for name, make in ways.items():
        for label, sampler in (("ddim", DDIMSampler), ("ddpm", DDPMSampler)):

            def run(make: Any = make, sampler: Any = sampler) -> Tensor:
                with torch.random.fork_rng():
                    torch.manual_seed(3)
                    run = sampler(make(), steps=STEPS, silent=True, dtype=FLOAT64)
                    return run(run.init(shape).double()).detach()

            yield name, label, run


def line(x: Tensor, name: str, noise: float) -> list[str]:
    """The four numbers of a set of samples."""
    _, _, truth, _ = problem(name, noise)
    x = x.double()
    if not bool(x.isfinite().all()):
        return ["not finite"] * 4
    std = float((truth.covariance.trace() / len(truth.mean)).sqrt())
    reference = truth.sample(COUNT, seed=1)
    far = sliced_wasserstein(x, reference) / std
    mean = float((x.mean(0) - truth.mean).norm() / truth.covariance.trace().sqrt())
    cov = float((torch.cov(x.T) - truth.covariance).norm() / truth.covariance.norm())
    return [f"{far:.2f}", f"{mean:.2f}", f"{cov:.2f}", f"{masses(x, truth):.3f}"]


def tables() -> str:
    """All problems as Markdown."""
    made, began = list[str](), time.process_time()
    with bar("problems", len(PROBLEMS)) as tell:
        for number, (name, noise) in enumerate(PROBLEMS, 1):
            made += [
                f"**{name}, noise {noise:g}**\n",
                "| method | sampler | SW2 | mean | cov | masses |",
            ]
            made += ["|---|---|---|---|---|---|"]
            for method, sampler, draw in rows(name, noise):
                cells = [method, sampler, *line(draw(), name, noise)]
                made.append(f"| {' | '.join(cells)} |")
                print(made[-1], file=sys.stderr, flush=True)
            made.append("")
            tell(number, len(PROBLEMS))
    seconds = time.process_time() - began
    made.append(
        f"{COUNT} samples for each row, {STEPS} steps; {seconds:.0f} s of one core for all of it."
    )
    return "\n".join(made) + "\n"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into docs/posteriors.md")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    text = tables()
    if not write:
        print(text)
        return
    page = ROOT / "docs" / "posteriors.md"
    start, end = "<!-- tables -->\n", "<!-- end of tables -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    page.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
