"""Ten recipes, one network, one data set: trained alike, then side by side on one page.

    python benchmarks/ten_recipes.py                           letters; about 15 minutes on one core
    python benchmarks/ten_recipes.py --data ring --steps 100   points of the plane, half a minute

A run that is there already is not trained again. The page is `report.html` in the folder, which
`twosides report` makes of any runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from twosides.data.named import task_named
from twosides.generation.request import Request
from twosides.reports.side_by_side import report
from twosides.training.run import train_task

# Five outputs, five schedules; the second is equal to the first, the others differ.
TEN = (
    *("flow-matching", "v-cosine", "iddpm", "edm", "sd3"),
    *("min-snr", "vdm++", "p2", "debiased", "indi"),
)


def train(data: str, out: Path, **settings: Any) -> list[Path]:
    """The folders of ten runs that differ in the recipe alone."""
    task = task_named(data)
    folders = [out / name for name in TEN]
    for name, folder in zip(TEN, folders, strict=True):
        print(f"training by {name}", flush=True)
        train_task(task, folder, name, **settings)
    return folders


def main(arguments: list[str] | None = None) -> None:
    """Train, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="glyphs", help="what to train on")
    parser.add_argument("--out", type=Path, default=Path("runs/ten-recipes"), help="a folder")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--count", type=int, default=520, help="samples that are measured")
    asked: Any = parser.parse_args(arguments)
    folders = train(asked.data, asked.out, steps=asked.steps, batch=asked.batch)
    report(folders, asked.out / "report.html", Request(count=asked.count), data=asked.data)
    print(asked.out / "report.html")


if __name__ == "__main__":
    main()
