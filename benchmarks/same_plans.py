"""Whether two revisions of this library compute the same tables: samplers, grids and recipes.

Every preset and family, as corrected and as published, is written as its plan on six schedules with
1, 3, 8 and 20 steps; every grid as its log-SNRs; every recipe as its log weighting and log density.
What differs by more than 1e-12 (relative to 1 + the size, for log-SNRs and logarithms) is printed.
A change that claims to move code only shows "nothing differs".

    python benchmarks/same_plans.py main                  # main against the working tree
    python benchmarks/same_plans.py v0.1 main
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-12
Tables = dict[tuple[str, ...], Any]


def written() -> Tables:
    """The tables of the library that this process imports; a refusal stands as its message."""
    import torch

    import twosides as ts

    def attempt(compute: Any) -> Any:
        try:
            return compute()
        except ValueError as error:
            return str(error)

    schedules = {
        "flow-matching": ts.FlowMatching(),
        "cosine": ts.Cosine(),
        "cosine(-15, 15)": ts.Cosine(-15, 15),
        "scaled-linear": ts.ScaledLinear(),
        "edm": ts.EDM(),
        "vp-linear": ts.VPLinear(),
    }
    found: Tables = {}
    families = ("kab2(0.5, 3)", "kab2c(2)", "ddim(0.5)", "churn(0.6)", "ddpm(1.7)", "edm(5)")
    corrected = [name for name in ts.samplers if not name.endswith("-published")]
    for name in (*corrected, *families):
        for published in (False, True):
            for schedule, instance in schedules.items():
                for steps in (1, 3, 8, 20):
                    key = ("sampler", f"{name}-published" if published else name, schedule)
                    found[*key, str(steps)] = attempt(
                        lambda: _plan(ts, name, published, instance, steps)  # noqa: B023
                    )
    for name, grid in _grids(ts).items():
        for schedule, instance in schedules.items():
            for steps in (1, 2, 7, 20):
                found["grid", name, schedule, str(steps)] = attempt(
                    lambda: (grid.logsnrs(instance, steps).numpy(),)  # noqa: B023
                )
    at = torch.linspace(-15, 15, 121, dtype=torch.float64)
    for name, recipe in ts.recipes.items():
        objective = recipe.objective()
        objective = getattr(objective, "then", objective)
        curves = {"weighting": objective.weighting.log, "density": objective.density.log_prob}
        for part, curve in curves.items():
            found["recipe", name, part] = attempt(lambda: (curve(at).numpy(),))  # noqa: B023
    return found


def _plan(ts: Any, name: str, published: bool, schedule: Any, steps: int) -> tuple[Any, ...]:
    if not published:
        plan = ts.plan(name, schedule, steps)
    elif "compat" in inspect.signature(ts.plan).parameters:  # in revisions that have this option
        plan = ts.plan(name, schedule, steps, compat="published")
    else:
        preset, bracket, numbers = name.partition("(")
        other = "-published" if ts.samplers[preset].published else ""
        plan = ts.plan(preset + other + bracket + numbers, schedule, steps)
    return plan.logsnr, plan.alpha, plan.sigma, plan.x, plan.eps, plan.noise


def _grids(ts: Any) -> dict[str, Any]:
    g = ts.grids
    shifted = getattr(g, "ShiftedGrid", None) or g.Shifted
    own = {
        "karras(5)": g.Karras(5, 0.01, 20.0),
        "exponential(2)": g.Exponential(0.01, 20.0, 2.0),
        "arctan(2)": g.Arctan(2.0),
        "arctan(0.5) inside": g.Arctan(0.5, -6.0, 7.0),
        "beta in r": g.Beta(0.6, 0.6, "eps", -6.0, 6.0),
        "beta(1, 2) in u": g.Beta(1.0, 2.0, "u"),
        "quantiles": g.Quantiles((-2, 0, 2), (1, 3, 1), start=-2, end=2),
        "entropic": g.Entropic((-3.0, 0.0, 4.0), (1.0, 0.5, 0.1)),
        "then data": g.ThenData(g.UniformLogSNR(-6, 6)),
        "shifted": shifted(g.UniformTime(), 3.0),
        "kappa(0.5)": g.Uniform("kappa(0.5)"),
        "angle inside": g.Uniform("angle", -8.0, 8.0),
        "logsnr inside": g.UniformLogSNR(-6, 6),
    }
    return {name: grid for name, grid in {**g.GRIDS, **own}.items() if name != "restart"}


def differences(before: Tables, after: Tables) -> dict[tuple[str, str], tuple[int, float]]:
    """(kind, name) -> in how many tables, and by how much at most; infinite for another shape."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for key in before.keys() | after.keys():
        gap = _gap(before.get(key), after.get(key))
        if not gap <= TOLERANCE:
            count, worst = found.get((key[0], key[1]), (0, 0.0))
            found[key[0], key[1]] = count + 1, max(worst, gap)
    return dict(sorted(found.items()))


def _gap(before: Any, after: Any) -> float:
    if isinstance(before, str) and isinstance(after, str):
        return 0.0  # both refuse; words may change
    if isinstance(before, str | None) or isinstance(after, str | None):
        return math.inf
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return math.inf
    with np.errstate(invalid="ignore"):
        gaps = [
            np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b) / (1 + np.abs(a)))
            for a, b in zip(before, after, strict=True)
        ]
    return max(float(gap.max(initial=0.0)) for gap in gaps)


def tables_of(revision: str | None, folder: Path) -> Tables:
    """The tables of a revision, or of the working tree, computed by a process of its own."""
    root = Path(__file__).resolve().parents[1]
    if revision is not None:
        archive = subprocess.run(
            ["git", "archive", revision, "src"], cwd=root, check=True, capture_output=True
        )
        root = folder / "tree"
        root.mkdir()
        subprocess.run(["tar", "-x", "-C", str(root)], input=archive.stdout, check=True)
    out = folder / "tables"
    subprocess.run(
        [sys.executable, "-P", __file__, "--write", str(out)],
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        check=True,
    )
    return pickle.loads(out.read_bytes())  # written by the process above


def main() -> None:
    """Compare two revisions, or one with the working tree; exit status 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", nargs="?", default="HEAD")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        Path(options.write).write_bytes(pickle.dumps(written()))
        return
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        before = tables_of(options.before, Path(one))
        after = tables_of(options.after, Path(two))
    found = differences(before, after)
    print(
        f"{len(before)} tables of {options.before}, {len(after)} of {options.after or 'the tree'}"
    )
    for (kind, name), (count, worst) in found.items():
        print(f"{kind} {name}: {count} tables differ, by at most {worst:.3g}")
    if found:
        sys.exit(1)
    print("nothing differs")


if __name__ == "__main__":
    main()
